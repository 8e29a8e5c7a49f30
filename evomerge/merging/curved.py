"""Task vectors weighted element by element by the models' diagonal curvature."""

from collections.abc import Sequence

import torch

from evomerge.kernels.magnitude_histogram import kth_largest

_FLOOR = 1e-6  # of the curvature, in its mean: where no model's loss depends on an element


def by_curvature(
    taus: Sequence[torch.Tensor],
    curvature: Sequence[torch.Tensor] | None,
    power: float,
    keep: float,
) -> list[torch.Tensor]:
    """Return D_i = P_i m_i tau_i / sum_j P_j with P = F^p, floored, and m of the largest F tau^2.

    Args:
        taus: one a model, of one tensor.
        curvature: F, one a model, of the tensor's shape; None averages.
        power: p.
        keep: share of the elements in m_i.

    >>> taus, curvature = [torch.tensor([2.0, 1.0])], [torch.tensor([1.0, 9.0])]
    >>> by_curvature(taus, curvature, power=1.0, keep=0.5)
    [tensor([0., 1.])]
    """
    if curvature is None:
        return [tau / len(taus) for tau in taus]

    def weight(one: torch.Tensor) -> torch.Tensor:
        return one.to(taus[0].device).clamp(min=0.0).double() ** power

    total = weight(curvature[0])  # an embedding is large, so no model's is kept beside it
    for one in curvature[1:]:
        total += weight(one)
    floor = max(_FLOOR * float(total.mean()), torch.finfo(torch.float64).tiny)
    total += floor * len(taus)
    found = []
    for tau, one in zip(taus, curvature, strict=True):
        share = (weight(one) + floor).div_(total)
        found.append(share.mul_(_grafted(tau, one.to(tau.device), keep)).float())
    return found


def _grafted(tau: torch.Tensor, curvature: torch.Tensor, keep: float) -> torch.Tensor:
    """Return a task vector of which the share of largest F tau^2 is left."""
    count = int(keep * tau.numel())
    if count >= tau.numel():
        return tau
    if count == 0:
        return torch.zeros_like(tau)
    salience = tau.double().square().mul_(curvature).float()
    least = kth_largest(lambda: iter([salience]), count)
    return torch.where(salience >= least, tau, torch.zeros_like(tau))
