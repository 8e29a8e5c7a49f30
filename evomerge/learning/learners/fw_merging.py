"""FW-Merging: Frank-Wolfe steps towards the expert that the loss's gradient points at."""

import math
from typing import Literal

import numpy as np

from evomerge.learning.failure import Unlearnable
from evomerge.learning.learners import (
    Learned,
    LearnerSection,
    LearningProblem,
    learner,
)
from evomerge.learning.parting import parted
from evomerge.sections import Number, Whole, option


class FwMergingSection(LearnerSection):
    """Options of FW-Merging.

    >>> FwMergingSection().iterations
    10
    """

    kind: Literal["fw_merging"] = "fw_merging"
    iterations: Whole = option("of Frank-Wolfe, each with the gradient of all texts", 10, ge=1)
    step: Number | None = option(
        "how far each goes, as a share of the way; null: 2/(t+2) in iteration t", None, gt=0, le=1
    )
    radius: Number = option(
        "how far along its task vector each expert stands as a corner of what can be reached: the"
        " coefficients of a cell are at least 0 and sum to at most this",
        1.0,
        gt=0,
    )
    loss: Literal["answers", "entropy"] = option(
        "what is made small: the answers' cross-entropy, or the entropy of the token after each"
        " prompt, which needs no answers",
        "answers",
    )

    @property
    def effort(self) -> str:
        return f"{self.iterations} iterations"

    def wants_answers(self) -> bool:
        return self.loss == "answers"


def oracle(gradient: np.ndarray, radius: float) -> np.ndarray:
    """Return the corner of the constraint set to which the gradient's descent is steepest.

    In each cell the corners are the base, all 0, and each model by itself at `radius`; the linear
    function <gradient, c> is least on one of them (the LMO of arXiv:2503.12649).

    Args:
        gradient: (cells, models) float64, <dL/dW, tau_i>.
        radius: of the corners.

    Returns:
        (cells, models) float64.

    >>> oracle(np.array([[1.0, -2.0], [0.5, 0.1]]), radius=1.0)
    array([[0., 1.],
           [0., 0.]])
    """
    corner = np.zeros_like(gradient)
    rows = np.arange(len(gradient))
    least = gradient.argmin(axis=1)  # s = argmin_i <dL/dW, W_0 + r tau_i>, less the base's term
    corner[rows, least] = np.where(gradient[rows, least] < 0.0, radius, 0.0)
    return corner


@learner(FwMergingSection)
def fw_merging(problem: LearningProblem, options: FwMergingSection) -> Learned:
    """Walk from the base by Frank-Wolfe's hard steps (arXiv:2503.12649); return the best point.

    Each iteration takes the gradient of the loss on all texts at the merge so far, lets the oracle
    pick an expert (in each cell, or as a whole with `by: model`), and goes a part of the way to
    it. So at most as many experts as iterations take part: of a pool of dozens it selects. The
    steps are 2/(t+2); what is returned is the point of least loss on the way.

    >>> import inspect
    >>> list(inspect.signature(fw_merging).parameters)
    ['problem', 'options']
    """
    import torch

    from evomerge.learning.batches import tokenized

    merge = problem.merge
    parting = parted(merge.names, options.by)
    answers = options.wants_answers()
    rows = tokenized(merge.tokenizer, problem.texts, options.max_tokens, answers=answers)
    if not rows:
        raise Unlearnable("no text has an answer")
    merge.part(parting)
    point = np.zeros((len(parting.cells), merge.models))
    best, least, losses = point, math.inf, []
    for t in range(options.iterations + 1):
        merge.load(torch.from_numpy(point))
        loss = _loss_and_gradient(problem, options, rows)
        if not math.isfinite(loss):
            if t == 0:
                raise Unlearnable(f"the loss is {loss} at the base")
            break  # beyond here nothing is better than what there was
        losses.append(loss)
        if loss < least:
            best, least = point, loss
        problem.step(t, loss)
        gamma = 2.0 / (t + 2.0) if options.step is None else options.step
        corner = oracle(merge.gradient().numpy(), options.radius)
        point = point + gamma * (corner - point)  # W_t+1 = (1 - gamma) W_t + gamma W_s
    return Learned(parting, best, losses)


def _loss_and_gradient(problem: LearningProblem, options: FwMergingSection, rows: list) -> float:
    """Return the mean loss over all texts; its gradient is the merge's then."""
    from evomerge.learning.batches import batch_of
    from evomerge.learning.losses import answer_loss, entropy

    merge, total = problem.merge, 0.0
    for first in range(0, len(rows), options.batch):
        some = rows[first : first + options.batch]
        batch = batch_of(some, merge.pad, merge.device)
        logits = merge.run(batch).logits
        loss = answer_loss(logits, batch) if options.wants_answers() else entropy(logits, batch)
        total += merge.backward(loss * (len(some) / len(rows)))
    return total
