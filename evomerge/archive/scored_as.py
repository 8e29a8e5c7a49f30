"""In which form a run's models were scored."""

import contextlib
from pathlib import Path

from evomerge.archive.summary import as_written, open_run


@as_written()
def quantized(directory: Path | str) -> str:
    """Return what a run's weights were rounded to for scoring; "" if they were not.

    Args:
        directory: the run's.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     quantized(run)
    ''
    """
    with contextlib.closing(open_run(directory)) as archive:
        return archive.quantized
