"""The one model that lives on a worker's device: its weights are overwritten in place.

Checkpoint names are not always the model's: transformers renames tensors and stacks some
(the experts of a mixture) while loading. The same conversions are applied here.
"""

import re
from collections.abc import Iterable
from copy import deepcopy

import numpy as np
import torch

from evomerge.errors import BadInput, CandidateFailure, Fault
from evomerge.kernels import native
from evomerge.kernels.checksum import tile_digests
from evomerge.sources.factory import build
from evomerge.sources.source import Source


def resident(
    source: Source, dtype: str, device: str = "cpu", trust_remote_code: bool = False
) -> "ResidentModel | ResidentModule":
    """Return a live model with the architecture of `source`; see `ResidentModel`."""
    if source.factory:
        return ResidentModule(source, dtype, device)
    return ResidentModel(source, dtype, device, trust_remote_code)


class ResidentModule:
    """A module that a factory made, as a `ResidentModel` without a tokenizer.

    That the source's tensors are the module's was checked when it was opened.
    """

    def __init__(self, source: Source, dtype: str, device: str = "cpu"):
        module = build(source.factory)
        self.model = module.to(device, getattr(torch, dtype)).eval().requires_grad_(False)
        self.tokenizer = None
        self._state = dict(self.model.state_dict())
        self.direct = {name: t for name, t in self._state.items() if t.is_contiguous()}

    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite the weights with a stream of (name, tensor) in any order."""
        for name, tensor in stream:
            self._state[name].copy_(tensor)


class Flat:
    """Puts flattened float32 weights into a live model, and digests them on the way."""

    def __init__(self, model: "ResidentModel | ResidentModule", source: Source):
        """
        Args:
            model: the live one.
            source: says how its tensors are flattened.
        """
        sizes = [t.elements for t in source.tensors.values()]
        self._staged = torch.zeros(sum(sizes))
        parts = self._staged.split(sizes)
        named = zip(source.tensors.items(), parts, strict=True)
        every = {name: part.view(t.shape) for (name, t), part in named}
        self._parts = {name: part for name, part in every.items() if name in model.direct}
        self._others = {name: part for name, part in every.items() if name not in model.direct}
        self._live = {name: model.direct[name] for name in self._parts}
        self._model, self._batch = model, None
        tensors = [*self._parts.values(), *self._live.values()]
        on_cpu = all(t.device.type == "cpu" for t in tensors)
        if on_cpu and native.takes(tensors, torch.float32):
            rows = [[part] for part in self._parts.values()]
            self._batch = native.Batch(None, rows, list(self._live.values()), torch.float32)
            self._batch.weigh(slice(None), np.ones((len(rows), 1)))

    def take(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Overwrite the model with (parameters,) weights; return the digests of their tiles.

        Raises:
            CandidateFailure: a weight is not finite.
        """
        self._staged.copy_(torch.from_numpy(weights))
        if not np.isfinite(weights).all():
            raise CandidateFailure("a weight is not finite")
        if self._batch:
            digests = dict(zip(self._parts, self._batch.merge()[0], strict=True))
        else:
            digests = {name: tile_digests(part) for name, part in self._parts.items()}
            for name, part in self._parts.items():
                self._live[name].copy_(part)
        self._model.load(self._others.items())
        return digests | {name: tile_digests(part) for name, part in self._others.items()}


