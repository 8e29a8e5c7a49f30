"""What judges said of answers, so that nobody asks them twice; and what the answers had to beat."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evomerge.archive.database import Database

_AT_ONCE = 500  # keys of one query; SQLite takes at least 999 values


class Verdict(NamedTuple):
    """What a judge said.

    Attributes:
        key: a hash of all that it depends on: the judge's name and every word that it was sent.
        objective: whose item it is.
        ordinal: of the item.
        judge: the judge's name.
        candidate_first: of two answers, whether the candidate's came first; None of one.
        score: in [0, 1]; None where it could not be read.
        text: what it said.

    >>> Verdict("5f0c", "helpful", 3, "judge", None, 0.5, '{"score": 5}').score
    0.5
    """

    key: str
    objective: str
    ordinal: int
    judge: str
    candidate_first: bool | None
    score: float | None
    text: str


class Verdicts:
    """The verdicts of an archive.

    >>> from evomerge.archive.archive import Archive
    >>> verdicts = Archive(":memory:", write=True).verdicts
    >>> verdicts.add([Verdict("5f0c", "helpful", 3, "judge", None, 0.5, "5")])
    >>> verdicts.scores(["5f0c", "9c1f"])
    {'5f0c': 0.5}
    """

    def __init__(self, database: Database):
        self._db = database

    def scores(self, keys: Sequence[str]) -> dict[str, float | None]:
        """Return key -> score of those that are known; None of what could not be read."""
        found: dict[str, float | None] = {}
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            sql = f"SELECT key, score FROM verdicts WHERE key IN ({marks})"
            found |= {row["key"]: row["score"] for row in self._db.rows(sql, some)}
        return found

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Write verdicts down, all or none; one that is known stays as it is."""
        now = time.time()
        with self._db.transaction():
            self._db.execute_each(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(*verdict, now) for verdict in verdicts],
            )

    def add_opponent(self, objective: str, answers: Mapping[int, str]) -> None:
        """Write down the answers that candidates' have to beat, by ordinal."""
        with self._db.transaction():
            self._db.execute_each(
                "INSERT OR IGNORE INTO opponents VALUES (?, ?, ?)",
                [(objective, ordinal, text) for ordinal, text in answers.items()],
            )

    def opponent(self, objective: str) -> dict[int, str]:
        """Return ordinal -> the answer that candidates' have to beat."""
        sql = "SELECT ordinal, answer FROM opponents WHERE objective = ?"
        return {row["ordinal"]: row["answer"] for row in self._db.rows(sql, (objective,))}
