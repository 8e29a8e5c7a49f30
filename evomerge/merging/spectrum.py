"""Singular parts of task vectors, as the spectral merge methods take them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# A bfloat16 has eight bits: singular values this far below the largest are its rounding.
REAL = 1 / 256


def real_parts(
    matrix: "torch.Tensor", most: int | None = None
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return the singular parts of a matrix that are no rounding, the largest first.

    Args:
        matrix: (rows, columns) float32.
        most: how many at most; all by default.

    Returns:
        Left vectors (rows, k), values (k,) and right vectors (columns, k).

    >>> import torch
    >>> real_parts(torch.diag(torch.tensor([2.0, 1.0, 1e-6])))[1]
    tensor([2., 1.])
    """
    import torch

    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    count = int((sizes > sizes[:1] * REAL).sum())
    count = count if most is None else min(count, most)
    return left[:, :count], sizes[:count], right[:count].T


def nearest_orthonormal(columns: "torch.Tensor") -> "torch.Tensor":
    """Return P Q^T of columns = P S Q^T: the nearest matrix with orthonormal columns.

    Args:
        columns: (rows, k) float32.

    >>> import torch
    >>> nearest_orthonormal(torch.tensor([[2.0, 0.0], [0.0, 0.5]])).round() + 0.0
    tensor([[1., 0.],
            [0., 1.]])
    """
    import torch

    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    return left @ right
