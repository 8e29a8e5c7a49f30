"""A tiny random model of any type that transformers knows: its default config, made small.

Sizes are set by their keys, in the config and in those within it; what no key tells is left at its
default. Some types ask for sizes that fit one another, which `MORE` has.
"""

import re
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MOST_PARAMETERS = 30_000_000

HIDDEN, HEADS, HEAD, LAYERS, VOCABULARY = 32, 4, 8, 4, 64

# The first pattern that a whole key matches says its value.
SIZES: tuple[tuple[str, int], ...] = (
    (r"(\w+_)?vocab_size(_per_layer_input)?|\w+_vocab_size|n_tokens", VOCABULARY),
    (r"(\w+_)?(num_key_value_heads|num_kv_heads|n_kv_heads|num_attention_groups)", 2),
    (r"num_global_key_value_heads|swa_num_key_value_heads|multi_query_group_num", 2),
    (
        r"(\w+_)?(num_attention_heads|attention_heads|num_heads|n_heads?|heads|num_query_heads)"
        r"(_per_layer)?",
        HEADS,
    ),
    (r"(\w+_)?(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers)", LAYERS),
    (r"depth|layers|(\w+_)?num_blocks|\w+_num_layers", LAYERS),
    (r"(\w+_)?(head_dim|attention_head_size|d_kv|head_size|dim_head|v_head_dim)", HEAD),
    (r"qk_(nope|rope)_head_dim|kv_channels", HEAD),
    (r"(\w+_)?(n_embd|d_model|hidden_size|hidden_dim|embed_dim|embedding_size|dim_model)", HIDDEN),
    (r"(\w+_)?(model_dim|embd_pdim|word_embed_proj_dim|lru_width|projection_dim)", HIDDEN),
    (
        r"(\w+_)?(intermediate_size(_mlp)?|ffn_dim|d_ff|n_inner|ffn_hidden_size|dim_ff|d_inner)",
        2 * HIDDEN,
    ),
    (r"(\w+_)?ffn_(size|dim|hidden_size)", 2 * HIDDEN),
    (r"(\w+_)?(max_position_embeddings|n_positions|n_ctx|max_seq_len|block_size)", 128),
    (r"(max_source_positions|max_target_positions|max_sequence_length)", 128),
    (r"(num_experts_per_tok|top_k|moe_topk|moe_top_k|num_experts_per_token|moe_k|k_attn)", 2),
    (r"(\w+_)?(num_local_experts|num_experts|n_routed_experts|moe_num_experts)", 4),
    (r"n_group|topk_group|num_expert_groups?|num_nextn_predict_layers", 1),
    (r"n_shared_experts|moe_num_shared_experts|num_shared_experts", 1),
    (r"(q_lora_rank|kv_lora_rank|\w+_rank|\w+_lora_dim)", 16),
    (r"(sliding_window|attention_window_size|window_size|local_attention)", 8),
    (r"image_size|img_size|input_size", 28),
    (r"(\w+_)?patch_size", 14),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", HEADS),
    (r"mamba_d_head|mamba_head_dim", 2 * HEAD),
    (r"mamba_d_ssm", 2 * HIDDEN),
    (r"(mamba_)?(d_state|state_size|ssm_state_size)", 8),
    (r"mamba_n_groups|n_groups", 1),
    (r"rotary_dim", HEAD // 2),
    (r"linear_num_(key|value)_heads", 2),
    (r"linear_(key|value)_head_dim", HEAD),
    (r"num_mem_blocks", 1),
    (r"num_query_tokens|num_queries|n_queries|num_latents|resampler_n_latents", 4),
    (r"index_n_heads", 2),
    (r"index_head_dim", 16),
    (r"index_topk", 8),
)

# Sizes that no rule has right, by model type.
_MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
}
_WIDE = {"head_dim": HEAD}
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("glm46v_text", "glm4v_text", "glm_ocr_text", "paddleocr_vl_text"), _MROPE),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"), _MROPE),
    **dict.fromkeys(("cosmos3_edge_text", "hy_v4_vl_text"), _MROPE),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _WIDE),
    "nemotron": {"num_key_value_heads": 2},
    "bamba": {"attn_layer_indices": [1]},
    "bailing_hybrid": {"layer_group_size": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "chameleon": {"vocabulary_map": {"<image>": 60, "IMGIMGA": 61}},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": {"full_attention": _MROPE["rope_parameters"]},
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "emu3": {"vocabulary_map": {"<image>": 60}},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    },
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 0],
        }
    },
    "hunyuan_vl_text": {"head_dim": HEAD, **_MROPE},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "longcat_flash": {"num_layers": 2, "head_dim": HEAD},
    "mistral4": {"head_dim": 2 * HEAD},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"] * 2,
        "hash_seed": 1,
        "num_buckets": 4,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlm": {"n_words": VOCABULARY, "emb_dim": HIDDEN, "n_heads": HEADS},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "hybrid"] * 3,
        "attention_hidden_size": 2 * HIDDEN,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_hidden_size": 2 * HIDDEN,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm3": {"layer_types": ["conv", "full_attention"] * 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "xmod": {"default_language": "en_XX"},
    "dory": {"max_position_embeddings": 128},
    "dots3_note_text": {"num_key_value_heads": HEADS},
    "glm5_next_text": {"num_key_value_heads": HEADS, "index_topk": 16},
}


