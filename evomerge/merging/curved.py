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
    device = taus[0].device
    held = [one.double().to(device) for one in curvature]
    kept = [_grafted(tau, one, keep) for tau, one in zip(taus, held, strict=True)]
    weights = [one.clamp(min=0.0) ** power for one in held]
    total = torch.stack(weights).sum(0)
    floor = max(_FLOOR * float(total.mean()), torch.finfo(torch.float64).tiny)
    total = total + floor * len(taus)
    shares = [(weight + floor) / total for weight in weights]
    return [(tau * share).float() for tau, share in zip(kept, shares, strict=True)]


def _grafted(tau: torch.Tensor, curvature: torch.Tensor, keep: float) -> torch.Tensor:
    """Return a task vector of which the share of largest F tau^2 is left."""
    count = int(keep * tau.numel())
    if count >= tau.numel():
        return tau
    salience = (curvature * tau.double().square()).float()
    if count == 0:
        return torch.zeros_like(tau)
    least = kth_largest(lambda: iter([salience]), count)
    return torch.where(salience >= least, tau, torch.zeros_like(tau))
