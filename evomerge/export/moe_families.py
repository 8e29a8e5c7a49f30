"""How a dense architecture's layers are named and set up in the mixture of experts of its kind."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_MLP = ("gate_proj", "up_proj", "down_proj")

# Of an expert that is always asked where the architecture demands one: it says nothing.
SILENT_WIDTH = 128


class Family(NamedTuple):
    """A mixture of experts' architecture.

    Attributes:
        class_name: of the model in transformers.
        model_type: of its config.
        router: name of a router's weight within a layer.
        expert: name of an expert's matrix within a layer, with {expert} and {matrix}.
        matrices: the dense MLP's matrix -> what it is called there.
        silent: matrices of an expert that is always asked, and its gate; shapes in terms of
            (width, hidden).

    >>> FAMILIES["mistral"].expert.format(expert=3, matrix="w1")
    'block_sparse_moe.experts.3.w1.weight'
    """

    class_name: str
    model_type: str
    router: str
    expert: str
    matrices: Mapping[str, str]
    silent: Mapping[str, tuple[str, str]] = {}

    def config(self, base: Mapping[str, Any], experts: int, per_token: int) -> dict[str, Any]:
        """Return config.json of the mixture.

        Args:
            base: the base's config, with transformers' defaults filled in.
            experts: how many there are.
            per_token: how many answer for a token.
        """
        # weights of the chosen ones add up to one, so that equal experts are the dense model
        own: dict[str, Any] = {"num_experts_per_tok": per_token}
        if self.model_type == "mixtral":
            own["num_local_experts"] = experts
        else:
            own |= {"num_experts": experts, "norm_topk_prob": True, "decoder_sparse_step": 1}
            own |= {"mlp_only_layers": [], "moe_intermediate_size": base["intermediate_size"]}
        if self.silent:
            own["shared_expert_intermediate_size"] = SILENT_WIDTH
        left = {"architectures", "model_type", "transformers_version", "_name_or_path", "dtype"}
        kept = {key: value for key, value in base.items() if key not in left}
        head = {"architectures": [self.class_name], "model_type": self.model_type}
        return head | kept | own


_SAME = {name: name for name in _MLP}
_SILENT = {
    "mlp.shared_expert.gate_proj.weight": ("width", "hidden"),
    "mlp.shared_expert.up_proj.weight": ("width", "hidden"),
    "mlp.shared_expert.down_proj.weight": ("hidden", "width"),
    "mlp.shared_expert_gate.weight": ("one", "hidden"),
}
_MIXTRAL = Family(
    "MixtralForCausalLM",
    "mixtral",
    "block_sparse_moe.gate.weight",
    "block_sparse_moe.experts.{expert}.{matrix}.weight",
    {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
)
_EXPERT = "mlp.experts.{expert}.{matrix}.weight"

# By the dense model's type. A Mixtral's layer is a Mistral's, and that of a Llama without biases.
FAMILIES: dict[str, Family] = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen2": Family("Qwen2MoeForCausalLM", "qwen2_moe", "mlp.gate.weight", _EXPERT, _SAME, _SILENT),
    "qwen3": Family("Qwen3MoeForCausalLM", "qwen3_moe", "mlp.gate.weight", _EXPERT, _SAME),
}


def mlp_matrix(name: str) -> tuple[str, str] | None:
    """Return the layer's prefix and the matrix of a dense MLP's weight; None of another tensor.

    >>> mlp_matrix("model.layers.3.mlp.up_proj.weight")
    ('model.layers.3.', 'up_proj')
    """
    for matrix in _MLP:
        ending = f"mlp.{matrix}.weight"
        if name.endswith(f".{ending}"):
            return name.removesuffix(ending), matrix
    return None
