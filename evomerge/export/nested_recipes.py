"""Recipes within recipes: a model that is itself a merge, written as how it was made.

In an archive such a model is a candidate's name, RUN#NUMBER. A file that leaves its machine has the
candidate's own recipe in that place, and is merged from the inside out.
"""

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.environment import cache_folder
from evomerge.errors import EvomergeError
from evomerge.export.candidates import places_of
from evomerge.export.model_directory import merge_to
from evomerge.mergekit.reader import from_mergekit, read_file
from evomerge.recipes.parse import from_json


def merge_file(file: Path, out: Path) -> str:
    """Merge the recipe in a file (JSON, or a mergekit YAML) into a directory; see `merge_to`.

    Returns:
        The weights' checksum.
    """
    data = read_file(file)
    if file.suffix in (".yml", ".yaml"):
        recipe = from_mergekit(data, str(file))
        return merge_to(recipe, out, file=str(file), places=places_of(recipe, str(file)))
    return _merge(data, out, str(file))


def _merge(data: Any, out: Path, file: str) -> str:
    flat, inner = unnested(data, file)
    recipe = from_json(flat, file)
    used = [name for name in inner if name in recipe.sources]
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(_scratch(file)) if used else ""
        places = {name: f"{made}/{index}" for index, name in enumerate(used)}
        for name, place in places.items():
            _merge(inner[name], Path(place), name)
        others = places_of(recipe, file, known=places)
        return merge_to(recipe, out, file=file, places=places | others, written=data)


def _scratch(file: str) -> tempfile.TemporaryDirectory:
    """Return a folder for models that are merged only to be merged again."""
    folder = cache_folder("recipes")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        reason = f"models within it cannot be written to {folder}: {error.strerror}"
        raise EvomergeError(f"{file}: {reason}") from error


def unnested(data: Any, file: str) -> tuple[Any, dict[str, Mapping[str, Any]]]:
    """Return a recipe's JSON with names in the place of recipes, and these by name."""
    if not isinstance(data, Mapping):
        return data, {}
    inner: dict[str, Mapping[str, Any]] = {}

    def named(entry: Any, key: str) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        name = f"{file}#{key}"
        inner[name] = entry
        return name

    flat = dict(data)
    if isinstance(data.get("models"), list):
        flat["models"] = [named(m, f"models.{i}") for i, m in enumerate(data["models"])]
    if "base" in data:
        flat["base"] = named(data["base"], "base")
    return flat, inner
