"""A live model for lm-eval: it is asked what a task asks, and holds its answers.

What answers is behind lm-eval's own interface of three kinds of request (loglikelihood,
loglikelihood_rolling, generate_until); the tasks know no more of it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from evomerge.scoring.answer import Answer
from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.lm_eval_loading import quietly
from evomerge.scoring.lm_eval_transformers import TransformersEngine

DEFAULT_BATCH = 64  # prompts; a worker holds one model, and most fit its cache of keys and values


def answer(lm: Any, requests: Sequence[Any]) -> None:
    """Run a model on requests afresh.

    Args:
        lm: see `language_model`.
        requests: lm-eval's; each then holds its answers, unfiltered, in `resps`, and in `said`
            those that the model generated, as `Answer`s.

    >>> answer(None, [])
    """
    by_type: dict[str, list[Any]] = defaultdict(list)
    for request in requests:
        request.resps, request.filtered_resps, request.said = [], {}, []
        by_type[request.request_type] += [request] * request.repeats
    with quietly():
        for kind, batch in by_type.items():
            answers = getattr(lm, kind)(batch, disable_tqdm=True)
            for request, said in zip(batch, answers, strict=True):
                if isinstance(said, Answer):
                    request.said.append(said)
                    said = str(said)
                request.resps.append(said)


def language_model(model: Any, tokenizer: Any, section: TaskSection) -> TransformersEngine:
    """Return what answers for a live model.

    Args:
        model: a transformers model, whose weights may change.
        tokenizer: its own.
        section: says how many prompts go at once.

    >>> from evomerge.testing.lm_eval_tasks import example_live, example_section
    >>> language_model(*example_live(), example_section()).batch_size
    64
    """
    with quietly():
        return TransformersEngine(model, tokenizer, section.batch_size or DEFAULT_BATCH)
