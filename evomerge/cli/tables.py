"""Text for people: what the commands print.

Every function returns text. Given a terminal's console, tables are drawn with lines and fitted to
its width; without one they are plain, as wide as they are, for files, pipes and notebooks.
"""

import json
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evomerge.recipes.parse import parse_recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.text import duration, interval

_PLAIN = box.Box(
    "    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True
)  # a line below heads

_WIDE = 10_000  # columns, so that no plain table is ever wrapped

_LONG = ("groups", "chromosomes", "births", "path")  # of a recipe: shown as a table

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


def check(stages: Sequence[Mapping[str, Any]]) -> str:
    """Return what a campaign will need, of `estimate`, stage by stage, and the warnings.

    >>> print(check([{"summary": {"space": "parameters, 9 genes"}, "warnings": ["few items"]}]))
    space        parameters, 9 genes
    warning: few items
    """
    lines = []
    for number, stage in enumerate(stages, start=1):
        if len(stages) > 1:
            lines += ["", f"stage {number}"] if number > 1 else [f"stage {number}"]
        lines += [f"{key:12} {value}" for key, value in stage["summary"].items()]
    warnings = dict.fromkeys(warning for stage in stages for warning in stage["warnings"])
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def front(
    rows: Sequence[Mapping[str, Any]],
    standing: Mapping[int, tuple[bool, float | None]],
    console: Console | None = None,
) -> str:
    """Return the front and the baselines as a table, search beside held-out scores.

    Args:
        rows, standing: of `summary`.
        console: of a terminal.

    >>> from evomerge.archive.summary import row
    >>> from evomerge.testing.archives import example_archive
    >>> print(front([row(example_archive(), 4)], {4: (True, 1.125)}))
    id  who     front  value  accuracy search  accuracy held-out  length search   length held-out
    ---------------------------------------------------------------------------------------------
     4  search  *      1.125  0.500 ± 0.283    failed             10.000 ± 0.283  failed
    4 failed on held-out items: OutOfMemoryError
    """
    if not rows:
        return "no candidate has been scored yet"
    names = list(rows[0]["scores"])
    headers = ["id", "who", "front", "value"]
    headers += [f"{name} {side}" for name in names for side in ("search", "held-out")]
    body, failures = [], []
    for row in rows:
        # It may have been dominated since the rows were read.
        on_front, value = standing.get(row["id"], (False, None))
        who = row["label"] or row["origin"]
        if row.get("violation"):
            who += " (misses a constraint)"
        cells: list[Cell] = [row["id"], who, "*" if on_front else "", value]
        for name in names:
            scores = row["scores"][name]
            failed = "failed" if "heldout_failure" in row else interval(scores["heldout"])
            cells += [interval(scores["search"]), failed]
        body.append(cells)
        if "heldout_failure" in row:
            failures.append(f"{row['id']} failed on held-out items: {row['heldout_failure']}")
    return "\n".join([table(headers, body, console), *failures])


def status(found: Mapping[str, Any], console: Console | None = None) -> str:
    """Return a campaign's status as lines.

    >>> import tempfile
    >>> from evomerge.archive import summary
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     print(status(summary.status(run)).splitlines()[0])
    example: interrupted
    """
    counts, budget, seconds = found["candidates"], found["budget"], found["seconds"]
    reason = f" ({found['reason']})" if found["reason"] else ""
    hours = f", at most {budget['hours']} h" if budget["hours"] else ""
    lines = [
        f"{found['name']}: {found['state']}{reason}",
        f"proposed   {budget['proposed']} of {budget['evaluations']}{hours}",
    ]
    for stage in found["stages"]:
        lines.append(f"  {stage['name']}: {stage['proposed']} of {stage['evaluations']}")
    lines += [
        f"candidates {counts['ok']} ok, {counts['failed']} failed, {counts['stopped']} stopped,"
        f" {counts['running']} without outcome",
        f"time       {duration(seconds['total'])}, {found['per_hour']:.0f} candidates per hour;"
        f" workers spent {duration(seconds['merge'])} merging and"
        f" {duration(seconds['score'])} scoring",
    ]
    if found["hypervolume"] is not None and len(found["baselines"][0]["scores"]) > 1:
        lines.append(f"progress   hypervolume {found['hypervolume']:.4f} on the baselines' scale")
    if found["state"] == "running":
        lines.append(f"           about {duration(seconds['left'])} left")
    rows = [("best", found["best"])] if found["best"] else []
    rows += [(baseline["label"], baseline) for baseline in found["baselines"]]
    if rows:
        headers = ["", "id", "value", *(f"{name} search" for name in rows[0][1]["scores"])]
        body = []
        for who, row in rows:
            scores = [interval(score["search"]) for score in row["scores"].values()]
            body.append([who, row["id"], row["value"], *scores])
        lines += ["", table(headers, body, console)]
    return "\n".join(lines)


def show(found: Mapping[str, Any], console: Console | None = None) -> str:
    """Return one candidate as lines: scores, outcome, recipe.

    >>> import tempfile
    >>> from evomerge.archive import summary
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     print("\\n".join(show(summary.show(run, 5)).splitlines()[:3]))
    candidate 5 (search), recipe recipe 2
    parents   none
    outcome   failed: a merged tensor is not finite
    """
    outcome = found["outcome"] or {"status": "none yet", "reason": "", "copy_of": None}
    reason = f": {outcome['reason']}" if outcome["reason"] else ""
    copy = f" (copy of {outcome['copy_of']})" if outcome["copy_of"] else ""
    lines = [
        f"candidate {found['id']} ({found['label'] or found['origin']}),"
        f" recipe {found['recipe_id'][:12]}",
        f"parents   {', '.join(map(str, found['parents'])) or 'none'}",
        f"outcome   {outcome['status']}{reason}{copy}",
    ]
    if "heldout_failure" in found:
        lines.append(f"held-out  failed: {found['heldout_failure']}")
    if found["outcome"]:
        lines.append(
            f"time      {outcome['seconds_merge']:.3f} s merging, {outcome['seconds_score']:.3f} s"
            f" scoring, by {outcome['worker'] or '-'}"
        )
    for name, score in found["scores"].items():
        search, heldout = interval(score["search"]), interval(score["heldout"])
        lines.append(f"{name}: search {search}, held-out {heldout}")
    for name, answers in found["answers"].items():
        lines += ["", f"{name}, answers to held-out items:"]
        lines += [f"  {a['ordinal']}: {a['answer']}" for a in answers]
    return "\n".join([*lines, "", recipe_text(found["recipe"], console)])


