"""A recipe becomes an ordinary Hugging Face directory, written beside and renamed when whole."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from evomerge.errors import BadInput, EvomergeError, Fault, Faults, placed
from evomerge.export.hub_ids import base_model, folders
from evomerge.export.layouts import write_rest, write_weights
from evomerge.export.model_card import short_card
from evomerge.export.shards import SHARD_BYTES
from evomerge.kernels.checksum import Checksum
from evomerge.mergekit.passthrough import to_passthrough
from evomerge.mergekit.writer import to_mergekit
from evomerge.merging.adapters import factored_faults
from evomerge.merging.joined_adapter import join_adapters
from evomerge.merging.merger import Merger
from evomerge.merging.routed_checkpoint import routed_config
from evomerge.merging.validation import check_methods, path_faults, position_faults
from evomerge.recipes.parameters import ParametersRecipe, single
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.sources.alignment import aligned
from evomerge.sources.companions import companions
from evomerge.sources.compatibility import mismatches, stream_mismatches
from evomerge.sources.digest import digest
from evomerge.sources.named_parts import TRUNK
from evomerge.sources.own_cards import inherited
from evomerge.sources.source import Source, is_candidate, open_source
from evomerge.sources.trust import NOBODY, Trust
from evomerge.whole_files import written_beside

log = logging.getLogger("evomerge")


def merge_to(
    recipe: Recipe,
    out: Path,
    *,
    places: Mapping[str, str] | None = None,
    card: str | None = None,
    checksum: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    trust: Trust = NOBODY,
    first: str | None = None,
    device: str = "cpu",
    written: Mapping[str, Any] | None = None,
    as_adapter: bool = False,
    adapter_checksum: str | None = None,
    head: str | None = None,
) -> str:
    """Materialize a recipe into a directory that plain transformers, or diffusers, loads.

    Args:
        recipe: any recipe.
        out: a path that does not exist yet.
        places: source name -> directory, where it is not the name itself.
        card: text of README.md; a short one if not given.
        checksum: what the weights' checksum must be, on the kind of device that scored it.
        shard_bytes: largest size of one safetensors file.
        trust: what code of the sources may run.
        first: a directory of the model whose vocabulary all follow; that of the recipe's first
            source by default.
        device: where to merge; that on which `checksum` was scored, if it is to be the same.
        written: what recipe.json gets, where it is not the recipe's own JSON.
        as_adapter: write a LoRA adapter of the base, which PEFT loads, in the place of weights.
        adapter_checksum: what the checksum of the adapter's factors must be, where it was scored
            as one.
        head: a source whose head it gets, with class and tokenizer, where the trunk alone is
            merged; that of the recipe's first source by default.

    Returns:
        The weights' checksum; of an adapter, of the weights that it merges to.

    Raises:
        BadInput: the recipe, its sources or `out` will not do.
        EvomergeError: the weights do not carry `checksum`, or the disk does not take them;
            nothing is left behind.

    >>> import tempfile
    >>> from evomerge.recipes.parameters import single
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     name = str(tiny_llama(f"{folder}/a", seed=0))
    ...     checksum = merge_to(single(name, "bfloat16"), Path(folder) / "out")
    ...     sorted(path.name for path in Path(folder, "out").glob("*e*.json"))
    ['generation_config.json', 'recipe.json', 'tokenizer.json', 'tokenizer_config.json']
    """
    if out.exists():
        mend = "name a path that does not exist"
        raise BadInput(Fault("", "is there already", mend, file=str(out)))
    if as_adapter and "+" in str(out):
        wrong = "has a plus, which parts a model from its adapter where sources are named"
        raise BadInput(Fault("", wrong, "name a path without one", file=str(out)))
    check_methods(recipe)
    opened = _open_all(recipe, places or {}, trust, first)
    frame = opened[recipe.sources[0]] if head is None else _with_head(opened, head, places, trust)
    merger = Merger(opened, _hashes(recipe, opened), device, room=0)
    adapter = join_adapters(merger, recipe) if as_adapter or adapter_checksum else None
    if adapter is not None and adapter_checksum:
        _compare("adapter's factors", adapter.checksum(), adapter_checksum)
    try:
        with written_beside(out) as folder:
            folder.mkdir()
            if adapter is not None and as_adapter:
                name = recipe.sources[0]
                adapter.save(folder, *base_model(name, (places or {}).get(name)))
                merged = _merged_again(merger, frame, recipe.dtype, folder, trust)
            else:
                merged = write_weights(merger, recipe, frame, folder, shard_bytes)
                if frame.form not in ("pipeline", "file"):  # which have no settings of their own
                    dtype = None if frame.form == "diffusers" else recipe.dtype
                    write_config(_config(recipe, opened, frame), dtype, folder)
                write_rest(frame, folder)
            if checksum:
                _compare("merged weights", merged, checksum)
            if frame.form != "file":
                copy_companions(frame, folder)
            data = recipe.to_json() if written is None else written
            (folder / "recipe.json").write_text(json.dumps(data, indent=1) + "\n")
            if not any(is_candidate(name) for name in recipe.sources):
                configuration = _mergekit_configuration(recipe, opened)
                if configuration is not None:
                    (folder / "mergekit_config.yml").write_text(configuration)
            text = card or _short_card(recipe, opened, as_adapter)
            (folder / "README.md").write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise EvomergeError(f"{out} cannot be written: {reason}") from error
    except SafetensorError as error:
        raise EvomergeError(f"{out} cannot be written: {error}") from error
    return merged


def _short_card(recipe: Recipe, opened: Mapping[str, Source], as_adapter: bool) -> str:
    places = {name: folders(source.place) for name, source in opened.items()}
    return short_card(recipe, as_adapter, inherited(places))


def _open_all(
    recipe: Recipe, places: Mapping[str, str], trust: Trust, first: str | None
) -> dict[str, Source]:
    """Open a recipe's sources, by name, and check them against one another and the recipe."""
    faults = Faults()
    opened = {}
    for name in recipe.sources:
        with faults.gather(under=source_key(recipe, name)):
            place = places.get(name, name)
            opened[name] = open_source(place, trust)
    if isinstance(recipe, RoutingRecipe):
        faults.extend(stream_mismatches(list(opened.values())), under="models")
        if not faults:
            faults.extend(path_faults(recipe, opened))
    elif len(opened) > 1:
        faults.extend(mismatches(list(opened.values())), under="models")
    faults.check()
    for source in opened.values():
        for note in source.notes:
            log.warning("%s", note)
    if not isinstance(recipe, RoutingRecipe):
        measure = opened[recipe.sources[0]]
        if first is not None:
            with placed("first"):
                measure = open_source(first, trust)
        opened = {name: aligned(measure, source) for name, source in opened.items()}
    faults.extend(position_faults(recipe, opened[recipe.sources[0]]))
    for culprit, fault in factored_faults(recipe, opened):
        key = "models" if culprit is None else source_key(recipe, culprit)
        faults.extend([fault], under=key)
    faults.check()
    return opened


