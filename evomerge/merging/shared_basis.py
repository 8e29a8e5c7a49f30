"""KnOTS' space (Stoica et al. 2024, arXiv:2410.19735): adapters in one basis of what they reach.

[tau_1 ... tau_N] = U S [V_1 ... V_N], the singular value decomposition of the updates of one
weight side by side; S V_i are the i-th update's coordinates in the basis U. All of it is computed
from the factors tau_i = s_i B_i A_i, whose ranks' sum is the largest matrix that is decomposed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from evomerge.kernels.masked import Masked
from evomerge.merging.update import Update

if TYPE_CHECKING:
    import torch

# Singular values this far below the largest are float32's rounding. The authors' code leaves out
# those up to 1e-5, which depends on how large updates are.
REAL = 2.0**-23


class SharedBasis(NamedTuple):
    """An orthonormal basis of what updates of one weight reach, and how each is turned into it.

    Attributes:
        basis: U, (out, rank).
        turns: C_i, (rank, its rank) of each update, so that S V_i = U^T tau_i = C_i A_i.

    >>> import torch
    >>> first = Update(torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0, 0.0]]))
    >>> shared = shared_basis([first, Update(torch.zeros(2, 0), torch.zeros(0, 2))])
    >>> shared.basis.abs(), shared.turns[0].abs()
    (tensor([[1.],
            [0.]]), tensor([[3.]]))
    """

    basis: "torch.Tensor"
    turns: "tuple[torch.Tensor, ...]"


def shared_basis(updates: Sequence[Update]) -> SharedBasis:
    """Return the left singular vectors of updates side by side, computed from their factors.

    Decomposed in float64 on the processor, whatever the device.

    Args:
        updates: of one weight, one at least; all of one dtype.

    >>> import torch
    >>> one = Update(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    >>> shared_basis([one, one]).basis.shape  # which reach the same direction
    torch.Size([2, 1])
    """
    import torch

    ranks = [update.rank for update in updates]
    lefts = [update.left.double().cpu() * update.scale for update in updates]
    # [s_1 B_1 ... s_N B_N] = Q [R_1 ... R_N]
    q, triangle = torch.linalg.qr(torch.cat(lefts, 1))
    parts = triangle.split(ranks, 1)
    cores = []
    for update, part in zip(updates, parts, strict=True):
        # A_i^T = Q_i L_i, so that tau_i = Q (R_i L_i^T) Q_i^T
        _, lower = torch.linalg.qr(update.right.double().cpu().T)
        cores.append(part @ lower.T)
    # [tau_1 ... tau_N] = Q [R_1 L_1^T ... R_N L_N^T] diag(Q_i^T); the core has its singular values
    turned, sizes, _ = torch.linalg.svd(torch.cat(cores, 1), full_matrices=False)
    least = sizes[:1] * REAL
    turned = turned[:, sizes > least]
    like, turns = updates[0].left, []
    for core, part in zip(cores, parts, strict=True):
        # what an update has in a direction that it does not reach is rounding, of any sign
        reached = (turned.T @ core).norm(dim=1, keepdim=True) > least
        turns.append((turned.T @ part * reached).to(like))
    return SharedBasis((q @ turned).to(like), tuple(turns))


def merged_in_basis(
    shared: SharedBasis,
    updates: Sequence[Update],
    masked: Masked,
    keys: Sequence[tuple[int, int]] = (),
) -> Update:
    """Return updates merged element by element in their shared basis.

    Args:
        shared: of these updates.
        updates: one a model.
        masked: what is done with the coordinates S V_i; it thins by "magnitude", or "random".
        keys: of the random generator, one a model.

    Returns:
        U times the merged coordinates.

    >>> import numpy as np, torch
    >>> one = Update(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 0.0, 0.5]]))
    >>> trimmed = Masked(np.ones(1), np.array([0.5]), "magnitude")
    >>> merged = merged_in_basis(shared_basis([one]), [one], trimmed)
    >>> merged.left @ merged.right + 0.0  # of three coordinates the largest one stays
    tensor([[2., 0., 0.],
            [0., 0., 0.]])
    """
    import torch

    from evomerge.kernels.eager import masked_sum
    from evomerge.kernels.merge_plan import Kept

    # S V_i = U^T tau_i = C_i A_i
    coordinates = [turn @ update.right for turn, update in zip(shared.turns, updates, strict=True)]
    kept = []
    for i, found in enumerate(coordinates):
        if masked.thin == "random":
            kept.append(Kept(key=keys[i]))
        else:
            kept.append(Kept(low=_least_kept(found, float(masked.density[i]))))
    merged = masked_sum(torch.zeros_like(coordinates[0]), coordinates, masked, kept)
    return Update(shared.basis, merged)


def _least_kept(coordinates: "torch.Tensor", density: float) -> float:
    """Return the least magnitude that is kept; all that equal it are kept, as in all our merges."""
    count = coordinates.numel()
    k = int(density * count)
    if k >= count:
        return 0.0
    if k < 1:
        return float("inf")
    return float(coordinates.abs().flatten().kthvalue(count - k + 1).values)
