"""Numbers as people read them."""

import math

Z95 = 1.96  # half-width of a 95 % interval in standard errors


def interval(score: dict | None) -> str:
    """Say a score with its 95 % interval, e.g. `0.402 ± 0.021`."""
    if score is None:
        return "-"
    return f"{score['mean']:.3f} ± {Z95 * score['stderr']:.3f}"


def duration(seconds: float | None) -> str:
    """Say a time, e.g. `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
