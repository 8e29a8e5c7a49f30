"""The verdict: the best that was found against what anyone could have had without a search.

Who is compared was chosen on search items alone, and the scores are of items that chose nobody.
"""

from typing import NamedTuple

from evomerge.archive.history import Row
from evomerge.report.charts import shown
from evomerge.report.figures import Part, Section, Table, Text
from evomerge.report.paired import Difference, Pairing, same_items
from evomerge.report.run import UNIFORM, Run

_FEW = 100  # held-out items, of all objectives, below which a difference is worth little


class Rival(NamedTuple):
    """What the best is compared with: what it is called in a sentence, and by how much it differs.

    Attributes:
        who: in a sentence.
        name: in a table.
        difference: of the best minus this.
        mean, half: of its own held-out scores.
        by_objective: the difference in each.

    >>> Rival("the best source, ja", "ja", Difference(0.1, 0.02, 9, 3), 0.5, 0.04, {}).name
    'ja'
    """

    who: str
    name: str
    difference: Difference
    mean: float
    half: float
    by_objective: dict[str, Difference]


def verdict(run: Run, beside: Run | None = None) -> Section:
    """Return the section.

    Args:
        run: that the page is about.
        beside: another search on the same items, by random search for example.

    >>> from evomerge.testing.reports import example_run
    >>> verdict(example_run()).parts[0].text[:63]
    'Nothing can be said yet: this campaign holds no items out (held'
    """
    return Section("verdict", "Verdict", tuple(_parts(run, beside)))


def _parts(run: Run, beside: Run | None) -> list[Part]:
    found, pairing = run.best_found, Pairing(run)
    wait = _nothing_yet(run, pairing)
    if wait:
        return [Text(f"Nothing can be said yet: {wait}", "lead"), *_beaten_in_search(run)]
    assert found is not None
    rivals = _rivals(run, found, pairing)
    notes: list[str] = []
    if beside is not None:
        other = _beside(run, found, pairing, beside)
        rivals += [other] if isinstance(other, Rival) else []
        notes += [other] if isinstance(other, str) else []
    return [
        Text(_sentence(run, found, rivals, pairing), "lead"),
        *_beaten_in_search(run),
        *_ahead_on_one(run, rivals),
        *map(Text, notes),
        _table(run, found, rivals, pairing),
        Text(_how(run, rivals, pairing), "note"),
    ]


def _nothing_yet(run: Run, pairing: Pairing) -> str:
    """Return why there is nothing to compare; "" if there is."""
    found = run.best_found
    if not run.search:
        return "no candidate has been scored."
    if found is None:
        return "only baselines have been scored on all search items so far."
    if not any(sides["heldout"] for sides in run.hashes.values()):
        return (
            "this campaign holds no items out (heldout: 0), and scores on the items that chose the"
            " best are flattered."
        )
    if not pairing.comparable(found):
        failure = run.final_failures.get(found)
        if failure:
            return f"{run.name_of(found)}, the best, failed on held-out items ({failure})."
        return (
            f"{run.name_of(found)}, the best so far on search items, is not scored on held-out"
            " items before the search ends."
        )
    if not any(pairing.comparable(row.id) for row in run.source_baselines):
        return "no source was scored on held-out items yet."
    return ""


def _beaten_in_search(run: Run) -> list[Part]:
    """Say where a baseline is better than all that was found, on the items of the search."""
    if run.best is None or run.best_found is None or run.best == run.best_found:
        return []
    text = (
        f"On the search items no candidate reached {run.name_of(run.best)}, which the search was"
        f" given. “The best” on this page is {run.name_of(run.best_found)}, the best that it found."
    )
    return [Text(text, "warning")]


def _ahead_on_one(run: Run, rivals: list[Rival]) -> list[Part]:
    """Say which baselines are better than the best on an objective of several."""
    if len(run.heldout_objectives) < 2:
        return []
    told = []
    for objective in run.heldout_objectives:
        better = [
            f"{r.name} by {shown(-d.mean)} ± {shown(d.half)}"
            for r in rivals
            for d in [r.by_objective[objective.name]]
            if d.verdict == "less"
        ]
        if better:
            told.append(f"on {objective.name}, {', '.join(better)}")
    if not told:
        return [Text("On no single objective is a source or the average told to be better.")]
    return [Text(f"Better than the best on one objective alone: {'; '.join(told)}.")]


def _rivals(run: Run, found: int, pairing: Pairing) -> list[Rival]:
    """Return the best source on search items, the average, then all other baselines."""
    held = [row for row in run.baselines if pairing.comparable(row.id)]
    sources = [row for row in run.source_baselines if pairing.comparable(row.id)]
    first = max(sources, key=_rank)
    uniform = [row for row in held if row.label == UNIFORM]
    ordered = dict.fromkeys([first.id, *(row.id for row in uniform), *(row.id for row in held)])
    rivals = []
    for number in ordered:
        name = run.name_of(number)
        who = f"the best source, {name}" if number == first.id else f"the {name}"
        rivals.append(_rival(run, found, pairing, number, who, name, run))
    return rivals