def source_key(recipe: Recipe, name: str) -> str:
    """Return where a recipe's JSON first names a source.

    >>> from evomerge.recipes.parameters import uniform
    >>> source_key(uniform(("a", "b"), "float32"), "b")
    'models.1'
    """
    return f"models.{recipe.models.index(name)}" if name in recipe.models else "base"


def _hashes(recipe: Recipe, opened: Mapping[str, Source]) -> dict[str, str]:
    """Return the sources' content hashes, once no weight of theirs is NaN or infinite."""
    faults = Faults()
    hashes = {}
    for name, source in opened.items():
        sha256, not_finite = digest(source)
        if not_finite:
            wrong = f"'{name}' has NaN or infinity in {not_finite[0]}"
            faults.add(source_key(recipe, name), wrong, "take another")
        hashes[name] = sha256
    faults.check()
    return hashes


def _config(recipe: Recipe, opened: Mapping[str, Source], frame: Source) -> Mapping[str, Any]:
    return routed_config(recipe, opened) if isinstance(recipe, RoutingRecipe) else frame.config


def _with_head(
    opened: Mapping[str, Source], head: str, places: Mapping[str, str] | None, trust: Trust
) -> Source:
    """Return the source whose head a merge of trunks gets."""
    first = next(iter(opened.values()))
    if first.parts != (TRUNK,):
        wrong = "is for models whose trunks alone are merged"
        mend = "write sources.heads: keep before the search, or leave it out"
        raise BadInput(Fault("--head", wrong, mend, file=""))
    source = opened.get(head)
    return source or aligned(first, open_source((places or {}).get(head, head), trust))


def _mergekit_configuration(recipe: Recipe, opened: Mapping[str, Source]) -> str | None:
    """Return a mergekit configuration of a recipe, if it can express it."""
    if isinstance(recipe, RoutingRecipe):
        return to_passthrough(recipe, opened)
    frame = opened[recipe.sources[0]]
    if frame.form != "transformers" or frame.parts:  # which mergekit does not know
        return None
    if isinstance(recipe, ParametersRecipe):
        return to_mergekit(recipe, opened[recipe.sources[0]])
    return None


def _compare(what: str, found: str, scored: str) -> None:
    if found != scored:
        raise EvomergeError(
            f"the {what} have checksum {found}, but {scored} was scored; was the candidate scored"
            " on another kind of device? `--unverified` exports it anyway"
        )


def _merged_again(merger: Merger, frame: Source, dtype: str, folder: Path, trust: Trust) -> str:
    """Return the checksum of the weights that a written adapter merges to; none is written."""
    name = f"{frame.path}+{folder}"
    again = Merger({name: open_source(name, trust)}, {name: ""}, merger.device, room=0)
    checksum = Checksum()
    for tensor_name, tensor in again.stream(single(name, dtype)):
        checksum.update(tensor_name, tensor)
    return checksum.hexdigest()


def write_config(config: Mapping[str, Any], dtype: str | None, folder: Path) -> None:
    """Write a model's config.json, with the dtype of its weights, where the library keeps it there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_config({"model_type": "llama"}, "bfloat16", Path(folder))
    ...     json.loads(Path(folder, "config.json").read_text())
    {'model_type': 'llama', 'dtype': 'bfloat16'}
    """
    kept = {k: v for k, v in config.items() if k not in ("torch_dtype", "_name_or_path")}
    if dtype is not None:
        kept["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n")


def copy_companions(frame: Source, folder: Path) -> None:
    """Copy the other files of a frame's directory: tokenizer, templates, licence, ...

    Raises:
        OSError: the disk does not take them.

    >>> copy_companions(Source("a", Path("absent"), {}, {}, {}), Path("out"))
    """
    for name in companions(frame.path, "auto_map" in frame.config):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(frame.path / name, folder / name)
