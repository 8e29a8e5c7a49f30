"""The documents of an lm-eval task: those that are scored, and those that serve as examples.

Where a task has no split for its few-shot examples, lm-eval draws them from the documents that it
scores. A search would then be shown held-out items with their answers, and items their own. So as
many documents as it takes are set aside: they are the examples of every prompt, and never scored.
"""

import random
from collections.abc import Collection, Sequence
from typing import Any

from evomerge.canonical import item_hash
from evomerge.errors import BadInput, Fault
from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.generators import seeded_as_lm_eval
from evomerge.scoring.lm_eval_loading import load_tasks, quietly

FEWSHOT_SEED = 1234  # lm-eval's own default, so that its command line draws the same examples


class TaskDocuments:
    """A loaded task with the documents that are scored, in one part or in two.

    Attributes:
        task: lm-eval's.
        parts: its test documents; or its validation (or training) ones, then its test ones.
        notes: what the user should know, one line each.

    >>> from evomerge.testing.lm_eval_tasks import example_task
    >>> len(TaskDocuments(example_task(), own_test=False).hashes[0])
    24
    """

    def __init__(self, task: Any, own_test: bool):
        """
        Args:
            task: lm-eval's.
            own_test: the items are those of the validation (or training) split, then the test's.

        Raises:
            BadInput: the task has not both splits.
        """
        self.task = task
        config = task.config
        self._splits = [config.test_split or config.validation_split]
        if own_test:
            self._splits = [config.validation_split or config.training_split, config.test_split]
            if None in self._splits:
                wrong = f"'{task.config.task}' has no validation and test split of its own"
                raise _refused("task", wrong, "write heldout: 0.5, or another share")
        # Taken once: a task that shuffles would give others each time.
        self.parts: list[list[Any]] = []
        if own_test:
            is_validated = task.has_validation_docs()
            self.parts.append(
                list(task.validation_docs() if is_validated else task.training_docs())
            )
        self.parts.append(list(task.eval_docs))
        self.hashes = [[item_hash(doc) for doc in part] for part in self.parts]
        self.left_out = 0
        self.total = sum(map(len, self.parts))
        self.notes: list[str] = []

    def choose_examples(self, items: Collection[str]) -> set[str]:
        """Let few-shot examples be drawn from documents that are not scored.

        Args:
            items: hashes of all that may be scored.

        Returns:
            The hashes of those documents that can be scored no more.

        Raises:
            BadInput: there are too few documents.
        """
        count, name = self.task.config.num_fewshot or 0, self.task.config.task
        if not count or self.task.OUTPUT_TYPE == "loglikelihood_rolling":  # which shows none
            return set()
        sampler = getattr(self.task, "sampler", None)
        if sampler is None:
            wrong = f"'{name}' has no documents for few-shot examples"
            raise _refused("fewshot", wrong, "write fewshot: 0")
        pool = list(sampler.df)
        hashes = self._pool_hashes(pool)
        if len(pool) < count:
            wrong = f"{count} examples are more than the {len(pool)} documents '{name}' has"
            raise _refused("fewshot", wrong, "write fewer")
        # Each document once: a copy of an example would be an item that is shown.
        first = {hashed: index for index, hashed in reversed([*enumerate(hashes)])}
        free = [index for index, hashed in enumerate(hashes) if hashed not in items]
        if len(free) == len(pool) > count:
            return set()
        scored = [
            index for hashed, index in sorted(first.items(), key=lambda e: e[1]) if hashed in items
        ]
        missing = max(0, count - len(free))
        if missing > len(scored):
            wrong = f"{count} examples are more than the {len(free) + len(scored)} documents that"
            raise _refused("fewshot", f"{wrong} differ in '{name}'", "write fewer")
        in_order = type(sampler).__name__ == "FirstNSampler"
        drawn = (
            scored[:missing] if in_order else random.Random(FEWSHOT_SEED).sample(scored, missing)
        )
        if not missing and len(free) < len(pool):
            spared = f"{len(pool) - len(free)} of the {len(pool)} documents that few-shot examples"
            self.notes.append(f"{spared} come from are scored, and not shown")
        self._show([pool[index] for index in sorted([*free, *drawn])])
        return {hashes[index] for index in drawn}

    def _pool_hashes(self, pool: Sequence[Any]) -> list[str]:
        """Return the hashes of the documents that examples come from."""
        config = self.task.config
        split = config.fewshot_config.split
        if split is None and config.fewshot_config.samples is None:
            split = config.training_split or config.validation_split or config.test_split
        for part, hashes in zip(self._splits, self.hashes, strict=True):
            # The same rows, which a task that shuffles may have put otherwise this time.
            if part == split and len(hashes) == len(pool):
                return hashes
        return [item_hash(doc) for doc in pool]

    def _show(self, examples: list[Any]) -> None:
        """Draw examples from these alone."""
        sampler = type(self.task.sampler)(examples, rnd=None)
        draw = sampler.sample
        # lm-eval draws one more where the item itself may be among them, which it is not now
        sampler.sample = lambda n, eval_doc=None: draw(n)
        self.task.sampler = sampler

    def leave_out(self, shown: Collection[str]) -> None:
        """Take documents that serve as examples, and their copies, out of those that are scored.

        Raises:
            BadInput: none is left.
        """
        for index, hashes in enumerate(self.hashes):
            kept = [at for at, hashed in enumerate(hashes) if hashed not in shown]
            self.left_out += len(hashes) - len(kept)
            if hashes and not kept:
                count = self.task.config.num_fewshot
                wrong = f"{count} examples leave none of the {len(hashes)} documents of"
                wrong += f" '{self.task.config.task}' to score"
                raise _refused("fewshot", wrong, "write fewer, or give the task a fewshot_split")
            self.parts[index] = [self.parts[index][at] for at in kept]
            self.hashes[index] = [hashes[at] for at in kept]


