"""Layers of several live models as one model: rerouted by reference, without copying a weight."""

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from evomerge.merging.live_model import LiveModel
from evomerge.merging.routed_checkpoint import along, layer_settings
from evomerge.recipes.routing import Fold, RoutingRecipe
from evomerge.sources.architectures import Family, family_of
from evomerge.sources.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What torch keeps a module's children in; its own `__setattr__` takes ten times as long.
_Children = MutableMapping[str, nn.Module | None]


class _Itself(NamedTuple):
    """What a live model was before it was rerouted."""

    children: dict[str, nn.Module | None]
    base_children: dict[str, nn.Module | None]
    settings: dict[str, Any]  # values of a config, of any kind


class Router:
    """Lets one live model run layers of others, hop by hop, and be itself again.

    A hop is a layer's own modules behind shells that have the hop's number, and with it a place
    of their own in a key-value cache, and the hop's gains.

    >>> import tempfile
    >>> from evomerge.recipes.routing import Hop
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(folder, 0)))
    ...     live, other = LiveModel(source, "float32"), LiveModel(source, "float32")
    >>> router = Router(live, {"a": source}, {"a": other.model})
    >>> path = Hop(0, 0), Hop(0, 1), Hop(0, 1, 0.9)
    >>> router.route(RoutingRecipe(("a",), path, 0, "float32"))
    >>> len(layers_of(live.model.base_model))
    3
    """

    def __init__(
        self,
        live: LiveModel,
        sources: Mapping[str, Source],
        models: "Mapping[str, PreTrainedModel]",
    ):
        """
        Args:
            live: the model that is scored.
            sources: every source that a path may pass, by name.
            models: each of them as a live model, on the device and in the dtype of `live`.
        """
        self._live = live.model
        self._sources, self._models = sources, models
        self._settings = {name: layer_settings(sources[name].config) for name in models}
        self._shells: dict[tuple[str, int, int], _Shell] = {}
        self._itself: _Itself | None = None

    def route(self, recipe: RoutingRecipe) -> None:
        """Let the live model be that of `recipe`."""
        frame = recipe.models[recipe.frame]
        family, fold = family_of(self._sources[frame].config), recipe.fold()
        base: nn.Module = self._live.base_model
        settings = {"num_hidden_layers": len(recipe.path), **along(recipe, self._settings)}
        if self._itself is None:
            before = {key: getattr(self._live.config, key) for key in settings}
            self._itself = _Itself(dict(self._live._modules), dict(base._modules), before)
        # The frame's embeddings, final norm and head,
        model = self._models[frame]
        for name, child in model._modules.items():
            if child is not model.base_model:
                self._live._modules[name] = child
        base._modules.update(model.base_model._modules)
        # with what the path's scales come to,
        for name in family.embed:
            if fold.embed != 1.0:
                base._modules[name] = Times(base.get_submodule(name), fold.embed)
        if fold.norm < 0:
            base._modules[family.norm] = Flipped(base.get_submodule(family.norm))
        # and the path's layers between them.
        base._modules[_layers_name(base)] = self._hops(recipe, fold, family)
        self._configure(settings)

    def restore(self) -> None:
        """Let the live model be itself again, whose weights are as before."""
        if self._itself is not None:
            self._live._modules.update(self._itself.children)
            self._live.base_model._modules.update(self._itself.base_children)
            self._configure(self._itself.settings)
            self._itself = None

    def _configure(self, settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            setattr(self._live.config, key, value)
        base = self._live.base_model
        # Models with sliding layers look this up when they are made; see their `forward`.
        if "has_sliding_layers" in base.__dict__:
            sliding = "sliding_attention" in self._live.config.layer_types
            base.__dict__["has_sliding_layers"] = sliding

    def _hops(self, recipe: RoutingRecipe, fold: Fold, family: Family) -> nn.ModuleList:
        used: dict[tuple[str, int], int] = {}
        hops = nn.ModuleList()
        for index, (hop, by) in enumerate(zip(recipe.path, fold.hops, strict=True)):
            # A layer that comes again needs shells of its own.
            layer = (recipe.models[hop.model], hop.layer)
            times = used[layer] = used.get(layer, -1) + 1
            key = (*layer, times)
            if key not in self._shells:
                layers = layers_of(self._models[layer[0]].base_model)
                self._shells[key] = _Shell(layers[hop.layer], family)
            hops._modules[str(index)] = self._shells[key].at(index, *by)
        return hops


class Times(nn.Module):
    """A module whose output is multiplied by a number.

    >>> Times(nn.Identity(), 2.0)(torch.ones(2))
    tensor([2., 2.])
    """

    def __init__(self, inner: nn.Module, by: float):
        """
        Args:
            inner: whose output, or the first of a tuple, is a tensor.
            by: the number.
        """
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the inner module's output, multiplied."""
        out = self.inner(*args, **kwargs)
        return (out[0] * self.by, *out[1:]) if isinstance(out, tuple) else out * self.by


class Flipped(nn.Module):
    """A norm that turns its input: with a bias that stays, as if its weight were negative.

    >>> Flipped(nn.Identity())(torch.ones(2))
    tensor([-1., -1.])
    """

    def __init__(self, inner: nn.Module):
        """
        Args:
            inner: the norm.
        """
        super().__init__()
        self.inner = inner

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the norm of the negative stream."""
        normed: torch.Tensor = self.inner(-stream)
        return normed


class _Write(NamedTuple):
    """Where a branch's output is written: a slot, what is in it, and the same times a gain."""

    children: _Children
    name: str
    inner: nn.Module
    times: Times


class _Read(NamedTuple):
    """Where a branch reads the stream: a slot, the norm in it, and the same of its negative."""

    children: _Children
    name: str
    inner: nn.Module
    flipped: Flipped


class _Shell:
    """Copies of a layer's containers, whose insides are the layer's own."""

    def __init__(self, layer: nn.Module, family: Family):
        self._top = _copy(layer)
        self._copied: set[str] = set()
        # transformers' layers and attentions know their number, by which they find their cache
        self._numbered = [self._top]
        for name, child in layer.named_children():
            if hasattr(child, "layer_idx"):
                self._numbered.append(self._inside(name))
        # Made once: a module takes ten times as long to make as to look up.
        self._writes, self._reads = [], []
        for path in (family.attention, family.mlp):
            children, name, inner = self._slot(path)
            self._writes.append(_Write(children, name, inner, Times(inner, 1.0)))
        for path in family.reads:
            children, name, inner = self._slot(path)
            self._reads.append(_Read(children, name, inner, Flipped(inner)))

    def at(self, index: int, attention: float, mlp: float, sign: float) -> nn.Module:
        """Return the layer as hop `index`, its branches multiplied, its norms' sign set."""
        for module in self._numbered:
            if "layer_idx" in module.__dict__:
                module.__dict__["layer_idx"] = index
        for write, gain in zip(self._writes, (attention, mlp), strict=True):
            write.times.__dict__["by"] = gain
            write.children[write.name] = write.inner if gain == 1.0 else write.times
        for read in self._reads:
            read.children[read.name] = read.flipped if sign < 0 else read.inner
        return self._top

    def _slot(self, path: str) -> tuple[_Children, str, nn.Module]:
        """Return the children among which a module is, its name there, and the module."""
        container, _, name = path.rpartition(".")
        holder = self._inside(container) if container else self._top
        return holder._modules, name, holder.get_submodule(name)

    def _inside(self, name: str) -> nn.Module:
        """Return the copy of a container, made on the first call."""
        if name not in self._copied:
            self._top._modules[name] = _copy(self._top.get_submodule(name))
            self._copied.add(name)
        return self._top.get_submodule(name)


def _copy(module: nn.Module) -> nn.Module:
    """Return a module with the same insides, whose own children can be exchanged."""
    made: nn.Module = module.__class__.__new__(module.__class__)
    made.__dict__.update(module.__dict__, _modules=dict(module._modules))
    return made


def _layers_name(base: nn.Module) -> str:
    return next(name for name, child in base.named_children() if isinstance(child, nn.ModuleList))


def layers_of(base: nn.Module) -> nn.ModuleList:
    """Return a transformers model's layers, in the order in which they run.

    >>> base = nn.Module()
    >>> base.layers = nn.ModuleList([nn.Identity()])
    >>> len(layers_of(base))
    1
    """
    for child in base.children():
        if isinstance(child, nn.ModuleList):
            return child
    raise ValueError(f"a {type(base).__name__} has no list of layers")
