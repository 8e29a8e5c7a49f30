"""The shapes that `status`, `front` and `show` print with `--json`; see `summary`."""

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
        origin: search, baseline or warm_start.
        scores: by objective.
        violation: of the constraints, where the campaign has some.
        heldout_failure: why it could not be scored on held-out items, where that is so.
    """

    id: int
    recipe_id: str
    origin: str
    label: str | None
    scores: dict[str, SidesShape]
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


class BudgetShape(TypedDict):
    """How long a campaign may go on, and how far it is."""

    evaluations: int
    hours: float | None
    proposed: int


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
        best: None before the first score.
    """

    name: str
    state: str
    stages: list[StageShape]
    candidates: dict[str, int]
    budget: BudgetShape
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
