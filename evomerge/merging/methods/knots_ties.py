"""KnOTS with TIES: adapters are aligned by a decomposition before signs are elected."""

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import (
    ONE,
    Densities,
    Normalize,
    Scale,
    Weights,
    factored_method,
)
from evomerge.merging.shared_basis import SharedBasis, merged_in_basis, shared_basis
from evomerge.merging.update import Update


@factored_method(paper="https://arxiv.org/abs/2410.19735", analyse=shared_basis)
def knots_ties(
    shared: SharedBasis,
    updates: tuple[Update, ...],
    *,
    weight: Weights = ONE,
    density: Densities = ONE,
    scale: Scale = 1.0,
    normalize: Normalize = True,
) -> Update:
    """Merge LoRA adapters by TIES in the basis of what all of them reach.

    The updates of a weight side by side are U S [V_1 ... V_N]; the S V_i are trimmed to their
    largest elements, weight by weight, a sign is elected, those who agree are averaged.

    >>> import numpy as np, torch
    >>> one = Update(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 0.0, 0.5]]))
    >>> found = knots_ties(shared_basis([one]), (one,), weight=np.ones(1), density=np.ones(1))
    >>> found.left @ found.right + 0.0
    tensor([[2., 0., 1.],
            [0., 0., 0.]])
    """
    masked = Masked(weight, density, "magnitude", "elect", normalize=normalize, scale=scale)
    return merged_in_basis(shared, updates, masked)
