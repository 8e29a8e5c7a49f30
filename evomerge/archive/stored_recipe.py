"""A recipe as the columns of `candidates`: JSON, and of a mixture its segments packed."""

import json
import zlib

from evomerge.errors import BadInput, Fault, one_line
from evomerge.recipes.mixture import MixtureRecipe, packed, unpacked
from evomerge.recipes.parse import parse_recipe
from evomerge.recipes.recipe import Recipe


def to_columns(recipe: Recipe) -> dict[str, str | bytes | None]:
    """Return the columns `recipe` and `segments`.

    A mixture after many crossovers has thousands of segments, which take a third as many bytes
    packed as in JSON, or less.

    >>> from evomerge.recipes.parameters import single
    >>> to_columns(single("models/ja", "bfloat16"))["segments"] is None
    True
    """
    if isinstance(recipe, MixtureRecipe):
        data, segments = packed(recipe)
        return {"recipe": json.dumps(data), "segments": segments}
    return {"recipe": json.dumps(recipe.to_json()), "segments": None}


def from_columns(recipe: str, segments: bytes | None) -> Recipe:
    """Invert `to_columns`.

    Raises:
        BadInput: they are no recipe's.

    >>> from evomerge.recipes.parameters import single
    >>> from_columns(**to_columns(single("models/ja", "bfloat16"))).models
    ('models/ja',)
    """
    try:
        data = json.loads(recipe)
        return parse_recipe(data) if segments is None else unpacked(data, segments)
    except (KeyError, RecursionError, TypeError, ValueError, zlib.error) as error:
        raise BadInput(Fault("recipe", f"is none of evomerge's ({one_line(error)})")) from error
