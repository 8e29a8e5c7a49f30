"""Expert Merging: a merge that thinks and speaks as each expert does on that expert's texts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evomerge.learning.failure import Unlearnable
from evomerge.learning.learners import (
    Learned,
    LearnerSection,
    LearningProblem,
    learner,
)
from evomerge.learning.parting import By, Parting, parted
from evomerge.sections import Number, Text, Whole, option
from evomerge.tensor_names import place

if TYPE_CHECKING:
    import torch

    from evomerge.learning.batches import Batch
    from evomerge.learning.live_merge import LiveMerge


class ExpertMergingSection(LearnerSection):
    """Options of Expert Merging; with `chunks`, of Expert Merging++.

    >>> ExpertMergingSection().temperature
    3.0
    """

    kind: Literal["expert_merging"] = "expert_merging"
    experts: dict[Text, Text] = option(
        "label of a model -> the fitness, or the JSONL file, whose texts are its own; a model that"
        " is left out is not imitated. None: each is imitated on all texts",
        factory=dict,
        example={"ja": "maths_ja"},
    )
    steps: Whole = option("of AdamW", 100, ge=1)
    rate: Number = option("AdamW's learning rate, of the sigmoids' arguments", 0.1, gt=0)
    start: Number = option("of every coefficient", 0.1, gt=0, lt=1)
    temperature: Number = option("of the distributions that are compared", 3.0, gt=0)
    hidden: Number = option("weight of the hidden states' distance in the loss", 0.1, ge=0)
    sparsity: Number = option("weight of the coefficients' mean distance from `start`", 0.1, ge=0)
    chunks: Number = option(
        "share of the layers, the most important ones, that get a coefficient for each tensor"
        " (Expert Merging++); 0: none",
        0.0,
        ge=0,
        le=1,
    )
    by: By = option(
        "what has coefficients of its own: the model, each layer, each module of a layer, or each"
        " tensor of a layer",
        "module",
    )

    @property
    def effort(self) -> str:
        twice = ", twice" if self.chunks else ""
        return f"{self.steps} steps{twice}"

    @property
    def experts_texts(self) -> Mapping[str, str]:
        return self.experts


def important_layers(
    learned: Learned, norms: np.ndarray, names: Sequence[str], share: float
) -> list[int]:
    """Return the layers that move the merge most: sum over models and tensors of c_i |tau_i|.

    The paper's importance (arXiv:2509.25712) is made of learned coefficients, the task vectors'
    magnitudes and the numbers of parameters; here the length of a tensor's task vector has the
    latter two in it.

    Args:
        learned: coefficients of whole layers, or parts of them.
        norms: (tensors, models) float64, |tau_i|^2.
        names: of the tensors.
        share: of the layers to return, rounded up.

    >>> parting = parted(["h.0.w", "h.1.w"], "layer")
    >>> found = Learned(parting, np.array([[0.1], [0.9]]), [])
    >>> important_layers(found, np.array([[1.0], [1.0]]), ["h.0.w", "h.1.w"], 0.5)
    [1]
    """
    importance: dict[int, float] = {}
    for name, squares in zip(names, norms, strict=True):
        layer = place(name).layer
        if layer is not None:
            moved = np.abs(learned.coefficients[learned.parting.row[name]]) * np.sqrt(squares)
            importance[layer] = importance.get(layer, 0.0) + float(moved.sum())
    ranked = sorted(importance, key=lambda layer: (-importance[layer], layer))
    return sorted(ranked[: int(np.ceil(share * len(ranked)))])


@learner(ExpertMergingSection)
def expert_merging(problem: LearningProblem, options: ExpertMergingSection) -> Learned:
    """Align the merge with each expert on that expert's unlabelled texts (arXiv:2509.25712).

    The loss is T^2 KL of the next tokens' distributions plus `hidden` times the squared distance of
    the hidden states, summed over experts, plus `sparsity` times |c - start|, by AdamW on
    coefficients that a sigmoid keeps between 0 and 1. Temperature, start and weights are those of
    the authors' code (github.com/Littleor/ExpertMerging); its learning rate, 1e-4, moves a
    coefficient by a thousandth in 100 steps, so ours is larger.

    With `chunks` the layers that turned out important are parted by tensor, and all is learned
    again from what was found (Expert Merging++; it parts the rows of tensors, for which a recipe
    has no place).

    >>> import inspect
    >>> list(inspect.signature(expert_merging).parameters)
    ['problem', 'options']
    """
    merge = problem.merge
    parting = parted(merge.names, options.by)
    first = np.full((len(parting.cells), merge.models), options.start)
    found = _aligned(problem, options, parting, first)
    if not options.chunks:
        return found
    norms = merge.norms().numpy()
    finer = important_layers(found, norms, merge.names, options.chunks)
    finest = parted(merge.names, options.by, finer)
    start = np.empty((len(finest.cells), merge.models))
    for name, row in finest.row.items():
        start[row] = found.coefficients[parting.row[name]]
    again = _aligned(problem, options, finest, start)
    return again._replace(losses=found.losses + again.losses)


def _aligned(
    problem: LearningProblem, options: ExpertMergingSection, parting: Parting, start: np.ndarray
) -> Learned:
    """Learn (cells, models) coefficients from a start within (0, 1)."""
    import torch

    from evomerge.learning.batches import batch_of, drawn, tokenized
    from evomerge.learning.descent import descend

    merge = problem.merge
    own = problem.own or dict.fromkeys(range(merge.models), problem.texts)
    waiting = {}
    for expert, texts in sorted(own.items()):
        rows = tokenized(merge.tokenizer, texts, options.max_tokens)
        if rows:
            waiting[expert] = drawn(rows, options.batch, problem.seed + expert)
    if not waiting:
        raise Unlearnable("there are no texts of any expert's own")

    def losses(step: int) -> Iterable[torch.Tensor]:
        taught = []
        for expert, batches in waiting.items():
            batch = batch_of(next(batches), merge.pad, merge.device)
            taught.append((batch, _teacher(merge, expert, batch, options)))
        return _alignments(merge, taught, options)

    def penalty(coefficients: torch.Tensor) -> torch.Tensor:
        # 0.1 sum |c - c_0| / (cells), as in the authors' code
        return options.sparsity * (coefficients - options.start).abs().mean(0).sum()

    inside = torch.from_numpy(start).clamp(1e-6, 1.0 - 1e-6)
    raw = torch.logit(inside).requires_grad_(True)
    optimizer = torch.optim.AdamW([raw], lr=options.rate, weight_decay=1e-5)
    return descend(
        problem,
        parting,
        raw,
        optimizer,
        options.steps,
        losses,
        shape=torch.sigmoid,
        penalty=penalty,
    )


def _teacher(merge: "LiveMerge", expert: int, batch: "Batch", options: ExpertMergingSection) -> Any:
    """Return what an expert says of a batch: its logits and, if they count, its states."""
    import torch

    merge.load_model(expert)
    with torch.no_grad():
        return merge.run(batch, states=bool(options.hidden))


def _alignments(
    merge: "LiveMerge", taught: list[tuple["Batch", Any]], options: ExpertMergingSection
) -> "Iterator[torch.Tensor]":
    """Yield the loss of each expert's batch."""
    from evomerge.learning.losses import distance_of_states, distance_to_teacher

    for batch, teacher in taught:
        output = merge.run(batch, states=bool(options.hidden))
        loss = distance_to_teacher(output.logits, teacher.logits, batch, options.temperature)
        if options.hidden:
            states = distance_of_states(output.hidden_states, teacher.hidden_states, batch)
            loss = loss + options.hidden * states
        yield loss
