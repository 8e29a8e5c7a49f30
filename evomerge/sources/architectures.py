"""Which tensors of a decoder write to its residual stream, family by family.

Dividing the stream by s before a block is dividing by s what the block's branches add to it, if
each branch reads the stream through a norm, and so is blind to its scale. Where that does not
hold, layers cannot be rerouted with scales and then stored as an ordinary model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import nearest
from evomerge.sources.transformers_loading import decoded
from evomerge.tensor_names import place, within_layer


@dataclass(frozen=True)
class Family:
    """Where an architecture's blocks read the residual stream, and where they write to it.

    Attributes:
        attention, mlp: the block's modules whose outputs the branches add; scaling one scales
            its branch.
        writes: patterns of the tensors in which the two outputs are linear.
        reads: the block's norms that read the stream.
        embed: the modules that begin the stream.
        norm: the final norm.
        offset: roles of norms that multiply by 1 + weight.

    >>> FAMILIES["gpt2"].role("h.3.mlp.c_proj.weight")
    'mlp'
    """

    attention: str = "self_attn.o_proj"
    mlp: str = "mlp"
    writes: tuple[str, str] = (
        r"self_attn\.o_proj\.(weight|bias)",
        r"(mlp|block_sparse_moe)\.((experts(\.\d+)?|shared_expert)\.)?(down_proj|w2)(\.(weight|bias))?",
    )
    reads: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    embed: tuple[str, ...] = ("embed_tokens",)
    norm: str = "norm"
    offset: tuple[str, ...] = ()

    def role(self, name: str) -> str | None:
        """Return what a checkpoint's tensor is to the stream.

        Returns:
            "attention" or "mlp" where it writes, "read" for the weight of a norm that reads,
            "embed", "norm" (the final one's weight), "norm bias"; None for all others.
        """
        if place(name).layer is None:
            module, _, kind = name.rpartition(".")
            last = module.rpartition(".")[2]
            if last in self.embed:
                return "embed"
            if last != self.norm:
                return None
            return "norm" if kind == "weight" else "norm bias"
        inner = within_layer(name)
        for role, pattern in zip(("attention", "mlp"), self.writes, strict=True):
            if re.fullmatch(pattern, inner):
                return role
        return "read" if inner in {f"{norm}.weight" for norm in self.reads} else None


# Each of these is read off the family's modeling file in transformers 5; the tests run a random
# model of each against the stream scaled step by step.
_LLAMA = Family()

_SANDWICH = Family(  # norms before and after each branch: the latter set its size
    attention="post_attention_layernorm",
    mlp="post_feedforward_layernorm",
    writes=(r"post_attention_layernorm\.weight", r"post_feedforward_layernorm\.weight"),
    reads=("input_layernorm", "pre_feedforward_layernorm"),
    offset=("attention", "mlp", "read", "norm"),
)

FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3"), _LLAMA),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "granite"), _LLAMA),
    "gemma": Family(offset=("read", "norm")),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "gpt_neox": Family(
        attention="attention.dense",
        mlp="mlp.dense_4h_to_h",
        writes=(r"attention\.dense\.(weight|bias)", r"mlp\.dense_4h_to_h\.(weight|bias)"),
        embed=("embed_in",),
        norm="final_layer_norm",
    ),
    "gpt2": Family(
        attention="attn.c_proj",
        mlp="mlp.c_proj",
        writes=(r"attn\.c_proj\.(weight|bias)", r"mlp\.c_proj\.(weight|bias)"),
        reads=("ln_1", "ln_2"),
        embed=("wte", "wpe"),
        norm="ln_f",
    ),
    "phi": Family(
        attention="self_attn.dense",
        mlp="mlp.fc2",
        writes=(r"self_attn\.dense\.(weight|bias)", r"mlp\.fc2\.(weight|bias)"),
        reads=("input_layernorm",),
        norm="final_layernorm",
    ),
}

_RAW = "its norms are on what the branches put out, which read the stream as it is"

_POST = "its norms are on the residual stream itself"

_SEVERAL = "it has several residual streams"

_PARTS = "its decoder is one part of a model that also sees, and has a config within a config"

_REFUSED = {
    **dict.fromkeys(("olmo2", "olmo3"), _RAW),
    **dict.fromkeys(("bert", "roberta", "openai-gpt", "xlm"), _POST),
    **dict.fromkeys(("gemma3", "mistral3", "llama4"), _PARTS),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _SEVERAL),
}
# What an attention or MLP layer is by its place: config keys with a list that has an entry a layer,
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
# or a list of layers' indices.
INDICES = ("mlp_only_layers",)


def effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the defaults that transformers has for its model type.

    What layers are by their place, and their number, is there under one name for every family,
    None where the family knows no such thing.

    >>> gpt2 = effective({"model_type": "gpt2", "n_layer": 3})
    >>> gpt2["num_hidden_layers"], gpt2["layer_norm_epsilon"], gpt2["mlp_only_layers"]
    (3, 1e-05, None)
    """
    from transformers import AutoConfig

    rest = decoded(config)  # into parts of which transformers writes
    kind = rest.pop("model_type")
    known = AutoConfig.for_model(kind, **rest)
    settings: dict[str, Any] = known.to_dict()
    for key in (*PER_LAYER, *INDICES, "num_hidden_layers"):
        settings[key] = settings.get(known.attribute_map.get(key, key))
    return settings


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a model by its config.json.

    Raises:
        ValueError: its layers cannot be rerouted, and why.

    >>> family_of({"model_type": "lama"})
    Traceback (most recent call last):
    ValueError: 'lama' is no family whose stream is known; did you mean 'llama'?
    """
    kind = str(config.get("model_type"))
    if reason := _REFUSED.get(kind):
        raise ValueError(f"{kind} cannot be routed with scales: {reason}")
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise ValueError(f"this {kind} divides attention by the layer's number")
    if config.get("decoder_sparse_step", 1) != 1:
        raise ValueError(f"this {kind} has experts in only some of its layers")
    if kind not in FAMILIES:
        wrong = f"'{kind}' is no family whose stream is known"
        raise ValueError(f"{wrong}; {nearest(kind, FAMILIES)}")
    return FAMILIES[kind]
