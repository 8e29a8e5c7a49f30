"""Whether opened sources can be merged with one another, by their headers and configs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.errors import Fault
from evomerge.sources.alignment import aligned, tokenizer_faults
from evomerge.sources.architectures import INDICES, PER_LAYER, effective, family_of
from evomerge.sources.model_class import is_known
from evomerge.sources.named_parts import TRUNK
from evomerge.sources.source import CONFIG_NOISE, Source
from evomerge.tensor_names import canonical_order, place, within_layer

# What matters to training alone, or to code that is not run.
_CONFIG_SILENT = {
    "architectures", "auto_map", "use_cache", "vocab_size", "attention_dropout", "carried_files",
}  # fmt: skip
# What only heads read.
_OF_HEADS = {
    "id2label", "label2id", "problem_type", "classifier_dropout", "classifier_proj_size",
    "tie_word_embeddings", "num_labels", "is_decoder", "pooler_act", "pooler_output_size",
    "finetuning_task", "task_specific_params",
}  # fmt: skip
# What else no layer reads when a model runs: training's own, labels, and which outputs are kept.
_LAYERS_SILENT = {
    "initializer_range", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "classifier_dropout",
    "pretraining_tp", "id2label", "label2id", "problem_type", "tie_word_embeddings", "return_dict",
    "output_attentions", "output_hidden_states",
}  # fmt: skip
# What says how many layers there are, and of which type.
_DEPTH_SAYS = {
    *PER_LAYER, *INDICES, "num_hidden_layers", "n_layer", "max_window_layers",
    "no_rope_layer_interval", "sliding_window_pattern", "_sliding_window_pattern",
}  # fmt: skip
# What must be equal for two models to be mergeable although shapes agree.
_CONFIG_KEYS = ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def mismatches(sources: Sequence[Source]) -> list[Fault]:
    """Return why `sources` cannot be merged with one another: the first is the measure.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a = open_source(str(tiny_llama(f"{folder}/a", seed=0)))
    ...     b = open_source(str(tiny_llama(f"{folder}/b", seed=1, layers=3)))
    >>> mismatches([a, a])
    []
    >>> print(mismatches([a, b])[0])
    '...b' and '...a' differ in num_hidden_layers: 3 and 2; merge models of one architecture
    """
    faults = []
    first = sources[0]
    measures = settings_of(first)
    for other in sources[1:]:
        pair = f"'{other.name}' and '{first.name}'"
        settings = settings_of(other)
        mend = _mend(first, other)
        for key in _CONFIG_KEYS:
            value, measure = settings.get(key), measures.get(key)
            if value != measure:
                faults.append(Fault("", f"{pair} differ in {key}: {value} and {measure}", mend))
        keep_heads = first.parts == other.parts == (TRUNK,)
        if first.class_name != other.class_name and not keep_heads:
            wrong = f"{pair} are of different classes: {other.class_name} and {first.class_name}"
            faults.append(Fault("", wrong, mend))
        of_tokens = tokenizer_faults(first, other)
        fitting = other if of_tokens else aligned(first, other)
        differing = []
        for name in canonical_order(first.tensors | other.tensors):
            shape, wanted = _shape(fitting, name), _shape(first, name)
            if shape != wanted:
                differing.append(f"{name} ({shape or 'missing'} and {wanted or 'missing'})")
        if differing:
            wrong = f"{pair} differ in {len(differing)} tensors: {', '.join(differing[:3])}"
            faults.append(Fault("", wrong, mend))
        faults += of_tokens
    return faults


def _mend(first: Source, other: Source) -> str:
    """Return what to do where two models' tensors differ, which may be those of heads alone."""
    differing = [n for n in first.tensors | other.tensors if _shape(first, n) != _shape(other, n)]
    is_whole = first.form == other.form == "transformers" and not (first.parts or other.parts)
    same_type = first.config.get("model_type") == other.config.get("model_type")
    if is_whole and same_type and differing and all(map(_HEAD.search, differing)):
        return "write sources.heads: keep, which merges the trunk and keeps each model's head"
    return "merge models of one architecture"


# How transformers calls what its classes put on an encoder.
_HEAD = re.compile(r"(^|\.)(pre_classifier|classifier|score|qa_outputs|cls|head|lm_head|pooler)\b")


def settings_of(source: Source) -> Mapping[str, Any]:
    """Return a source's config with what transformers makes of it, where it knows the type.

    A key that is left out has its default, an old name is the new one.

    >>> from pathlib import Path
    >>> llama = Source("a", Path("a"), {"model_type": "llama", "num_attention_heads": 4}, {}, {})
    >>> settings_of(llama)["num_key_value_heads"]
    4
    """
    settings = effective(source.config) if is_known(source.config) else source.config
    return {key: _without_noise(value) for key, value in settings.items()}


