"""What evomerge/sources/transformers_loading.py takes from transformers' private parts.

A failure here says which of them changed, and in which version; mend that file.
"""

import importlib
import inspect
import json

import pytest
import torch
import transformers

from evomerge.sources.transformers_loading import (
    conversions,
    converted,
    decoded,
    ignored_patterns,
    kept_in_float32,
    optional_patterns,
    saved_names,
    tied_names,
)

WHERE = "evomerge/sources/transformers_loading.py"


def broke(what):
    return f"transformers {transformers.__version__}: {what}; mend {WHERE}"


@pytest.mark.parametrize(
    "module, name, parameters",
    [
        ("conversion_mapping", "get_model_conversion_mapping", ["model"]),
        (
            "core_model_loading",
            "rename_source_key",
            [
                "source_key",
                "weight_renamings",
                "weight_converters",
                "prefix",
                "meta_state_dict",
            ],
        ),
        ("core_model_loading", "dot_natural_key", ["s"]),
        ("core_model_loading", "revert_weight_conversion", ["model", "state_dict"]),
        ("core_model_loading", "build_glob_alternation", ["globs"]),
    ],
)
def test_functions_are_there_and_take_what_they_took(module, name, parameters):
    """By position: their names and what comes after them with a default do not matter."""
    home = importlib.import_module(f"transformers.{module}")
    assert hasattr(home, name), broke(f"{module} has no {name}")
    found = list(inspect.signature(getattr(home, name)).parameters.values())
    needed = [p for p in found if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    few, most = len(needed), len(found)
    assert few <= len(parameters) <= most, broke(f"{name} takes {[p.name for p in found]}")


@pytest.mark.parametrize("name", ["WeightRenaming", "WeightConverter"])
def test_conversions_have_their_patterns(name):
    home = importlib.import_module("transformers.core_model_loading")
    assert hasattr(home, name), broke(f"core_model_loading has no {name}")
    kind = getattr(home, name)
    operations = {"operations": []} if name == "WeightConverter" else {}
    try:
        entry = kind(source_patterns="a", target_patterns="b", **operations)
    except (TypeError, ValueError):
        entry = None  # needs more than patterns: what it then has is seen below
    for attribute in ("source_patterns", "target_patterns"):
        known = hasattr(entry, attribute) if entry else attribute in inspect.getsource(kind)
        assert known, broke(f"{name} has no {attribute}")
    for method in ("add_tensor", "convert") if name == "WeightConverter" else ():
        assert hasattr(kind, method), broke(f"{name} has no {method}")


def mixtral():
    config = transformers.MixtralConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_local_experts=11,
    )
    return transformers.MixtralForCausalLM(config)


def test_experts_are_stacked_in_the_order_of_their_numbers():
    """2 before 10; gate and up beside each other in one tensor of the model's."""
    model = mixtral()
    stem = "model.layers.0.block_sparse_moe.experts"
    names = [
        f"{stem}.{i}.{w}.weight" for i in (10, 2, *range(2), *range(3, 10)) for w in ("w1", "w3")
    ]
    known = conversions(model, names)
    targets = {conversion.target for conversion in known.values()}
    assert targets == {"model.layers.0.mlp.experts.gate_up_proj"}, broke(
        f"w1 and w3 go to {targets}"
    )
    parts = []
    for name in names:
        number, half = int(name.removeprefix(f"{stem}.").split(".")[0]), name.split(".")[-2]
        value = 2 * number + (half == "w3")
        parts.append((name, known[name], torch.full((4, 8), float(value))))
    (made,) = converted(model, parts).values()
    wanted = torch.arange(22.0).view(11, 2, 1, 1).expand(11, 2, 4, 8).reshape(11, 8, 8)
    assert torch.equal(made, wanted), broke("experts are stacked in another way")


def test_names_that_are_the_models_stay_as_they_are():
    model = mixtral()
    name = "model.layers.0.self_attn.q_proj.weight"
    conversion = conversions(model, [name])[name]
    assert conversion.target == name, broke(f"{name} becomes {conversion.target}")
    assert conversion.converter is None, broke(f"{name} is converted")


def test_a_models_prefix_and_ignored_keys_are_its_attributes():
    model = mixtral()
    assert model.base_model_prefix == "model", broke("a model has no base_model_prefix 'model'")
    patterns = ignored_patterns(model)
    assert all(isinstance(p, str) for p in patterns), broke("ignored keys are no patterns")


def test_a_model_says_what_is_tied_saved_optional_and_wide():
    config = transformers.DeepseekV3Config(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, n_routed_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=4, n_shared_experts=1, first_k_dense_replace=0, kv_lora_rank=4,
        q_lora_rank=4, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4, n_group=1,
        topk_group=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM._from_config(config, dtype=torch.bfloat16)
    tied = tied_names(model)
    assert tied == {"lm_head.weight": "model.embed_tokens.weight"}, broke(f"ties are {tied}")
    saved = saved_names(model)
    assert "model.layers.0.mlp.experts.1.down_proj.weight" in saved, broke(f"saves {saved}")
    assert optional_patterns(model) == [], broke("optional tensors are others")
    state = model.state_dict(keep_vars=True)
    bias = state["model.layers.0.mlp.gate.e_score_correction_bias"]
    assert any(tensor is bias for tensor in kept_in_float32(model)), broke("float32 is elsewhere")


def test_infinities_of_configs_are_those_that_are_saved(tmp_path):
    transformers.Mamba2Config(time_step_limit=(0.0, float("inf"))).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert decoded(stored)["time_step_limit"][1] == float("inf"), broke(f"infinity is {stored}")
