"""The one model that lives on a worker's device: its weights are overwritten in place."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from evomerge.errors import BadInput, CandidateFailure, Fault
from evomerge.kernels.backends import Kernels
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.merge_plan import MergePlan, Operands, WeightedSums
from evomerge.merging.live import Live as Live
from evomerge.merging.live_images import LiveDiffusers, LiveFile, LivePipeline
from evomerge.merging.live_sentence import LiveSentence, without_modules
from evomerge.merging.source_weights import read_stored
from evomerge.merging.spread import spread
from evomerge.sources.factory import build
from evomerge.sources.model_class import class_of
from evomerge.sources.source import Source
from evomerge.sources.transformers_loading import (
    Conversion,
    conversions,
    converted,
    initialize_rest,
    kept_in_float32,
    optional_patterns,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_live_model(
    source: Source,
    dtype: str,
    device: str = "cpu",
    trust_remote_code: bool = False,
    gpus: int = 1,
) -> Live:
    """Return a live model with the architecture of `source`.

    Args:
        source, dtype, device, trust_remote_code, gpus: see `LiveModel`.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     live = open_live_model(open_source(str(tiny_llama(folder, 0))), "float32")
    >>> live.direct["model.norm.weight"].shape
    torch.Size([16])
    """
    if source.factory is not None:
        return LiveModule(source, dtype, device)
    match source.form:
        case "diffusers":
            return LiveDiffusers(source, dtype, device)
        case "pipeline":
            return LivePipeline(
                source,
                dtype,
                device,
                lambda part: open_live_model(part, dtype, device, trust_remote_code),
            )
        case "file":
            return LiveFile(source, dtype, device)
        case "sentence":
            inner = LiveModel(without_modules(source), dtype, device, trust_remote_code)
            return LiveSentence(inner, source, dtype, device)
    return LiveModel(source, dtype, device, trust_remote_code, gpus)


class LiveModule:
    """A module that a factory made, as a live model without a tokenizer; see `Live`.

    That the source's tensors are the module's was checked when it was opened.

    >>> LiveModule.tokenizer is None
    True
    """

    tokenizer: "PreTrainedTokenizerBase | None" = None

    def __init__(self, source: Source, dtype: str, device: str = "cpu"):
        """
        Args:
            source: with a factory.
            dtype: of the parameters, as recipes write it.
            device: e.g. "cpu" or "cuda".
        """
        assert source.factory is not None, "a module needs a factory"
        module = build(source.factory)
        self.model = module.to(device, getattr(torch, dtype)).eval().requires_grad_(False)
        self._state = dict(self.model.state_dict())
        self.direct = {name: t for name, t in self._state.items() if t.is_contiguous()}

    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `Live.load`."""
        for name, tensor in stream:
            self._state[name].copy_(tensor)


