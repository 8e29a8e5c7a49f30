"""AdaMerging: coefficients whose merge is sure of its answers."""

from collections.abc import Iterator
from typing import Literal

from evomerge.learning.learners import Learned, LearnerSection, LearningProblem, learner
from evomerge.learning.parting import parted
from evomerge.sections import Number, Whole, option


class AdaMergingSection(LearnerSection):
    """Options of AdaMerging.

    >>> AdaMergingSection().start
    0.3
    """

    kind: Literal["adamerging"] = "adamerging"
    steps: Whole = option("of Adam", 500, ge=1)
    rate: Number = option("Adam's learning rate", 1e-3, gt=0)
    start: Number = option("of every coefficient", 0.3)
    entropy: Literal["answer", "all"] = option(
        "of which predictions: of the token after each prompt, or of every token", "answer"
    )

    @property
    def effort(self) -> str:
        return f"{self.steps} steps"


@learner(AdaMergingSection)
def adamerging(problem: LearningProblem, options: AdaMergingSection) -> Learned:
    """Make the entropy of predictions on unlabelled texts small, by Adam (arXiv:2310.02575).

    The paper's models are classifiers; here the classes are the tokens that may come next. Its
    start, 0.3, and its learning rate are the defaults; `by: model` is its task-wise form.

    >>> import inspect
    >>> list(inspect.signature(adamerging).parameters)
    ['problem', 'options']
    """
    import torch

    from evomerge.learning.batches import batch_of, drawn, tokenized
    from evomerge.learning.descent import descend
    from evomerge.learning.losses import entropy

    merge = problem.merge
    parting = parted(merge.names, options.by)
    rows = tokenized(merge.tokenizer, problem.texts, options.max_tokens)
    waiting = drawn(rows, options.batch, problem.seed)
    everywhere = options.entropy == "all"

    def losses(step: int) -> Iterator[torch.Tensor]:
        batch = batch_of(next(waiting), merge.pad, merge.device)
        yield entropy(merge.run(batch).logits, batch, everywhere)

    shape = (len(parting.cells), merge.models)
    raw = torch.full(shape, options.start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=options.rate)
    return descend(problem, parting, raw, optimizer, options.steps, losses)