def recipe_text(recipe: Mapping[str, Any], console: Console | None = None) -> str:
    """Return a recipe's JSON as text: what it has once in a line, the rest as a table.

    >>> from evomerge.recipes.parameters import single
    >>> print(recipe_text(single("models/ja", "bfloat16").to_json()))
    {"version": 1, ..."method": "linear"...}
    <BLANKLINE>
    layers  modules  weight: ja
    ---------------------------
    all     rest     1.000
    """
    head = json.dumps({k: v for k, v in recipe.items() if k not in _LONG})
    views = {
        "parameters": _groups,
        "mixture": _segments,
        "explicit": _births,
        "routing": route,
    }
    return f"{head}\n\n{views[recipe['kind']](recipe, console)}"


def _groups(recipe: Mapping[str, Any], console: Console | None) -> str:
    models = " ".join(Path(name).name for name in recipe["models"])
    headers = ["layers", "modules"]
    for name, value in recipe["groups"][0].items():
        if name not in headers:
            headers.append(f"{name}: {models}" if isinstance(value, list) else name)
    body = []
    for group in recipe["groups"]:
        layers = group["layers"] or "all"
        if isinstance(layers, list):
            layers = f"{layers[0]}-{layers[1] - 1}"
        values = [_numbers(v) for k, v in group.items() if k not in ("layers", "modules")]
        body.append([layers, group["modules"] or "rest", *values])
    return table(headers, body, console)


def _segments(recipe: Mapping[str, Any], console: Console | None) -> str:
    body = []
    for chromosome in recipe["chromosomes"]:
        for first, end, coefficients in chromosome["segments"]:
            modules = chromosome["modules"] or "rest"
            body.append([modules, first, end - 1, _numbers(coefficients)])
    return table(["modules", "from parameter", "to", "of each model"], body, console)


def _births(recipe: Mapping[str, Any], console: Console | None) -> str:
    body = []
    for parents, *rest in recipe["births"]:
        body.append([" ".join(str(parent)[:12] for parent in parents), *rest])
    return table(["of recipes", "mix", "split at", "sigma", "seed"], body, console)


def route(recipe: Mapping[str, Any], console: Console | None = None) -> str:
    """Return a path as a picture: hops from left to right, layers from below, a letter a model.

    Under it the gains of runs of hops, as what the branches are multiplied by.

    >>> from evomerge.recipes.routing import whole
    >>> print(route(whole("models/ja", 2, "bfloat16").to_json()))
    a = models/ja
      1 .a
      0 a.
    <BLANKLINE>
       from hop  to  attention  MLP
    ---------------------------------
    a         0   1  1.000      1.000
    """
    routing = parse_recipe(recipe)
    assert isinstance(routing, RoutingRecipe)
    letters = {model: string.ascii_letters[i % 52] for i, model in enumerate(routing.models)}
    marks = [letters[routing.models[hop.model]] for hop in routing.path]
    lines = [f"{letter} = {model}" for model, letter in letters.items()]
    for layer in range(max(hop.layer for hop in routing.path), -1, -1):
        pairs = zip(marks, routing.path, strict=True)
        lines.append(f"{layer:3} " + "".join(m if h.layer == layer else "." for m, h in pairs))
    fold = routing.fold()
    runs: list[list[Any]] = []  # of hops alike: letter, first hop, last hop, gains
    for index, (mark, by) in enumerate(zip(marks, fold.hops, strict=True)):
        gains = [f"{gain / fold.embed:.3f}" for gain in by[:2]]
        if runs and runs[-1][0] == mark and runs[-1][3:] == gains:
            runs[-1][2] = index
        else:
            runs.append([mark, index, index, *gains])
    headers = ["", "from hop", "to", "attention", "MLP"]
    return "\n".join([*lines, "", table(headers, runs, console)])


def _numbers(value: float | Sequence[float] | str) -> str:
    if isinstance(value, str):
        return value
    values = value if isinstance(value, Sequence) else [value]
    return " ".join(f"{v:.3f}" for v in values)


def listing(listed: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the catalogue as text.

    >>> entry = {"name": "cost", "summary": "A cost.", "needs": "", "paper": "", "fields": []}
    >>> print(listing({"fitness": [entry]}))
    fitness:
      cost: A cost.
    """
    lines = []
    for what, entries in listed.items():
        lines.append(f"{what}:")
        for entry in entries:
            lines.append(f"  {entry['name']}: {entry['summary']}")
            for field in entry["fields"]:
                default = field["default"]
                value = "required" if default is None else f"default {default}"
                unit = f" ({field['unit']})" if field["unit"] else ""
                lines.append(f"      {field['name']}: {field['kind']}{unit}, {value}")
                lines.append(f"          {field['description']}")
            if entry["needs"]:
                lines.append(f"      needs {entry['needs']}")
            if entry["paper"]:
                lines.append(f"      {entry['paper']}")
        lines.append("")
    return "\n".join(lines).rstrip()