class LiveModel:
    """A transformers model with the architecture of `source`, to be filled again and again.

    Attributes:
        model, tokenizer, direct: see `Live`.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     live = LiveModel(open_source(str(tiny_llama(folder, 0))), "float32")
    >>> live.load([("model.norm.weight", torch.zeros(16))])
    >>> live.model.model.norm.weight.sum()
    tensor(0.)
    """

    def __init__(
        self,
        source: Source,
        dtype: str,
        device: str = "cpu",
        trust_remote_code: bool = False,
        gpus: int = 1,
    ):
        """
        Args:
            source: gives config.json, the tokenizer and the names of the checkpoint's tensors.
            dtype: of the parameters, as recipes write it.
            device: e.g. "cpu" or "cuda".
            trust_remote_code: run modelling code that comes with the source.
            gpus: over which its layers are spread, instead of `device`.

        Raises:
            BadInput: the checkpoint's tensors do not cover the model's parameters.
        """
        from transformers import AutoTokenizer, GenerationConfig

        class_, config = class_of(source.config, source.path, trust_remote_code)
        # As `from_pretrained` does: made without memory, so that nothing is drawn at random.
        with torch.device("meta"):
            self.model: PreTrainedModel = class_._from_config(config, dtype=getattr(torch, dtype))
        if gpus > 1:
            one = device == "cpu"  # of which there is one
            spread(self.model, [device if one else f"cuda:{n}" for n in range(gpus)])
        else:
            self.model.to_empty(device=device)
            self.model.tie_weights()  # what shared one tensor got one each
        for tensor in kept_in_float32(self.model):
            tensor.data = tensor.data.float()
        self.model.eval().requires_grad_(False)
        if (source.path / "generation_config.json").is_file():
            self.model.generation_config = GenerationConfig.from_pretrained(source.path)
        try:
            self.tokenizer: PreTrainedTokenizerBase | None = AutoTokenizer.from_pretrained(
                source.path, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError):
            self.tokenizer = None
        self.model.name_or_path = str(source.path)
        self._targets: dict[str, torch.Tensor] = {
            **dict(self.model.named_parameters(remove_duplicate=False)),
            **dict(self.model.named_buffers(remove_duplicate=False)),
        }
        carried = conversions(self.model, source.carried)
        every = conversions(self.model, source.tensors)
        self._conversions = self._known(every, carried, source)
        known = [*carried.values(), *self._conversions.values()]
        initialize_rest(self.model, [self._targets[c.target] for c in known])
        for name, conversion in carried.items():
            self._targets[conversion.target].copy_(read_stored(source.carried[name]))
        self._needed: dict[str, int] = {}  # how many tensors of the checkpoint make one
        for conversion in self._conversions.values():
            self._needed[conversion.target] = self._needed.get(conversion.target, 0) + 1
        self.direct: dict[str, torch.Tensor] = {}
        taken = set()  # where two names share one tensor, the last one wins, by `load`
        for name, conversion in self._conversions.items():
            live = self._targets[conversion.target]
            fits = live.shape == source.tensors[name].shape and live.is_contiguous()
            # a merge is made on one GPU, and what lies on others is copied there by `load`
            fits = fits and gpus == 1
            if conversion.converter is None and fits and live.data_ptr() not in taken:
                self.direct[name] = live
                taken.add(live.data_ptr())

    @torch.no_grad()
    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `Live.load`."""
        waiting: dict[str, list[tuple[str, Conversion, torch.Tensor]]] = {}
        for name, tensor in stream:
            if name not in self._conversions:
                continue  # a buffer that the model computes itself
            conversion = self._conversions[name]
            target = conversion.target
            if conversion.converter is None:
                self._targets[target].copy_(tensor)
                continue
            # Stacked tensors wait for one another, and for no longer.
            parts = waiting.setdefault(target, [])
            parts.append((name, conversion, tensor))
            if len(parts) == self._needed[target]:
                for live, value in converted(self.model, waiting.pop(target)).items():
                    self._targets[live].copy_(value)

    def _known(
        self, every: dict[str, Conversion], carried: dict[str, Conversion], source: Source
    ) -> dict[str, Conversion]:
        """Return the conversions to tensors that the model has.

        Raises:
            BadInput: the checkpoint has others, or lacks some. An opened source has been asked
                the same of an empty model, but recipes may make new layers of it.
        """
        known = {name: c for name, c in every.items() if c.target in self._targets}
        strange = [name for name in every if name not in known]
        # Tied parameters have two names and one memory; what is split fills more than its target.
        filling = [*known.values(), *carried.values()]
        filled = {self._targets[c.target].data_ptr() for c in filling}
        missing = [name for name, p in self.model.named_parameters() if p.data_ptr() not in filled]
        optional = optional_patterns(self.model)
        missing = [n for n in missing if not any(re.search(pattern, n) for pattern in optional)]
        if any(c.splits for c in known.values()):
            missing = []
        if strange or missing:
            what = f"tensor {strange[0]} has no place" if strange else f"{missing[0]} is missing"
            wrong = f"{source.path} does not fill a {type(self.model).__name__}: {what}"
            raise BadInput(Fault("", wrong, "save it again with save_pretrained"))
        return known


class FlatWeights:
    """Puts flattened float32 weights into a live model, and digests them on the way.

    >>> import tempfile
    >>> from evomerge.merging.source_weights import flattened
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(folder, 0)))
    ...     flat = FlatWeights(LiveModel(source, "float32"), source)
    ...     digests = flat.load(flattened(source))
    >>> len(digests) == len(source.tensors)
    True
    """

    def __init__(self, live: Live, source: Source):
        """
        Args:
            live: the model.
            source: says how its tensors are flattened.
        """
        sizes = [tensor.elements for tensor in source.tensors.values()]
        self._staged = torch.zeros(sum(sizes))
        parts: dict[str, torch.Tensor] = {}
        for (name, tensor), part in zip(
            source.tensors.items(), self._staged.split(sizes), strict=True
        ):
            parts[name] = part.view(tensor.shape)
        self._others = {name: part for name, part in parts.items() if name not in live.direct}
        self._targets = {name: live.direct[name] for name in parts if name in live.direct}
        # A sum of one operand times one: the kernels copy, convert and digest in one pass.
        operands = Operands({name: (parts[name],) for name in self._targets})
        copies = WeightedSums(tuple(self._targets), np.ones(1))
        self._plan = MergePlan(operands, torch.float32, (copies,))
        self._live, self._kernels = live, Kernels()

    def load(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Overwrite the model with (parameters,) weights; return the digests of their tiles.

        Raises:
            CandidateFailure: a weight is not finite.
        """
        self._staged.copy_(torch.from_numpy(weights))
        if not np.isfinite(weights).all():
            raise CandidateFailure("a weight is not finite")
        digests = self._kernels.merge(self._plan, self._targets)
        self._live.load(self._others.items())
        return digests | {name: tile_digests(part) for name, part in self._others.items()}
