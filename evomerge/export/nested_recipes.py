"""Recipes within recipes: a model that is itself a merge, written as how it was made.

In an archive such a model is a candidate's name, RUN#NUMBER. A file that leaves its machine has the
candidate's own recipe in that place, and is merged from the inside out.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from evomerge.cache.eviction import make_room
from evomerge.cache.holding import hold
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, EvomergeError, Fault, placed
from evomerge.export.candidates import materialize, places_of
from evomerge.export.merged_places import merged_like
from evomerge.export.model_directory import merge_to, source_key
from evomerge.export.moe_directory import moe_to
from evomerge.export.moe_form import is_moe
from evomerge.mergekit.reader import from_mergekit, read_file
from evomerge.recipes.parse import parse_recipe
from evomerge.sources.named_parts import split_parts
from evomerge.sources.source import is_candidate
from evomerge.sources.trust import NOBODY, Trust


def merge_file(
    file: Path,
    out: Path,
    trust: Trust = NOBODY,
    as_adapter: bool = False,
) -> str:
    """Merge the recipe in a file (JSON, or a mergekit YAML) into a directory; see `merge_to`.

    Args:
        file: which may be a stranger's.
        out: a path that does not exist yet.
        trust: what code of the sources may run.
        as_adapter: write a LoRA adapter in the place of weights.

    Returns:
        The weights' checksum.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "recipe.json"
    ...     _ = file.write_text('{"kind": "soup"}')
    ...     merge_file(file, Path(folder) / "out")
    Traceback (most recent call last):
    evomerge.errors.BadInput: ...recipe.json: kind: there is no kind 'soup'; known: ...
    """
    data = read_file(file)
    with placed(file=str(file)):
        if file.suffix in (".yml", ".yaml"):
            if is_moe(data):
                if as_adapter:
                    mend = "leave out --as-adapter"
                    raise BadInput(Fault("experts", "a mixture of experts is no adapter", mend))
                return moe_to(data, out, trust=trust)
            recipe = from_mergekit(data, trust=trust)
            places = places_of(recipe, trust=trust)
            return merge_to(recipe, out, places=places, trust=trust, as_adapter=as_adapter)
        return _merge(data, out, str(file), trust, as_adapter)


def _merge(data: Any, out: Path, name: str, trust: Trust, as_adapter: bool = False) -> str:
    """Merge a recipe's JSON, and before it the recipes within it.

    Args:
        data: which may be anything.
        out: a path that does not exist yet.
        name: of the recipe.
        trust: what code of the sources may run.
        as_adapter: write a LoRA adapter in the place of weights; those within are merged first.
    """
    flat, inner = unnested(data, name)
    first = flat.pop("first", None) if isinstance(flat, dict) else None
    recipe = parse_recipe(flat)
    if first is not None and not isinstance(first, str):
        raise BadInput(Fault("first", f"{first!r} is no model", "write a directory or hub id"))
    read = {*recipe.sources, first}
    used = [model for model in inner if model in read]
    with contextlib.ExitStack() as stack:
        places = {}
        if used:
            folder = stack.enter_context(scratch(name))
            places = {model: f"{folder}/{index}" for index, model in enumerate(used)}
        for model, place in places.items():
            with placed("first" if model == first else source_key(recipe, model)):
                _merge(inner[model], Path(place), model, trust)
        places |= places_of(recipe, places, trust)
        alike = next((name for name in recipe.sources if split_parts(name)[1]), None)
        if alike is not None:  # what a recipe merges is a part of all its models
            places = {model: merged_like(Path(place), alike) for model, place in places.items()}
        if first is not None and is_candidate(first) and first not in places:
            with placed("first"):
                places[first] = str(materialize(first, trust=trust.of_others))
        return merge_to(
            recipe,
            out,
            places=places,
            trust=trust,
            first=None if first is None else places.get(first, first),
            written=data,
            as_adapter=as_adapter,
        )


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Give a folder for models that are merged only to be merged again, or to be sent away.

    Args:
        name: of what they are merged for, for the line that says that it cannot be written.

    Raises:
        EvomergeError: there is no room for one.

    >>> with scratch("recipe.json") as folder:
    ...     folder.is_dir()
    True
    """
    folder = cache_folder("recipes") / uuid4().hex
    hold(folder)
    make_room()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        reason = f"models within it cannot be written to {folder}: {error.strerror}"
        raise EvomergeError(f"{name}: {reason}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unnested(data: Any, name: str) -> tuple[Any, dict[str, Mapping[str, Any]]]:
    """Return a recipe's JSON with names in the place of recipes, and these by name.

    Args:
        data: which may be anything.
        name: of the recipe, with which the names begin.

    >>> flat, inner = unnested({"models": ["a", {"kind": "routing"}]}, "recipe.json")
    >>> flat, inner
    ({'models': ['a', 'recipe.json#models.1']}, {'recipe.json#models.1': {'kind': 'routing'}})
    """
    inner: dict[str, Mapping[str, Any]] = {}

    def named(entry: Any, key: str) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        inner[f"{name}#{key}"] = entry
        return f"{name}#{key}"

    if not isinstance(data, Mapping):
        return data, inner
    flat = dict(data)
    if isinstance(data.get("models"), list):
        flat["models"] = [named(m, f"models.{i}") for i, m in enumerate(data["models"])]
    for key in ("base", "first"):
        if key in data:
            flat[key] = named(data[key], key)
    return flat, inner
