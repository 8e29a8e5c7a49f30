"""How far the campaign is: its state, what it spent, what is left."""

from evomerge.report.figures import Part, Section, Table, Text
from evomerge.report.run import Run
from evomerge.text import duration

_WORDS = {
    "running": "The search is running.",
    "finished": "The search is finished.",
    "interrupted": "The search was interrupted; `evomerge run` with the same file goes on.",
    "failed": "The search has failed.",
}


def state(run: Run) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> state(example_run()).parts[1].rows[0]
    ('proposed candidates', '3 of 8 (38%)')
    """
    return Section("state", "State", tuple(_parts(run)))


def _parts(run: Run) -> list[Part]:
    found = run.progress
    counts, budget, seconds = found["candidates"], found["budget"], found["seconds"]
    said = _WORDS.get(run.state, f"The search is {run.state}.")
    if run.reason:
        said += f" The reason: {run.reason}"
    left = []
    if run.state == "running":
        left = [("time left, at this pace", f"about {duration(seconds['left'])}")]
    hours = budget["hours"]
    most = f" of {duration(3600 * hours)}" if hours else ""
    rows = [
        ("proposed candidates", _of(budget["proposed"], budget["evaluations"])),
        ("search items scored", _of(found["items"]["search"], budget["items"])),
        ("held-out items scored", f"{found['items']['heldout']:,}"),
        ("time of all starts", f"{duration(seconds['total'])}{most}"),
        *left,
        ("pace", f"{found['per_hour']:,.0f} candidates per hour"),
        ("scored", _scored(run)),
        ("failed", f"{counts['failed']:,}"),
        ("without outcome yet", f"{counts['running']:,}"),
    ]
    parts: list[Part] = [
        Text(said, "plain" if run.state in ("running", "finished") else "warning"),
        Table(("", ""), rows, "Budget and pace"),
    ]
    if len(run.stages) > 1:
        parts.append(_stages(run))
    return parts


def _scored(run: Run) -> str:
    found, stopped = run.progress["in_parts"], run.progress["candidates"]["stopped"]
    told = f"{found['full']:,} on all search items"
    if found["parts"]:
        told += f", {found['parts']:,} on a part of them"
    return f"{told}, {stopped:,} stopped half-way" if stopped else told


def _stages(run: Run) -> Table:
    rows = []
    stages = zip(run.progress["stages"], run.controllers, run.bests, strict=True)
    for stage, controller, best in stages:
        value = run.row(best).value if best is not None else None
        found = "none yet" if best is None else run.name_of(best)
        rows.append(
            (
                *(stage["name"], controller, _of(stage["proposed"], stage["evaluations"])),
                *(found, "–" if value is None else f"{value:.3f}"),
            )
        )
    headers = ("stage", "controller", "proposed", "its best", "value of that")
    return Table(headers, rows, "Stages", numeric=(4,))


def _of(count: int, limit: int | None) -> str:
    if limit is None:
        return f"{count:,}"
    share = f" ({count / limit:.0%})" if limit else ""
    return f"{count:,} of {limit:,}{share}"
