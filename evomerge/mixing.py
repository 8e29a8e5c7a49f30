"""A mixture becomes tensors: each run of elements is a weighted sum of its own, all in one pass."""

from collections import Counter
from collections.abc import Mapping
from types import ModuleType

import numpy as np
import torch

from evomerge import native
from evomerge.checksum import tile_digests
from evomerge.errors import CandidateFailure
from evomerge.mixture import Layout, Mixture
from evomerge.weights import Weights


def mix(
    recipe: Mixture,
    targets: Mapping[str, torch.Tensor],
    weights: Weights,
    layout: Layout,
    kernels: ModuleType,
) -> dict[str, np.ndarray]:
    """Merge a mixture into `targets`.

    Args:
        recipe: what to merge.
        targets: tensor name -> contiguous tensor, which gets the values as rounded to the
            recipe's dtype.
        weights: of its models.
        layout: of theirs.
        kernels: has `weighted_sum`, for where the native kernels do not go.

    Returns:
        name -> digests of its tiles in the recipe's dtype, see `checksum`.

    Raises:
        CandidateFailure: a merged tensor is not finite, or the recipe is of another layout.
    """
    if layout.hash != recipe.layout or layout.total != recipe.chromosomes[0].edges[-1]:
        raise CandidateFailure("the recipe is of models whose tensors have other names or sizes")
    dtype, outs, tensors, rows, named = getattr(torch, recipe.dtype), [], [], [], []
    for name, target in targets.items():
        models = [weights.tensor(m, name).reshape(-1) for m in recipe.models]
        for start, stop, coefficients in recipe.pieces(name, *layout.span[name]):
            outs.append(target.view(-1)[start:stop])
            tensors.append([m[start:stop] for m in models])
            rows.append(coefficients)
            named.append(name)
    digests: list[np.ndarray | None] = [None] * len(outs)
    every = [t for row in (*tensors, outs) for t in row]
    on_cpu = all(t.device.type == "cpu" for t in outs)
    if on_cpu and len(recipe.models) <= native.MOST and native.takes(every, dtype):
        batch = native.Batch(None, tensors, outs, dtype)
        batch.weigh(slice(None), np.array(rows))
        digests, broken = batch.merge()
    else:
        for out, models, row in zip(outs, tensors, rows, strict=True):
            out.copy_(kernels.weighted_sum(models, row, dtype))
        broken = np.array([not bool(out.isfinite().all()) for out in outs])
    if broken.any():
        raise CandidateFailure(f"merged tensor {named[int(broken.argmax())]} is not finite")
    runs = Counter(named)  # a tensor of several has tiles across them
    made = dict(zip(named, digests, strict=True))
    return {
        name: made[name]
        if runs[name] == 1 and made[name] is not None
        else tile_digests(target.to(dtype))
        for name, target in targets.items()
    }
