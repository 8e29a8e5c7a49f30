"""Layers of several live models as one model: rerouted by reference, without copying a weight."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from evomerge.merging.live_model import ResidentModel
from evomerge.merging.routed_checkpoint import along, layer_settings
from evomerge.recipes.routing import Fold, Routing
from evomerge.sources.architectures import Family, family_of
from evomerge.sources.source import Source


class Router:
    """Lets one live model run layers of others, hop by hop, and be itself again.

    A hop is a layer's own modules behind shells that have the hop's number, and with it a place
    of their own in a key-value cache, and the hop's gains.
    """

    def __init__(
        self,
        live: ResidentModel,
        sources: Mapping[str, Source],
        models: Mapping[str, nn.Module],
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
        self._own: tuple[dict, dict, dict[str, Any]] | None = None

    def route(self, recipe: Routing) -> None:
        """Let the live model be that of `recipe`."""
        frame = recipe.models[recipe.frame]
        family, fold = family_of(self._sources[frame].config), recipe.fold()
        config, base = self._live.config, self._live.base_model
        settings = {"num_hidden_layers": len(recipe.path), **along(recipe, self._settings)}
        if self._own is None:
            before = {key: getattr(config, key) for key in settings}
            self._own = (dict(self._live._modules), dict(base._modules), before)
        model = self._models[frame]
        own = {
            name: child for name, child in model._modules.items() if child is not model.base_model
        }
        self._live._modules.update(own)
        base._modules.update(model.base_model._modules)
        for name in family.embed:
            if fold.embed != 1.0:
                base._modules[name] = Times(base._modules[name], fold.embed)
        if fold.norm < 0:
            base._modules[family.norm] = Flipped(base._modules[family.norm])
        base._modules[_layers_name(base)] = self._hops(recipe, fold, family)
        self._configure(settings)

    def restore(self) -> None:
        """Let the live model be itself again, whose weights are as before."""
        if self._own is not None:
            own, base, settings = self._own
            self._live._modules.update(own)
            self._live.base_model._modules.update(base)
            self._configure(settings)
            self._own = None

    def _configure(self, settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            setattr(self._live.config, key, value)
        base = self._live.base_model
        if hasattr(base, "has_sliding_layers"):
            base.has_sliding_layers = "sliding_attention" in self._live.config.layer_types

    def _hops(self, recipe: Routing, fold: Fold, family: Family) -> nn.ModuleList:
        used: dict[tuple[str, int], int] = {}
        hops = []
        for index, (hop, by) in enumerate(zip(recipe.path, fold.hops, strict=True)):
            name = recipe.models[hop.model]
            times = used[name, hop.layer] = used.get((name, hop.layer), -1) + 1
            key = (name, hop.layer, times)
            if key not in self._shells:
                layers = layers_of(self._models[name].base_model)
                self._shells[key] = _Shell(layers[hop.layer], family)
            hops.append(self._shells[key].at(index, *by))
        made = nn.ModuleList()
        made._modules.update((str(index), hop) for index, hop in enumerate(hops))
        return made


class Times(nn.Module):
    """A module whose output is multiplied by a number."""

    def __init__(self, inner: nn.Module, by: float):
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        return (out[0] * self.by, *out[1:]) if isinstance(out, tuple) else out * self.by


class Flipped(nn.Module):
    """A norm that turns its input: with a bias that stays, as if its weight were negative."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return self.inner(-stream)


class _Shell:
    """Copies of a layer's containers, whose insides are the layer's own."""

    def __init__(self, layer: nn.Module, family: Family):
        self._top = _copy(layer)
        self._numbered = [self._top]
        for name, child in layer._modules.items():
            if hasattr(child, "layer_idx"):
                self._numbered.append(self._inside(name))
        # Made once: a module takes ten times as long to make as to look up.
        self._writes = [
            (modules, name, inner, Times(inner, 1.0))
            for modules, name, inner in map(self._slot, (family.attention, family.mlp))
        ]
        self._reads = [
            (modules, name, inner, Flipped(inner))
            for modules, name, inner in map(self._slot, family.reads)
        ]

    def at(self, index: int, attention: float, mlp: float, sign: float) -> nn.Module:
        """Return the layer as hop `index`, its branches multiplied, its norms' sign set."""
        for module in self._numbered:
            if "layer_idx" in module.__dict__:
                module.__dict__["layer_idx"] = index
        for (modules, name, inner, times), by in zip(self._writes, (attention, mlp), strict=True):
            times.__dict__["by"] = by
            modules[name] = inner if by == 1.0 else times
        for modules, name, inner, flipped in self._reads:
            modules[name] = flipped if sign < 0 else inner
        return self._top

    def _slot(self, path: str) -> tuple[dict, str, nn.Module]:
        """Return where a module hangs, its name there, and the module."""
        container, _, name = path.rpartition(".")
        inside = self._inside(container) if container else self._top
        return inside._modules, name, inside._modules[name]

    def _inside(self, name: str) -> nn.Module:
        """Return the copy of a container, made on the first call."""
        child = self._top._modules[name]
        if "_evomerge_shell" not in child.__dict__:
            child = self._top._modules[name] = _copy(child)
        return child


def _copy(module: nn.Module) -> nn.Module:
    """Return a module with the same insides, whose own children can be exchanged."""
    made = module.__class__.__new__(module.__class__)
    made.__dict__.update(module.__dict__, _modules=dict(module._modules), _evomerge_shell=True)
    return made


def _layers_name(base: nn.Module) -> str:
    return next(name for name, child in base._modules.items() if isinstance(child, nn.ModuleList))


def layers_of(base: nn.Module) -> nn.ModuleList:
    """Return a transformers model's layers, in the order in which they run."""
    return base._modules[_layers_name(base)]
