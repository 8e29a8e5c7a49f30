"""RegMean's regression: which linear layer answers several models' inputs as they do."""

from collections.abc import Sequence

import torch

from evomerge.merging.observations import LinearInputs

_SMALLEST = 1e-30  # mean square of an input, where all are zero


def solved(
    taus: Sequence[torch.Tensor],
    inputs: LinearInputs | None,
    correlation: float,
    ridge: float,
) -> list[torch.Tensor]:
    """Return each model's share of the solution: D_i = tau_i (G_i + r I) (sum_j (G_j + r I))^-1.

    Args:
        taus: one a model, of a linear layer's weight.
        inputs: of that layer; None averages, as other tensors are.
        correlation: factor of the matrices off the diagonal.
        ridge: r in mean diagonal elements.

    Returns:
        (out, in) float32, or as the weight is; solved in float64.

    >>> taus = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])]
    >>> inputs = LinearInputs([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])], False)
    >>> solved(taus, inputs, 1.0, 0.0)
    [tensor([[1.5000, 0.0000]]), tensor([[0., 2.]])]
    """
    if inputs is None or taus[0].dim() != 2:
        return [tau / len(taus) for tau in taus]
    grams = [gram.to(taus[0].device) for gram in inputs.grams]
    if grams[0].dim() == 1 or correlation == 0.0:
        shares = _by_diagonals(grams, ridge)
    else:
        shares = _by_matrices(grams, correlation, ridge)
    found = []
    for tau, share in zip(taus, shares, strict=True):
        wide = (tau.T if inputs.transposed else tau).double()
        direction = wide @ share if share.dim() == 2 else wide * share
        found.append((direction.T if inputs.transposed else direction).float())
    return found


def _by_diagonals(grams: Sequence[torch.Tensor], ridge: float) -> list[torch.Tensor]:
    """Return (G_i + r I) (sum_j (G_j + r I))^-1 of each model, the diagonal, (in,) float64."""
    squares = [(g if g.dim() == 1 else g.diagonal()).double() for g in grams]
    pull = max(ridge * float(torch.stack(squares).sum(0).mean()), _SMALLEST)
    squares = [square + pull for square in squares]
    total = torch.stack(squares).sum(0)
    return [square / total for square in squares]


def _by_matrices(
    grams: Sequence[torch.Tensor], correlation: float, ridge: float
) -> list[torch.Tensor]:
    """Return (G_i + r I) (sum_j (G_j + r I))^-1 of each model, (in, in) float64."""
    wide = []
    for gram in grams:
        double = gram.double()
        diagonal = double.diagonal().clone()
        double = double * correlation  # off the diagonal, as RegMean reduces it
        double.diagonal().copy_(diagonal)
        wide.append(double)
    total = torch.stack(wide).sum(0)
    pull = max(ridge * float(total.diagonal().mean()), _SMALLEST)
    for gram in wide:
        gram.diagonal().add_(pull)
    total.diagonal().add_(pull * len(wide))
    factor, failed = torch.linalg.cholesky_ex(total)
    if int(failed):  # ridge 0 and inputs that do not span the space
        inverse = torch.linalg.pinv(total, hermitian=True)
        return [gram @ inverse for gram in wide]
    return [torch.cholesky_solve(gram, factor).T for gram in wide]  # all are symmetric
