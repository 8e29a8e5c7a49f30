"""What people ask of a plan as the archive has it, of one search or of stages."""

from collections.abc import Mapping
from typing import Any

from evomerge.archive.shapes import LimitsShape


def searches(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts of an archived plan that have space, controller and budget.

    >>> searches({"stages": [], "budget": {"evaluations": 8}})
    [{'stages': [], 'budget': {'evaluations': 8}}]
    """
    return plan["stages"] or [plan]


def whole_budget(plan: Mapping[str, Any]) -> LimitsShape:
    """Return the items, evaluations and hours of an archived plan, of all its stages together.

    A limit that a stage has not is none of the whole.

    >>> whole_budget({"stages": [], "budget": {"evaluations": 8, "hours": 1.5}})
    {'items': None, 'evaluations': 8, 'hours': 1.5}
    """
    budgets = [part["budget"] for part in searches(plan)]
    sums: dict[str, int | None] = {}
    for name in ("items", "evaluations"):
        limits = [budget.get(name) for budget in budgets]
        sums[name] = None if None in limits else sum(limits)
    hours = budgets[0].get("hours")  # which no stage has
    return {"items": sums["items"], "evaluations": sums["evaluations"], "hours": hours}
