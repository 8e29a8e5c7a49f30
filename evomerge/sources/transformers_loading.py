"""How transformers turns a checkpoint's tensors into a model's: its private parts, in one place.

A checkpoint's names are not always the model's: transformers renames tensors, and stacks or splits
some (the experts of a mixture) while it loads them. So that a live model can be filled without
being loaded again, the same conversions are asked of

- `transformers.conversion_mapping.get_model_conversion_mapping(model)`: the list of them;
- `transformers.core_model_loading`: `WeightRenaming` and `WeightConverter` (which has
  `source_patterns`, `target_patterns`, `add_tensor` and `convert`), `rename_source_key`, and
  `dot_natural_key`, by which stacked tensors are ordered;
- `transformers.core_model_loading.revert_weight_conversion(model, state_dict)`: the same backwards,
  as `save_pretrained` does it;
- a model's `base_model_prefix`, `all_tied_weights_keys`, `_keys_to_ignore_on_load_unexpected` and
  `_keys_to_ignore_on_load_missing`, and `_get_dtype_plan(dtype)` with `build_glob_alternation`:
  which of its tensors stay in float32;
- `PreTrainedConfig._decode_special_floats`, and a model's `_init_weights(module)`, which computes a
  module's `_non_persistent_buffers_set`.

None of these is promised to stay. They are there from transformers 5.0 on; what holds of them is
tested by tests/test_contracts_transformers.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


class Conversion(NamedTuple):
    """What becomes of one tensor of a checkpoint.

    Attributes:
        target: the name of the model's tensor that it is, or is a part of.
        pattern: of the checkpoint's names that the converter takes, where there is one.
        converter: transformers' `WeightConverter`; None where the tensor stays as it is.

    >>> Conversion("model.norm.weight", None, None).splits
    False
    """

    target: str
    pattern: str | None
    converter: "WeightConverter | None"

    @property
    def splits(self) -> bool:
        """Whether the tensor becomes several of the model's."""
        return self.converter is not None and len(self.converter.target_patterns) > 1


def decoded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of what config.json says, with the infinities that transformers spells out.

    >>> decoded({"time_step_limit": [0.0, {"__float__": "Infinity"}]})
    {'time_step_limit': [0.0, inf]}
    """
    from transformers import PreTrainedConfig

    known: dict[str, Any] = PreTrainedConfig._decode_special_floats(deepcopy(dict(config)))
    return known


def conversions(model: "PreTrainedModel", names: Iterable[str]) -> dict[str, Conversion]:
    """Return what becomes of a checkpoint's tensors, by their names.

    Args:
        model: a transformers model.
        names: of the checkpoint.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(
    ...     vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=1)
    >>> conversions(LlamaForCausalLM(config), ["model.norm.weight"])["model.norm.weight"].target
    'model.norm.weight'
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()
    found = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state:  # a checkpoint whose names are the model's already
            target, pattern = rename_source_key(name, [], [], prefix, state)
        converter = None if pattern is None else by_pattern.get(pattern)
        found[name] = Conversion(target, pattern, converter)
    return found


