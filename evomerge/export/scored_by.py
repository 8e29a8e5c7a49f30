"""What an export says of how its candidate was scored, where that was not by plain transformers."""

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.summary import as_written


def scored_by(archive: ArchiveReader, candidate: int) -> str:
    """Return the end of a line on an exported candidate: weights' form, other engines; or nothing.

    >>> from evomerge.testing.archives import example_archive
    >>> scored_by(example_archive(), 3)
    ''
    """
    with as_written():
        if archive.quantized:
            return f", scored in {archive.quantized}"
        engine = archive.engine
        if engine == "transformers":
            return ""
        compared = archive.agreement(candidate)
    if not compared:
        return f"; scored by {engine}, not compared with transformers"
    differing = sum(one.differing for one in compared.values())
    items = sum(one.items for one in compared.values())
    told = f"{differing} of {items} held-out items fall otherwise by transformers"
    return f"; scored by {engine}, {told}"
