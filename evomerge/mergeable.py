"""Whether opened sources can be merged with one another, by their headers and configs."""

from collections.abc import Sequence
from typing import Any

from evomerge.errors import Fault
from evomerge.layout import canonical_order
from evomerge.mixture import Layout
from evomerge.sources import CONFIG_NOISE, Source

# What matters to training alone, or to code that is not run.
_CONFIG_SILENT = {"architectures", "auto_map", "use_cache", "vocab_size", "attention_dropout"}
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
        if first.vocabulary and other.vocabulary and first.vocabulary != other.vocabulary:
            tokens = _differing_tokens(first.vocabulary, other.vocabulary)
            wrong = f"{pair} have different tokenizers: {tokens}"
            faults.append(Fault(file, key, wrong, "merge models that share one tokenizer"))
    return faults


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


def layout_faults(recipe: Any, frame: Source, file: str) -> list[Fault]:
    """Return why positions in a recipe are not those of its models' parameters, if they are not."""
    if recipe.kind == "parameters":
        return []
    layout = Layout({n: t.elements for n, t in frame.tensors.items()})
    if layout.hash != recipe.layout:
        wrong = f"is not that of '{frame.name}': its tensors have other names or sizes"
        return [Fault(file, "layout", wrong, "take the models that the recipe was made with")]
    if recipe.kind == "mixture":
        ends = {int(c.edges[-1]) for c in recipe.chromosomes}
        fits = ends == {layout.total}
        mend = f"end each chromosome at parameter {layout.total}"
        return [] if fits else [Fault(file, "chromosomes", "do not cover the parameters", mend)]
    if any(isinstance(p, str) for birth in recipe.births for p in birth.parents):
        mend = "take the recipe.json that `evomerge export` writes"
        return [Fault(file, "births", "names parents that are in an archive", mend)]
    return []
