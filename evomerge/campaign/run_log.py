"""The run's log, and what of it the observer hears."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from evomerge.campaign.observer import Observer

log = logging.getLogger("evomerge")


@contextlib.contextmanager
def logging_to(file: Path, observer: Observer) -> Iterator[None]:
    """Let the package's log go into a file until it is left, and its warnings to an observer.

    A warning is said once, not for every candidate, worker or number in it.

    >>> import tempfile
    >>> from evomerge.campaign.observer import Silent
    >>> observer = Silent()
    >>> with tempfile.TemporaryDirectory() as run:
    ...     with logging_to(Path(run) / "log.txt", observer):
    ...         for candidate in range(3):
    ...             log.warning("candidate %d failed: it is not finite", candidate)
    ...     len(Path(run, "log.txt").read_text().splitlines())
    3
    >>> observer.said
    ['warning: candidate 0 failed: it is not finite']
    """
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [handler, _Said(observer)]
    level, propagate = log.level, log.propagate
    for one in handlers:
        log.addHandler(one)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.setLevel(level)
        log.propagate = propagate
        for one in handlers:
            log.removeHandler(one)
        handler.close()


class _LogFile(logging.FileHandler):
    """The run's log."""

    def __init__(self, file: Path, encoding: str):
        super().__init__(file, encoding=encoding)
        self.setLevel(logging.INFO)  # whatever else is heard meanwhile

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: a full disk is told once, and not at every line."""


class _Said(logging.Handler):
    """Says to an observer what is meant for the user, and each warning once.

    Errors are told by whoever ends with them, and tracebacks are for the run's log.
    """

    def __init__(self, observer: Observer):
        super().__init__(logging.INFO)
        self._observer = observer
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Say a record, if it is for the user."""
        text = record.getMessage()
        if getattr(record, "for_user", False):
            self._observer.say(text)
            return
        if record.levelno != logging.WARNING or record.exc_info or "\n" in text:
            return
        # workers say the same, and candidates fail with other numbers
        alike = re.sub(r"\d+(\.\d+)?", "#", getattr(record, "of_worker", text))
        if alike not in self._said:
            self._said.add(alike)
            self._observer.say(f"warning: {text}")
