"""Where a mixture's experts and routers are stored, layer by layer."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from evomerge.errors import BadInput, Fault
from evomerge.sources.source import Source

# What config.json says of how many experts there are, by the type of model. Each type is tested.
COUNTED_AS = {
    "mixtral": "num_local_experts",
    "qwen2_moe": "num_experts",
    "qwen3_moe": "num_experts",
}

_EXPERT = re.compile(
    r"(?P<block>.*(?:block_sparse_moe|mlp)\.)experts\.(?P<number>\d+)"
    r"\.(?P<matrix>w1|w2|w3|gate_proj|up_proj|down_proj)\.weight"
)
_DOWN = {"w2", "down_proj"}  # from the neurons to the stream; the others lead to the neurons


class ExpertTensor(NamedTuple):
    """Which expert's a tensor is.

    Attributes:
        block: what its name begins with, the same for all experts of a layer.
        number: of the expert.
        matrix: which of its three.

    >>> expert_tensor("model.layers.3.mlp.experts.7.up_proj.weight")
    ExpertTensor(block='model.layers.3.mlp.', number=7, matrix='up_proj')
    """

    block: str
    number: int
    matrix: str

    @property
    def is_down(self) -> bool:
        """Whether its columns are the neurons, not its rows."""
        return self.matrix in _DOWN

    def of(self, number: int) -> str:
        """Return the name of another expert's same tensor."""
        return f"{self.block}experts.{number}.{self.matrix}.weight"


def expert_tensor(name: str) -> ExpertTensor | None:
    """Return which expert's a tensor is, None of any other.

    >>> expert_tensor("model.layers.3.mlp.gate.weight") is None
    True
    """
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    return ExpertTensor(match["block"], int(match["number"]), match["matrix"])


class ExpertLayer(NamedTuple):
    """The experts of one layer.

    Attributes:
        router: the name of its weight, (experts, hidden).
        matrices: of expert 0, each of which every other expert has as well.
        experts: how many there are.

    >>> ExpertLayer("mlp.gate.weight", (), 8).experts
    8
    """

    router: str
    matrices: tuple[ExpertTensor, ...]
    experts: int


def expert_layers(source: Source) -> list[ExpertLayer]:
    """Return the layers of a mixture that have experts, in order.

    Raises:
        BadInput: it is no mixture of a type that is known here, or is stored otherwise.

    >>> from pathlib import Path
    >>> expert_layers(Source("a", Path("a"), {"model_type": "llama"}, {}, {}))
    Traceback (most recent call last):
    evomerge.errors.BadInput: 'a' is of type 'llama', whose experts are not known here; take one ...
    """
    kind = str(source.config.get("model_type"))
    if kind not in COUNTED_AS:
        wrong = f"'{source.name}' is of type '{kind}', whose experts are not known here"
        raise BadInput(Fault("", wrong, f"take one of {', '.join(COUNTED_AS)}"))
    blocks: dict[str, list[ExpertTensor]] = {}
    for name in source.tensors:
        if (tensor := expert_tensor(name)) is not None:
            blocks.setdefault(tensor.block, []).append(tensor)
    layers = []
    for block, tensors in blocks.items():
        first = tuple(tensor for tensor in tensors if tensor.number == 0)
        router = f"{block}gate.weight"
        stored = source.tensors.get(router)
        count = 0 if stored is None else stored.shape[0]
        if len(tensors) != 3 * count or len(first) != 3:
            wrong = f"'{source.name}': {block} has not {count} experts of three matrices"
            raise BadInput(Fault("", wrong, "save it again with save_pretrained"))
        layers.append(ExpertLayer(router, first, count))
    if not layers:
        wrong = f"'{source.name}' stores no experts one by one"
        raise BadInput(Fault("", wrong, "save it again with save_pretrained"))
    return sorted(layers, key=lambda layer: _number(layer.router))


def _number(name: str) -> int:
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else 0


def with_fewer(config: Mapping[str, Any], experts: int, per_token: int) -> dict[str, Any]:
    """Return a mixture's config with another number of experts.

    >>> with_fewer({"model_type": "mixtral", "num_local_experts": 8}, 4, 2)
    {'model_type': 'mixtral', 'num_local_experts': 4, 'num_experts_per_tok': 2}
    """
    known = {*COUNTED_AS.values()} & config.keys()  # transformers writes either name
    counts = dict.fromkeys(known or {COUNTED_AS[str(config["model_type"])]}, experts)
    return {**config, **counts, "num_experts_per_tok": per_token}
