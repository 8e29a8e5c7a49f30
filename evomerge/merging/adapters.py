"""Whether sources are LoRA adapters of one base, and that alone."""

import functools
import os
from collections.abc import Iterator, Mapping

from evomerge.errors import BadInput, Fault
from evomerge.merging.methods import METHODS
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.sources.source import Source

_MEND = "take LoRA adapters of one base, {model: BASE, adapter: FOLDER}, or another method"


def unfit_adapter(source: Source, frame: Source) -> str | None:
    """Return why a source is no adapter of the model below another one, or not that alone.

    Args:
        source: an adapter, or that model.
        frame: that model, or an adapter of it.

    >>> from pathlib import Path
    >>> a, b = (Source(name, Path(name), {}, {}, {}) for name in "ab")
    >>> unfit_adapter(b, a)
    "'b' is no LoRA adapter of 'a'"
    """
    if source.factory is not None or _real(source.path) != _real(frame.path):
        below = frame.name if frame.adapter is None else str(frame.path)
        return f"'{source.name}' is no LoRA adapter of '{below}'"
    if source.unaligned is not None:
        return f"'{source.name}' follows the vocabulary of another model than its own base"
    if source.adapter is not None and source.adapter.replaced:
        name = next(iter(source.adapter.replaced))
        wrong = f"'{source.name}' puts whole tensors ({name}) in the place of its base's"
        return f"{wrong} (modules_to_save, or save_embedding_layers)"
    return None


@functools.lru_cache(maxsize=1 << 10)  # folders of sources
def _real(path: os.PathLike[str]) -> str:
    return os.path.realpath(path)


def factored_faults(
    recipe: Recipe, sources: Mapping[str, Source]
) -> Iterator[tuple[str | None, Fault]]:
    """Yield what keeps a recipe's methods from merging its sources within their factors.

    Args:
        recipe: one whose methods are of the factored family, or others.
        sources: those that could be opened, by name.

    Returns:
        The source that is at fault, None if all are, and the fault.

    >>> from pathlib import Path
    >>> from evomerge.testing import recipe_of
    >>> sources = {name: Source(name, Path(name), {}, {}, {}) for name in ("base", "a")}
    >>> for _, fault in factored_faults(recipe_of("knots_ties", ["a"], "base"), sources):
    ...     print(fault.wrong)
    knots_ties merges LoRA adapters alone: 'a' is no LoRA adapter of 'base'
    """
    if not isinstance(recipe, ParametersRecipe):
        return
    if recipe.base is None or recipe.base not in sources:
        return  # which is told elsewhere
    names = [name for name in recipe.methods if METHODS.get(name).family == "factored"]
    if not names:
        return
    begin, base = f"{' and '.join(names)} merges LoRA adapters alone", sources[recipe.base]
    if base.adapter is not None:
        wrong = f"{begin}: the base '{base.name}' is one itself"
        yield recipe.base, Fault("", wrong, "name the model below it as the base")
        return
    opened = {model: sources[model] for model in recipe.models if model in sources}
    is_fit = True
    for model, source in opened.items():
        unfit = unfit_adapter(source, base)
        if unfit is not None:
            is_fit = False
            yield model, Fault("", f"{begin}: {unfit}", _MEND)
    if is_fit and opened and not any(source.adapter for source in opened.values()):
        yield None, Fault("", f"{begin}, and none of the models is one", _MEND)


def check_factored(recipe: ParametersRecipe, sources: Mapping[str, Source]) -> None:
    """Refuse sources that a recipe's methods cannot merge within their factors.

    Raises:
        BadInput: with every fault.

    >>> check_factored(ParametersRecipe("linear", ("a",), ()), {})
    """
    faults = [fault.under("models") for _, fault in factored_faults(recipe, sources)]
    if faults:
        raise BadInput(*faults)
