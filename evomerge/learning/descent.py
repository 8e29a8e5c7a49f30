"""Gradient descent on the coefficients of a merge."""

import math
from collections.abc import Callable, Iterable

import torch

from evomerge.learning.failure import Unlearnable
from evomerge.learning.learners import Learned, LearningProblem
from evomerge.learning.parting import Parting

# Of a step's number: prepares what needs other weights than the merge's, and returns losses, each
# of which is computed when the one before was differentiated.
Losses = Callable[[int], Iterable[torch.Tensor]]


def _as_it_is(raw: torch.Tensor) -> torch.Tensor:
    return raw


def _none(coefficients: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=coefficients.dtype)


def descend(
    problem: LearningProblem,
    parting: Parting,
    raw: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    losses: Losses,
    *,
    shape: Callable[[torch.Tensor], torch.Tensor] = _as_it_is,
    penalty: Callable[[torch.Tensor], torch.Tensor] = _none,
) -> Learned:
    """Make the sum of losses and a penalty small.

    Args:
        problem: whose merge is run.
        parting: of its tensors.
        raw: (cells, models) float64, a leaf that the optimizer changes.
        optimizer: of `raw`.
        steps: how many.
        losses: of the live merge.
        shape: raw -> coefficients.
        penalty: of the coefficients.

    Raises:
        Unlearnable: a loss or a gradient is not finite.

    >>> import inspect
    >>> "steps" in inspect.signature(descend).parameters
    True
    """
    merge, seen = problem.merge, []
    merge.part(parting)
    for step in range(steps):
        optimizer.zero_grad()
        coefficients = shape(raw)
        waiting = losses(step)
        merge.load(coefficients.detach())
        total = sum(merge.backward(loss) for loss in waiting)
        extra = penalty(coefficients)
        # sum(c * dL/dc) has the gradient dL/dc, which goes on from c to `raw`
        (merge.gradient() * coefficients).sum().add(extra).backward()
        total += float(extra.detach())
        finite_or_raise(total, raw.grad, step)
        seen.append(total)
        problem.step(step, total)
        optimizer.step()
    return Learned(parting, shape(raw).detach().numpy(), seen)


def finite_or_raise(loss: float, gradient: torch.Tensor | None, step: int) -> None:
    """Check a step's loss and gradient.

    Raises:
        Unlearnable: one is not finite.

    >>> finite_or_raise(1.5, torch.zeros(2), step=0)
    """
    if not math.isfinite(loss):
        raise Unlearnable(f"the loss is {loss} at step {step}")
    if gradient is not None and not bool(gradient.isfinite().all()):
        raise Unlearnable(f"a gradient is not finite at step {step}")
