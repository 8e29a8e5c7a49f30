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
    wide = [(tau.T if inputs.transposed else tau).double() for tau in taus]
    if inputs.grams[0].dim() == 1 or correlation == 0.0:
        found = _by_diagonals(wide, inputs.grams, ridge)
    else:
        found = _by_matrices(wide, inputs.grams, correlation, ridge)
    return [(d.T if inputs.transposed else d).float() for d in found]


def _by_diagonals(
    taus: Sequence[torch.Tensor], grams: Sequence[torch.Tensor], ridge: float
) -> list[torch.Tensor]:
    squares = [(g if g.dim() == 1 else g.diagonal()).double().to(taus[0].device) for g in grams]
    pull = max(ridge * float(torch.stack(squares).sum(0).mean()), _SMALLEST)
    squares = [square + pull for square in squares]
    total = torch.stack(squares).sum(0)
    return [tau * (square / total) for tau, square in zip(taus, squares, strict=True)]


def _by_matrices(
    taus: Sequence[torch.Tensor], grams: Sequence[torch.Tensor], correlation: float, ridge: float
) -> list[torch.Tensor]:
    wide = []
    for gram in grams:
        double = gram.double().to(taus[0].device)
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
        return [tau @ gram @ inverse for tau, gram in zip(taus, wide, strict=True)]
    found = []
    for tau, gram in zip(taus, wide, strict=True):
        found.append(torch.cholesky_solve((tau @ gram).T, factor).T)
    return found
