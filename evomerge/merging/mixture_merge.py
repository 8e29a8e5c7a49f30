"""A mixture becomes tensors: each run of elements is a weighted sum of its own, all in one pass."""

from collections.abc import Mapping
from types import ModuleType

import numpy as np
import torch

from evomerge.errors import CandidateFailure
from evomerge.kernels import native
from evomerge.kernels.checksum import tile_digests
from evomerge.merging.source_weights import Weights
from evomerge.recipes.mixture import Layout, Mixture


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
    dtype, names = getattr(torch, recipe.dtype), list(targets)
    if any(t.dtype.itemsize < dtype.itemsize for t in targets.values()):
        # digests are of what is merged, and a narrower target does not hold that
        wide = {n: torch.empty(t.shape, dtype=dtype, device=t.device) for n, t in targets.items()}
        digests = mix(recipe, wide, weights, layout, kernels)
        for name, target in targets.items():
            target.copy_(wide[name])
        return digests
    outs = [target.view(-1) for target in targets.values()]
    tensors = [[weights.tensor(m, name).reshape(-1) for m in recipe.models] for name in names]
    runs = [recipe.runs(name, *layout.span[name]) for name in names]
    every = [t for row in (*tensors, outs) for t in row]
    on_cpu = all(out.device.type == "cpu" for out in outs)
    digests = {}
    if on_cpu and len(recipe.models) <= native.MOST and native.takes(every, dtype):
        batch = native.Batch(None, tensors, outs, dtype, [starts for starts, _ in runs])
        batch.weigh(slice(None), np.concatenate([rows for _, rows in runs]))
        made, broken = batch.merge()
        first = np.cumsum([0, *(len(starts) for starts, _ in runs)])
        # a tensor of several runs has tiles across them
        whole = [i for i, (starts, _) in enumerate(runs) if len(starts) == 1]
        digests = {names[i]: made[first[i]] for i in whole}
        broken = np.logical_or.reduceat(broken, first[:-1])
    else:
        for out, models, (starts, rows) in zip(outs, tensors, runs, strict=True):
            for start, stop, row in zip(starts, [*starts[1:], len(out)], rows, strict=True):
                parts = [m[start:stop] for m in models]
                out[start:stop] = kernels.weighted_sum(parts, row, dtype)
        broken = np.array([not bool(out.isfinite().all()) for out in outs])
    if broken.any():
        raise CandidateFailure(f"merged tensor {names[int(broken.argmax())]} is not finite")
    return {
        name: digests[name] if name in digests else tile_digests(target.to(dtype))
        for name, target in targets.items()
    }
