"""vLLM with the base loaded once, and candidates as LoRA adapters beside it.

Where all sources are adapters of one base and the merge is a weighted sum of them, a candidate is
an adapter too (`merging.joined_adapter`). vLLM computes with its factors at run time: no weight is
merged, and prompts of several candidates are in one running batch. What is rounded is another
number than in a merged weight.
"""

import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.engines import ENGINES, EngineOptions
from evomerge.engines.asking_ahead import AskingAhead
from evomerge.engines.vllm_engine import VllmEngine, started
from evomerge.errors import BadInput, CandidateFailure
from evomerge.merging.joined_adapter import JoinedAdapter, empty_adapter, join_adapters
from evomerge.merging.merger import Merger
from evomerge.recipes.recipe import Recipe
from evomerge.sources.model_class import empty_model
from evomerge.sources.source import Source

# What vLLM takes as max_lora_rank (`vllm.config.lora.MaxLoRARanks`).
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

_MEMORY_FOLDER = "/dev/shm"  # where Linux keeps files in memory; vLLM reads adapters from files


class VllmLoraEngine(VllmEngine):
    """A base in vLLM, and one candidate or several beside it.

    >>> VllmLoraEngine.serves_adapters
    True
    """

    name = "vllm-lora"
    needs = "vllm"
    serves_adapters = True

    def __init__(self, llm: Any, frame: Any, options: EngineOptions, zeros: JoinedAdapter):
        """
        Args:
            llm: a `vllm.LLM` that takes so many adapters.
            frame: transformers' model of the same config, without weights.
            options: by which it was made; they say how many candidates it holds at once.
            zeros: what serves the base as it is: beside prompts with an adapter, vLLM for
                processors answers one without by the adapter that it holds last.
        """
        super().__init__(llm, frame, {}, options)
        self._zeros = zeros
        self._numbers = itertools.count(1)
        self._joined: list[tuple[Recipe, JoinedAdapter]] = []  # of what it is to become
        self._held: dict[str, Any] = {}  # checksum of the factors -> vLLM's request of them
        self._asking: AskingAhead[Any] = AskingAhead(self._generated)

    @classmethod
    def open(cls, source: Source, options: EngineOptions) -> "VllmLoraEngine":
        llm = started(
            source,
            options,
            enable_lora=True,
            max_loras=options.candidates,
            max_lora_rank=next(rank for rank in _RANKS if rank >= _rank(options.sources)),
            # the head is not among them: vLLM reads no prompts' likelihoods beside an adapted one
            lora_target_modules=_modules(options.sources),
        )
        frame = empty_model(source.config, source.path, options.trust_remote_code)
        return cls(llm, frame, options, empty_adapter(source, options.sources))

    @classmethod
    def unfit(cls, sources: Sequence[Source]) -> Iterable[str]:
        if _rank(sources) > _RANKS[-1]:
            wrong = f"the adapters' ranks sum to {_rank(sources)} in one weight"
            yield f"{wrong}, and vLLM takes {_RANKS[-1]} at most"
        if "lm_head" in _modules(sources):
            # https://github.com/vllm-project/vllm/issues/51594
            yield "an adapter changes the head, which vLLM leaves out where it reads prompts"

    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        raise CandidateFailure(f"the engine {self.name} takes adapters, and no weights")

    def expect(self, merger: Merger, recipes: Sequence[Recipe]) -> None:
        self._joined = []
        for recipe in recipes[: self._options.candidates]:
            try:
                self._joined.append((recipe, join_adapters(merger, recipe)))
            except (BadInput, CandidateFailure):
                continue  # which is told when it is its turn
        self._hold([adapter for _, adapter in self._joined])
        self._asking.expect(list(self._held.values()))

    def become(self, merger: Merger, recipe: Recipe) -> dict[str, np.ndarray]:
        """See `Engine.become`; there are no weights to digest, but the factors' `checksum`."""
        known = [adapter for one, adapter in self._joined if one is recipe]
        try:
            adapter = known[0] if known else join_adapters(merger, recipe)
        except BadInput as error:
            raise CandidateFailure(str(error)) from None
        self.checksum = adapter.checksum()
        if self.checksum not in self._held:
            self._hold([adapter])
            self._asking.expect([])
        self._asking.become(self._held[self.checksum])
        return {}

    def _hold(self, adapters: Sequence[JoinedAdapter]) -> None:
        """Give adapters to vLLM, in the place of those before."""
        from vllm.lora.request import LoRARequest

        self._held = {}
        in_memory = _MEMORY_FOLDER if os.access(_MEMORY_FOLDER, os.W_OK) else None
        for adapter in adapters:
            number = next(self._numbers)
            stored = adapter if adapter.factors else self._zeros
            with tempfile.TemporaryDirectory(prefix="evomerge-", dir=in_memory) as folder:
                stored.save(Path(folder), str(adapter.base.path))
                # a name of its own, by which vLLM's cache of prefixes tells adapters apart
                request = LoRARequest(f"candidate {number}", number, folder)
                self._llm.llm_engine.add_lora(request)  # read at once, and never again
            self._held[adapter.checksum()] = request

    def _ask(
        self, prompts: Sequence[Sequence[int]], options: Sequence[dict[str, Any]]
    ) -> list[Any]:
        return self._asking.ask(prompts, options)


def _rank(sources: Sequence[Source]) -> int:
    """Return the largest rank that a sum of all adapters has in one weight; 1 of none."""
    ranks: dict[str, int] = {}
    for source in sources:
        for name, pair in source.adapter.factors.items() if source.adapter else ():
            ranks[name] = ranks.get(name, 0) + pair.a.shape[0]
    return max(ranks.values(), default=1)


def _modules(sources: Sequence[Source]) -> list[str]:
    """Return the last names of the modules that adapters change."""
    names = set()
    for source in sources:
        for pair in source.adapter.factors.values() if source.adapter else ():
            names.add(pair.module.rpartition(".")[2])
    return sorted(names)


ENGINES.add("vllm-lora", VllmLoraEngine)
