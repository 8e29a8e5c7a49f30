"""Evo-Merging's merge, sum beta_i trim(tau_i, alpha_i), by breadcrumbs that leaves out nothing."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.testing import merge_arrays

PAIRS = st.lists(
    st.tuples(st.floats(-1.0, 1.5), st.floats(0.0, 1.0)), min_size=1, max_size=6
)  # beta_i and alpha_i of each model


def trimmed(update, density):
    """The largest share of an update's elements by magnitude, the others 0."""
    kept = int(density * update.numel())
    largest = torch.zeros_like(update).flatten()
    where = update.abs().flatten().topk(kept).indices
    largest[where] = update.flatten()[where]
    return largest.reshape(update.shape)


@given(
    pairs=PAIRS, seed=st.integers(0, 60), shape=st.sampled_from([(1,), (17,), (6, 5), (2, 3, 4)])
)
def test_breadcrumbs_without_outliers_is_a_signed_sum_of_trimmed_updates(pairs, seed, shape):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    models = [base + rng.normal(size=shape).astype(np.float32) * 0.1 for _ in pairs]
    weight, density = zip(*pairs, strict=True)
    got = merge_arrays("breadcrumbs", base, models, weight=weight, density=density, gamma=0.0)
    wanted = torch.from_numpy(base).double()
    for model, beta, alpha in zip(models, weight, density, strict=True):
        wanted = wanted + beta * trimmed(torch.from_numpy(model - base).double(), alpha)
    assert np.allclose(got, wanted.numpy(), atol=1e-5)