def _without_noise(value: Any) -> Any:
    """Return a part of a config without what it says of its own history."""
    if not isinstance(value, Mapping):
        return value
    return {k: _without_noise(v) for k, v in value.items() if k not in CONFIG_NOISE}


def _shape(source: Source, name: str) -> tuple[int, ...] | None:
    return source.tensors[name].shape if name in source.tensors else None


def stream_mismatches(sources: Sequence[Source]) -> list[Fault]:
    """Return why a token cannot pass layers of several `sources`: the first is the measure.

    They may have different numbers of layers, if these have the same tensors.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a = open_source(str(tiny_llama(f"{folder}/a", seed=0)))
    ...     b = open_source(str(tiny_llama(f"{folder}/b", seed=1, layers=3)))
    >>> stream_mismatches([a, b])
    []
    """
    faults = []
    for source in sources:
        faults += _family_faults(source)
    if faults:  # configs of unknown families are not compared
        return faults
    mend = "route models of one architecture"
    first = sources[0]
    known = {frozenset(layer.items()) for layer in _layers(first)}
    for other in sources[1:]:
        pair = f"'{other.name}' and '{first.name}'"
        for key, measure, value in _layer_differences(first.config, other.config):
            faults.append(Fault("", f"{pair} differ in {key}: {value} and {measure}", mend))
        if any(frozenset(layer.items()) not in known for layer in _layers(other)):
            faults.append(Fault("", f"{pair} have layers of different tensors", mend))
        faults += tokenizer_faults(first, other)
    return faults


def _family_faults(source: Source) -> list[Fault]:
    """Return why it is not known where a model's layers write to the stream, if it is not."""
    try:
        family = family_of(source.config)
    except ValueError as error:
        mend = "route models of another family, or merge these"
        return [Fault("", f"'{source.name}': {error}", mend)]
    for index, layer in enumerate(_layers(source)):
        roles = {family.role(f"layers.{index}.{name}") for name in layer}
        if not {"attention", "mlp"} <= roles:
            wrong = f"'{source.name}': layer {index} has no tensor known to write"
            return [Fault("", wrong, "save it with save_pretrained")]
    return []


def _layer_differences(
    first: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield what two configs disagree on that layers read: key, first's value, other's value.

    As transformers takes them: a key that is left out has its default, an old one (rope_theta) is
    part of a newer one, and what the model type does not know says nothing.
    """
    silent = CONFIG_NOISE | _CONFIG_SILENT | _LAYERS_SILENT | _DEPTH_SAYS
    if all(first.get(key) == other.get(key) for key in {*first, *other} - silent):
        return
    known = effective({"model_type": first["model_type"]}).keys() | {"model_type"}
    first, other = effective(first), effective(other)
    if _has_plain_rope(first) and _has_plain_rope(other):
        silent = silent | {"max_position_embeddings"}
    for key in sorted(known - silent):
        if first.get(key) != other.get(key) and not key.endswith("_token_id"):
            yield key, first.get(key), other.get(key)


def _has_plain_rope(config: Mapping[str, Any]) -> bool:
    """Tell whether positions turn queries and keys in a way that no longest text changes."""
    rope = config.get("rope_parameters") or {}
    # one mapping for all layers, or one for each type of layer
    by_type = [value for value in rope.values() if isinstance(value, Mapping)] or [rope]
    return all(entry.get("rope_type") == "default" for entry in by_type)


def _layers(source: Source) -> list[dict[str, tuple[int, ...]]]:
    """Return each layer's tensors, by their names within it, with their shapes."""
    layers: list[dict[str, tuple[int, ...]]] = [{} for _ in range(source.layers)]
    for name, tensor in source.tensors.items():
        layer = place(name).layer
        if layer is not None:
            layers[layer][within_layer(name)] = tensor.shape
    return layers


def differing_settings(sources: Sequence[Source]) -> list[str]:
    """Return what the configs disagree on though their tensors fit, one line each.

    >>> from pathlib import Path
    >>> a, b = (Source(n, Path(n), {"eps": eps}, {}, {}) for n, eps in (("a", 1e-5), ("b", 1e-6)))
    >>> differing_settings([a, b])
    ["'b' and 'a' differ in eps: 1e-06 and 1e-05; merges take that of the latter"]
    """
    lines = []
    silent = CONFIG_NOISE | _CONFIG_SILENT
    if all(source.parts == (TRUNK,) for source in sources):
        silent = silent | _OF_HEADS
    for other in sources[1:]:
        first = sources[0]
        pair = f"'{other.name}' and '{first.name}'"
        measures, settings = settings_of(first), settings_of(other)
        for key in sorted({*measures, *settings} - silent):
            value, measure = settings.get(key), measures.get(key)
            if value != measure:
                lines.append(
                    f"{pair} differ in {key}: {value} and {measure}; merges take that of the latter"
                )
    return lines
