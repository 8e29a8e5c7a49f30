"""Whether opened sources can be merged with one another, by their headers and configs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.errors import Fault
from evomerge.sources.architectures import INDICES, PER_LAYER, effective, family_of
from evomerge.sources.source import CONFIG_NOISE, Source
from evomerge.tensor_names import canonical_order, place, within_layer

# What matters to training alone, or to code that is not run.
_CONFIG_SILENT = {"architectures", "auto_map", "use_cache", "vocab_size", "attention_dropout"}
# What else no layer reads when a model runs: training's own, labels, and what is told of outputs.
_LAYERS_SILENT = {
    "initializer_range", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "classifier_dropout",
    "pretraining_tp", "id2label", "label2id", "problem_type", "tie_word_embeddings", "return_dict",
    "output_attentions", "output_hidden_states",
}  # fmt: skip
# What says how many layers there are, and of which type.
_DEPTH_SAYS = {*PER_LAYER, *INDICES, "num_hidden_layers", "n_layer", "max_window_layers"}

_DEPTH_SAYS |= {"no_rope_layer_interval", "sliding_window_pattern", "_sliding_window_pattern"}
# What must be equal for two models to be mergeable although shapes agree.
_CONFIG_KEYS = ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def mismatches(sources: Sequence[Source], file: str, key: str = "sources") -> list[Fault]:
    """Return why `sources` cannot be merged with one another: the first is the measure."""
    faults = []
    first = sources[0]
    for other in sources[1:]:
        pair = f"'{other.name}' and '{first.name}'"
        for k in _CONFIG_KEYS:
            a, b = first.config.get(k), other.config.get(k)
            if a != b:
                wrong = f"{pair} differ in {k}: {b} and {a}"
                faults.append(Fault(file, key, wrong, "merge models of one architecture"))
        differ = [
            n
            for n in canonical_order(first.tensors | other.tensors)
            if _shape(first, n) != _shape(other, n)
        ]
        if differ:
            listed = ", ".join(
                f"{n} ({_shape(other, n) or 'missing'} and {_shape(first, n) or 'missing'})"
                for n in differ[:3]
            )
            wrong = f"{pair} differ in {len(differ)} tensors: {listed}"
            faults.append(Fault(file, key, wrong, "merge models of one architecture"))
        faults += _tokenizer_faults(first, other, file, key)
    return faults


def _tokenizer_faults(first: Source, other: Source, file: str, key: str) -> list[Fault]:
    if not first.vocabulary or not other.vocabulary or first.vocabulary == other.vocabulary:
        return []
    tokens = _differing_tokens(first.vocabulary, other.vocabulary)
    wrong = f"'{other.name}' and '{first.name}' have different tokenizers: {tokens}"
    return [Fault(file, key, wrong, "merge models that share one tokenizer")]


def stream_mismatches(sources: Sequence[Source], file: str, key: str = "sources") -> list[Fault]:
    """Return why a token cannot pass layers of several `sources`: the first is the measure.

    They may have different numbers of layers, if these have the same tensors.
    """
    faults = []
    for source in sources:
        try:
            family_of(source.config)
        except ValueError as error:
            mend = "route models of another family, or merge these"
            faults.append(Fault(file, key, f"'{source.name}': {error}", mend))
        else:
            for index, layer in enumerate(_layers(source)):
                roles = {family_of(source.config).role(f"layers.{index}.{n}") for n in layer}
                if not {"attention", "mlp"} <= roles:
                    wrong = f"'{source.name}': layer {index} has no tensor known to write"
                    faults.append(Fault(file, key, wrong, "save it with save_pretrained"))
                    break
    if faults:  # configs of strangers are not compared
        return faults
    first = sources[0]
    known = {frozenset(layer.items()) for layer in _layers(first)}
    for other in sources[1:]:
        pair = f"'{other.name}' and '{first.name}'"
        mend = "route models of one architecture"
        for k, a, b in _layer_differences(first.config, other.config):
            faults.append(Fault(file, key, f"{pair} differ in {k}: {b} and {a}", mend))
        if any(frozenset(layer.items()) not in known for layer in _layers(other)):
            faults.append(Fault(file, key, f"{pair} have layers of different tensors", mend))
        faults += _tokenizer_faults(first, other, file, key)
    return faults


def _layer_differences(
    first: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield what two configs disagree on that layers read: key, first's value, other's value.

    As transformers takes them: a key that is left out has its default, an old one (rope_theta) is
    part of a newer one, and what the model type does not know says nothing.
    """
    silent = CONFIG_NOISE | _CONFIG_SILENT | _LAYERS_SILENT | _DEPTH_SAYS
    if all(first.get(k) == other.get(k) for k in {*first, *other} - silent):
        return
    known = effective({"model_type": first["model_type"]}).keys() | {"model_type"}
    first, other = effective(first), effective(other)
    if _has_plain_rope(first) and _has_plain_rope(other):
        silent = silent | {"max_position_embeddings"}
    for k in sorted(known - silent):
        if first.get(k) != other.get(k) and not k.endswith("_token_id"):
            yield k, first.get(k), other.get(k)


def _has_plain_rope(config: Mapping[str, Any]) -> bool:
    """Tell whether positions turn queries and keys in a way that no longest text changes."""
    said = config.get("rope_parameters") or {}
    kinds = [v for v in said.values() if isinstance(v, Mapping)] or [said]  # one a layer type
    return all(kind.get("rope_type") == "default" for kind in kinds)


def _layers(source: Source) -> list[dict[str, tuple[int, ...]]]:
    """Return each layer's tensors, by their names within it, with their shapes."""
    found: list[dict] = [{} for _ in range(source.layers)]
    for name, tensor in source.tensors.items():
        if (layer := place(name).layer) is not None:
            found[layer][within_layer(name)] = tensor.shape
    return found


def differing_settings(sources: Sequence[Source]) -> list[str]:
    """Return what the configs disagree on though their tensors fit, one line each."""
    lines = []
    for first, other in ((sources[0], other) for other in sources[1:]):
        for k in sorted({*first.config, *other.config} - CONFIG_NOISE - _CONFIG_SILENT):
            a, b = first.config.get(k), other.config.get(k)
            if a != b:
                pair = f"'{other.name}' and '{first.name}'"
                lines.append(f"{pair} differ in {k}: {b} and {a}; merges take that of the latter")
    return lines


def _shape(source: Source, name: str) -> tuple[int, ...] | None:
    return source.tensors[name].shape if name in source.tensors else None


def _differing_tokens(a: dict[str, int], b: dict[str, int]) -> str:
    differ = sorted(
        (t for t in a.keys() | b.keys() if a.get(t) != b.get(t)),
        key=lambda t: (min(a.get(t, 1 << 60), b.get(t, 1 << 60)), t),
    )
    first = ", ".join(f"{t!r} is {b.get(t, 'absent')} and {a.get(t, 'absent')}" for t in differ[:3])
    return f"{len(differ)} tokens, first {first}"