def converted(
    model: "PreTrainedModel", parts: Sequence["tuple[str, Conversion, torch.Tensor]"]
) -> "dict[str, torch.Tensor]":
    """Stack or split all the checkpoint's tensors of one target; return the model's, by name.

    Args:
        model: a transformers model.
        parts: (checkpoint name, its conversion, tensor) in any order.

    >>> from transformers import MixtralConfig, MixtralForCausalLM
    >>> config = MixtralConfig(
    ...     vocab_size=8, hidden_size=8, intermediate_size=4, num_hidden_layers=1,
    ...     num_attention_heads=1, num_key_value_heads=1, num_local_experts=2)
    >>> model = MixtralForCausalLM(config)
    >>> names = [f"model.layers.0.block_sparse_moe.experts.{i}.w2.weight" for i in (0, 1)]
    >>> import torch
    >>> parts = [(n, c, torch.zeros(8, 4)) for n, c in conversions(model, names).items()]
    >>> {name: tuple(tensor.shape) for name, tensor in converted(model, parts).items()}
    {'model.layers.0.mlp.experts.down_proj': (2, 8, 4)}
    """
    from transformers.core_model_loading import dot_natural_key

    _, first, _ = parts[0]
    converter = deepcopy(first.converter)  # it gathers what it is given
    assert converter is not None, "a tensor that stays as it is needs no conversion"
    for name, conversion, tensor in sorted(parts, key=lambda part: dot_natural_key(part[0])):
        pattern = conversion.pattern or ""
        # its annotation says that it takes futures, which it is given where files are read
        converter.add_tensor(first.target, name, pattern, tensor)  # type: ignore[arg-type]
    made = converter.convert(first.target, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def ignored_patterns(model: "PreTrainedModel") -> list[str]:
    """Return patterns of names in a checkpoint that a transformers model has no use for.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(
    ...     vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=1)
    >>> ignored_patterns(LlamaForCausalLM(config))
    []
    """
    return list(model._keys_to_ignore_on_load_unexpected or [])


def optional_patterns(model: "PreTrainedModel") -> list[str]:
    """Return patterns of a transformers model's names that a checkpoint may leave out.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(
    ...     vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=1)
    >>> optional_patterns(LlamaForCausalLM(config))
    []
    """
    return list(model._keys_to_ignore_on_load_missing or [])


def tied_names(model: "PreTrainedModel") -> dict[str, str]:
    """Return the names of a transformers model's tensors that are others: name -> the other's.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> tied_names(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8)))
    {'lm_head.weight': 'transformer.wte.weight'}
    """
    return dict(model.all_tied_weights_keys)


def saved_names(model: "PreTrainedModel") -> list[str]:
    """Return the names of the tensors that `save_pretrained` writes of a transformers model.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> names = saved_names(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1)))
    >>> "transformer.h.0.attn.c_attn.weight" in names
    True
    """
    return list(as_saved(model, model.state_dict()))


def as_saved(
    model: "PreTrainedModel", tensors: "Mapping[str, torch.Tensor]"
) -> "dict[str, torch.Tensor]":
    """Return tensors of a model's names and shapes as `save_pretrained` would write them.

    Args:
        model: a transformers model.
        tensors: some of its own, or others like them: stacked ones are taken apart.

    >>> from transformers import MixtralConfig, MixtralForCausalLM
    >>> config = MixtralConfig(
    ...     vocab_size=8, hidden_size=8, intermediate_size=4, num_hidden_layers=1,
    ...     num_attention_heads=1, num_key_value_heads=1, num_local_experts=2)
    >>> model = MixtralForCausalLM(config)
    >>> import torch
    >>> stacked = {"model.layers.0.mlp.experts.down_proj": torch.zeros(2, 8, 4)}
    >>> {name: tuple(tensor.shape) for name, tensor in as_saved(model, stacked).items()}
    {'...experts.0.w2.weight': (8, 4), '...experts.1.w2.weight': (8, 4)}
    """
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(tensors)))


def kept_in_float32(model: "PreTrainedModel") -> "list[torch.Tensor]":
    """Return the tensors that a transformers model of a narrower dtype keeps in float32.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(
    ...     vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=1)
    >>> kept_in_float32(LlamaForCausalLM(config))
    []
    """
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(model.dtype)
    if not plan:
        return []
    pattern, _, _ = build_glob_alternation(list(plan))
    return [
        tensor for name, tensor in model.state_dict(keep_vars=True).items() if pattern.search(name)
    ]


def initialize_rest(model: "PreTrainedModel", filled: "Iterable[torch.Tensor]") -> None:
    """Give what no checkpoint fills the values that `from_pretrained` gives it.

    Buffers that the class computes, tables of positions, a bias of zeros: a model that was made
    without memory has none of them.

    Args:
        model: with memory for all of it.
        filled: its parameters and buffers that a checkpoint fills; they are left as they are.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = {"vocab_size": 8, "hidden_size": 8, "num_attention_heads": 2}
    >>> config = LlamaConfig(**shape, num_hidden_layers=1)
    >>> with torch.device("meta"):
    ...     model = LlamaForCausalLM(config)
    >>> _ = model.to_empty(device="cpu")
    >>> initialize_rest(model, model.parameters())
    >>> model.model.rotary_emb.inv_freq
    tensor([1.0000, 0.0100])
    """
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)  # said when nothing had memory
    for tensor in filled:
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()
