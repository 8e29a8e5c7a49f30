"""Self Positioning: coefficients whose merge answers a small probe set as it should."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from evomerge.learning.failure import Unlearnable
from evomerge.learning.learners import (
    Learned,
    LearnerSection,
    LearningProblem,
    learner,
)
from evomerge.learning.parting import By, parted
from evomerge.sections import Number, Whole, option


class SelfPositioningSection(LearnerSection):
    """Options of Self Positioning.

    >>> SelfPositioningSection().mu
    0.05
    """

    needs_answers: ClassVar[bool] = True

    kind: Literal["self_positioning"] = "self_positioning"
    steps: Whole = option("of gradient descent", 1000, ge=1)
    rate: Number = option("learning rate", 5e-3, gt=0)
    mu: Number = option("weight of the merged task vector's squared length in the loss", 0.05, ge=0)
    start: Number | None = option("of every coefficient; null: one n-th of n models", None)
    by: By = option(
        "what has coefficients of its own: the model, each layer, each module of a layer, or each"
        " tensor of a layer",
        "model",
    )

    @property
    def effort(self) -> str:
        return f"{self.steps} steps"


@learner(SelfPositioningSection)
def self_positioning(problem: LearningProblem, options: SelfPositioningSection) -> Learned:
    """Make the loss on a probe set with answers small, by SGD on coefficients (arXiv:2410.15035).

    What is made small is the cross-entropy of the answers plus mu |sum_i c_i tau_i|^2, in units of
    the task vectors' mean squared length, which keeps the merge near the base.

    >>> import inspect
    >>> list(inspect.signature(self_positioning).parameters)
    ['problem', 'options']
    """
    import torch

    from evomerge.learning.batches import batch_of, drawn, tokenized
    from evomerge.learning.descent import descend
    from evomerge.learning.losses import answer_loss

    merge = problem.merge
    parting = parted(merge.names, options.by)
    rows = tokenized(merge.tokenizer, problem.texts, options.max_tokens, answers=True)
    if not rows:
        raise Unlearnable("no text has an answer")
    waiting = drawn(rows, options.batch, problem.seed)
    merge.part(parting)
    gram = merge.gram()
    unit = gram.diagonal(dim1=1, dim2=2).sum() / merge.models  # mean |tau_i|^2

    def losses(step: int) -> Iterator[torch.Tensor]:
        batch = batch_of(next(waiting), merge.pad, merge.device)
        yield answer_loss(merge.run(batch).logits, batch)

    def penalty(coefficients: torch.Tensor) -> torch.Tensor:
        # |sum_i c_i tau_i|^2 = sum over cells g of c_g' G_g c_g
        squared = torch.einsum("gi,gij,gj->", coefficients, gram, coefficients)
        return options.mu * squared / unit.clamp(min=torch.finfo(torch.float64).tiny)

    start = 1.0 / merge.models if options.start is None else options.start
    shape = (len(parting.cells), merge.models)
    raw = torch.full(shape, start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([raw], lr=options.rate)
    return descend(problem, parting, raw, optimizer, options.steps, losses, penalty=penalty)
