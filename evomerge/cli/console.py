"""What the tables are drawn on: a terminal, or plain text as wide as it is."""

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

# Of the eight rows of characters that rich draws a box with, only the line below the heads.
_PLAIN = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

_WIDE = 10_000  # columns, so that no plain table is ever wrapped

Cell = str | float | None


def terminal() -> Console | None:
    """Return the console of the terminal that stdout is, or None where it is none.

    >>> terminal() is None or terminal().is_terminal
    True
    """
    return Console(markup=False, highlight=False, emoji=False) if sys.stdout.isatty() else None


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Cell]], console: Console | None = None
) -> str:
    """Return a table; columns of numbers stand to the right, with three decimals of a fraction.

    >>> print(table(["who", "value"], [["base", 0.5], ["uniform", 12]]))
    who      value
    --------------
    base     0.500
    uniform     12
    """
    rows = list(rows)
    if console is None:
        lines, styled = _PLAIN, Console(width=_WIDE, color_system=None, markup=False, emoji=False)
    else:
        lines, styled = box.SIMPLE_HEAD, console
    drawn = Table(box=lines, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, header in enumerate(headers):
        column = [row[index] for row in rows]
        number = all(isinstance(cell, int | float | None) for cell in column)
        drawn.add_column(header, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*map(_cell, row))
    with styled.capture() as captured:
        styled.print(drawn)
    return "\n".join(text.rstrip() for text in captured.get().splitlines())


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
