"""LoRA-LEGO: adapters are taken apart into parts of rank one, and alike parts become one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np

from evomerge.merging.k_means import k_means
from evomerge.merging.methods import ONE, Axis, Scale, factored_method
from evomerge.merging.update import Update

if TYPE_CHECKING:
    import torch


class Clusters(NamedTuple):
    """The parts of rank one of adapters of one weight, clustered.

    Attributes:
        owner: (parts,) which model each part is of.
        label: (parts,) the cluster of each.
        largest: (parts,) float64, the largest magnitude in each.
        grown: sqrt(r / k), by which the merged update is multiplied.

    >>> Clusters(np.array([0, 1]), np.array([0, 0]), np.ones(2), 1.0).label
    array([0, 0])
    """

    owner: np.ndarray
    label: np.ndarray
    largest: np.ndarray
    grown: float


def clusters(
    updates: Sequence[Update],
    *,
    rank: Annotated[
        float,
        Axis(0.0, np.inf),
        "clusters, a whole number, the merged adapter's rank; 0: the largest of theirs",
    ] = 0,
) -> Clusters:
    """Cluster the parts [row of A, column of B] of all adapters of one weight by k-means.

    An adapter's scale is divided evenly between its two factors. Distances are computed from the
    parts' inner products alone, in float64.

    Args:
        updates: of one weight, one at least.
        rank: k; no more than there are parts.

    >>> import torch
    >>> one = Update(torch.tensor([[2.0, 0.0]]).T.contiguous(), torch.tensor([[1.0, 0.0]]))
    >>> clusters([one, one], rank=1).label
    array([0, 0])
    """
    ranks = [update.rank for update in updates]
    a, b = (side.double().cpu().numpy() for side in _parts(updates))
    k = min(int(rank) or max(ranks), len(a))
    values, vectors = np.linalg.eigh(a @ a.T + b @ b.T)
    # rows of E sqrt(L) have the inner products E L E^T: as far from one another as the parts
    label = k_means(vectors * np.sqrt(values.clip(min=0.0)), k)
    theirs = np.mean([own for own in ranks if own])
    largest = np.maximum(np.abs(a).max(1), np.abs(b).max(1))
    return Clusters(
        np.repeat(np.arange(len(ranks)), ranks), label, largest, float(np.sqrt(theirs / k))
    )


def _parts(updates: Sequence[Update]) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the rows of all A and the columns of all B, (parts, in) and (parts, out)."""
    import torch

    rows, columns = [], []
    for update in updates:
        root = abs(update.scale) ** 0.5
        rows.append(update.right * root)
        columns.append(update.left.T * (root if update.scale > 0 else -root))
    return torch.cat(rows), torch.cat(columns)


@factored_method(
    paper="https://arxiv.org/abs/2409.16167",
    analyse=clusters,
    ordered=True,  # of two clusterings that are as good, k-means takes the one it finds first
)
def lora_lego(
    found: Clusters,
    updates: tuple[Update, ...],
    *,
    weight: Annotated[
        np.ndarray,
        Axis(0.0, np.inf, per_model=True),
        "of each model's parts: how much they pull at the mean of their cluster and add to it",
    ] = ONE,
    scale: Scale = 1.0,
) -> Update:
    """Cluster the adapters' parts of rank one; each cluster's mean is a part of the merge.

    A mean is multiplied until its largest magnitude is the members' average, the merge by
    sqrt(r / k), r the adapters' mean rank. Clusters are those of equal weights.

    >>> import torch
    >>> one = Update(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 0.0]]))
    >>> merged = lora_lego(clusters([one, one]), (one, one), weight=np.ones(2))
    >>> merged.left @ merged.right  # what both have counts once
    tensor([[2., 0.],
            [0., 0.]])
    """
    import torch

    count = int(found.label.max()) + 1
    belongs = np.zeros((count, len(found.label)))
    belongs[found.label, np.arange(len(found.label))] = 1.0
    pulls = belongs * weight[found.owner]
    totals = pulls.sum(1)
    shares = np.divide(pulls, totals[:, None], out=np.zeros_like(pulls), where=totals[:, None] > 0)
    a, b = _parts(updates)
    mean = torch.from_numpy(shares).to(a)
    means_a, means_b = mean @ a, mean @ b
    largest = torch.maximum(means_a.abs().amax(1), means_b.abs().amax(1)).double().cpu().numpy()
    # parameters: |mean|_inf becomes the members' mean |.|_inf
    wanted = shares @ found.largest
    stretch = np.divide(wanted, largest, out=np.zeros(count), where=largest > 0)
    # a cluster counts by its members' mean weight, so that weights of 0 leave their models out
    strength = totals / belongs.sum(1)
    # output: sqrt(r / k)
    left = means_b.T * torch.from_numpy(stretch**2 * strength * found.grown * scale).to(a)
    return Update(left.contiguous(), means_a)