def _rank(row: Row) -> tuple[float, float, int]:
    """Rank by the scores on search items: constraints first, then the value, then the earliest."""
    return (-row.violation, row.value if row.value is not None else float("-inf"), -row.id)


def _beside(run: Run, found: int, pairing: Pairing, beside: Run) -> Rival | str:
    """Return another search's best as a rival, or why it is none."""
    by, their = ", then ".join(beside.controllers), beside.best_found
    if not same_items(run, beside):
        return f"{beside.name} has other objectives or items, so it is not compared."
    if their is None or not pairing.comparable(their, beside):
        return f"The best of {beside.name} was not scored on held-out items, so it is not compared."
    spent = beside.progress["items"]["search"]
    is_random = all(kind == "random" for kind in beside.controllers)
    search = "random search" if is_random else f"another search by {by}"
    own = run.progress["items"]["search"]
    who = f"the best of {search}, which scored {spent:,} search items ({own:,} here)"
    return _rival(run, found, pairing, their, who, f"best of {by}, {beside.name}", beside)


def _rival(
    run: Run, found: int, pairing: Pairing, number: int, who: str, name: str, of: Run
) -> Rival:
    mean, half = pairing.mean(number, of)
    by_objective = pairing.by_objective(found, number, of)
    return Rival(who, name, pairing.of(found, number, of), mean, half, by_objective)


def _sentence(run: Run, found: int, rivals: list[Rival], pairing: Pairing) -> str:
    items = rivals[0].difference.items
    mean, half = pairing.mean(found)
    told = [rivals[0], *(r for r in rivals[1:] if r.name == "uniform average")]
    told += [r for r in rivals if r.who.startswith("the best of ")]
    compared = "; ".join(_against(r.difference, r.who) for r in told)
    scores = f"scores {shown(mean)} ± {shown(half)}" if pairing.in_points else "is compared"
    return (
        f"On {items:,} held-out items that the search never saw, the best merge"
        f" ({run.name_of(found)}, chosen on search items) {scores}: {compared}. Differences are"
        " paired item by item, with 95 % intervals."
    )


def _against(d: Difference, who: str) -> str:
    if not d.differing:
        return f"the same as {who} on every item"
    if d.verdict == "even":
        return f"no difference that can be told ({_signed(d.mean)} ± {shown(d.half)}) from {who}"
    way = "more" if d.verdict == "more" else "less"
    return f"{shown(abs(d.mean))} ± {shown(d.half)} {way} than {who}"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + shown(value)


def _table(run: Run, found: int, rivals: list[Rival], pairing: Pairing) -> Table:
    names = [objective.name for objective in run.heldout_objectives]
    several = len(names) > 1
    headers = ["held out", *(["mean"] if several or not pairing.in_points else names)]
    headers += ["the best minus this", "the best is"]
    headers += [f"{name}: the best minus this" for name in names] if several else []
    mean, half = pairing.mean(found)
    own = [f"{run.name_of(found)} (the best)", f"{shown(mean)} ± {shown(half)}", "", ""]
    rows = [[*own, *("" for _ in names if several)]]
    words = {"more": "better", "less": "worse", "even": "not told apart"}
    for r in rivals:
        d = r.difference
        row = [r.name, f"{shown(r.mean)} ± {shown(r.half)}", f"{_signed(d.mean)} ± {shown(d.half)}"]
        row.append(words[d.verdict] if d.differing else "the same on every item")
        if several:
            each = [r.by_objective[name] for name in names]
            row += [f"{_signed(e.mean)} ± {shown(e.half)}" for e in each]
        rows.append(row)
    caption = "Held-out scores and paired differences, with 95 % intervals"
    return Table(
        headers, rows, caption, numeric=[*range(1, 3), *range(4, len(headers))], strong=[0]
    )


def _how(run: Run, rivals: list[Rival], pairing: Pairing) -> str:
    """Say how the numbers came about, and what a sceptic should know."""
    several = len(run.heldout_objectives) > 1
    told = ["Paired: both models answered the same items, and what is averaged is the difference."]
    over = "the weighted mean over objectives, " if several else ""
    told.append(f"Scores are {over}{pairing.unit}; more is better.")
    told.append(
        "The best source is the one of highest value on search items, as the best merge is."
    )
    better = [r for r in rivals[1:] if r.mean > rivals[0].mean and r.who.startswith("the ")]
    sources = {row.label for row in run.source_baselines}
    better = [r for r in better if r.name in sources]
    if better:
        names = ", ".join(r.name for r in better)
        told.append(f"Held out, {names} scored higher than it: see the table.")
    if all(kind == "random" for kind in run.controllers):
        told.append("This search is itself a random search.")
    elif not any("random search" in r.who for r in rivals):
        told.append(
            "It is not compared with random search: `evomerge report RUN --beside RANDOM` does it"
            " with a run of the same campaign by the controller `random`."
        )
    items = rivals[0].difference.items
    if items < _FEW:
        told.append(f"{items} held-out items are few: the interval itself is rough.")
    return " ".join(told)