def open_documents(section: TaskSection, own_test: bool) -> list[TaskDocuments]:
    """Load the task of a campaign's entry, or the tasks of its group, with their documents.

    Args:
        section: the entry.
        own_test: see `TaskDocuments`.

    Raises:
        BadInput: a task cannot be loaded, or has not the splits.

    >>> from evomerge.testing.lm_eval_tasks import example_section
    >>> [documents.total for documents in open_documents(example_section(), own_test=False)]
    [24]
    """
    with quietly(), seeded_as_lm_eval():
        return [TaskDocuments(task, own_test) for task in load_tasks(section)]


def set_examples_aside(several: Sequence[TaskDocuments]) -> list[str]:
    """Keep few-shot examples and items of tasks that are scored together apart.

    Args:
        several: the tasks of an objective; those without examples among their items stay as they
            are.

    Returns:
        What the user should know, one line each.

    Raises:
        BadInput: a task has too few documents.

    >>> from evomerge.testing.lm_eval_tasks import example_task
    >>> documents = TaskDocuments(example_task(fewshot=5), own_test=False)
    >>> set_examples_aside([documents])
    ['5 of its 24 documents serve as few-shot examples and are never scored']
    >>> len(documents.hashes[0])
    19
    """
    items = {hashed for documents in several for part in documents.hashes for hashed in part}
    shown: set[str] = set()
    for documents in several:
        shown |= documents.choose_examples(items)
    for documents in several:
        documents.leave_out(shown)
    notes = [note for documents in several for note in documents.notes]
    left_out = sum(documents.left_out for documents in several)
    if left_out:
        total = sum(documents.total for documents in several)
        serve = f"{left_out} of its {total} documents serve as few-shot examples"
        notes.append(f"{serve} and are never scored")
    return notes


def _refused(key: str, wrong: str, mend: str) -> BadInput:
    return BadInput(Fault(key, wrong, mend))
