"""Handwritten digits of 8x8 pixels (scikit-learn's, of the UCI repository): is each recognized?

`network` makes the multilayer perceptron of M2N2's own experiment (arXiv:2508.16204): 64-256-10,
19,210 parameters, each drawn from N(0, 0.01^2), and laid out as there, inputs before outputs, since
what a split point cuts in two depends on it.
"""

import functools

import numpy as np
import torch
from sklearn.datasets import load_digits


class Affine(torch.nn.Module):
    """x M + o."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(inputs, outputs) * 0.01)
        self.offset = torch.nn.Parameter(torch.randn(outputs) * 0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.offset, x, self.matrix)


def network() -> torch.nn.Module:
    """Return a fresh perceptron with random weights."""
    return torch.nn.Sequential(Affine(64, 256), torch.nn.ReLU(inplace=True), Affine(256, 10))


@functools.cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images, (1797, 64) float32 in [0, 16], and their digits."""
    images, digits = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32), torch.tensor(digits)


@functools.lru_cache(maxsize=4)
def chosen(items: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some images and their digits; kept, as every candidate is scored on the same."""
    images, digits = data()
    return images[list(items)], digits[list(items)]


def items() -> list[int]:
    """Return all images by their number."""
    return list(range(len(data()[0])))


def score(model: torch.nn.Module, tokenizer: None, items: list[int]) -> np.ndarray:
    """Return for each image whether its digit is recognized."""
    images, digits = chosen(tuple(items))
    return (model(images).argmax(dim=1) == digits).numpy()
