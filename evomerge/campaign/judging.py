"""Answers go to their judges on the way from the workers to the campaign.

The judge is asked here and not by the workers. So one machine alone has to reach the address and to
know the key; a judge that is down or busy makes all wait in one place, and blames no candidate; and
each verdict is in the archive as soon as it is there, whatever becomes of its candidate.
"""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.archive.verdicts import Verdict
from evomerge.campaign.campaign import Campaign
from evomerge.canonical import json_hash
from evomerge.errors import EvomergeError
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.judge_client import JudgeClient, QuestionRefused
from evomerge.scoring.kinds.judge import AGAIN, JudgedAnswers, JudgeQuestion
from evomerge.scoring.outcome import Outcome
from evomerge.workers.protocol import Finished, Job, Lost, Pool, Side, WorkerState

log = logging.getLogger("evomerge")

_OPPONENT = 0  # the number of a job that is no candidate's: a baseline's answers
_LOSSES_ALLOWED = 9
_GLANCE = 0.05  # seconds that one side is waited for while the other may be ready


class _Asked(NamedTuple):
    """A question on its way to a judge."""

    objective: str
    ordinal: int
    key: str
    question: JudgeQuestion


class _Judge:
    """Threads that ask one judge."""

    def __init__(self, fitness: JudgedAnswers, replies: "queue.SimpleQueue[Verdict | Exception]"):
        self._client, self._replies = JudgeClient(fitness.judge), replies
        self._model = fitness.judge.model
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._count = fitness.judge.parallel
        for _ in range(self._count):
            threading.Thread(target=self._serve, daemon=True).start()

    def key(self, question: JudgeQuestion) -> str:
        """Return a hash of all that a verdict depends on."""
        return json_hash(self._client.body(question.messages))

    def ask(self, asked: _Asked) -> None:
        """Have a question answered; its verdict comes out of the replies."""
        self._asked.put(asked)

    def close(self) -> None:
        """Let the threads end after what they are at."""
        self._client.close()
        for _ in range(self._count):
            self._asked.put(None)

    def _serve(self) -> None:
        while (asked := self._asked.get()) is not None:
            try:
                self._replies.put(self._verdict(asked))
            except Exception as error:  # whatever it is, who waits for the verdict has to hear
                self._replies.put(error)

    def _verdict(self, asked: _Asked) -> Verdict:
        """Ask, and once more where the reply cannot be read."""
        question, messages = asked.question, asked.question.messages
        try:
            said = self._client.ask(messages)
            score = question.score(said)
            if score is None:
                again = [{"role": "assistant", "content": said}, {"role": "user", "content": AGAIN}]
                said = self._client.ask([*messages, *again])
                score = question.score(said)
        except QuestionRefused as error:
            said, score = f"refused: {error}", None
        first = question.candidate_first
        return Verdict(asked.key, asked.objective, asked.ordinal, self._model, first, score, said)


class _Waiting:
    """A finished job whose answers are judged.

    Attributes:
        job: of the pool.
        outcome: without the scores that are waited for.
        keys: objective -> of each answer the keys of its verdicts; None until the answers that
            they have to beat are known.
    """

    def __init__(self, job: Job, outcome: Outcome):
        self.job, self.outcome = job, outcome
        self.keys: dict[str, list[list[str]]] = {}
        self.missing: set[str] = set()


