"""RegMean++: RegMean whose inputs come through the merged layers before, not the model's own."""

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import numpy as np

from evomerge.merging.methods import (
    ONE,
    Directions,
    Fraction,
    Positive,
    Scale,
    TaskVectorsView,
    Weights,
    prepared_method,
)
from evomerge.tensor_names import place

if TYPE_CHECKING:
    import torch


def directions(
    vectors: TaskVectorsView,
    *,
    correlation: Annotated[
        Fraction, "factor of the inputs' Gram matrices off the diagonal; 0 keeps the diagonal alone"
    ] = 0.9,  # RegMean's
    ridge: Annotated[
        Positive, "pull towards the plain mean where inputs are few, in mean squares of an input"
    ] = 1e-4,
) -> Directions:
    """Solve RegMean's regression layer after layer, on what the merged layers before give.

    As RegMean, but that G_i is of what model i's layer takes in behind the merged layers before it,
    as it will in the merge (Nguyen et al. 2025, arXiv:2508.03121). The merge before is
    that of weight 1.

    >>> from evomerge.testing.observed import example_texts_merge
    >>> sorted(example_texts_merge("regmean_plus_plus"))[:2]
    ['model.embed_tokens.weight', 'model.layers.0.input_layernorm.weight']
    """
    from evomerge.merging.regression import solved

    merged: dict[str, torch.Tensor] = {}
    replay = None
    for (_, layer), group in groupby(vectors.names, place):
        names = list(group)
        inputs = {}
        if layer is not None:
            replay = vectors.replay(merged) if replay is None else replay
            inputs = replay.inputs(layer, names)
        merged = {}
        for name in names:
            found = solved(vectors.of(name), inputs.get(name), correlation, ridge)
            total = vectors.base(name)
            for direction in found:
                total = total + direction
            merged[name] = total
            yield name, found
        if layer is not None and replay is not None:
            replay.go_on(layer, merged)


@prepared_method(paper="https://arxiv.org/abs/2508.03121", prepare=directions, reads="texts")
def regmean_plus_plus(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors weighted by what layers take in behind merged layers, on models' own texts.

    >>> regmean_plus_plus(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
