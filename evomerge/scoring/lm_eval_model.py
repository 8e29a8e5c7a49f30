"""A live model for lm-eval: it is asked what a task asks, and holds its answers.

What answers is behind lm-eval's own interface of three kinds of request (loglikelihood,
loglikelihood_rolling, generate_until); the tasks know no more of it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from evomerge.scoring.answer import Answer
from evomerge.scoring.fitness import AskedSection
from evomerge.scoring.lm_eval_loading import quietly
from evomerge.scoring.lm_eval_transformers import TransformersLM

DEFAULT_BATCH = 64  # prompts; a worker holds one model, and most fit its cache of keys and values


def answer(lm: Any, requests: Sequence[Any]) -> None:
    """Run a model on requests afresh.

    Args:
        lm: see `LoadedModel`.
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


def text_likelihoods(lm: Any, texts: Sequence[str]) -> list[float]:
    """Return the log-likelihood of each text as a whole, in nats.

    Args:
        lm: see `answer`.
        texts: to be read.

    >>> from evomerge.testing.lm_eval_tasks import example_live, example_section
    >>> lm = example_live().language_model(example_section())
    >>> short, long = text_likelihoods(lm, ["w1 w2", "w1 w2 w3"])
    >>> 0 > short > long
    True
    """
    from lm_eval.api.instance import Instance

    kind = "loglikelihood_rolling"
    requests = [Instance(kind, {}, (text,), number) for number, text in enumerate(texts)]
    with quietly():
        return [float(found) for found in lm.loglikelihood_rolling(requests, disable_tqdm=True)]


class LoadedModel(NamedTuple):
    """A transformers model that fitnesses can score.

    Attributes:
        model: its weights may change.
        tokenizer: its own.

    >>> from evomerge.testing.lm_eval_tasks import example_live, example_section
    >>> example_live().language_model(example_section()).batch_size
    64
    """

    model: Any
    tokenizer: Any

    def language_model(self, section: AskedSection) -> TransformersLM:
        """Return what answers for the model.

        Args:
            section: says how many prompts go at once.
        """
        with quietly():
            return TransformersLM(self.model, self.tokenizer, section.batch_size or DEFAULT_BATCH)
