"""A recipe becomes an ordinary Hugging Face directory, written beside and renamed when whole."""

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from evomerge.dtypes import SIZE, STORED_DTYPES
from evomerge.errors import BadInput, EvomergeError, Fault
from evomerge.kernels.checksum import Checksum
from evomerge.mergekit.passthrough import to_passthrough
from evomerge.mergekit.writer import to_mergekit
from evomerge.merging.merger import Merger
from evomerge.merging.routed_checkpoint import routed_config
from evomerge.merging.validation import check_methods, layout_faults, path_faults
from evomerge.recipes.parameters import Recipe
from evomerge.sources.compatibility import mismatches, stream_mismatches
from evomerge.sources.digest import digest
from evomerge.sources.safetensors_file import header_bytes
from evomerge.sources.source import Source, open_source

SHARD_BYTES = 5_000_000_000

_CODES = {dtype: code for code, dtype in STORED_DTYPES.items()}
# Beside the weights and config.json, what a directory of transformers may hold.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def merge_to(
    recipe: Recipe,
    out: Path,
    *,
    file: str = "recipe",
    places: Mapping[str, str] | None = None,
    card: str | None = None,
    checksum: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    trust_remote_code: bool = False,
    device: str = "cpu",
    written: Mapping | None = None,
) -> str:
    """Materialize a recipe into a directory that plain transformers loads.

    Args:
        recipe: any recipe.
        out: a path that does not exist yet.
        file: the name that faults carry.
        places: source name -> directory, where it is not the name itself.
        card: text of README.md; a short one if not given.
        checksum: what the weights' checksum must be, on the kind of device that scored it.
        shard_bytes: largest size of one safetensors file.
        written: what recipe.json gets, where it is not the recipe's own JSON.
        device: where to merge; that on which `checksum` was scored, if it is to be the same.
        trust_remote_code: take sources whose config asks to run code of its own.

    Returns:
        The weights' checksum.

    Raises:
        BadInput: the recipe, its sources or `out` will not do.
        EvomergeError: the weights do not carry `checksum`, or the disk does not take them;
            nothing is left behind.
    """
    if out.exists():
        raise BadInput(Fault(str(out), "", "is there already", "name a path that does not exist"))
    check_methods(recipe, file)
    opened = _open_all(recipe, file, places or {}, trust_remote_code)
    if faults := layout_faults(recipe, opened[recipe.sources[0]], file):
        raise BadInput(*faults)
    merger = Merger(opened, _hashes(opened, file), device, keep=False)
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir(parents=True)
        found = _write_weights(merger, recipe, beside, shard_bytes)
        if checksum and found != checksum:
            raise EvomergeError(
                f"the merged weights have checksum {found}, but {checksum} was scored; was the"
                " candidate scored on another kind of device? `--unverified` exports it anyway"
            )
        _write_texts(opened, recipe, beside, card, written)
        beside.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EvomergeError(f"{out} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return found


def _open_all(
    recipe: Recipe, file: str, places: Mapping[str, str], trust: bool
) -> dict[str, Source]:
    faults, opened = [], {}
    for name in recipe.sources:
        try:
            opened[name] = open_source(
                places.get(name, name), file=file, key="models", trust_remote_code=trust
            )
        except BadInput as error:
            faults += error.faults
    if recipe.kind == "routing":
        faults += stream_mismatches(list(opened.values()), file, "models")
        faults += [] if faults else path_faults(recipe, opened, file)
    elif len(opened) > 1:
        faults += mismatches(list(opened.values()), file, "models")
    if faults:
        raise BadInput(*faults)
    return opened


def _hashes(opened: Mapping[str, Source], file: str) -> dict[str, str]:
    """Return the sources' content hashes, once no weight of theirs is NaN or infinite."""
    digests = {name: digest(source) for name, source in opened.items()}
    faults = [
        Fault(file, "models", f"'{n}' has NaN or infinity in {d.not_finite[0]}", "take another")
        for n, d in digests.items()
        if d.not_finite
    ]
    if faults:
        raise BadInput(*faults)
    return {name: d.sha256 for name, d in digests.items()}


def _write_weights(merger: Merger, recipe: Recipe, folder: Path, limit: int) -> str:
    """Write each tensor as it comes, so that one is in memory at a time; return the checksum."""
    shapes = merger.shapes(recipe)
    size = SIZE[_CODES[recipe.dtype]]
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        taken = math.prod(shape) * size
        if shards[-1] and filled + taken > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += taken
    checksum, stream, weight_map, total = Checksum(), merger.stream(recipe), {}, 0
    for index, shard in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        weight_map |= dict.fromkeys(shard, file)
        with open(folder / file, "wb") as out:
            code = _CODES[recipe.dtype]
            out.write(header_bytes({n: (code, shape) for n, shape in shard.items()}))
            for name, tensor in itertools.islice(stream, len(shard)):
                checksum.update(name, tensor)
                total += tensor.nbytes
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                out.write(flat.numpy().data)
    if len(shards) > 1:
        listed = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed, indent=1))
    return checksum.hexdigest()


def _write_texts(
    opened: Mapping[str, Source],
    recipe: Recipe,
    folder: Path,
    card: str | None,
    written: Mapping | None,
) -> None:
    """Write config, tokenizer, recipe and model card: all but the weights."""
    frame = opened[recipe.sources[0]]
    routed = recipe.kind == "routing"
    config = routed_config(recipe, opened) if routed else frame.config
    _write_config(frame, config, recipe.dtype, folder)
    data = recipe.to_json() if written is None else written
    (folder / "recipe.json").write_text(json.dumps(data, indent=1) + "\n")
    config = to_passthrough(recipe, opened) if routed else to_mergekit(recipe, frame)
    if config and all(is_portable(name) for name in recipe.sources):
        (folder / "mergekit_config.yml").write_text(config)
    (folder / "README.md").write_text(card or _short_card(recipe), encoding="utf-8")


def _write_config(frame: Source, config: Mapping, dtype: str, folder: Path) -> None:
    config = {k: v for k, v in config.items() if k not in ("torch_dtype", "_name_or_path")}
    config["dtype"] = str(getattr(torch, dtype)).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in _COMPANIONS:
        if (frame.path / name).exists():
            shutil.copyfile(frame.path / name, folder / name)
    if "auto_map" in frame.config:
        for code in frame.path.glob("*.py"):
            shutil.copyfile(code, folder / code.name)


def _short_card(recipe: Recipe) -> str:
    return card_head(recipe) + "# Merged model\n\nMade by evomerge from `recipe.json`.\n"


def is_portable(name: str) -> bool:
    """Tell whether a source's name means something to others: no candidate of a run."""
    return "#" not in name or os.path.isdir(name)


def card_head(recipe: Recipe, also: Iterable[str] = ()) -> str:
    """Return the metadata block of a model card: the hub's merge tags and the sources.

    Args:
        recipe: of the model.
        also: what candidates of runs among its sources were made of.
    """
    sources = [*recipe.sources, *(also if not all(map(is_portable, recipe.sources)) else ())]
    portable = dict.fromkeys(name for name in sources if is_portable(name))
    names = "".join(f"- {name}\n" for name in portable)
    return (
        "---\nlibrary_name: transformers\nbase_model:\n"
        f"{names}tags:\n- mergekit\n- merge\n- evomerge\n---\n\n"
    )