def model_classes() -> list[tuple[str, str]]:
    """Return (model type, class) of everything that gives text, and of a few that do not."""
    pairs: dict[tuple[str, str], None] = {}
    for names in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    ):
        for kind, name in names.items():
            pairs[kind, name if isinstance(name, str) else name[0]] = None
    for kind, name in (
        ("bert", "BertForMaskedLM"),
        ("roberta", "RobertaForMaskedLM"),
        ("llama", "LlamaForSequenceClassification"),
    ):
        pairs[kind, name] = None
    return sorted(pairs)


def small_config(kind: str, **more: Any) -> PreTrainedConfig:
    """Return a type's config with small sizes.

    Args:
        kind: the model type.
        more: what it says besides.
    """
    return _small(CONFIG_MAPPING[kind], MORE.get(kind, {}) | more)


def _small(class_: type[PreTrainedConfig], more: dict[str, Any]) -> PreTrainedConfig:
    default = class_()
    settings: dict[str, Any] = {}
    for key, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            inner = MORE.get(value.model_type, {}) | more.get(key, {})
            settings[key] = _small(type(value), inner)
        elif (small := _small_value(key, value)) is not None:
            settings[key] = small
    if settings.get("kv_lora_rank") and "num_key_value_heads" in settings:
        settings["num_key_value_heads"] = settings.get("num_attention_heads", HEADS)
    parts = {key for key, value in vars(default).items() if isinstance(value, PreTrainedConfig)}
    settings |= {key: value for key, value in more.items() if key not in parts}
    config = class_(**settings)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    return config


def _small_value(key: str, value: Any) -> Any:
    """Return what a small config has under a key, None where it has the default."""
    if re.fullmatch(r"\w*token_(id|index)", key):
        return _small_token(key, value)
    if isinstance(value, int) and not isinstance(value, bool):
        for pattern, size in SIZES:
            if re.fullmatch(pattern, key) and value > size:
                return size
    return None


def _small_token(key: str, value: Any) -> Any:
    """Return a token of a small vocabulary, None where the default is one or there is none."""
    if isinstance(value, list):
        return [2]
    if not isinstance(value, int):
        return None
    known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if key in known:
        return known[key]
    # others get numbers of their own, the last of the vocabulary's
    return None if value < VOCABULARY else VOCABULARY - 1 - sum(map(ord, key)) % 20


def tiny_model(kind: str, name: str, seed: int) -> PreTrainedModel:
    """Return a random model in float32.

    Args:
        kind: the model type.
        name: of the class.
        seed: of the weights.

    Raises:
        ValueError: it would not be small.
    """
    import transformers

    class_ = getattr(transformers, name)
    config = small_config(kind)
    if type(config) is not class_.config_class:  # the speaking part of a model that also sees
        inner = [getattr(config, key) for key in config.sub_configs]
        config = next((c for c in inner if type(c) is class_.config_class), config)
    with torch.device("meta"):
        size = sum(p.numel() for p in class_(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} M parameters, as nothing says what is large")
    torch.manual_seed(seed)
    model: PreTrainedModel = class_(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(0.0, 0.0, 0.0).add_(torch.randn(parameter.shape) * 0.05)
    return model
