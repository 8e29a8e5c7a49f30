"""A model that was made of others' tensors outside of a recipe, written beside and renamed."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from evomerge.dtypes import CODES
from evomerge.errors import BadInput, EvomergeError, Fault, Faults
from evomerge.export.hub_ids import folders, hub_ids
from evomerge.export.model_directory import copy_companions, write_config
from evomerge.export.shards import Entries, write_shards
from evomerge.kernels.checksum import Checksum
from evomerge.merging.source_weights import read_stored
from evomerge.sources.digest import digest
from evomerge.sources.kinship import RECORD
from evomerge.sources.own_cards import inherited
from evomerge.sources.source import Source
from evomerge.whole_files import written_beside

_ONE_FILE = 1 << 62  # bytes: no module is larger


def refuse_existing(out: Path) -> None:
    """Raise `BadInput` if there is something in the place that is to be written.

    >>> refuse_existing(Path("nowhere"))
    """
    if out.exists():
        raise BadInput(Fault("", "is there already", "name a path that does not exist", str(out)))


def check_finite(sources: Iterable[Source]) -> None:
    """Raise `BadInput` with a fault for each source that holds NaN or infinity.

    >>> check_finite([])
    """
    faults = Faults()
    for source in sources:
        if not_finite := digest(source)[1]:
            wrong = f"'{source.name}' has NaN or infinity in {not_finite[0]}"
            faults.add("", wrong, "take another")
    faults.check()


def write_model(
    out: Path,
    sources: Sequence[Source],
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    record: Mapping[str, Any],
) -> str:
    """Write a Hugging Face directory, or the weights alone of a module that a function made.

    Args:
        out: a path that does not exist; of a module, of its safetensors file.
        sources: the frame, which gives tokenizer and dtypes, and what else the model is made of.
        config: of the model.
        shapes: of the tensors, in their order.
        tensors: of any dtype, in that order; rounded to the frame's, but for those that it keeps
            wider on purpose.
        record: how the model was made.

    Returns:
        The weights' checksum.

    Raises:
        EvomergeError: the disk does not take them; nothing is left behind.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(f"{folder}/a", seed=0)))
    ...     shapes = {name: stored.shape for name, stored in source.tensors.items()}
    ...     zeros = ((name, torch.zeros(shape)) for name, shape in shapes.items())
    ...     out = Path(folder, "out")
    ...     _ = write_model(out, [source], source.config, shapes, zeros, {"kind": "nothing"})
    ...     open_source(str(out)).dtype
    'bfloat16'
    """
    frame = sources[0]
    dtypes = dict.fromkeys(shapes, frame.dtype)
    for name in frame.tensors.keys() & shapes.keys():
        dtypes[name] = frame.dtype_of(name, frame.dtype)
    entries: Entries = {name: (CODES[dtypes[name]], shape) for name, shape in shapes.items()}
    entries |= {name: (stored.dtype, stored.shape) for name, stored in frame.carried.items()}
    checksum = Checksum()

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            rounded = tensor.to(getattr(torch, dtypes[name]))
            checksum.update(name, rounded)
            yield name, rounded
        for name, stored in frame.carried.items():
            yield name, read_stored(stored)

    try:
        with written_beside(out) as place:
            if frame.factory is not None:
                with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                    write_shards(entries, stream(), Path(folder), limit=_ONE_FILE)
                    Path(folder, "model.safetensors").rename(place)
            else:
                place.mkdir()
                write_shards(entries, stream(), place)
                write_config(config, frame.dtype, place)
                copy_companions(frame, place)
                (place / RECORD).write_text(json.dumps(record, indent=1) + "\n")
                (place / "README.md").write_text(_card(sources), encoding="utf-8")
    except OSError as error:
        raise EvomergeError(f"{out} cannot be written: {error.strerror or error}") from error
    return checksum.hexdigest()


def _card(sources: Sequence[Source]) -> str:
    """Return README.md with the metadata that the hub reads; it names no folder."""
    known = inherited({source.name: folders(source.place) for source in sources})
    head: dict[str, Any] = {"library_name": "transformers", **known.license}
    ids = [found for source in sources for found in hub_ids(source.name, source.place)]
    if ids:
        head["base_model"] = list(dict.fromkeys(ids))
    head["tags"] = ["merge", "evomerge"] if len(sources) > 1 else ["evomerge"]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    said = f"# Model\n\nMade by evomerge; `{RECORD}` says how.\n"
    if known.doubt:
        said += f"\nNo licence is given here: {known.doubt}.\n"
    return f"---\n{text}---\n\n{said}"
