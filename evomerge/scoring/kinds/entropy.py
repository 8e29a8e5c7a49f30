"""How sure a model is of what it says, which takes no labels.

AdaMerging minimises the entropy of a merge's predictions on unlabelled inputs of its tasks
(arXiv:2310.02575; github EnnengYang/AdaMerging, `softmax_entropy`), there over the classes of an
image. Here it is over the vocabulary, at each position.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.scoring.fitness import Fitness
from evomerge.scoring.kinds import fitness
from evomerge.scoring.prompts import PromptsFitness, refuse_own_test
from evomerge.scoring.read_prompts import Over, ReadPrompts, ReadSection
from evomerge.scoring.reading import row_means
from evomerge.sections import option

if TYPE_CHECKING:
    import torch


class EntropySection(ReadSection):
    """The mean entropy of what a model predicts, in nats: less is better by default.

    >>> EntropySection(name="sure", entropy="answer", prompts="prompts.jsonl").over
    'answer'
    """

    key = "entropy"

    entropy: Over = option(
        "where it is taken; prompt: after each token of a prompt; answer: at each token that the"
        " model itself answers, greedily",
        example="answer",
    )

    @property
    def over(self) -> Over:
        return self.entropy


def entropies(logits: "torch.Tensor") -> "torch.Tensor":
    """Return the (positions,) entropies of (positions, vocabulary) logits, in nats.

    >>> import torch
    >>> entropies(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))
    tensor([0.6931, 0.0000])
    """
    import torch

    # H = -sum_v p_v log p_v, in which 0 log 0 is 0
    return torch.special.entr(logits.softmax(-1)).sum(-1)


class Entropy(ReadPrompts):
    """The mean entropy of what is predicted, over a prompt's or an answer's positions.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> from evomerge.testing.prompts import example_prompts
    >>> section = EntropySection(name="sure", entropy="prompt", prompts=str(example_prompts()))
    >>> entropy = Entropy(section)
    >>> entropy.prepare(example_live(), [0, 1])
    >>> scores = entropy.score([0, 1])
    >>> scores.shape, bool((scores < np.log(32)).all())  # there are 32 tokens
    ((2,), True)
    """

    def __init__(self, section: EntropySection):
        """
        Raises:
            BadInput: the file of prompts will not do.
        """
        super().__init__(section)
        self.direction = section.direction or "minimize"

    def answers(self, ordinals: Sequence[int]) -> list[str] | None:  # type: ignore[override]
        """Return what the model said when it was last scored; None where prompts are read."""
        return PromptsFitness.answers(self, ordinals) if self._over == "answer" else None

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        found = np.zeros(len(ordinals), np.float32)
        for read in self._reader.read(self.rows(ordinals)):
            found[read.places] = row_means(entropies(read.logits), read.counts)
        return found


@fitness(EntropySection)
def open_entropy(section: EntropySection, own_test: bool) -> Fitness:
    """Open the prompts to which a model's predictions are taken.

    >>> open_entropy(EntropySection(name="x", entropy="prompt", prompts="no.jsonl"), own_test=False)
    Traceback (most recent call last):
    evomerge.errors.BadInput: prompts: there is no file 'no.jsonl'; write a path to a JSONL file
    """
    refuse_own_test(own_test)
    return Entropy(section)
