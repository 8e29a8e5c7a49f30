"""Which method, groups, controller and budget a first search should have, and why."""

from dataclasses import dataclass
from typing import Any

from evomerge.errors import BadInput, Fault, nearest
from evomerge.merging.methods import METHODS, MergeMethod

_GENES = 30  # about as many as a search of 15,000 to 30,000 items can make use of
_GROUPS = 4  # of layers, at most
_MANY = 4  # models; more of them get in one another's way
_ITEMS = 15_000  # beyond the baselines', for a dozen or two genes


@dataclass(frozen=True)
class Models:
    """What advice depends on.

    Attributes:
        count: of the models that are merged.
        has_base: whether there is a base beside them.
        layers: of each.
        adapters: whether all models are LoRA adapters.

    >>> Models(3, True, 6).count
    3
    """

    count: int
    has_base: bool
    layers: int
    adapters: bool = False


def recommended_method(models: Models) -> tuple[str, str]:
    """Return a merge method and why it is taken.

    >>> recommended_method(Models(3, has_base=True, layers=6))[0]
    'task_arithmetic'
    """
    if models.has_base and models.count <= _MANY:
        return "task_arithmetic", "few fine-tunes of one base: their task vectors are added up"
    if models.has_base:
        return "ties", "many fine-tunes: each keeps its largest changes, and they agree on signs"
    if models.count == 2:
        return "slerp", "two models without a base: somewhere on the way between them"
    return "linear", "models without a base are averaged"


def known_method(answer: str, models: Models) -> str:
    """Return a method that was asked for.

    Raises:
        BadInput: there is none of this name, or it does not merge these models.

    >>> known_method("tise", Models(3, has_base=True, layers=6))
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no merge method 'tise'; did you mean 'ties'?
    """
    if answer not in METHODS.all():
        wrong = f"there is no merge method '{answer}'"
        raise BadInput(Fault("", wrong, nearest(answer, METHODS.all())))
    method = METHODS.get(answer)
    if method.needs_base and not models.has_base:
        raise BadInput(Fault("", f"{answer} needs a base", "take linear, slerp or multislerp"))
    if method.models and method.models != models.count:
        wrong = f"{answer} merges {method.models} models, and there are {models.count}"
        raise BadInput(Fault("", wrong, "take another method"))
    if method.family == "factored" and not models.adapters:
        raise BadInput(Fault("", f"{answer} merges LoRA adapters alone", "take another method"))
    if method.reads:
        wrong = f"{answer} reads texts of each model, which are not asked for here"
        raise BadInput(Fault("", wrong, "take another, and write method and texts into the file"))
    return answer


def space_of(method: str, models: Models) -> dict[str, Any]:
    """Return a space over a method's parameters with as many layer groups as a search bears.

    >>> space_of("task_arithmetic", Models(3, has_base=True, layers=6))["layer_groups"]
    4
    """
    axes = _axes(METHODS.get(method), models)
    per_group = sum(_values(method, name, models) for name in axes if "tied" not in axes[name])
    groups = max(1, min(_GROUPS, models.layers, _GENES // max(per_group, 1) - 1))
    if groups == 1 and 2 * per_group > _GENES and "weight" in axes:
        axes["weight"]["tied"] = ["layers"]
    return {"kind": "parameters", "method": method, "layer_groups": groups, "axes": axes}


def _axes(method: MergeMethod, models: Models) -> dict[str, Any]:
    axes: dict[str, Any] = {}
    for parameter in method.parameters:
        name = parameter.name
        if name == "weight":
            # task vectors may add up to more than one; of an average only ratios count
            high = 1.5 if method.takes_base and models.has_base else 1.0
            axes[name] = {"low": 0.0, "high": high}
        elif name == "density":
            axes[name] = {"low": 0.1, "high": 1.0, "tied": ["layers", "models"]}
        elif parameter.default is None:
            axes[name] = {"low": 0.0, "high": 1.0}
    return axes or {"scale": {"low": 0.0, "high": 1.5}}


def _values(method: str, axis: str, models: Models) -> int:
    return models.count if METHODS.get(method).parameter[axis].axis.per_model else 1


def genes_text(space: dict[str, Any], models: Models) -> str:
    """Say how many genes a space of `space_of` has.

    >>> models = Models(3, has_base=True, layers=6)
    >>> genes_text(space_of("task_arithmetic", models), models)
    '(4 and what is outside the layers) x 3 = 15 genes'
    """
    free = [name for name, axis in space["axes"].items() if "tied" not in axis]
    tied = [name for name, axis in space["axes"].items() if "tied" in axis]
    each = sum(_values(space["method"], name, models) for name in free)
    groups = space["layer_groups"]
    more = sum(models.count if name == "weight" else 1 for name in tied)
    text = f"({groups} and what is outside the layers) x {each}" if each else ""
    text += f"{' + ' if each else ''}{more}" if more else ""
    return f"{text} = {(groups + 1) * each + more} genes"


def recommended_controller(objectives: int, front: bool) -> tuple[str, str]:
    """Return a controller and why it is taken.

    >>> recommended_controller(1, front=False)[0]
    'cmaes'
    """
    if not front:
        return "cmaes", "for one best merge, by the mean of the objectives"
    if objectives <= 3:
        return "como", "for a front to choose from, of two or three objectives"
    return "nsga2", "for a front to choose from, of many objectives"


def recommended_items(search_items: int, sources: int) -> int:
    """Return a budget in scored items, those of the baselines included.

    Args:
        search_items: of all objectives together.
        sources: models and base.

    >>> recommended_items(800, 4)
    19000
    """
    baselines = (sources + 1) * search_items
    return -(-(baselines + _ITEMS) // 1000) * 1000
