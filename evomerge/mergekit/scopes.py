"""A parameter's value for one tensor, as mergekit reads it.

A parameter is looked up at the source, the slice, the module, then the whole. Each may give it a
number; a list of numbers, which is a gradient over the slice's own layers; or a list of conditions,
of which the first counts whose filter is in the tensor's name.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from evomerge.mergekit.form import Parameters

_CONDITION = {"filter", "value"}


class Depth(NamedTuple):
    """Where a tensor stands within its slice; what is outside the layers counts as the first.

    >>> Depth(2, 5)
    Depth(layer=2, layers=5)
    """

    layer: int
    layers: int


def look_up(scopes: Iterable[Parameters], key: str, tensor: str, depth: Depth) -> float | None:
    """Return a parameter's value for a tensor, or None if no scope gives it one.

    Args:
        scopes: the innermost first.
        key: the parameter.
        tensor: its name.
        depth: of the tensor.

    Raises:
        ValueError: what a scope says is no value.

    >>> conditions = [{"filter": "mlp", "value": [0.0, 1.0]}]
    >>> scopes = [{"weight": conditions}, {"weight": 0.3}]
    >>> look_up(scopes, "weight", "layers.1.mlp.up_proj.weight", Depth(1, 5))
    0.25
    >>> look_up(scopes, "weight", "layers.1.self_attn.q_proj.weight", Depth(1, 5))
    0.3
    """
    for scope in scopes:
        value = _resolved(scope.get(key), tensor, depth)
        if value is not None:
            return value
    return None


def _resolved(said: object, tensor: str, depth: Depth) -> float | None:
    if said is None:
        return None
    if not isinstance(said, list):
        return _number(said)
    if not any(isinstance(entry, Mapping) for entry in said):
        return _on_gradient([_number(entry) for entry in said], depth)
    for condition in said:
        if not isinstance(condition, Mapping) or not {"value"} <= condition.keys() <= _CONDITION:
            raise ValueError(f"{condition!r:.80} is not {{filter, value}}")
        part = condition.get("filter")
        if not isinstance(part, str | None):
            raise ValueError(f"{part!r} is no filter")
        if part in (None, "*") or part in tensor:
            return _resolved(condition.get("value"), tensor, depth)
    return None


def _number(said: object) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float):
        raise ValueError(f"{said!r:.80} is no number")
    if not math.isfinite(said):
        raise ValueError(f"{said!r} is not finite")
    return float(said)


def _on_gradient(points: list[float], depth: Depth) -> float | None:
    """Interpolate linearly between points that are spread evenly over a slice's layers."""
    if not points:
        return None
    position = depth.layer / max(depth.layers - 1, 1) * (len(points) - 1)
    low = min(int(position), len(points) - 1)
    high = min(low + 1, len(points) - 1)
    return points[low] + (points[high] - points[low]) * (position - low)
