"""Image models that live on a worker's device: see `live_model.Live`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from evomerge.merging.live import Live
from evomerge.merging.source_weights import read_stored
from evomerge.sources.diffusers_models import (
    kept_in_float32,
    model_without_weights,
    pipeline_around,
)
from evomerge.sources.opened import Source

Stream = Iterable[tuple[str, torch.Tensor]]


class _LiveState:
    """A module whose state has the checkpoint's names, without a tokenizer."""

    tokenizer = None

    def __init__(self, model: torch.nn.Module, source: Source):
        """
        Args:
            model: with memory for all of it.
            source: whose tensors are the module's.
        """
        self.model = model.eval().requires_grad_(False)
        self._state = dict(self.model.state_dict())
        for name, stored in source.carried.items():
            self._state[name].copy_(read_stored(stored))
        self.direct = {
            name: self._state[name] for name in source.tensors if self._state[name].is_contiguous()
        }

    @torch.no_grad()
    def load(self, stream: Stream) -> None:
        """See `Live.load`."""
        for name, tensor in stream:
            self._state[name].copy_(tensor)


class LiveDiffusers(_LiveState):
    """A model of diffusers, as `from_pretrained` would have it with other weights.

    >>> LiveDiffusers.tokenizer is None
    True
    """

    def __init__(self, source: Source, dtype: str, device: str = "cpu"):
        """
        Args:
            source: of form "diffusers".
            dtype: of the parameters, as recipes write it.
            device: e.g. "cpu" or "cuda".
        """
        model = model_without_weights(source.config, dtype)
        _give_memory(model, getattr(torch, dtype), device)
        for tensor in kept_in_float32(model):
            tensor.data = tensor.data.float()
        super().__init__(model, source)


def _give_memory(model: torch.nn.Module, dtype: torch.dtype, device: str) -> None:
    """Give a model's parameters memory, and convert those buffers that a checkpoint fills."""
    made: dict[int, torch.nn.Parameter] = {}  # by the one on the meta device: some are shared
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                memory = torch.empty(parameter.shape, dtype=dtype, device=device)
                made[id(parameter)] = torch.nn.Parameter(memory, requires_grad=False)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                is_filled = name not in module._non_persistent_buffers_set
                kind = dtype if is_filled and buffer.is_floating_point() else buffer.dtype
                module._buffers[name] = buffer.to(device, kind)


class LivePipeline:
    """A pipeline of diffusers whose merged components live; the rest is loaded once.

    Attributes:
        model: the pipeline, `DiffusionPipeline`.
        direct: see `Live`; names begin with the component's folder.

    >>> LivePipeline.tokenizer is None
    True
    """

    tokenizer = None

    def __init__(
        self, source: Source, dtype: str, device: str, open_part: Callable[[Source], Live]
    ):
        """
        Args:
            source: of form "pipeline".
            dtype: of the weights, as recipes write it.
            device: e.g. "cpu" or "cuda".
            open_part: returns a live model of a component.
        """
        self._parts = {name: open_part(part) for name, part in source.components.items()}
        given = {name: part.model for name, part in self._parts.items()}
        self.model: Any = pipeline_around(source.path, given, dtype, device)
        self.direct = {
            f"{part}.{name}": tensor
            for part, live in self._parts.items()
            for name, tensor in live.direct.items()
        }

    def load(self, stream: Stream) -> None:
        """See `Live.load`; what a component's library stacks comes part by part."""
        by_part: dict[str, list[tuple[str, torch.Tensor]]] = {name: [] for name in self._parts}
        for name, tensor in stream:
            part, _, inner = name.partition(".")
            by_part[part].append((inner, tensor))
        for part, tensors in by_part.items():
            self._parts[part].load(tensors)


class LiveFile(_LiveState):
    """The tensors of a file, as a module whose `state_dict()` has the file's names.

    No network is computed: a fitness gives the tensors to one of its own, without a copy
    (`load_state_dict(..., assign=True)`), once, since they are overwritten in place.

    >>> LiveFile.tokenizer is None
    True
    """

    def __init__(self, source: Source, dtype: str, device: str = "cpu"):
        """
        Args:
            source: of form "file".
            dtype: of the tensors that are merged, as recipes write it; the rest keeps its own.
            device: e.g. "cpu" or "cuda".
        """
        root = torch.nn.Module()
        for name, stored in source.tensors.items():
            kind = getattr(torch, source.dtype_of(name, dtype))
            _put(root, name, torch.empty(stored.shape, dtype=kind, device=device))
        for name, stored in source.carried.items():
            _put(root, name, read_stored(stored).to(device))
        super().__init__(root, source)


def _put(root: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Give a tree of modules a tensor by its dotted name, as a buffer."""
    module = root
    *path, leaf = name.split(".")
    for step in path:
        if step not in module._modules:
            module.add_module(step, torch.nn.Module())
        module = module.get_submodule(step)
    module.register_buffer(leaf, tensor)
