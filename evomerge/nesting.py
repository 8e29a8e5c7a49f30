"""Recipes within recipes: a model that is itself a merge, written as how it was made.

In an archive such a model is a candidate's name, RUN#NUMBER. A file that leaves its machine has the
candidate's own recipe in that place, and is merged from the inside out.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.candidates import places_of
from evomerge.export import merge_to
from evomerge.machine import cache_folder
from evomerge.mergekit_in import from_mergekit, read_file
from evomerge.recipe import canonical_json, from_json


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
    used = {name: entry for name, entry in inner.items() if name in recipe.sources}
    places = {name: str(_made(entry, name)) for name, entry in used.items()}
    others = places_of(recipe, file, known=places)
    return merge_to(recipe, out, file=file, places=places | others, written=data)


def _made(data: Mapping[str, Any], file: str) -> Path:
    """Merge a recipe within another into the cache and return its directory.

    Anew each time: a source may have changed since.
    """
    key = hashlib.sha256(canonical_json([os.getcwd(), data]).encode()).hexdigest()
    folder = cache_folder("recipes") / key
    shutil.rmtree(folder, ignore_errors=True)
    _merge(data, folder, file)
    return folder


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
