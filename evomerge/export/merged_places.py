"""Where the models of a run lie, as names that `open_source` takes."""

from pathlib import Path

from evomerge.archive.reader import ArchiveReader
from evomerge.errors import BadInput, Fault, nearest
from evomerge.sources.named_parts import split_parts, with_parts
from evomerge.sources.sentence_modules import WEIGHTS
from evomerge.sources.single_file import SUFFIX


def merged_like(folder: Path, place: str) -> str:
    """Return a candidate's folder as a source: its file where it is one, and its parts.

    Args:
        folder: where the candidate lies now.
        place: of the candidate, or of a source of its campaign.

    >>> merged_like(Path("cache/7"), "cache/3:trunk"), merged_like(Path("7"), "dream.safetensors")
    ('cache/7:trunk', '7/model.safetensors')
    """
    model, parts = split_parts(place)
    is_file = model.endswith(SUFFIX)
    return with_parts(str(folder / WEIGHTS if is_file else folder), parts)


def folder_of(place: str) -> Path:
    """Return the folder in which a materialized candidate lies.

    >>> folder_of("cache/7:trunk"), folder_of("cache/7/model.safetensors")
    (PosixPath('cache/7'), PosixPath('cache/7'))
    """
    path = Path(split_parts(place)[0])
    return path.parent if path.suffix == SUFFIX else path


def source_labelled(archive: ArchiveReader, label: str) -> str:
    """Return the name of a run's source by its label.

    Raises:
        BadInput: the run has none of that label.

    >>> from evomerge.testing.archives import example_archive
    >>> source_labelled(example_archive(), "ja")
    'models/ja'
    """
    names = {source.label: source.name for source in archive.sources}
    if label not in names:
        raise BadInput(
            Fault(label, "is no source of this run", nearest(label, names), file="--head")
        )
    return names[label]