class JudgingPool:
    """A pool whose outcomes' answers are judged before anybody hears of them.

    A job whose answers are judged still counts as held, so that with one worker candidates come one
    after the other, as they do without a judge. Several workers may go on meanwhile, with as many
    jobs as there are workers.

    >>> from evomerge.testing.judges import example_judging
    >>> with example_judging(grade=7) as (pool, job):
    ...     pool.submit(job)
    ...     round(pool.next_finished().outcome.means["helpful"], 6)
    0.7
    """

    def __init__(self, pool: Pool, campaign: Campaign, archive: Archive):
        """
        Args:
            pool: of the workers; it is closed with this one.
            campaign: whose objectives are judged.
            archive: open for writing.
        """
        self._pool, self._archive, self._campaign = pool, archive, campaign
        self._replies: queue.SimpleQueue[Verdict | Exception] = queue.SimpleQueue()
        self._fitness = {n: f for n, f in campaign.fitness.items() if isinstance(f, JudgedAnswers)}
        self._judges = {name: _Judge(f, self._replies) for name, f in self._fitness.items()}
        workers = campaign.plan.workers
        at_once = workers.count * workers.at_once
        self._ahead = at_once if at_once > 1 else 0
        self._waiting: list[_Waiting] = []
        self._scores: dict[str, float | None] = {}  # of verdicts that somebody waits for
        self._in_flight: set[str] = set()  # keys
        recipes = dict(campaign.baselines())
        self._opponents: dict[str, Recipe] = {}
        self._answers: dict[str, dict[int, str]] = {}  # that have to be beaten, by objective
        for name, fitness in self._fitness.items():
            if fitness.judge.against is not None:
                self._opponents[name] = recipes[fitness.judge.against]
                self._answers[name] = archive.verdicts.opponent(name)
        self._opponent_jobs: dict[tuple[Side, str], int] = {}  # in flight -> times that it was lost

    # --- as a pool -----------------------------------------------------------------------

    @property
    def idle(self) -> int:
        """How many more jobs it can take now."""
        return max(0, self._pool.idle - max(0, len(self._waiting) - self._ahead))

    @property
    def busy(self) -> int:
        """How many jobs it holds."""
        return self._pool.busy - len(self._opponent_jobs) + len(self._waiting)

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What each worker does now."""
        return self._pool.workers

    def submit(self, job: Job) -> None:
        """Take a job, after what its answers have to beat."""
        self._submit_opponents(job.side)
        self._pool.submit(job)

    def next_finished(self, timeout: float | None = None) -> Finished | Lost | None:
        """Wait for a job whose answers are judged.

        Raises:
            EvomergeError: a judge gives no verdicts, or the answers to beat cannot be had.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._take_replies()
            if done := self._completed():
                return done
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if self._pool.busy:
                glance = left if not self._waiting else min(_GLANCE, left or _GLANCE)
                event = self._pool.next_finished(timeout=glance)
                if event is not None and (heard := self._hear(event)):
                    return heard
                if event is not None:
                    continue
            elif self._in_flight:
                self._take_replies(wait=1.0 if left is None else min(1.0, left))
            elif not self._waiting:
                return None
            if deadline is not None and time.monotonic() >= deadline:
                self._take_replies()
                return self._completed()

    def close(self) -> None:
        """Stop the workers and whoever asks; verdicts that are there are kept."""
        for judge in self._judges.values():
            judge.close()
        try:
            self._pool.close()
        finally:
            self._take_replies(heed_errors=False)

    # --- what happens within -------------------------------------------------------------

    def _hear(self, event: Finished | Lost) -> Finished | Lost | None:
        """Take an event of the workers; return it if no judge has a part in it."""
        if event.job.candidate == _OPPONENT:
            self._hear_opponent(event)
            return None
        if isinstance(event, Lost) or not event.outcome.unjudged:
            return event
        self._waiting.append(_Waiting(event.job, event.outcome))
        self._ask_what_can_be()
        return None

    def _ask_what_can_be(self) -> None:
        """Ask about the answers of jobs for which that is not done yet."""
        for waiting in self._waiting:
            for objective, answers in waiting.outcome.unjudged.items():
                ordinals = self._ordinals(waiting.job, objective)
                others: Sequence[str | None] = [None] * len(ordinals)
                if objective in self._opponents:
                    known = self._answers[objective]
                    if not all(ordinal in known for ordinal in ordinals):
                        continue
                    others = [known[ordinal] for ordinal in ordinals]
                if objective not in waiting.keys:
                    self._ask(waiting, objective, ordinals, answers, others)

    def _ask(
        self,
        waiting: _Waiting,
        objective: str,
        ordinals: Sequence[int],
        answers: Sequence[str],
        others: Sequence[str | None],
    ) -> None:
        fitness, judge = self._fitness[objective], self._judges[objective]
        asked: list[_Asked] = []
        keys: list[list[str]] = []
        for ordinal, answer, other in zip(ordinals, answers, others, strict=True):
            questions = fitness.judge_questions(ordinal, answer, other)
            found = [_Asked(objective, ordinal, judge.key(q), q) for q in questions]
            keys.append([one.key for one in found])
            asked += found
        waiting.keys[objective] = keys
        wanted = {one.key for one in asked}
        self._scores |= self._archive.verdicts.scores(sorted(wanted - self._scores.keys()))
        waiting.missing |= wanted - self._scores.keys()
        for one in asked:
            if one.key not in self._scores and one.key not in self._in_flight:
                self._in_flight.add(one.key)
                judge.ask(one)

    def _take_replies(self, *, wait: float = 0.0, heed_errors: bool = True) -> None:
        """Write the verdicts down that have come."""
        verdicts: list[Verdict] = []
        failure: Exception | None = None
        while True:
            try:
                reply = self._replies.get(timeout=wait) if wait else self._replies.get_nowait()
            except queue.Empty:
                break
            wait = 0.0
            if isinstance(reply, Verdict):
                verdicts.append(reply)
            else:
                failure = failure or reply
        if verdicts:
            self._archive.verdicts.add(verdicts)
        for verdict in verdicts:
            self._in_flight.discard(verdict.key)
            self._scores[verdict.key] = verdict.score
            for waiting in self._waiting:
                waiting.missing.discard(verdict.key)
        if failure is not None and heed_errors:
            raise failure

    def _completed(self) -> Finished | None:
        """Return the first job all of whose verdicts are there."""
        for place, waiting in enumerate(self._waiting):
            if waiting.missing or waiting.keys.keys() != waiting.outcome.unjudged.keys():
                continue
            del self._waiting[place]
            finished = Finished(waiting.job, self._scored(waiting))
            self._forget()
            return finished
        return None

    def _forget(self) -> None:
        """Drop the scores of verdicts that nobody waits for: the archive has them."""
        still: set[str] = set()
        for waiting in self._waiting:
            for keys in waiting.keys.values():
                still.update(*keys)
        self._scores = {key: score for key, score in self._scores.items() if key in still}

    def _scored(self, waiting: _Waiting) -> Outcome:
        """Return an outcome with the scores of its verdicts."""
        scores = dict(waiting.outcome.scores)
        for objective, keys in waiting.keys.items():
            items, unread, count = [], 0, 0
            for of_one in keys:
                found = [self._scores[key] for key in of_one]
                unread += sum(score is None for score in found)
                count += len(found)
                # alike answers are a tie, about which nobody was asked
                items.append(float(np.mean([s or 0.0 for s in found])) if found else 0.5)
            if unread:
                said = "candidate %d: %d of %d verdicts on %s could not be read, and count 0"
                log.warning(said, waiting.job.candidate, unread, count, objective)
            scores[objective] = np.array(items, np.float32)
        ordered = {n: scores[n] for n in self._campaign.splits if n in scores}
        return replace(waiting.outcome, scores=ordered, unjudged={})

    def _ordinals(self, job: Job, objective: str) -> Sequence[int]:
        if job.ordinals is not None:
            return job.ordinals[objective]
        return self._campaign.splits[objective].of(job.side)

    # --- the answers that have to be beaten ------------------------------------------------

    def _submit_opponents(self, side: Side) -> None:
        """Have the baselines answer the items of a side, where that is not archived yet."""
        for objective, recipe in self._opponents.items():
            split = self._campaign.splits[objective].of(side)
            if (side, objective) in self._opponent_jobs or set(split) <= set(
                self._answers[objective]
            ):
                continue
            self._opponent_jobs[side, objective] = 0
            self._pool.submit(Job(_OPPONENT, recipe, side, ordinals={objective: split}))

    def _hear_opponent(self, event: Finished | Lost) -> None:
        ordinals = event.job.ordinals
        assert ordinals is not None
        ((objective, split),) = ordinals.items()
        against = self._fitness[objective].judge.against
        if isinstance(event, Lost):
            self._opponent_jobs[event.job.side, objective] += 1
            if self._opponent_jobs[event.job.side, objective] > _LOSSES_ALLOWED:
                raise EvomergeError(f"'{against}' gives no answers to beat: {event.reason}")
            self._pool.submit(event.job)
            return
        del self._opponent_jobs[event.job.side, objective]
        if event.outcome.status != "ok":
            reason = event.outcome.reason
            raise EvomergeError(f"{objective}: '{against}' gives no answers to beat: {reason}")
        answers = dict(zip(split, event.outcome.unjudged[objective], strict=True))
        self._archive.verdicts.add_opponent(objective, answers)
        self._answers[objective] |= answers
        self._ask_what_can_be()


def with_judges(pool: Pool, campaign: Campaign, archive: Archive) -> Pool:
    """Return a pool whose answers go to the campaign's judges; without judges, the pool itself.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> from evomerge.workers.pool import InlinePool
    >>> campaign = example_campaign(hashed=True)
    >>> pool = InlinePool(campaign.worker)
    >>> with_judges(pool, campaign, example_archive_of(campaign)) is pool
    True
    """
    if not any(fitness.is_judged for fitness in campaign.fitness.values()):
        return pool
    return JudgingPool(pool, campaign, archive)
