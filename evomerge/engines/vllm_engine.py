"""vLLM in the worker's own process: continuous batching and paged caches for one live model.

Weights are replaced through its public `reload_weights`, from a stream, tensor by tensor: there is
no second copy of the model. A model that several GPUs hold together is merged in each, see
`vllm_rank`.
"""

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from evomerge.engines import ENGINES, Engine, EngineOptions
from evomerge.engines.vllm_rank import VllmRank, with_ties
from evomerge.errors import BadInput, CandidateFailure, Fault, one_line
from evomerge.merging.merger import Merger
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.fitness import AskedSection
from evomerge.scoring.lm_eval_vllm import VllmLM
from evomerge.sources.model_class import empty_model
from evomerge.sources.source import Source

# What vLLM reads of the environment while it starts: one process, its own log silent.
_SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}

# Stop strings may be special tokens' texts.
_SEEN = {"skip_special_tokens": False, "spaces_between_special_tokens": False}

_CPU_CACHE_GIB = 2  # of keys and values, where there is no GPU


class VllmEngine(Engine):
    """A model in vLLM, whose weights are replaced before every candidate.

    >>> VllmEngine.needs
    'vllm'
    """

    name = "vllm"
    needs = "vllm"

    def __init__(self, llm: Any, frame: Any, ties: dict[str, list[str]], options: EngineOptions):
        """
        Args:
            llm: a `vllm.LLM`.
            frame: transformers' model of the same config, without weights.
            ties: name of a tensor -> the names that take it as well, each of its own memory here.
            options: by which it was made.
        """
        self.model, self.direct = None, {}
        self._llm, self._ties, self._frame, self._options = llm, ties, frame, options
        self._ranks_merge: Merger | None = None  # whose sources the ranks have opened
        self.tokenizer = llm.get_tokenizer()
        self._language_model: VllmLM | None = None

    @classmethod
    def open(cls, source: Source, options: EngineOptions) -> "VllmEngine":
        ties = _ties(source, options.trust_remote_code)
        llm = started(
            source,
            options,
            load_format="dummy",  # weights come by `load`
            # A head that shares its tensor was not refreshed by some builds: it gets one.
            hf_overrides={"tie_word_embeddings": False} if ties else None,
            tensor_parallel_size=options.gpus,
            worker_extension_cls=f"{VllmRank.__module__}.{VllmRank.__name__}",
        )
        frame = empty_model(source.config, source.path, options.trust_remote_code)
        return cls(llm, frame, ties, options)

    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": with_ties(stream, self._ties)}
        )
        self._llm.reset_prefix_cache()  # of the weights before

    def become(self, merger: Merger, recipe: Recipe) -> dict[str, np.ndarray]:
        if self._options.gpus == 1:
            return super().become(merger, recipe)
        if self._ranks_merge is not merger:
            device, kept = self._options.device, self._options.sources_bytes
            opened = (merger.sources, merger.hashes, device, kept, self._ties)
            self._llm.collective_rpc("open_sources", args=opened)
            self._ranks_merge = merger
        digests, *_ = self._llm.collective_rpc("become", args=(recipe,))
        self._llm.reset_prefix_cache()
        if isinstance(digests, str):
            raise CandidateFailure(digests)
        return dict(digests)

    def language_model(self, section: AskedSection) -> Any:
        if self._language_model is None:
            longest = self._llm.llm_engine.model_config.max_model_len
            self._language_model = VllmLM(self._ask, self._frame, self.tokenizer, longest)
        return self._language_model

    def _ask(
        self, prompts: Sequence[Sequence[int]], options: Sequence[dict[str, Any]]
    ) -> list[Any]:
        """Return the tokens of each prompt's answer, or its own tokens' log-likelihoods."""
        return self._generated(prompts, options)

    def _generated(
        self,
        prompts: Sequence[Sequence[int]],
        options: Sequence[dict[str, Any]],
        adapters: Sequence[Any] | None = None,
    ) -> list[Any]:
        """See `_ask`; `adapters` has vLLM's request of one for each prompt."""
        from vllm import SamplingParams, TokensPrompt

        known = {id(some): SamplingParams(**_SEEN, **some) for some in options}
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            [known[id(some)] for some in options],
            lora_request=adapters,
            use_tqdm=False,
        )
        if options and options[0].get("prompt_logprobs") is not None:
            return [output.prompt_logprobs for output in outputs]
        return [output.outputs[0].token_ids for output in outputs]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()


def started(source: Source, options: EngineOptions, **settings: Any) -> Any:
    """Return a `vllm.LLM` in this process for models with the architecture of `source`.

    Args:
        source, options: see `Engine.open`.
        settings: arguments of `vllm.LLM` beside those that every engine here has.

    Raises:
        BadInput: vLLM is not there, or does not take the model.

    >>> started(None, EngineOptions("float32"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: engine: vLLM cannot be used here: ...
    """
    try:
        from vllm import LLM
    except ImportError as error:
        wrong = f"vLLM cannot be used here: {one_line(error)}"
        raise BadInput(Fault("engine", wrong, 'pip install "evomerge[vllm]"')) from None

    is_on_cpu = options.device == "cpu"
    variables = dict(_SETTINGS)
    if is_on_cpu:
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(_CPU_CACHE_GIB)
    with _environment(variables), _threads_kept():
        try:
            return LLM(
                model=str(source.path),
                dtype=options.dtype,
                trust_remote_code=options.trust_remote_code,
                enforce_eager=is_on_cpu,  # compiling costs more than it brings there
                gpu_memory_utilization=options.memory,
                seed=0,
                disable_log_stats=True,
                **settings,
            )
        except (ValueError, NotImplementedError) as error:
            wrong = f"vLLM does not take {source.path}: {one_line(error)}"
            mend = "write workers.engine: transformers"
            raise BadInput(Fault("engine", wrong, mend)) from error


def _ties(source: Source, trust_remote_code: bool) -> dict[str, list[str]]:
    """Return which tensors of a checkpoint other names of the model take as well."""
    if not source.config.get("tie_word_embeddings"):
        return {}
    model = empty_model(source.config, source.path, trust_remote_code)
    tied = model._tied_weights_keys
    ties: dict[str, list[str]] = {}
    for other, name in (tied if isinstance(tied, dict) else {}).items():
        if name in source.tensors and other not in source.tensors:
            ties.setdefault(name, []).append(other)
    return ties


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """Put back torch's own `set_num_threads`, in whose place vLLM for processors puts nothing."""
    plain = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = plain


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables while something starts that reads them; the user's own come first."""
    missing = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


ENGINES.add("vllm", VllmEngine)
