"""Task vectors and what is measured of them: variances across models, inner products."""

from collections.abc import Sequence

import numpy as np
import torch

from evomerge.kernels.signs import Signs


def accumulator(tensors: Sequence[torch.Tensor | Signs]) -> torch.dtype:
    """Return the dtype in which tensors are worked on: float32, or float64 if one of them is.

    >>> accumulator([torch.zeros(1, dtype=torch.bfloat16)])
    torch.float32
    """
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def task_vector(base: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return tau = W - W_0 in the base's dtype, rounded once (arXiv:2212.04089, section 2).

    The rounding is none where the two are within a factor of two of each other (Sterbenz's
    lemma), which holds for nearly every weight of a fine-tune.

    >>> task_vector(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]))
    tensor([0.5000, 0.0000])
    """
    dtype = accumulator([base, tensor])
    return (tensor.to(dtype) - base.to(dtype)).to(base.dtype)


def variance(taus: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the variance of n tensors across them (divided by n), float32 or float64.

    0 where all are equal: they are taken from the first.

    >>> variance([torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0])])
    tensor([1., 0.])
    """
    apart = [tau - taus[0] for tau in taus]
    # Sums one after the other, from the first: the native kernel adds in the same order.
    mean = apart[0]
    for part in apart[1:]:
        mean = mean + part
    mean = mean / len(taus)
    total = torch.zeros_like(mean)
    for part in apart:
        total = total + (part - mean) ** 2
    return total / len(taus)


def gram_matrix(
    tensors: Sequence[torch.Tensor], origin: torch.Tensor | None = None, chunk: int = 1 << 22
) -> np.ndarray:
    """Return the (K, K) inner products of K flattened tensors less `origin`, in float64.

    Args:
        tensors: of one shape.
        origin: W_0 where task vectors are meant.
        chunk: elements that are widened at a time: K x 32 MiB.

    >>> gram_matrix([torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])])
    array([[1., 1.],
           [1., 5.]])
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat[0].numel(), chunk):
        rows = torch.stack([f[start : start + chunk].double() for f in flat])
        if origin is not None:
            rows -= origin.reshape(-1)[start : start + chunk].double()
        total += (rows @ rows.T).cpu().numpy()
    return total
