"""KnOTS with DARE and TIES' sign election."""

from collections.abc import Sequence

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import (
    ONE,
    Densities,
    Normalize,
    Rescale,
    Scale,
    Weights,
    factored_method,
)
from evomerge.merging.shared_basis import SharedBasis, merged_in_basis, shared_basis
from evomerge.merging.update import Update


@factored_method(paper="https://arxiv.org/abs/2410.19735", analyse=shared_basis, draws=True)
def knots_dare_ties(
    shared: SharedBasis,
    updates: tuple[Update, ...],
    keys: Sequence[tuple[int, int]],
    *,
    weight: Weights = ONE,
    density: Densities = ONE,
    scale: Scale = 1.0,
    rescale: Rescale = True,
    normalize: Normalize = True,
) -> Update:
    """Merge LoRA adapters by DARE and TIES in the basis of what all of them reach.

    As `knots_ties`, but elements of S V_i are dropped at random, not by their size.

    >>> import numpy as np, torch
    >>> one = Update(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 0.0, 0.5]]))
    >>> half = {"weight": np.array([0.5]), "density": np.ones(1), "normalize": False}
    >>> found = knots_dare_ties(shared_basis([one]), (one,), [(1, 2)], **half)
    >>> found.left @ found.right + 0.0
    tensor([[1.0000, 0.0000, 0.5000],
            [0.0000, 0.0000, 0.0000]])
    """
    masked = Masked(
        weight, density, "random", "elect", rescale=rescale, normalize=normalize, scale=scale
    )
    return merged_in_basis(shared, updates, masked, keys)
