"""Tiny random decoders of every family that can be routed, and a path run by the paper's rule."""

import copy
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.recipes.routing import Hop, RoutingRecipe
from evomerge.sources.architectures import family_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

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

    Returns:
        The directory.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in tiny_decoder(folder, "gpt2", seed=0).glob("model*"))
    ['model.safetensors']
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


def in_float64(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model that computes in float64 throughout: its RMS norms and experts do not.

    >>> import tempfile, torch
    >>> from transformers import AutoModelForCausalLM
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     name = tiny_decoder(folder, "llama", seed=0)
    ...     model = in_float64(AutoModelForCausalLM.from_pretrained(name, dtype=torch.float64))
    >>> model(torch.tensor([[5]])).logits.dtype
    torch.float64
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            setattr(module, "forward", types.MethodType(_rms_norm, module))  # noqa: B010
    if "num_experts_per_tok" in model.config.to_dict():
        model.set_experts_implementation("eager")  # the others know no float64
    return model


def _rms_norm(self: Any, stream: "torch.Tensor") -> "torch.Tensor":
    import torch

    eps = getattr(self, _eps_name(self))
    unit = stream * torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + eps)
    scaled: torch.Tensor = unit * _norm_factor(self)
    return scaled


def _norm_factor(norm: Any) -> Any:
    return 1.0 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight


def _eps_name(norm: Any) -> str:
    """Return what a norm calls its epsilon."""
    return "variance_epsilon" if "variance_epsilon" in vars(norm) else "eps"


def scaled_reference(
    recipe: RoutingRecipe, models: Sequence["PreTrainedModel"]
) -> "PreTrainedModel":
    """Return a model that scales its stream before each hop, as the paper says.

    Nothing is folded: layers are copied whole and run with hooks, one for the scale and one for
    each branch's gain.

    Args:
        recipe: the path.
        models: the live transformers models that its indices mean.

    >>> import tempfile, torch
    >>> from transformers import AutoModelForCausalLM
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = AutoModelForCausalLM.from_pretrained(tiny_decoder(folder, "llama", seed=0))
    >>> recipe = RoutingRecipe(("a",), (Hop(0, 0, 2.0), Hop(0, 1), Hop(0, 1)), 0, "float64")
    >>> scaled_reference(recipe, [model]).config.num_hidden_layers
    3
    """
    import torch

    model = copy.deepcopy(models[recipe.frame])
    family = family_of(model.config.to_dict())
    layers = []
    for index, hop in enumerate(recipe.path):
        layer = copy.deepcopy(_layers_of(models[hop.model])[1][hop.layer])
        for module in layer.modules():
            if "layer_idx" in vars(module):  # where it keeps keys and values
                setattr(module, "layer_idx", index)  # noqa: B010
        layer.register_forward_pre_hook(_multiply_input(hop.scale))
        for branch, gain in zip((family.attention, family.mlp), hop.gains, strict=True):
            layer.get_submodule(branch).register_forward_hook(_multiply_output(gain))
        layers.append(layer)
    name, _ = _layers_of(model)
    setattr(model.base_model, name, torch.nn.ModuleList(layers))
    model.config.num_hidden_layers = len(layers)
    types_of_layers: list[Any] = [m.config.to_dict().get("layer_types") for m in models]
    if types_of_layers[recipe.frame]:
        of_path = [types_of_layers[hop.model][hop.layer] for hop in recipe.path]
        setattr(model.config, "layer_types", of_path)  # noqa: B010
    return model


def _layers_of(model: "PreTrainedModel") -> "tuple[str, torch.nn.ModuleList]":
    """Return a decoder's list of layers, and what the module around it calls it."""
    import torch

    for name, child in model.base_model.named_children():
        if isinstance(child, torch.nn.ModuleList):
            return name, child
    raise AssertionError(f"{type(model).__name__} has no list of layers")


def _multiply_input(factor: float) -> Callable[..., Any]:
    return lambda module, arguments: (arguments[0] * factor, *arguments[1:])


def _multiply_output(factor: float) -> Callable[..., Any]:
    return lambda module, arguments, output: output * factor


def match_eps(model: "PreTrainedModel", recipe: RoutingRecipe) -> "PreTrainedModel":
    """Return an exported routed model whose norms see the stream as large as the scaled one's.

    What is left between the two is rounding.

    Args:
        model: a live transformers model.
        recipe: its path.

    >>> import tempfile, torch
    >>> from transformers import AutoModelForCausalLM
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = AutoModelForCausalLM.from_pretrained(tiny_decoder(folder, "llama", seed=0))
    >>> path = (Hop(0, 0), Hop(0, 1, 0.5), Hop(0, 2), Hop(0, 3))
    >>> model = match_eps(model, RoutingRecipe(("a",), path, 0, "float64"))
    >>> model.model.norm.variance_epsilon / model.model.layers[0].input_layernorm.variance_epsilon
    4.0
    """
    family, base = family_of(model.config.to_dict()), model.base_model
    shares = recipe.shares()
    norms = [(base.get_submodule(family.norm), shares[-1])]
    for layer, share in zip(_layers_of(model)[1], shares, strict=True):
        norms += [(layer.get_submodule(name), share) for name in family.reads]
    for norm, share in norms:
        name = _eps_name(norm)
        # the stream is `share` times as large, so its mean square is share^2 times as large
        setattr(norm, name, getattr(norm, name) * share**2)
    return model