class ResidentModel:
    """A transformers model with the architecture of `source`, to be filled again and again.

    Attributes:
        model: the live model, in eval mode; its weights are undefined until `load`.
        tokenizer: the source's tokenizer, or None if it has none.
        direct: the live tensors that hold a checkpoint's tensor as it is, by the latter's name;
            the others are filled by `load`.
    """

    def __init__(
        self, source: Source, dtype: str, device: str = "cpu", trust_remote_code: bool = False
    ):
        """
        Args:
            source: gives config.json, the tokenizer and the names of the checkpoint's tensors.
            dtype: of the parameters, as recipes write it.
            device: e.g. "cpu" or "cuda".
            trust_remote_code: run modelling code that comes with the source.

        Raises:
            BadInput: the checkpoint's tensors do not cover the model's parameters.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        options = {"trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(source.path, **options)
        self.model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), **options
        )
        self.model.to(device).eval().requires_grad_(False)
        if (source.path / "generation_config.json").exists():
            self.model.generation_config = GenerationConfig.from_pretrained(source.path)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source.path, **options)
        except (OSError, ValueError, KeyError):
            self.tokenizer = None
        self.model.name_or_path = str(source.path)
        self._targets = dict(self.model.named_parameters(remove_duplicate=False))
        self._targets |= dict(self.model.named_buffers(remove_duplicate=False))
        self._route, self._needed = self._routes(source.tensors)
        self._check_cover(source)
        self.direct: dict[str, torch.Tensor] = {}
        taken = set()  # where two names share one tensor, the last one wins, by `load`
        for name, (target, _, converter) in self._route.items():
            at = self._targets[target].data_ptr()
            fits = self._fits(target, source.tensors[name].shape)
            if converter is None and fits and at not in taken:
                self.direct[name] = self._targets[target]
                taken.add(at)

    def _fits(self, target: str, shape: tuple[int, ...]) -> bool:
        live = self._targets[target]
        return live.shape == shape and live.is_contiguous()

    @torch.no_grad()
    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite the weights with a stream of (checkpoint name, tensor) in any order."""
        waiting: dict[str, list[tuple[str, torch.Tensor]]] = {}
        for name, tensor in stream:
            if name not in self._route:
                continue  # a buffer that the model computes itself
            target, _, converter = self._route[name]
            if converter is None:
                self._targets[target].copy_(tensor)
                continue
            parts = waiting.setdefault(target, [])
            parts.append((name, tensor))
            if len(parts) == self._needed[target]:
                self._convert(target, waiting.pop(target))

    def _convert(self, target: str, parts: list[tuple[str, torch.Tensor]]) -> None:
        """Stack or split checkpoint tensors as transformers does on loading."""
        from transformers.core_model_loading import dot_natural_key

        converter = deepcopy(self._route[parts[0][0]][2])
        for name, tensor in sorted(parts, key=lambda part: dot_natural_key(part[0])):
            converter.add_tensor(target, name, self._route[name][1], tensor)
        made = converter.convert(target, model=self.model, config=self.model.config)
        for name, value in made.items():
            self._targets[name].copy_(value[0] if isinstance(value, list) else value)

    def _routes(self, names: Iterable[str]) -> tuple[dict, dict[str, int]]:
        """Map each checkpoint name to (model name, converter's pattern, converter)."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        mapping = get_model_conversion_mapping(self.model)
        renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in mapping if isinstance(m, WeightConverter)]
        by_pattern = {p: c for c in converters for p in c.source_patterns}
        prefix, state = self.model.base_model_prefix, self.model.state_dict()
        route, needed = {}, {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            converter = by_pattern.get(pattern) if pattern is not None else None
            route[name] = (target, pattern, converter)
            needed[target] = needed.get(target, 0) + 1
        return route, needed

    def _check_cover(self, source: Source) -> None:
        ignored = getattr(self.model, "_keys_to_ignore_on_load_unexpected", None) or []
        stray = [n for n, (target, _, _) in self._route.items() if target not in self._targets]
        unknown = [n for n in stray if not any(re.search(p, n) for p in ignored)]
        for name in stray:
            del self._route[name]
        filled = {id(self._targets[target]) for target, _, _ in self._route.values()}
        splits = any(c and len(c.target_patterns) > 1 for _, _, c in self._route.values())
        missing = [n for n, p in self.model.named_parameters() if id(p) not in filled]
        if unknown or (missing and not splits):
            what = f"tensor {unknown[0]} has no place" if unknown else f"{missing[0]} is missing"
            wrong = f"{source.path} does not fill a {type(self.model).__name__}: {what}"
            raise BadInput(Fault(str(source.path), "", wrong, "save it again with save_pretrained"))
