"""An entry of a campaign's `guard`: a task on which a source's score has to be kept."""

from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.errors import Fault
from evomerge.scoring.fitness import TaskSection
from evomerge.sections import Number, Text, Whole, option


class GuardSection(TaskSection):
    """A task that is no objective; options are those of a task.

    >>> GuardSection(name="general", task="hellaswag", metric="acc").items
    50
    """

    items: Whole | None = option(
        "items to take before the split: few are enough, and each is scored; null: all", 50, ge=1
    )
    against: Text | None = option(
        "the label of the source whose score is kept; null: the source that is best at the task",
        None,
        example="base",
    )
    margin: Number = option(
        "by how much the mean may fall, in the score's own unit; the noise of few items is allowed"
        " for beside it",
        0.02,
        ge=0,
    )

    @property
    def baseline(self) -> str | None:
        return self.against

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        mend = "leave it out, or make it an entry of fitness"
        if fields.get("weight", 1.0) != 1.0:
            yield Fault("weight", "a guard is no objective, and has no weight", mend)
        if fields.get("constraint") is not None:
            yield Fault("constraint", "a guard is a constraint already", mend)
