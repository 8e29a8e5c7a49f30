"""Numbers as people read them, and texts as a terminal may have them."""

import math
from collections.abc import Mapping
from typing import Any

Z95 = 1.96  # half-width of a 95 % interval in standard errors (the normal's 97.5 % quantile)


# A terminal obeys these: it moves, deletes, changes its title.
_COMMANDS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160))}
for _harmless in "\n\t":
    del _COMMANDS[ord(_harmless)]


_KEPT = "\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}\N{NO-BREAK SPACE}\u3000\u2009\u202f"


def printable(data: Any) -> Any:
    """Return JSON-able data whose texts, which strangers may have written, command no terminal.

    >>> printable({"label": "a\\x1b[2J"})
    {'label': 'a\ufffd[2J'}
    """
    if isinstance(data, str):
        return data.translate(_COMMANDS)
    if isinstance(data, Mapping):
        return {printable(key): printable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [printable(value) for value in data]
    return data


def clean(text: object) -> str:
    """Return text of strangers for a page: without what directs or hides other letters.

    Control characters, marks that turn the direction of what follows, and halves of letters are
    replaced; line ends, tabs, and the joiners that some scripts need stay.

    >>> clean("a\\x00b\\u202ec\\n")
    'a�b�c\\n'
    """
    if str(text).isprintable():
        return str(text)
    kept = (c if c.isprintable() or c in _KEPT else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return "".join(kept)


def interval(score: Mapping[str, Any] | None) -> str:
    """Say a score with its 95 % interval.

    Args:
        score: as the archive's JSON has it: its mean and stderr; None where there is none.

    >>> interval({"mean": 0.402, "stderr": 0.0107}), interval(None)
    ('0.402 ± 0.021', '-')
    """
    if score is None:
        return "-"
    return f"{score['mean']:.3f} ± {Z95 * score['stderr']:.3f}"


def duration(seconds: float | None) -> str:
    """Say a time.

    >>> duration(7500), duration(42), duration(None)
    ('2 h 05 min', '42 s', '?')
    """
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def byte_size(count: float) -> str:
    """Return a number of bytes as people write it.

    >>> byte_size(12), byte_size(14_500_000_000)
    ('12 bytes', '14.5 GB')
    """
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def in_one_line(said: object) -> str:
    """Return a text without what is no letter to see, such as the ends of lines.

    >>> in_one_line("of two\\nlines\\x07")
    'of two lines'
    """
    letters = (letter if letter.isprintable() else " " for letter in str(said))
    return " ".join("".join(letters).split())
