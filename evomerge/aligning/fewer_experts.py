"""A mixture of experts with fewer of them: those asked alike are merged, layer by layer.

M-SMoE (Li et al. 2024, arXiv:2310.01334; reference code github.com/UNITES-Lab/MC-SMoE): experts are
grouped (see `expert_groups`), the neurons of each brought into the order of its group's dominant
expert by weight matching, and averaged by how often each is used. There routers keep a row for
every former expert, and several rows point to one; the architectures of transformers have no such
pointers, so that here a group keeps one row: the dominant expert's, or the mean.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from evomerge.aligning.expert_groups import (
    Asked,
    Group,
    from_routers,
    from_texts,
    group,
    with_usage,
)
from evomerge.aligning.expert_layers import (
    ExpertLayer,
    ExpertTensor,
    expert_layers,
    expert_tensor,
    with_fewer,
)
from evomerge.aligning.matching import assignment
from evomerge.aligning.written_model import check_finite, refuse_existing, write_model
from evomerge.errors import BadInput, Fault
from evomerge.merging.source_weights import SourceWeights
from evomerge.sources.architectures import effective
from evomerge.sources.source import open_source
from evomerge.sources.trust import NOBODY, Trust

Router = Literal["dominant", "mean"]


class Shrunk(NamedTuple):
    """What was written.

    Attributes:
        weights: their checksum.
        before, experts: of a layer, of the model and of what was written.
        per_token: experts that answer for a token.
        before_order, in_order: mean cosine of experts with their dominant one, their neurons as
            they stand and in its order; None where no group has two.
        layers: of each, its groups and the experts' usage.

    >>> Shrunk("", 8, 4, 2, 0.1, 0.3, []).experts
    4
    """

    weights: str
    before: int
    experts: int
    per_token: int
    before_order: float | None
    in_order: float | None
    layers: list[dict[str, Any]]


def shrink(
    model: str,
    out: Path,
    trust: Trust = NOBODY,
    *,
    experts: int,
    per_token: int | None = None,
    texts: Path | None = None,
    usage: Path | None = None,
    router: Router = "dominant",
) -> Shrunk:
    """Write a mixture of experts with fewer of them, as a Hugging Face directory.

    Args:
        model: as `open_source` takes it.
        out: a path that does not exist.
        trust: what code of the model may run.
        experts: that each layer keeps.
        per_token: that answer for a token; the model's own number by default, or all there are.
        texts: from which usage and likeness are measured.
        usage: a file with the usage; see `with_usage`.
        router: what a group's row is: the dominant expert's, or the mean weighted by usage.

    Raises:
        BadInput: the model, a file or `out` will not do.
        EvomergeError: the disk does not take it; nothing is left behind.

    >>> import tempfile
    >>> from evomerge.testing.decoders import tiny_decoder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = str(tiny_decoder(f"{folder}/a", "mixtral", 0))
    ...     shrink(model, Path(folder, "out"), experts=1).layers[0]["groups"]
    [{'dominant': 0, 'members': [0, 1]}]
    """
    refuse_existing(out)
    source = open_source(model, trust)
    layers = expert_layers(source)
    before = layers[0].experts
    if not 1 <= experts <= before:
        wrong = f"{experts} is not between 1 and the {before} that '{model}' has"
        raise BadInput(Fault("--experts", wrong, f"write e.g. {max(1, before // 2)}"))
    own = int(effective(source.config)["num_experts_per_tok"])
    answering = min(own, experts) if per_token is None else per_token
    if not 1 <= answering <= experts:
        wrong = f"{answering} cannot answer of {experts}"
        raise BadInput(Fault("--per-token", wrong, "write fewer"))
    check_finite([source])
    weights = SourceWeights({model: source}, torch.device("cpu"), room=0)
    if texts is None:
        asked = from_routers([weights.tensor(model, layer.router) for layer in layers])
    else:
        asked = from_texts(source, texts, trust)
    if usage is not None:
        asked = with_usage(asked, usage)
    merge = _Merge(weights, model, layers, asked, experts, router)
    shapes = {
        name: merge.shape(name, stored.shape)
        for name, stored in source.tensors.items()
        if merge.keeps(name)
    }
    stream = ((name, merge.tensor(name)) for name in shapes)
    record: dict[str, Any] = {"kind": "fewer experts", "model": model, "router": router}
    record |= {"experts": experts, "per_token": answering, "layers": merge.described()}
    config = with_fewer(source.config, experts, answering)
    checksum = write_model(out, [source], config, shapes, stream, record)
    likeness = (merge.likeness(0), merge.likeness(1))
    return Shrunk(checksum, before, experts, answering, *likeness, merge.described())


class _Merge:
    """The tensors of the smaller mixture; one layer's experts are matched as its first is asked."""

    def __init__(
        self,
        weights: SourceWeights,
        model: str,
        layers: list[ExpertLayer],
        asked: list[Asked],
        experts: int,
        router: Router,
    ):
        self._weights, self._model, self._experts, self._router = weights, model, experts, router
        self._asked = asked
        self._groups = [group(layer, experts) for layer in asked]
        self._layers = layers
        self._of_router = {layer.router: number for number, layer in enumerate(layers)}
        self._of_block = {layer.matrices[0].block: n for n, layer in enumerate(layers)}
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # layer, expert -> of its neurons
        self._cosines: list[tuple[float, float]] = []

    def keeps(self, name: str) -> bool:
        """Tell whether the smaller mixture has a tensor of this name."""
        tensor = expert_tensor(name)
        return tensor is None or tensor.number < self._experts

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a tensor of the model has in the smaller mixture."""
        return (self._experts, *shape[1:]) if name in self._of_router else shape

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the smaller mixture."""
        if name in self._of_router:
            return torch.stack([*self._rows(self._of_router[name], self._read(name))])
        tensor = expert_tensor(name)
        if tensor is None:
            return self._weights.tensor(self._model, name)
        number = self._of_block[tensor.block]
        chosen = self._groups[number][tensor.number]
        total = torch.zeros(())
        for expert, share in self._shares(number, chosen):
            matrix = self._read(tensor.of(expert))
            order = torch.from_numpy(self._order(number, chosen, expert))
            # W = sum_e alpha_e P_e W_e / sum_e alpha_e, alpha the usage
            total = total + share * matrix.index_select(1 if tensor.is_down else 0, order)
        return total

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._weights.tensor(self._model, name)
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    def _shares(self, number: int, chosen: Group) -> Iterator[tuple[int, float]]:
        """Yield a group's experts with their shares of it; equal ones where none is ever used."""
        used = self._asked[number].usage[list(chosen.members)]
        if used.sum() <= 0:
            used = np.ones(len(used))
        yield from zip(chosen.members, (used / used.sum()).tolist(), strict=True)

    def _rows(self, number: int, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        for chosen in self._groups[number]:
            if self._router == "dominant":
                yield rows[chosen.dominant]
            else:
                shares = [share for _, share in self._shares(number, chosen)]
                yield torch.tensor(shares, dtype=rows.dtype) @ rows[list(chosen.members)]

    def _order(self, number: int, chosen: Group, expert: int) -> np.ndarray:
        """Return the order of an expert's neurons that matches the dominant expert's."""
        if (number, expert) not in self._orders:
            self._orders[number, expert] = self._matched(number, chosen, expert)
        return self._orders[number, expert]

    def _matched(self, number: int, chosen: Group, expert: int) -> np.ndarray:
        matrices = self._layers[number].matrices
        one, other = (
            torch.cat([self._by_neuron(matrix, number) for matrix in matrices], 1)
            for number in (chosen.dominant, expert)
        )
        likeness = (one @ other.T).double().numpy()
        if expert == chosen.dominant:
            return np.arange(len(likeness))
        order = assignment(likeness)
        size = float(one.norm() * other.norm()) or 1.0
        matched = likeness[np.arange(len(order)), order].sum()
        self._cosines.append((float(likeness.trace()) / size, float(matched) / size))
        return order

    def _by_neuron(self, matrix: ExpertTensor, expert: int) -> torch.Tensor:
        tensor = self._read(matrix.of(expert))
        return tensor.T if matrix.is_down else tensor

    def likeness(self, which: int) -> float | None:
        """Return a mean cosine of experts with their dominant ones: 0 as they stand, 1 in order."""
        if not self._cosines:
            return None
        return float(np.mean([pair[which] for pair in self._cosines]))

    def described(self) -> list[dict[str, Any]]:
        """Return each layer's groups and usage, as JSON has them."""
        return [
            {
                "router": layer.router,
                "groups": [{"dominant": g.dominant, "members": [*g.members]} for g in groups],
                "usage": asked.usage.round(6).tolist() if asked.is_measured else None,
            }
            for layer, groups, asked in zip(self._layers, self._groups, self._asked, strict=True)
        ]
