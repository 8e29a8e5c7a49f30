"""What a model predicts, kept small: the likeliest tokens, and some drawn from all others.

A vocabulary of 128,000 tokens takes half a megabyte at each position. Its likeliest tokens alone
will not do: at a temperature of 3, as distillation has it, most of the mass may lie in the others.
So some of those are drawn by their probability, and stand for them all.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

_POSITIONS = 64  # whose whole vocabulary is looked at at once, in float64

_LARGEST = 80.0  # of a logarithm that is raised again


class Kept(NamedTuple):
    """Predictions at some positions.

    Attributes:
        tokens: (positions, kept) int64; `likeliest` of them, then those that were drawn, of which
            one may come several times.
        logs: (positions, kept) float32, their log-probabilities at the temperature.
        rest: (positions,) float64, the probability of all but the likeliest together.
        likeliest: how many these are; all that are kept, if that is the whole vocabulary.

    >>> import torch
    >>> keep(torch.zeros(1, 4), 1.0, 8, np.zeros(1)).rest
    tensor([0.], dtype=torch.float64)
    """

    tokens: "torch.Tensor"
    logs: "torch.Tensor"
    rest: "torch.Tensor"
    likeliest: int


def keep(logits: "torch.Tensor", temperature: float, count: int, offsets: np.ndarray) -> Kept:
    """Keep so many tokens of predictions: half of them the likeliest, half drawn from the others.

    Args:
        logits: (positions, vocabulary) float32.
        temperature: by which logits are divided.
        count: tokens to keep at each position; a vocabulary that is no larger is kept whole.
        offsets: (positions,) in [0, 1), from which the draws follow.

    >>> import torch
    >>> kept = keep(torch.arange(8.0)[None], 1.0, 4, np.array([0.5]))
    >>> kept.tokens, kept.likeliest
    (tensor([[7, 6, 4, 5]]), 2)
    """
    import torch

    logs = (logits / temperature).log_softmax(-1)
    vocabulary = logits.shape[1]
    if vocabulary <= count:
        every = torch.arange(vocabulary, device=logits.device).expand(len(logits), -1)
        return Kept(every, logs, logs.new_zeros(len(logs), dtype=torch.float64), vocabulary)
    likeliest = count // 2
    tokens, rest = [], []
    for first in range(0, len(logs), _POSITIONS):
        some = logs[first : first + _POSITIONS]
        top = some.topk(likeliest).indices
        others = some.double().exp().scatter(1, top, 0.0)
        starts = torch.from_numpy(offsets[first : first + _POSITIONS]).to(others)
        tokens.append(torch.cat([top, _drawn(others, count - likeliest, starts)], 1))
        rest.append(others.sum(-1))
    chosen = torch.cat(tokens)
    return Kept(chosen, logs.gather(1, chosen), torch.cat(rest), likeliest)


def _drawn(weights: "torch.Tensor", count: int, starts: "torch.Tensor") -> "torch.Tensor":
    """Draw tokens by their weights, with replacement, at even steps: systematic sampling.

    Args:
        weights: (positions, vocabulary) float64, of any sum.
        count: tokens at each position.
        starts: (positions,) float64 in [0, 1), of the first step.

    Returns:
        (positions, count) int64.
    """
    import torch

    sums = weights.cumsum(-1)
    steps = torch.arange(count, dtype=sums.dtype, device=sums.device)
    # u_j = (j + start) / count of the whole weight
    wanted = (steps + starts[:, None]) / count * sums[:, -1:]
    return torch.searchsorted(sums, wanted, right=True).clamp(max=weights.shape[1] - 1)


def divergence(kept: Kept, logits: "torch.Tensor", temperature: float) -> "torch.Tensor":
    """Return KL(kept || predicted) at each position, in nats: (positions,) float64.

    Exact where the whole vocabulary is kept. Else P and Q are split into the likeliest tokens of P,
    which are summed, and the others, of mass R_P and R_Q:

        KL = sum_likeliest p log(p / q) + R_P log(R_P / R_Q) + R_P KL(P | others || Q | others)

    The last is the mean of -r over the tokens drawn, r = log(q R_P / (p R_Q)), with exp(r) - 1,
    whose mean is 0, as a control variate (compare J. Schulman, "Approximating KL Divergence", 2020,
    http://joschu.net/blog/kl-approx.html, where its coefficient is 1).

    Args:
        kept: of P, at a temperature.
        logits: (positions, vocabulary) float32, of Q.
        temperature: the same.

    >>> import torch
    >>> expert, candidate = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]])  # log 3
    >>> divergence(keep(expert, 1.0, 8, np.zeros(1)), candidate, 1.0)  # log 2 / sqrt 3
    tensor([0.1438], dtype=torch.float64)
    """
    import torch

    ours = (logits / temperature).log_softmax(-1).gather(1, kept.tokens).double()
    theirs = kept.logs.double()
    top = kept.likeliest
    # sum_likeliest p log(p / q)
    summed = (theirs[:, :top].exp() * (theirs - ours)[:, :top]).sum(-1)
    if top == kept.tokens.shape[1]:
        return summed
    tiny = torch.finfo(torch.float32).tiny
    rest = kept.rest.clamp(min=tiny)
    our_rest = (1.0 - ours[:, :top].exp().sum(-1)).clamp(min=torch.finfo(torch.float32).eps / 2)
    apart = (rest / our_rest).log()  # log(R_P / R_Q)
    r = (ours - theirs)[:, top:] + apart[:, None]
    return summed + rest * (apart + _mean_of_negative(r))


def _mean_of_negative(r: "torch.Tensor") -> "torch.Tensor":
    """Return the means of -r, at least 0, known that exp(r) has the mean 1: (positions,) float64.

    Args:
        r: (positions, drawn) float64.
    """
    import torch

    y = r.clamp(max=_LARGEST).expm1()
    y_apart, r_apart = y - y.mean(-1, keepdim=True), r - r.mean(-1, keepdim=True)
    variance = y_apart.square().sum(-1)
    # the coefficient that leaves the least variance: 1 where r is small, 0 beside an outlier
    slope = (y_apart * r_apart).sum(-1) / variance
    slope = torch.where(variance > 0, slope, torch.ones_like(slope)).clamp(0.0, 1.0)
    return (slope * y.mean(-1) - r.mean(-1)).clamp(min=0.0)
