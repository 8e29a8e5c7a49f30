"""What made the run: sources by hash, versions, machine, seed, engine, and the whole plan."""

from datetime import UTC, datetime

import yaml

from evomerge.report.figures import Code, Part, Section, Table
from evomerge.report.run import Run
from evomerge.text import duration


def provenance(run: Run) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> [part.caption for part in provenance(example_run()).parts[:3]]
    ['Sources', 'Objectives', 'How it was run']
    """
    machine = run.provenance["machine"]
    git = machine.get("git")
    commit = "none"
    if git:
        commit = f"{git['commit']}{', with changes not committed' if git.get('dirty') else ''}"
    sources = [(s.label, s.name, s.sha256, "earlier stage" if s.own else "") for s in run.sources]
    objectives = [
        (o.name, o.direction, f"{o.weight:g}", o.constraint or "none", *_items(run, o.name))
        for o in run.objectives
    ]
    starts = [f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}" for at, _ in run.starts]
    if len(starts) > 4:
        starts = [*starts[:3], f"… {len(starts)} in all"]
    rows = [
        ("seed", str(run.provenance.get("seed", ""))),
        ("controller", ", then ".join(run.controllers)),
        ("engine", run.engine),
        ("begun", str(machine.get("at", ""))),
        ("starts (UTC)", "; ".join(starts)),
        ("time of all starts", duration(run.progress["seconds"]["total"])),
        ("machine", f"{machine.get('host', '')}, {machine.get('platform', '')}"),
        ("cores", str(machine.get("cores", ""))),
        ("device", str(machine.get("device", "not recorded"))),
        ("versions", ", ".join(f"{n} {v}" for n, v in machine.get("versions", {}).items())),
        ("git commit", commit),
    ]
    parts: list[Part] = [
        Table(("label", "name", "sha256 of its content", ""), sources, "Sources"),
        Table(
            ("objective", "direction", "weight", "constraint", "search items", "held-out items"),
            objectives,
            "Objectives",
            numeric=(2, 4, 5),
        ),
        Table(("", ""), rows, "How it was run"),
        Code("The campaign file, with its defaults", _plan(run)),
    ]
    return Section("provenance", "Provenance", tuple(parts))


def _items(run: Run, objective: str) -> tuple[str, str]:
    sides = run.hashes.get(objective)
    if sides is None:  # a cost
        return "–", "–"
    return f"{len(sides['search']):,}", f"{len(sides['heldout']):,}"


def _plan(run: Run) -> str:
    return yaml.safe_dump(dict(run.plan), sort_keys=False, allow_unicode=True)
