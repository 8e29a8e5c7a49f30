"""A small run, read for a report, for examples and tests."""

import tempfile
from pathlib import Path

from evomerge.report.run import Run, read_run
from evomerge.testing.archives import example_archive


def example_run() -> Run:
    """Return the run of `example_archive`.

    >>> example_run().front
    [3, 4]
    """
    with tempfile.TemporaryDirectory() as folder:
        example_archive(Path(folder) / "archive.db").close()
        found = read_run(Path(folder))
    assert found is not None
    return found
