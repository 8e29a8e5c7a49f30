"""Tiny random decoders of every family that can be routed, and a path run by the paper's rule."""

import copy
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.recipes.routing import Hop, Routing
from evomerge.sources.architectures import family_of

_SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

_SLIDING = {"sliding_window": 4}
# name -> (model type, what its config says beyond the shape)
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"num_key_value_heads": 1, **_SLIDING}),
    "qwen2": (
        "qwen2",
        {
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "max_window_layers": 2,
            "tie_word_embeddings": False,
            **_SLIDING,
        },
    ),
    "qwen3": ("qwen3", {"num_key_value_heads": 1, "head_dim": 8}),
    "gemma": ("gemma", {"num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": ("gemma2", {"num_key_value_heads": 1, "head_dim": 8, **_SLIDING}),
    "gemma3": (
        "gemma3_text",
        {"num_key_value_heads": 1, "head_dim": 8, "sliding_window_pattern": 2, **_SLIDING},
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, not parallel": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt2": ("gpt2", {}),
    "phi": ("phi", {"num_key_value_heads": 1}),
    "phi3": ("phi3", {"num_key_value_heads": 1}),
    "granite": ("granite", {"num_key_value_heads": 1, "residual_multiplier": 0.3}),
    "smollm3": ("smollm3", {"num_key_value_heads": 1}),
    "mixtral": (
        "mixtral",
        {"num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {
            "num_key_value_heads": 1,
            "shared_expert_intermediate_size": 16,
            "mlp_only_layers": [1],
            **_EXPERTS,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {"num_key_value_heads": 1, "head_dim": 8, **_EXPERTS}),
}
# Scales of both signs, a layer twice in a row, gains, and the embeddings' own first scale.
HOPS = (
    Hop(0, 0, 1.3),
    Hop(1, 1, 0.7),
    Hop(0, 2, -1.2, (0.8, 1.1)),
    Hop(0, 2, 0.9),
    Hop(1, 3, 1.1),
    Hop(0, 3, -0.8),
)


def tiny_decoder(directory: Path | str, name: str, seed: int, dtype: str = "float64") -> Path:
    """Save one of DECODERS with random weights, large enough for its branches to matter.

    Args:
        directory: where to save it.
        name: of DECODERS.
        seed: of the weights.
        dtype: of the weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, more = DECODERS[name]
    config = AutoConfig.for_model(kind, **_SHAPE, **more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    plain_norms = "gemma" not in kind  # there the weight is added to 1
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm = ("norm" in key or ".ln_" in key) and key.endswith("weight")
            parameter.copy_(0.3 * drawn + (1.0 if is_norm and plain_norms else 0.0))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return Path(directory)


def in_float64(model: Any) -> Any:
    """Return a model that computes in float64 throughout: its RMS norms and experts do not."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_rms_norm, module)
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the others know no float64
    return model


def _rms_norm(self: Any, stream: Any) -> Any:
    import torch

    eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
    unit = stream * torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + eps)
    return unit * (1.0 + self.weight if "Gemma" in type(self).__name__ else self.weight)


def scaled_reference(recipe: Routing, models: Sequence[Any]) -> Any:
    """Return a model that scales its stream before each hop, as the paper says.

    Nothing is folded: layers are copied whole and run with hooks, one for the scale and one for
    each branch's gain.

    Args:
        recipe: the path.
        models: the live transformers models that its indices mean.
    """
    import torch

    model = copy.deepcopy(models[recipe.frame])
    family, base = family_of(model.config.to_dict()), model.base_model
    name = next(n for n, c in base.named_children() if isinstance(c, torch.nn.ModuleList))
    kinds = [getattr(m.config, "layer_types", None) for m in models]
    layers = []
    for index, hop in enumerate(recipe.path):
        layer = copy.deepcopy(getattr(models[hop.model].base_model, name)[hop.layer])
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
        layer.register_forward_pre_hook(lambda _, args, by=hop.scale: (args[0] * by, *args[1:]))
        for path, gain in zip((family.attention, family.mlp), hop.gains, strict=True):
            layer.get_submodule(path).register_forward_hook(lambda _, a, out, by=gain: out * by)
        layers.append(layer)
    setattr(base, name, torch.nn.ModuleList(layers))
    model.config.num_hidden_layers = len(layers)
    if kinds[recipe.frame]:
        model.config.layer_types = [kinds[hop.model][hop.layer] for hop in recipe.path]
    return model


def match_eps(model: Any, recipe: Routing) -> Any:
    """Return an exported routed model whose norms see the stream as large as the scaled one's.

    What is left between the two is rounding.
    """
    family, base = family_of(model.config.to_dict()), model.base_model
    layers = next(c for _, c in base.named_children() if hasattr(c, "append"))
    shares = recipe.shares()
    norms = [(base.get_submodule(family.norm), shares[-1])]
    for layer, share in zip(layers, shares, strict=True):
        norms += [(layer.get_submodule(name), share) for name in family.reads]
    for norm, share in norms:
        name = "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps"
        setattr(norm, name, getattr(norm, name) * share**2)
    return model
