"""lm-eval tasks as fitnesses: requests built and tokenized once, scored item by item.

`simple_evaluate` rebuilds everything for every model; here a worker keeps the task and its
requests and clears only the responses. The scores are what `process_results` returns for a
document before any aggregation, so only metrics that lm-eval itself averages can serve, and
bits per byte.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.canonical import file_hash
from evomerge.sandbox.programs import unprotected
from evomerge.scoring.fitness import Fitness, Scorable, TaskSection
from evomerge.scoring.generators import seeded_as_lm_eval
from evomerge.scoring.items import ItemText
from evomerge.scoring.lm_eval_documents import (
    FEWSHOT_SEED,
    TaskDocuments,
    open_documents,
    set_examples_aside,
)
from evomerge.scoring.lm_eval_loading import is_of_public_data, quietly
from evomerge.scoring.lm_eval_metric import choose_metric
from evomerge.scoring.lm_eval_model import answer

_SAMPLE = 32  # documents whose lengths are averaged; enough for an estimate


class TaskFitness(Fitness):
    """One lm-eval task and one of its metrics.

    >>> section = TaskSection(name="x", task="x.yaml", metric="acc")
    >>> TaskFitness(section, own_test=False)
    Traceback (most recent call last):
    evomerge.errors.BadInput: task: there is no file 'x.yaml'; write a path to a task YAML
    """

    def __init__(
        self, section: TaskSection, own_test: bool, documents: TaskDocuments | None = None
    ):
        """
        Args:
            section: the campaign's entry.
            own_test: items are the validation (or training) documents, then the test ones.
            documents: of the task, where it is loaded and its examples are set aside already.

        Raises:
            BadInput: the task cannot be loaded or the metric cannot be an objective.
        """
        if documents is None:
            (documents,) = open_documents(section, own_test)
            self.notes = set_examples_aside([documents])
        self._section, self._task = section, documents.task
        if getattr(self._task, "UNSAFE_CODE", False) and (wrong := unprotected()):
            self.notes = [*self.notes, wrong]
        path = Path(section.task)
        self.definition = file_hash(path) if path.is_file() else ""
        self._metric = choose_metric(self._task, section.metric)
        self.direction = section.direction or self._metric.direction
        self._sizes = [len(part) for part in documents.parts]
        if own_test:
            self.test_from = self._sizes[0]
        self._docs = [doc for part in documents.parts for doc in part]
        self.hashes = [hashed for part in documents.hashes for hashed in part]
        # lm-eval compiles its templates for every document, every time
        for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
            setattr(self._task, name, self._rendered_once(getattr(self._task, name)))

    def is_public_test_split(self) -> bool:
        """Tell whether the documents are the test split of a data set that others report on."""
        return is_of_public_data(self._task) and self._task.has_test_docs()

    def characters(self) -> float:
        """Return the mean length of a document's prompt and target, over the first few."""
        docs = self._docs[:_SAMPLE]
        with seeded_as_lm_eval():
            texts = [f"{self._task.doc_to_text(d)}{self._task.doc_to_target(d)}" for d in docs]
        return sum(map(len, texts)) / max(1, len(texts))

    @property
    def speaks(self) -> bool:
        """Whether the model answers in words."""
        return bool(self._task.OUTPUT_TYPE == "generate_until")

    def _rendered_once(self, render: Callable) -> Callable:
        """Remember what a template makes of each document: lm-eval compiles it every time."""
        # documents are not hashable; each is known by its identity, and lives as long as the task
        known: dict[int, Any] = {}
        ours = {id(doc) for doc in self._docs}

        def rendered(doc: Any, *others: Any) -> Any:
            if others or id(doc) not in ours:
                return render(doc, *others)
            if id(doc) not in known:
                known[id(doc)] = render(doc)
            return known[id(doc)]

        return rendered

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        self.build(live.language_model(self._section), ordinals)

    def build(self, lm: Any, ordinals: Sequence[int]) -> None:
        """Build the requests of items for a live model.

        Args:
            lm: see `Scorable.language_model`.
            ordinals: of the items.
        """
        self._lm = lm
        self._answered: frozenset[int] = frozenset()
        chat = self._section.chat_template
        self._requests: dict[int, list] = {}
        first = 0
        for size in self._sizes:
            wanted = sorted({o for o in ordinals if first <= o < first + size})
            first += size
            if not wanted:
                continue
            # lm-eval would take its own documents, among them those that are set aside, and
            # would draw them anew
            chosen = [(ordinal, self._docs[ordinal]) for ordinal in wanted]
            self._task.doc_iterator = lambda chosen=chosen, **_: iter(chosen)
            with quietly(), seeded_as_lm_eval():
                self._task.set_fewshot_seed(FEWSHOT_SEED)
                self._task.build_all_requests(
                    system_instruction=self._section.system,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,  # as lm-eval's command line does
                    chat_template=lm.apply_chat_template if chat else None,
                    tokenizer_name=lm.tokenizer_name if chat else "",
                )
            for request in self._task.instances:
                self._requests.setdefault(request.doc_id, []).append(request)
        for requests in self._requests.values():
            requests.sort(key=lambda request: request.idx)

    def requests(self, ordinals: Sequence[int]) -> list[Any]:
        """Return what a model is asked for items, as lm-eval's requests."""
        return [request for ordinal in ordinals for request in self._requests[ordinal]]

    def questions(self, ordinals: Sequence[int]) -> tuple[Any, list[Any]]:
        return self._lm, self.requests(ordinals)

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        answer(self._lm, self.requests(ordinals))
        return self.scores(ordinals)

    def scores(self, ordinals: Sequence[int]) -> np.ndarray:
        scores = []
        self._answered = frozenset(ordinals)
        with quietly(), seeded_as_lm_eval():
            if requests := self.requests(ordinals):
                for ensemble in self._task._filters:
                    ensemble.apply(requests)
            for ordinal in ordinals:
                answers = [r.filtered_resps[self._metric.filter] for r in self._requests[ordinal]]
                found = self._task.process_results(self._docs[ordinal], answers)
                scores.append(self._metric.of_one(found[self._metric.name]))
        return np.array(scores, np.float32)

    def answers(self, ordinals: Sequence[int]) -> list[str] | None:
        if not self.speaks:
            return None
        return [str(self._requests[o][0].filtered_resps[self._metric.filter]) for o in ordinals]

    def text(self, ordinal: int) -> ItemText:
        doc = self._docs[ordinal]
        with quietly(), seeded_as_lm_eval():
            asked, target = self._task.doc_to_text(doc), self._task.doc_to_target(doc)
            choices = self._task.doc_to_choice(doc) if self._task.config.doc_to_choice else ()
        places = [asked, *target] if isinstance(target, list) else [asked, target]
        # a number stands for a choice, in what is asked as well: "The ___ is too small"
        first, *right = (choices[p] if isinstance(p, int) and choices else str(p) for p in places)
        return ItemText(first.strip(), " | ".join(one.strip() for one in right))

    def spoken(self) -> Sequence[int]:
        return range(len(self.hashes)) if self.speaks else ()

    def lengths(self, ordinals: Sequence[int]) -> np.ndarray:
        if missing := set(ordinals) - self._answered:
            raise ValueError(f"item {min(missing)} was not answered when the model was last scored")
        lengths = []
        for ordinal in ordinals:
            said = [text for request in self._requests[ordinal] for text in request.said]
            lengths.append(np.mean([self._lm.length(text) for text in said]))
        return np.array(lengths, np.float32)
