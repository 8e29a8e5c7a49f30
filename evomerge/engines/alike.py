"""Whether an engine says what transformers says with the same weights.

An engine that takes weights in its own way may leave one of them as it was, as builds of vLLM did
with heads that share the embeddings' tensor: every score would be that of another model.
"""

from collections.abc import Sequence
from typing import Any

import torch

from evomerge.errors import BadInput, Fault
from evomerge.scoring.fitness import AskedSection, Scorable
from evomerge.scoring.lm_eval_model import text_likelihoods

# Mean difference of a token's log-likelihood, in nats: far above what another order of sums gives
# (vLLM and transformers on SmolLM2-135M: 2e-6 in float32, up to .02 in bfloat16), far below what a
# wrong tensor does.
_MOST = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.1}

_LONGEST = 400  # characters of a text, so that a large model reads it on a processor in seconds


def check_alike(
    name: str,
    engine: Scorable,
    plain: Scorable,
    section: AskedSection,
    texts: Sequence[str],
    dtype: str,
) -> float:
    """Return how far an engine and transformers are apart that were given the same weights.

    Args:
        name: of the engine, as campaign files write it.
        engine, plain: the engine, and transformers' model.
        section: of the task that the texts are of.
        texts: to be read.
        dtype: of the weights.

    Returns:
        The mean absolute difference of a token's log-likelihood, in nats.

    Raises:
        BadInput: it is more than rounding makes of it.

    >>> from evomerge.testing.lm_eval_tasks import example_live, example_section
    >>> live = example_live()
    >>> check_alike("vllm", live, live, example_section(), ["w1 w2 w3"], "float32")
    0.0
    """
    cut = [text[:_LONGEST] for text in texts]
    with torch.inference_mode():
        wanted = text_likelihoods(plain.language_model(section), cut)
        found = text_likelihoods(engine.language_model(section), cut)
    tokens = sum(len(plain.tokenizer.encode(text)) for text in cut)
    off = sum(abs(a - b) for a, b in zip(wanted, found, strict=True)) / max(tokens, 1)
    if not off <= _MOST[dtype]:  # NaN too
        wrong = f"{name} reads otherwise than transformers with the same weights"
        wrong += f" ({off:.3g} nats a token apart)"
        raise BadInput(Fault("workers.engine", wrong, "write workers.engine: transformers"))
    return off


def texts_of(requests: Sequence[Any], most: int = 4) -> list[str]:
    """Return the texts of some of lm-eval's requests: prompts, with what is said to follow.

    >>> from lm_eval.api.instance import Instance
    >>> texts_of([Instance("loglikelihood", {}, ("w1", " w2"), 0)])
    ['w1 w2']
    """
    texts = ["".join(part for part in one.args if isinstance(part, str)) for one in requests]
    return [text for text in texts if text][:most]
