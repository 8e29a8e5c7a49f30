"""Item scores: their mean with its standard error, and how the archive packs them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate on one split.

    `scores` maps an objective to its item scores, float32, in the order of the split's
    items; empty unless `status` is "ok". Seconds are wall time in the worker. `answers` maps
    an objective to what the model said to each item, where that is kept.
    """

    status: str  # "ok" | "failed"; "stopped" is for candidates that are not scored in full
    reason: str = ""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    seconds_merge: float = 0.0
    seconds_score: float = 0.0
    weights_checksum: str = ""
    worker: str = ""
    answers: Mapping[str, list[str]] = field(default_factory=dict)


class Score(NamedTuple):
    """The mean over the items of one split, with its standard error."""

    mean: float
    stderr: float
    items: int


def summary(items: np.ndarray) -> Score:
    """Return mean, standard error of the mean (n - 1 in the variance; 0 for one item), count."""
    wide = np.asarray(items, np.float64)
    n = len(wide)
    if not n:
        return Score(float("nan"), float("nan"), 0)
    stderr = float(wide.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    return Score(float(wide.mean()), stderr, n)


def encode_scores(items: np.ndarray) -> tuple[str, bytes]:
    """Return (encoding, bytes) of float32 item scores: packed bits if all are 0 or 1."""
    items = np.asarray(items, np.float32)
    plain = ~np.signbit(items)  # -0.0 is no bit
    if ((items == 0.0) | (items == 1.0)).all() and plain.all():
        return "bits", np.packbits(items.astype(bool)).tobytes()
    return "f32", items.astype("<f4").tobytes()


def decode_scores(encoding: str, blob: bytes, n: int) -> np.ndarray:
    """Invert `encode_scores` for `n` items."""
    if encoding == "bits":
        return np.unpackbits(np.frombuffer(blob, np.uint8), count=n).astype(np.float32)
    return np.frombuffer(blob, "<f4")
