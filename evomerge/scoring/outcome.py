"""What became of a candidate: item scores, their mean with its standard error, or a failure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

Status = Literal["ok", "stopped", "failed"]

_ONE = np.float32(1.0).view(np.uint32)


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate on one side of the split.

    Attributes:
        status: "ok", "failed", or "stopped": not scored in full.
        reason: of a failure, or of where an outcome comes from that was not made here, in one line.
        scores: objective -> (items,) float32, in the order of the split's items; empty unless
            the status is "ok".
        seconds_merge, seconds_score: wall time in the worker.
        weights_checksum: of the merged weights, or of the factors of an adapter that was served,
            see `kernels.checksum`; "" where none is made.
        worker: HOST/PID/DEVICE.
        answers: objective -> what the model said to each item, where that is kept.
        unjudged: objective -> what the model said to each item that was to be scored, of an
            objective that a judge scores; it has no scores yet.
        traceback: of an error that nobody expected, for the log alone.

    >>> Outcome("failed", "a weight is not finite").scores
    {}
    """

    status: Status
    reason: str = ""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    seconds_merge: float = 0.0
    seconds_score: float = 0.0
    weights_checksum: str = ""
    worker: str = ""
    answers: Mapping[str, list[str]] = field(default_factory=dict)
    unjudged: Mapping[str, list[str]] = field(default_factory=dict)
    traceback: str = ""

    @cached_property
    def summaries(self) -> dict[str, "Score"]:
        """The mean scores by objective, each with its standard error; none of a failure."""
        return {objective: summary(items) for objective, items in self.scores.items()}

    @property
    def means(self) -> dict[str, float] | None:
        """The mean scores by objective; None of a failure."""
        return {objective: score.mean for objective, score in self.summaries.items()} or None


class Score(NamedTuple):
    """The mean over the items of one side of the split, with its standard error.

    >>> Score(0.5, 0.1, 25).items
    25
    """

    mean: float
    stderr: float
    items: int


def summary(items: np.ndarray) -> Score:
    """Return mean, standard error of the mean (n - 1 in the variance; 0 for one item), count.

    Args:
        items: (items,) scores.

    >>> summary(np.array([0.0, 1.0, 1.0, 0.0]))
    Score(mean=0.5, stderr=0.28867513459481287, items=4)
    """
    wide = np.asarray(items, np.float64)
    n = len(wide)
    if not n:
        return Score(float("nan"), float("nan"), 0)
    mean = wide.mean()
    apart = wide - mean  # as `std` does it, which would look for the mean again
    stderr = float(np.sqrt((apart * apart).sum() / (n - 1)) / np.sqrt(n)) if n > 1 else 0.0
    return Score(float(mean), stderr, n)


def encode_scores(items: np.ndarray) -> tuple[str, bytes]:
    """Return (encoding, bytes) of float32 item scores: packed bits if all are 0 or 1.

    >>> encode_scores(np.array([1, 0, 1], np.float32))
    ('bits', b'\\xa0')
    """
    items = np.ascontiguousarray(items, np.float32)
    words = items.view(np.uint32)  # in which -0.0 is no bit
    ones = words == _ONE
    if (ones | (words == 0)).all():
        return "bits", np.packbits(ones).tobytes()
    return "f32", items.astype("<f4").tobytes()


def decode_scores(encoding: str, blob: bytes, n: int) -> np.ndarray:
    """Invert `encode_scores` for `n` items; returns (n,) float32.

    >>> decode_scores("bits", b"\\xa0", 3).tolist()
    [1.0, 0.0, 1.0]
    """
    if encoding == "bits":
        return np.unpackbits(np.frombuffer(blob, np.uint8), count=n).astype(np.float32)
    return np.frombuffer(blob, "<f4")
