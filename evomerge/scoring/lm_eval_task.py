"""lm-eval tasks as fitnesses: requests built and tokenized once, scored item by item.

`simple_evaluate` rebuilds everything for every model; here a worker keeps the task and its
requests and clears only the responses. The scores are what `process_results` returns for a
document before any aggregation, so only metrics that lm-eval itself averages can serve, and
bits per byte.
"""

import contextlib
import copy
import io
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.canonical import file_hash, item_hash
from evomerge.errors import BadInput, Fault, nearest, one_line
from evomerge.scoring.fitness import Fitness, TaskSection

DEFAULT_BATCH = 64  # prompts; a worker holds one model, and most fit its cache of keys and values

_FEWSHOT_SEED = 1234  # lm-eval's own default, so that its command line draws the same examples

_SAMPLE = 32  # documents whose lengths are averaged; enough for an estimate
_HUB_FORMATS = {"json", "csv", "parquet", "text", "arrow"}  # dataset_path of local files


class TaskFitness(Fitness):
    """One lm-eval task and one of its metrics.

    >>> section = TaskSection(name="x", task="x.yaml", metric="acc")
    >>> TaskFitness(section, own_test=False)
    Traceback (most recent call last):
    evomerge.errors.BadInput: task: there is no file 'x.yaml'; write a path to a task YAML
    """

    def __init__(self, section: TaskSection, own_test: bool):
        """
        Args:
            section: the campaign's entry.
            own_test: items are the validation (or training) documents, then the test ones.

        Raises:
            BadInput: the task cannot be loaded or the metric cannot be an objective.
        """
        self._section = section
        self._task = self._load()
        path = Path(section.task)
        self.definition = file_hash(path) if path.is_file() else ""
        self._metric, self._filter = self._choose_metric()
        better = self._task.higher_is_better()[self._metric]
        self.direction = section.direction or ("maximize" if better else "minimize")
        self._parts = [self._task]
        if own_test:
            self._parts = [self._on_development_split(), self._task]
            self.test_from = len(self._parts[0].eval_docs)
        self._docs = [doc for part in self._parts for doc in part.eval_docs]
        self.hashes = [item_hash(doc) for doc in self._docs]
        # lm-eval compiles its templates for every document, every time
        for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
            setattr(self._task, name, self._rendered_once(getattr(self._task, name)))

    def is_public_test_split(self) -> bool:
        """Tell whether the documents are the test split of a data set that others report on."""
        config = self._task.config
        public = config.dataset_path is not None and config.dataset_path not in _HUB_FORMATS
        return public and not callable(config.custom_dataset) and self._task.has_test_docs()

    def characters(self) -> float:
        """Return the mean length of a document's prompt and target, over the first few."""
        docs = self._docs[:_SAMPLE]
        texts = [f"{self._task.doc_to_text(d)}{self._task.doc_to_target(d)}" for d in docs]
        return sum(map(len, texts)) / max(1, len(texts))

    def _load(self) -> Any:
        name = self._section.task
        is_file = name.endswith((".yaml", ".yml"))
        if is_file and not Path(name).is_file():
            raise _refused("task", f"there is no file '{name}'", "write a path to a task YAML")
        if not is_file and "/" in name:
            raise _refused("task", f"there is no task '{name}'", "a task's path ends in .yaml")
        with _quietly():
            from lm_eval.tasks import TaskManager

            manager = TaskManager(include_defaults=not is_file)
            if not is_file and name not in manager.all_subtasks:
                known = manager.all_subtasks
                mend = nearest(name, known) if known else "write a path to a task YAML"
                mend = mend if mend.startswith("did") else "`lm-eval ls tasks` lists them"
                raise _refused("task", f"there is no task '{name}'", mend)
            try:
                (task,) = manager.load(name)["tasks"].values()
            except Exception as error:
                wrong = f"'{name}' cannot be loaded: {one_line(error)}"
                raise _refused("task", wrong, "mend the task or its data") from error
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise _refused("task", f"'{name}' runs code or needs images", "take another task")
        if self._section.fewshot is not None:
            task.set_config("num_fewshot", self._section.fewshot)
        elif task.config.num_fewshot is None:
            task.set_config("num_fewshot", 0)
        if self._section.generation:
            if task.OUTPUT_TYPE != "generate_until":
                wrong = f"'{name}' generates nothing ({task.OUTPUT_TYPE})"
                raise _refused("generation", wrong, "leave it out")
            task.set_config("generation_kwargs", self._section.generation, update=True)
        return task

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

    def _on_development_split(self) -> Any:
        """Return the task over its validation documents, or its training ones."""
        config = self._task.config
        development = config.validation_split or config.training_split
        if not self._task.has_test_docs() or development is None:
            wrong = f"'{self._task.task_name}' has no validation and test split of its own"
            raise _refused("task", wrong, "write heldout: 0.5, or another share")
        part = copy.copy(self._task)
        part._config = copy.copy(config)
        part._config.test_split = development
        return part

    def _choose_metric(self) -> tuple[str, str]:
        aggregation = self._task.aggregation()
        metric, _, chosen = self._section.metric.partition(",")
        if metric not in aggregation:
            wrong = f"'{self._task.task_name}' has no metric '{metric}'"
            raise _refused("metric", wrong, nearest(metric, aggregation))
        averaged_by = getattr(aggregation[metric], "__name__", str(aggregation[metric]))
        # Of one document bits per byte is a score like any; lm-eval weighs documents by length.
        self._of_one = (
            (lambda v: aggregation[metric]([v])) if averaged_by == "bits_per_byte" else float
        )
        if averaged_by not in ("mean", "nanmean", "bits_per_byte"):
            usable = [m for m, a in aggregation.items() if getattr(a, "__name__", "") == "mean"]
            wrong = f"'{metric}' is no mean of items (lm-eval aggregates it by {averaged_by})"
            mend = f"take one of {', '.join(usable)}" if usable else "take another task"
            raise _refused("metric", wrong, mend)
        filters = [f.name for f in self._task._filters]
        if not chosen and len(filters) > 1:
            wrong = f"'{metric}' is reported after each of the filters {', '.join(filters)}"
            raise _refused("metric", wrong, f"write e.g. '{metric},{filters[0]}'")
        if chosen and chosen not in filters:
            wrong = f"'{self._task.task_name}' has no filter '{chosen}'"
            raise _refused("metric", wrong, nearest(chosen, filters))
        return metric, chosen or filters[0]

    def prepare(self, model: Any, tokenizer: Any, ordinals: Sequence[int]) -> None:
        chat = self._section.chat_template
        with _quietly():
            batch_size = self._section.batch_size or DEFAULT_BATCH
            self._lm = _language_model(model, tokenizer, batch_size)
        self._requests: dict[int, list] = {}
        first = 0
        for part in self._parts:
            size = len(part.eval_docs)
            wanted = sorted({o - first for o in ordinals if first <= o < first + size})
            if wanted:
                with _quietly():
                    part.set_fewshot_seed(_FEWSHOT_SEED)
                    part.build_all_requests(
                        samples=set(wanted),
                        system_instruction=self._section.system,
                        apply_chat_template=chat,
                        fewshot_as_multiturn=chat,  # as lm-eval's command line does
                        chat_template=self._lm.apply_chat_template if chat else None,
                        tokenizer_name=self._lm.tokenizer_name if chat else "",
                    )
            # lm-eval numbers the sampled documents, not the task's
            for request in part.instances if wanted else ():
                self._requests.setdefault(first + wanted[request.doc_id], []).append(request)
            first += size
        for requests in self._requests.values():
            requests.sort(key=lambda request: request.idx)

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        requests = [r for ordinal in ordinals for r in self._requests[ordinal]]
        self._answer(requests)
        scores = []
        for ordinal in ordinals:
            answers = [r.filtered_resps[self._filter] for r in self._requests[ordinal]]
            found = self._task.process_results(self._docs[ordinal], answers)[self._metric]
            scores.append(self._of_one(found))
        return np.array(scores, np.float32)

    def answers(self, ordinals: Sequence[int]) -> list[str] | None:
        if self._task.OUTPUT_TYPE != "generate_until":
            return None
        return [str(self._requests[o][0].filtered_resps[self._filter]) for o in ordinals]

    def _answer(self, requests: list[Any]) -> None:
        """Run the model on `requests` afresh and filter what it says."""
        by_type: dict[str, list[Any]] = defaultdict(list)
        for request in requests:
            request.resps, request.filtered_resps = [], {}
            by_type[request.request_type] += [request] * request.repeats
        with _quietly():
            for kind, batch in by_type.items():
                answers = getattr(self._lm, kind)(batch, disable_tqdm=True)
                for request, answer in zip(batch, answers, strict=True):
                    request.resps.append(answer)
            for ensemble in self._task._filters:
                ensemble.apply(requests)


