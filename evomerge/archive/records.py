"""What reading an archive gives: candidates, events, and rows with their columns' names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import numpy as np

from evomerge.recipes.recipe import Recipe
from evomerge.scoring.outcome import Score
from evomerge.search.controllers import Proposal


@dataclass(frozen=True, eq=False)
class Candidate:
    """One model that was ever to be scored.

    Attributes:
        id: its number in the archive.
        recipe_id: equal for two candidates that are the same model.
        origin: "search", "baseline", "warm_start", a "seed" that the space would have scored before
            the search, or "recommended" to be scored in full.
        label: of a baseline; `RUN#NUMBER` of a warm start; what was recommended, in words; None
            for a proposal.
        ordinal: the n-th proposal of its stage, from 0; None for one that was not proposed.
        stage: of the campaign.
        parents: numbers of the candidates that were crossed.
        genome: (dimension,) float64; None for a baseline.
        part: of the items, on which alone it is scored; None: on all, or, if it was recommended,
            on more and more until a race stops it.
        again: the number of the candidate that it is, on another part; None if it is new.
        recipe: read from the archive and parsed when it is first asked for.

    >>> from evomerge.recipes.parameters import single
    >>> candidate = Candidate.of(1, "5f0c", single("models/ja", "bfloat16"), "baseline", label="ja")
    >>> candidate.label, candidate.recipe.models
    ('ja', ('models/ja',))
    """

    id: int
    recipe_id: str
    origin: str
    label: str | None
    ordinal: int | None
    stage: int
    parents: tuple[int, ...]
    genome: np.ndarray | None
    read_recipe: Callable[[], Recipe] = field(repr=False)
    part: int | None = None
    again: int | None = None

    @classmethod
    def of(
        cls,
        id: int,
        recipe_id: str,
        recipe: Recipe,
        origin: str,
        *,
        label: str | None = None,
        ordinal: int | None = None,
        stage: int = 0,
        parents: tuple[int, ...] = (),
        genome: np.ndarray | None = None,
        part: int | None = None,
        again: int | None = None,
    ) -> "Candidate":
        """Return a candidate whose recipe is at hand, so that nothing is read back."""
        return cls(
            *(id, recipe_id, origin, label, ordinal, stage, parents, genome),
            lambda: recipe,
            part,
            again,
        )

    @cached_property
    def recipe(self) -> Recipe:
        return self.read_recipe()

    @property
    def recipe_json(self) -> dict[str, Any]:
        return self.recipe.to_json()


class Event(NamedTuple):
    """One thing that a controller was asked or heard, or that it was built anew.

    Attributes:
        seq: its number in the ledger.
        kind: "ask", "tell" or "rebuild".
        asked: of an ask, how many candidates were asked for.
        proposals: of an ask, what was proposed.
        candidate: of a tell, whose outcome it is.
        scores: of a tell, the search score of each objective; None for a failure.
        proposed: of a rebuild, how many candidates its stage had proposed by then.

    >>> Event(7, "rebuild", proposed=12).kind
    'rebuild'
    """

    seq: int
    kind: str
    asked: int = 0
    proposals: tuple[Proposal, ...] = ()
    candidate: Candidate | None = None
    scores: dict[str, Score] | None = None
    proposed: int = 0


class Told(NamedTuple):
    """One outcome on search items, in the order in which outcomes came.

    Attributes:
        seq: of its event in the ledger.
        at: when it came, in seconds since 1970.
        candidate, stage, origin, label: of the candidate.
        is_part: whether a part of the items was scored, and `means` and `value` are estimates.
        is_copy: whether an earlier candidate was the same, and nothing was scored.
        status: "ok", "stopped" or "failed".
        value: None of a failure, and of a baseline as long as not all are scored.
        violation: of the constraints.
        seconds_merge, seconds_score: that it took.
        items: that were scored.
        means: objective -> mean over all search items; empty of a failure.

    >>> whose = (3, 0, "search", None, False, False)
    >>> Told(7, 0.0, *whose, "failed", None, 0.0, 0.1, 2.0, 50, {}).items
    50
    """

    seq: int
    at: float
    candidate: int
    stage: int
    origin: str
    label: str | None
    is_part: bool
    is_copy: bool
    status: str
    value: float | None
    violation: float
    seconds_merge: float
    seconds_score: float
    items: int
    means: Mapping[str, float]


class PartScores(NamedTuple):
    """Item scores of a part of the search items, and what they say of all.

    Attributes:
        which: objective -> (scored,) int64 positions among the search items.
        items: objective -> (scored,) float32 scores of these.
        scores: objective -> estimate of the mean over all search items, with its standard error.

    >>> PartScores({"maths": np.array([3])}, {"maths": np.ones(1)}, {}).which["maths"].tolist()
    [3]
    """

    which: Mapping[str, np.ndarray]
    items: Mapping[str, np.ndarray]
    scores: Mapping[str, Score]


class RaceEnd(NamedTuple):
    """How a candidate has left a race.

    Attributes:
        candidate: its number.
        in_full: whether it was scored on all items.
        reason: why it was stopped; "" if it was not.
        value, violation: of all items, or of those that were scored.
        items: that were scored.

    >>> RaceEnd(7, False, "worse than 3", 0.5, 0.0, 50).in_full
    False
    """

    candidate: int
    in_full: bool
    reason: str
    value: float
    violation: float
    items: int


class Recommended(NamedTuple):
    """A candidate to be scored in full.

    Attributes:
        recipe_id, recipe: of its model.
        label: what it is, in words.
        genome: (dimension,) float64; None if it has none.
        parents: numbers of the candidates that it crosses.
        again: the number of the candidate that it is; None for one that was never scored.

    >>> from evomerge.recipes.parameters import single
    >>> Recommended("5f0c", single("models/ja", "bfloat16"), "mean").again is None
    True
    """

    recipe_id: str
    recipe: Recipe
    label: str
    genome: np.ndarray | None = None
    parents: tuple[int, ...] = ()
    again: int | None = None


class Agreement(NamedTuple):
    """How two engines' scores of one objective's held-out items compare.

    Attributes:
        items: that both scored.
        differing: that fall otherwise.
        mean: by the campaign's engine.
        by_transformers: the mean by transformers.

    >>> Agreement(400, 3, 0.6425, 0.64).differing
    3
    """

    items: int
    differing: int
    mean: float
    by_transformers: float


class CampaignRow(TypedDict):
    """The row of `campaign`, with plan and provenance decoded from JSON."""

    name: str
    plan: dict[str, Any]
    provenance: dict[str, Any]
    state: str
    reason: str


class OutcomeRow(TypedDict):
    """A row of `outcomes`: what became of a candidate on the search items."""

    candidate_id: int
    status: str
    reason: str
    value: float | None
    violation: float
    seconds_merge: float
    seconds_score: float
    items_scored: int
    weights_checksum: str
    worker: str
    copy_of: int | None
    estimate: float | None


class FinalRow(TypedDict):
    """A row of `finals`: what became of a candidate on the held-out items."""

    candidate_id: int
    status: str
    reason: str
    seconds_score: float
    worker: str


class AnswerRow(TypedDict):
    """What a model said to one held-out item."""

    ordinal: int
    answer: str


class SourceRecord(NamedTuple):
    """One source of a campaign, as its provenance has it.

    Attributes:
        label: in the campaign file.
        name: as recipes write it.
        path: of the directory that was read.
        sha256: of its content.
        own: whether an earlier stage of the same campaign found it.

    >>> SourceRecord("ja", "models/ja", "/data/models/ja", "9c1f").own
    False
    """

    label: str
    name: str
    path: str
    sha256: str
    own: bool = False
