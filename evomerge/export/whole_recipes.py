"""A candidate's recipe as it leaves its archive: whole, with all that it was made of."""

import contextlib
from typing import Any

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Candidate
from evomerge.archive.references import read_candidate
from evomerge.errors import BadInput
from evomerge.merging.lineage_weights import ancestry, expanded
from evomerge.recipes.lineage import ExplicitRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.sources.source import is_candidate


def stands_alone(archive: ArchiveReader, candidate: Candidate) -> Recipe:
    """Return a candidate's recipe so that it needs no archive: with its whole lineage.

    >>> from evomerge.testing.archives import example_archive
    >>> archive = example_archive()
    >>> candidate = archive.candidate(3)
    >>> stands_alone(archive, candidate) is candidate.recipe
    True
    """
    recipe = candidate.recipe
    if isinstance(recipe, ExplicitRecipe):
        return expanded(ancestry(candidate.recipe_id, recipe, archive.recipe))
    return recipe


def of_this_run(archive: ArchiveReader, name: str) -> str | None:
    """Return a source that a stage found as a candidate of the run where it lies now, or None.

    >>> from evomerge.testing.archives import example_archive
    >>> of_this_run(example_archive(), "models/a") is None
    True
    """
    for source in archive.sources:
        if source.name == name and source.own:
            return f"{archive.path.parent}#{name.rpartition('#')[2]}"
    return None


def self_contained(recipe: Recipe, archive: ArchiveReader) -> dict[str, Any]:
    """Return a recipe's JSON with candidates of runs among its models as their own recipes.

    One whose run is gone, of which only the merged model is left, keeps its name. Where the recipe
    does not read the run's first source, whose vocabulary all models followed, `first` names it.

    Args:
        recipe: of a candidate.
        archive: that holds it.

    >>> from evomerge.testing.archives import example_archive
    >>> archive = example_archive()
    >>> recipe = archive.candidate(3).recipe
    >>> self_contained(recipe, archive) == recipe.to_json()  # none of its models is a candidate
    True
    """

    def whole(name: str) -> str | dict[str, Any]:
        if not is_candidate(name):
            return name
        try:
            inner, candidate = read_candidate(of_this_run(archive, name) or name)
        except BadInput:
            return name
        with contextlib.closing(inner):
            return self_contained(stands_alone(inner, candidate), inner)

    data = recipe.to_json()
    data["models"] = [whole(model) for model in data["models"]]
    if data.get("base") is not None:
        data["base"] = whole(data["base"])
    first = archive.sources[0].name
    if first not in recipe.sources and not isinstance(recipe, RoutingRecipe):
        data["first"] = whole(first)
    return data
