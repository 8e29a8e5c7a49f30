"""PCB: parameters compete for balance, within a model and between models."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from evomerge.merging.methods import Fraction, Scale, Weights, prepared_method

_TAIL = 1e-4  # share of the magnitudes at either end that is clamped


def directions(vectors: Any, *, ratio: Fraction = 0.1) -> Iterator[tuple[str, list]]:
    """Weigh each element by exp(N m_i^2) tanh(tau_i sum_j tau_j), m_i its magnitude from 0 to 1.

    Magnitudes are clamped to their quantiles 1e-4 and 1 - 1e-4 and scaled by these; of the
    balances, the `ratio` largest above zero count, from 0 at the least of them to 1 at the
    largest; models share an element by them (Du et al. 2024, arXiv:2410.02396). Quantiles, least
    and largest are the whole task vector's.
    """
    tail = int(_TAIL * vectors.size)

    def balance(i: int, taus: list) -> Any:
        low, high = ends[i]
        size = (taus[i].abs().clamp(low, high) - low) / ((high - low) or 1.0)
        return (len(taus) * size**2).exp() * (taus[i] * sum(taus)).tanh()

    ends = []
    for i in range(vectors.count):
        least, most = (
            vectors.kth_largest(lambda name, i=i: vectors.one(i, name), k)
            for k in (vectors.size - tail, tail + 1)
        )
        ends.append((least, most))
    cuts = []
    for i in range(vectors.count):
        least, most = (
            vectors.kth_largest(lambda name, i=i: balance(i, vectors.of(name)).clamp(min=0.0), k)
            for k in (max(1, int(ratio * vectors.size)), 1)
        )
        cuts.append((least, most))
    for name in vectors.names:
        taus = vectors.of(name)
        shares = [
            (balance(i, taus).clamp(least, most) - least) / ((most - least) or 1.0)
            for i, (least, most) in enumerate(cuts)
        ]
        total = sum(shares).clamp(min=1e-12)
        yield (
            name,
            [
                tau.sign() * tau.abs().clamp(*ends[i]) * shares[i] / total
                for i, tau in enumerate(taus)
            ],
        )


@prepared_method(paper="https://arxiv.org/abs/2410.02396", prepare=directions)
def pcb(*, weight: Weights = 1.2, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors whose elements are weighed by how they balance within and between models."""
    return weight * scale
