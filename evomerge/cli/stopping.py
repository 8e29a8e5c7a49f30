"""Ctrl-C and SIGTERM while a campaign runs."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Called, tells whether a signal has asked to stop; see the `stop` of `run_campaign`.

    The first signal asks, the second leaves at once, as does one that comes before the campaign
    has begun: nothing is in flight then.

    >>> said = []
    >>> with StopSignals(said.append) as stop:
    ...     before = stop()
    ...     signal.raise_signal(signal.SIGTERM)
    ...     before, stop()
    (False, True)
    >>> said
    ['stopping: waiting for what is in flight; again to leave at once']
    """

    def __init__(self, say: Callable[[str], None]):
        """
        Args:
            say: takes a line for the user.
        """
        self._say = say
        self._is_listened_to = self._is_asked = False

    def __call__(self) -> bool:
        self._is_listened_to = True
        return self._is_asked

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._take) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._is_asked or not self._is_listened_to:
            raise KeyboardInterrupt
        self._is_asked = True
        self._say("stopping: waiting for what is in flight; again to leave at once")
