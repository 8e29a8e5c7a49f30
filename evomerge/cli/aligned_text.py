"""What `evomerge align` says: units and their likeness, and the line before and after."""

from collections.abc import Mapping
from typing import Any

from evomerge.cli.console import Cell, table


def aligned_text(found: Mapping[str, Any]) -> str:
    """Return the tables of an alignment.

    Args:
        found: what `--json` prints.

    >>> kind = {"sets": 1, "units": 8, "moved": 0.5, "before": 0.01, "after": 0.31}
    >>> print(aligned_text({"units": {"mlp": kind}, "line": None}))
    units  sets  in all  moved  cosine before  after
    ------------------------------------------------
    mlp       1       8  0.500          0.010  0.310
    """
    rows: list[list[Cell]] = []
    for name, kind in found["units"].items():
        rows.append([name, *(kind[key] for key in ("sets", "units", "moved", "before", "after"))])
    text = table(["units", "sets", "in all", "moved", "cosine before", "after"], rows)
    line = found["line"]
    if line is None:
        return text
    before, after = line["before"], line["after"]
    rows = [
        [f"{at:.2f}", one, other]
        for at, one, other in zip(before["at"], before["values"], after["values"], strict=True)
    ]
    rows.append(["barrier", before["barrier"], after["barrier"]])
    walked = table(["share of the model", f"{line['measure']} before", "after"], rows)
    return f"{text}\n\n{walked}"
