"""Single items on which the best and the sources differ most, with what they asked and got."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evomerge.report.charts import shown
from evomerge.report.figures import Case, Cases, Part, Text
from evomerge.report.run import Run
from evomerge.search.objectives import Objective

_MOST = 6  # items won, and lost, of all objectives together
_MOST_MODELS = 6  # whose answers are shown
_LONGEST = 700  # letters of a text or an answer


class _Item(NamedTuple):
    objective: Objective
    position: int  # among the objective's held-out items
    gain: float  # of the best over the best of the sources, on this item; signed


def wins_and_losses(run: Run) -> list[Part]:
    """Return items that the best solves and no source does, and the other way round.

    Of scores that are more than right or wrong, those of the largest difference.

    >>> from evomerge.testing.reports import example_run
    >>> wins_and_losses(example_run())
    []
    """
    best = run.best_found
    names = [o.name for o in run.heldout_objectives]
    sources = [
        r.id for r in run.source_baselines if all(n in run.items.get(r.id, {}) for n in names)
    ]
    if best is None or not sources or not all(n in run.items.get(best, {}) for n in names):
        return []
    won, lost, counts = [], [], [0, 0]
    each = max(1, _MOST // len(names))
    for objective in run.heldout_objectives:
        ours = objective.sign * run.items[best][objective.name].astype(float)
        theirs = np.array([objective.sign * run.items[s][objective.name] for s in sources], float)
        above, below = ours - theirs.max(axis=0), theirs.min(axis=0) - ours
        # lost: what every source does better, else what most of them do
        beaten = np.where(below > 0, below, (theirs > ours).mean(axis=0) - 1.0)
        counts[0] += int((above > 0).sum())
        counts[1] += int((below > 0).sum())
        won += _largest(objective, above, 0.0)[:each]
        lost += _largest(objective, beaten, -0.75)[:each]
    who = [best, *sources][:_MOST_MODELS]
    parts: list[Part] = []
    if not any(run.texts.values()):
        parts.append(Text("The archive has not kept what the items ask, only the answers.", "note"))
    if won:
        title = f"Where the merge wins: {counts[0]:,} items that it does better than every source"
        parts.append(Cases(title, [_case(run, item, who) for item in won]))
    else:
        parts.append(Text("On no held-out item does the best do better than every source."))
    if lost:
        title = f"Where it loses: {counts[1]:,} items that every source does better"
        if counts[1] == 0:
            title = "Where it loses: items that most sources do better"
        parts.append(Cases(title, [_case(run, item, who) for item in lost]))
    else:
        parts.append(Text("On no held-out item do most sources do better than the best."))
    return parts


def _largest(objective: Objective, gains: np.ndarray, above: float) -> list[_Item]:
    order = np.argsort(-gains, kind="stable")[:_MOST]
    return [_Item(objective, int(i), float(gains[i])) for i in order if gains[i] > above]


def _case(run: Run, item: _Item, who: Sequence[int]) -> Case:
    name = item.objective.name
    ordinals = run.ordinals[name]
    ordinal = int(ordinals[item.position]) if item.position < len(ordinals) else item.position
    found = run.texts.get(name, {}).get(ordinal)
    answers = []
    for candidate in who:
        score = float(run.items[candidate][name][item.position])
        said = run.answers.get(candidate, {}).get(name, {}).get(ordinal, "")
        right = item.objective.sign > 0
        if score in (0.0, 1.0):
            good = (score == 1.0) == right
            told = "✓ right" if good else "✗ wrong"
        else:
            others = [float(run.items[c][name][item.position]) for c in who]
            good = score == (max(others) if right else min(others))
            told = shown(score)
        answers.append((run.name_of(candidate), _short(said), told, good))
    text, target = (_short(found.text), _short(found.target)) if found else ("", "")
    return Case(f"{name}, item {ordinal}", text, target, answers)


def _short(text: str) -> str:
    """Return the beginning of a long text; of what is asked, its end matters most."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … {text[-half:]}"
