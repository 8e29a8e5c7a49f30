"""What learners make small, on a batch of texts."""

import torch
from torch.nn.functional import cross_entropy, kl_div

from evomerge.learning.batches import Batch


def entropy(logits: torch.Tensor, batch: Batch, everywhere: bool = False) -> torch.Tensor:
    """Return the mean entropy of the next token's distribution, in nats.

    Args:
        logits: (texts, longest, vocabulary).
        batch: the texts.
        everywhere: after each token of the texts, not only after each prompt's last.

    >>> from evomerge.learning.batches import Tokens, batch_of
    >>> entropy(torch.zeros(1, 2, 8), batch_of([Tokens([4, 5], 2)], 0)).exp().round()
    tensor(8.)
    """
    if everywhere:
        chosen = logits[batch.mask.bool()]
    else:
        chosen = logits[torch.arange(len(logits), device=logits.device), batch.ends]
    log = chosen.log_softmax(-1)
    return -(log.exp() * log).sum(-1).mean()  # H = -sum_v p_v log p_v


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of the answers' tokens, in nats.

    Args:
        logits: (texts, longest, vocabulary).
        batch: texts with answers.

    >>> from evomerge.learning.batches import Tokens, batch_of
    >>> answer_loss(torch.zeros(1, 2, 8), batch_of([Tokens([4, 5], 1)], 0)).exp()
    tensor(8.)
    """
    return cross_entropy(logits[:, :-1][batch.answers], batch.ids[:, 1:][batch.answers])


def distance_to_teacher(
    logits: torch.Tensor, teacher: torch.Tensor, batch: Batch, temperature: float
) -> torch.Tensor:
    """Return T^2 KL(teacher || student) of the distributions at temperature T, mean over tokens.

    Args:
        logits, teacher: (texts, longest, vocabulary).
        batch: the texts.
        temperature: T.

    >>> from evomerge.learning.batches import Tokens, batch_of
    >>> batch, logits = batch_of([Tokens([4, 5], 2)], 0), torch.ones(1, 2, 8)
    >>> distance_to_teacher(logits, logits, batch, 3.0)
    tensor(0.)
    """
    there = batch.mask.bool()
    student = (logits[there] / temperature).log_softmax(-1)
    wanted = (teacher[there] / temperature).log_softmax(-1)
    return temperature**2 * kl_div(student, wanted, reduction="batchmean", log_target=True)


def distance_of_states(
    states: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], batch: Batch
) -> torch.Tensor:
    """Return the mean squared difference of hidden states, over layers and tokens.

    Args:
        states, teacher: of each layer, (texts, longest, width).
        batch: the texts.

    >>> from evomerge.learning.batches import Tokens, batch_of
    >>> batch = batch_of([Tokens([4, 5], 2)], 0)
    >>> distance_of_states((torch.ones(1, 2, 3),), (torch.zeros(1, 2, 3),), batch)
    tensor(1.)
    """
    there = batch.mask.bool()
    squares = [
        (own[there] - its[there]).square().mean() for own, its in zip(states, teacher, strict=True)
    ]
    return torch.stack(squares).mean()
