"""The shapes that `status`, `front` and `show` print with `--json`; see `summary`."""

import typing
from typing import Any, NotRequired, TypedDict

from evomerge.archive.records import AnswerRow, OutcomeRow


class ScoreShape(TypedDict):
    """A mean over items, with its standard error."""

    mean: float
    stderr: float
    items: int


class SidesShape(TypedDict):
    """An objective's scores on both sides of the split; null where there is none."""

    search: ScoreShape | None
    heldout: ScoreShape | None


class CandidateShape(TypedDict):
    """A candidate with its scores; a row of `front`.

    Attributes:
        origin: search, baseline, seed, warm_start or recommended.
        scores: by objective.
        guards: scores by guard, where the campaign has some.
        violation: of the constraints and guards, where the campaign has some.
        heldout_failure: why it could not be scored on held-out items, where that is so.
    """

    id: int
    recipe_id: str
    origin: str
    label: str | None
    scores: dict[str, SidesShape]
    guards: NotRequired[dict[str, SidesShape]]
    violation: NotRequired[float]
    heldout_failure: NotRequired[str]


class ValuedShape(CandidateShape):
    """A candidate with its value: what a controller of one objective gets."""

    value: float | None


class DetailsShape(CandidateShape):
    """All that is known of one candidate: what `show` prints."""

    parents: list[int]
    genome: list[float] | None
    recipe: dict[str, Any]
    outcome: OutcomeRow | None
    answers: dict[str, list[AnswerRow]]


class LimitsShape(TypedDict):
    """How long a campaign may go on; null where it has no such limit."""

    items: int | None
    evaluations: int | None
    hours: float | None


class BudgetShape(LimitsShape):
    """How long a campaign may go on, and how many candidates were proposed."""

    proposed: int


class ItemsShape(TypedDict):
    """How many items were scored so far."""

    search: int
    heldout: int


class PartsShape(TypedDict):
    """How candidates were scored: on a part of the items alone, and on all of them."""

    parts: int
    full: int


class StageShape(BudgetShape):
    """One stage's budget."""

    name: str


class SecondsShape(TypedDict):
    """Wall time: of all starts, what is left at this pace, and of the workers together."""

    total: float
    left: float | None
    merge: float
    score: float


class ProgressShape(TypedDict):
    """A campaign's progress.

    Attributes:
        candidates: how many are ok, stopped, failed and running.
        in_parts: how many of those that are ok were scored on parts of the items, and in full.
        best: None before the first score.
    """

    name: str
    state: str
    stages: list[StageShape]
    candidates: dict[str, int]
    budget: BudgetShape
    items: ItemsShape
    in_parts: PartsShape
    best: ValuedShape | None
    seconds: SecondsShape
    per_hour: float
    baselines: list[ValuedShape]


class StatusShape(ProgressShape):
    """What `status` prints: `state` as it is now, and why it failed.

    Attributes:
        hypervolume: of the front, on the baselines' scale; None before the first score.
    """

    reason: str
    hypervolume: float | None


class SourceShape(TypedDict):
    """A source as the provenance has it; see `SourceRecord`."""

    label: str
    name: str
    path: str
    sha256: str
    own: bool


class ObjectiveShape(TypedDict):
    """An objective as the provenance has it; see `Objective`."""

    name: str
    direction: str
    weight: float
    constraint: str
    cost: bool


def fits(value: object, form: Any) -> bool:
    """Tell whether a value has a form: one of the above, or what its fields are made of.

    SQLite keeps a text where a number is declared, and JSON holds anything.

    >>> fits({"mean": 0.5, "stderr": 0.1, "items": 25}, ScoreShape)
    True
    >>> fits({"mean": "much", "stderr": 0.1, "items": 25}, ScoreShape)
    False
    """
    if form is Any:
        return True
    origin, inner = typing.get_origin(form), typing.get_args(form)
    if typing.is_typeddict(form):
        hints = typing.get_type_hints(form)
        if not isinstance(value, dict) or not form.__required_keys__ <= value.keys():
            return False
        return all(key in hints and fits(entry, hints[key]) for key, entry in value.items())
    if origin is list:
        return isinstance(value, list) and all(fits(entry, inner[0]) for entry in value)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else [(None, None)]
        return all(fits(key, inner[0]) and fits(entry, inner[1]) for key, entry in pairs)
    if origin is not None:
        return any(fits(value, one) for one in inner)
    if isinstance(value, bool):
        return form is bool
    return isinstance(value, (int, float) if form is float else form)
