"""Archived candidates by name: `RUN#NUMBER` or `RUN#best`."""

from collections.abc import Mapping
from typing import Any

from evomerge.archive.archive import Archive, Candidate
from evomerge.archive.selection import pick
from evomerge.archive.summary import open_run
from evomerge.errors import BadInput, Fault
from evomerge.recipes.parameters import Recipe
from evomerge.recipes.parse import from_json
from evomerge.sources.source import is_candidate

_MEND = "write RUN#best or RUN#NUMBER, RUN a folder in which `evomerge run` was started"


def pinned(plan: Mapping[str, Any], begun: Mapping[str, Any] | None, file: str) -> dict:
    """Return the plan with each source `RUN#best` written as the number that it means.

    Args:
        plan: of a campaign.
        begun: the plan that this campaign was begun with, whose numbers stay.
        file: the name that faults carry.

    Raises:
        BadInput: a run or a candidate is not there.
    """
    faults: list[Fault] = []

    def number(name: str | None, before: str | None, key: str) -> str | None:
        if name is None or not is_candidate(name):
            return name
        run, _, which = name.rpartition("#")
        if before is not None and which == "best" and before.rpartition("#")[0] == run:
            return before
        try:
            return f"{run}#{pick(open_run(run), which, run)}"
        except BadInput as error:
            faults.extend(Fault(file, key, f"{f.file}: {f.wrong}", _MEND) for f in error.faults)
            return name

    sources, then = plan["sources"], (begun or {}).get("sources", {})
    models = {
        label: number(name, then.get("models", {}).get(label), f"sources.models.{label}")
        for label, name in sources["models"].items()
    }
    base = number(sources["base"], then.get("base"), "sources.base")
    if faults:
        raise BadInput(*faults)
    return {**plan, "sources": {**sources, "base": base, "models": models}}


def read_candidate(name: str, file: str, key: str) -> tuple[Archive, Candidate, Recipe]:
    """Return the archive, the row and the recipe of RUN#NUMBER or RUN#best.

    Raises:
        BadInput: it is not there.
    """
    run, _, which = name.rpartition("#")
    try:
        archive = open_run(run)
        (candidate,) = archive.candidates("id = ?", (pick(archive, which, run),))
    except BadInput as error:
        raise BadInput(
            *(Fault(file, key, f"{f.file}: {f.wrong}", _MEND) for f in error.faults)
        ) from None
    return archive, candidate, from_json(candidate.recipe, name)