def _refused(key: str, wrong: str, mend: str = "") -> BadInput:
    return BadInput(Fault(key, wrong, mend))


def _language_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Wrap a live model for lm-eval, with every text tokenized once."""
    from lm_eval.models.huggingface import HFLM

    class WarmHFLM(HFLM):
        """HFLM that remembers encodings: the texts are the same for every candidate."""

        def __init__(self, *args: Any, **options: Any):
            self._encoded: dict[tuple, Any] = {}
            super().__init__(*args, **options)

        def _remember(self, kind: str, key: Any, encode: Any) -> Any:
            if (kind, key) not in self._encoded:
                self._encoded[kind, key] = encode()
            return self._encoded[kind, key]

        def tok_encode(self, string: str, *args: Any, **options: Any) -> list[int]:
            key = (string, args, tuple(sorted(options.items())))
            found = self._remember(
                "one", key, lambda: super(WarmHFLM, self).tok_encode(string, *args, **options)
            )
            return list(found)

        def tok_batch_encode(self, strings: list[str], *args: Any, **options: Any) -> Any:
            key = (tuple(strings), args, tuple(sorted(options.items())))
            return self._remember(
                "batch",
                key,
                lambda: super(WarmHFLM, self).tok_batch_encode(strings, *args, **options),
            )

    return WarmHFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device)
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep lm-eval, datasets and tqdm from writing over the campaign's own output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lm_eval", "datasets", "transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
