"""PCB: parameters compete for balance, within a model and between models."""

from typing import TYPE_CHECKING, Annotated

import numpy as np

from evomerge.merging.methods import (
    Directions,
    Fraction,
    Scale,
    TaskVectorsView,
    Weights,
    prepared_method,
)

if TYPE_CHECKING:
    import torch

TAIL = 1e-4  # share of the magnitudes at either end that is clamped, as in the authors' code

LEAST_TOTAL = 1e-12  # of the balances of an element, as there

WEIGHT = np.array(1.2)  # the lambda of the authors' code


def directions(
    vectors: TaskVectorsView,
    *,
    # 0.1: the upper end of the authors' 0.05 to 0.1
    ratio: Annotated[
        Fraction, "share of a task vector's elements, the best balanced ones, that count"
    ] = 0.1,
) -> Directions:
    """Weigh each element by exp(N m_i^2) tanh(tau_i sum_j tau_j), m_i its magnitude from 0 to 1.

    Magnitudes are clamped to their quantiles 1e-4 and 1 - 1e-4 and scaled by these; of the
    balances, the `ratio` largest above zero count, from 0 at the least of them to 1 at the
    largest; models share an element by them (Du et al. 2024, arXiv:2410.02396). Quantiles, least
    and largest are the whole task vector's.

    >>> from evomerge.testing import merge_arrays
    >>> base = np.zeros(4, np.float32)
    >>> merge_arrays("pcb", base, [base + [0, 1, 2, 4]], weight=1.0, options={"ratio": 0.5})
    array([0., 0., 0., 4.], dtype=float32)
    """
    tail = int(TAIL * vectors.size)

    def balance(i: int, taus: "list[torch.Tensor]") -> "torch.Tensor":
        low, high = ends[i]
        size = (taus[i].abs().clamp(low, high) - low) / ((high - low) or 1.0)
        within = (len(taus) * size**2).exp()  # the paper's beta_intra
        between = (taus[i] * sum(taus)).tanh()  # and beta_inter
        return within * between

    # A pass over all tensors for the quantiles of the magnitudes, then one for the balances'.
    ends = []
    for i in range(vectors.count):

        def magnitudes(name: str, i: int = i) -> "torch.Tensor":
            return vectors.one(i, name)

        least = vectors.kth_largest(magnitudes, vectors.size - tail)
        ends.append((least, vectors.kth_largest(magnitudes, tail + 1)))
    cuts = []
    for i in range(vectors.count):

        def balances(name: str, i: int = i) -> "torch.Tensor":
            return balance(i, vectors.of(name)).clamp(min=0.0)

        least = vectors.kth_largest(balances, max(1, int(ratio * vectors.size)))
        cuts.append((least, vectors.kth_largest(balances, 1)))
    for name in vectors.names:
        taus = vectors.of(name)
        shares = []
        for i, (least, most) in enumerate(cuts):
            shares.append((balance(i, taus).clamp(least, most) - least) / ((most - least) or 1.0))
        total = shares[0]
        for share in shares[1:]:
            total = total + share
        total = total.clamp(min=LEAST_TOTAL)
        found = []
        for tau, (low, high), share in zip(taus, ends, shares, strict=True):
            # D_i = tau^_i beta_i / sum_j beta_j, with tau^ the clamped task vector
            found.append(tau.sign() * tau.abs().clamp(low, high) * share / total)
        yield name, found


@prepared_method(paper="https://arxiv.org/abs/2410.02396", prepare=directions)
def pcb(*, weight: Weights = WEIGHT, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors whose elements are weighed by how they balance within and between models.

    >>> pcb(weight=np.array([1.2, 0.8]))
    array([1.2, 0.8])
    """
    return weight * scale
