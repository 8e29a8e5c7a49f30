"""The second step of PLeaS: matrices of a merged decoder fitted to what both models' compute.

For each matrix the inputs that it will see are taken as the average of both models' inputs, unit by
unit, and what it should put out as the average of both models' outputs; neurons that are kept apart
have their own model's (Nasery et al. 2024, arXiv:2407.02447, section 3.2). The reference code
(github.com/SewoongLab/PLeaS-Merging) descends by gradients from the merged weights; here the least
squares are solved, with a ridge towards these weights.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from evomerge.aligning.line import tokenized
from evomerge.errors import BadInput, Fault
from evomerge.merging.live_model import LiveModel
from evomerge.sources.source import Source
from evomerge.sources.texts import read_texts

RIDGE = 0.01  # of the mean square of an input

# name, what the first and the second model have there, whether it is what a matrix reads -> merged
Merged = Callable[[str, torch.Tensor, torch.Tensor, bool], torch.Tensor]


class Sums:
    """What least squares need of a matrix's inputs X and outputs Y: X^T X and X^T Y.

    >>> sums = Sums()
    >>> sums.add(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]]))
    >>> sums.solved(torch.tensor([[0.0]]), ridge=0.0)
    tensor([[2.]], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._gram: torch.Tensor | float = 0.0
        self._cross: torch.Tensor | float = 0.0

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Add (rows, in) inputs and (rows, out) outputs."""
        wide = inputs.double()
        self._gram = self._gram + wide.T @ wide
        self._cross = self._cross + wide.T @ outputs.double()

    def solved(self, weights: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
        """Return the (out, in) float64 matrix W that fits best.

        Args:
            weights: (out, in) W_0, towards which the ridge draws.
            ridge: lambda, as a share of the mean square of an input.
        """
        assert isinstance(self._gram, torch.Tensor), "nothing was added"
        amount = ridge * float(self._gram.diagonal().mean())
        damped = self._gram + amount * torch.eye(len(self._gram), dtype=torch.float64)
        # W^T = (X^T X + lambda I)^-1 (X^T Y + lambda W_0^T), with the pseudo-inverse if need be
        right = self._cross + amount * weights.double().T
        if ridge > 0 and amount > 0:
            return torch.linalg.solve(damped, right).T
        return (torch.linalg.pinv(damped, hermitian=True) @ right).T


def gather(
    source: Source,
    models: Iterable[Iterable[tuple[str, torch.Tensor]]],
    names: Iterable[str],
    file: Path,
    merged: Merged,
) -> dict[str, Sums]:
    """Return the sums of matrices' merged inputs and outputs while two models read texts.

    Args:
        source: of whose architecture both are.
        models: the tensors of each, their units in one order.
        names: of the matrices.
        file: of texts.
        merged: what becomes of both models' inputs, or outputs, of a matrix.

    Raises:
        BadInput: there are no texts.

    >>> gather(Source("a", Path("a"), {}, {}, {}), [], [], Path("nowhere.txt"), max)
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no file 'nowhere.txt'; write a path to a file of texts
    """
    texts = read_texts(file)
    lives = []
    for tensors in models:
        live = LiveModel(source, "float32")
        live.load(tensors)
        lives.append(live)
    wanted = {name: Sums() for name in names}
    read = 0
    for ids in tokenized(lives[0], texts):
        one, other = (_seen(live, wanted, ids) for live in lives)
        for name, sums in wanted.items():
            inputs = merged(name, one[name][0], other[name][0], True)
            sums.add(inputs, merged(name, one[name][1], other[name][1], False))
        read += 1
    if not read:
        raise BadInput(Fault("", "holds no text of two tokens", "write longer ones", str(file)))
    return wanted


def _seen(
    live: LiveModel, names: Iterable[str], ids: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the (tokens, in) inputs and (tokens, out) outputs of matrices, without biases."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with contextlib.ExitStack() as stack:
        for name, module in _modules(live, names):
            hook = module.register_forward_hook(_keeper(found, name))
            stack.callback(hook.remove)
        with torch.inference_mode():
            live.model(ids)
    return found


def _modules(live: LiveModel, names: Iterable[str]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the modules whose weights are stored under these names."""
    by_weight = {}
    for module in live.model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor):
            by_weight[weight.data_ptr()] = module
    for name in names:
        yield name, by_weight[live.direct[name].data_ptr()]


def _keeper(
    found: dict[str, tuple[torch.Tensor, torch.Tensor]], name: str
) -> Callable[[Any, Any, torch.Tensor], None]:
    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        bias = getattr(module, "bias", None)
        flat = output.reshape(-1, output.shape[-1])
        own = flat if bias is None else flat - bias
        found[name] = inputs[0].reshape(-1, inputs[0].shape[-1]), own

    return keep
