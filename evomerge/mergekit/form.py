"""The form of mergekit's YAML, and what it describes with its abbreviations written out.

A configuration lists `models`, or `slices` of their layers, by itself or within its one module.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from evomerge.dtypes import Dtype
from evomerge.errors import BadInput, Fault, nearest
from evomerge.section_types import Expected
from evomerge.sections import Section, Text, Whole, option, parse, refuse

# mergekit's name: (ours, options it implies)
MERGEKIT_METHODS: dict[str, tuple[str, dict[str, bool]]] = {
    "linear": ("linear", {}),
    "task_arithmetic": ("task_arithmetic", {}),
    "slerp": ("slerp", {}),
    "nuslerp": ("nuslerp", {}),
    "multislerp": ("multislerp", {}),
    "karcher": ("karcher", {}),
    "model_stock": ("model_stock", {}),
    "ties": ("ties", {}),
    "dare_linear": ("dare_linear", {}),
    "dare_ties": ("dare_ties", {}),
    "breadcrumbs": ("breadcrumbs", {"elect": False}),
    "breadcrumbs_ties": ("breadcrumbs", {"elect": True}),
    "della": ("della", {"elect": True}),
    "della_linear": ("della", {"elect": False, "normalize": False}),
    "sce": ("sce", {}),
}

_SWITCHES = {  # what mergekit can do and evomerge cannot: its default, which is what evomerge does
    "nuslerp_flatten": True,
    "nuslerp_row_wise": False,
    "filter_wise": False,
    "normalize_weights": True,
    "override_global_angle": False,
}

# Every name that mergekit's methods read. It ignores others, so that a slip makes another model.
_PARAMETERS = (
    *("weight", "density", "gamma", "epsilon", "lambda", "select_topk", "t", "scale"),
    *("normalize", "rescale"),
    *("int8_mask", "eps", "max_iter", "tol"),  # of how it computes, not of what
    *_SWITCHES,
)

Parameters = Mapping[str, Any]  # name -> a number, a list of numbers or of {filter, value}

# Options of mergekit's command, of how it works and what it allows. It reads past them in a
# configuration, where many keep them all the same.
_COMMAND = {
    *("allow_crimes", "async_write", "clone_tensors", "copy_tokenizer", "cuda", "device"),
    *("gpu_rich", "lazy_loader", "lazy_unpickle", "lora_merge_cache", "lora_merge_dtype"),
    *("low_cpu_memory", "multi_gpu", "num_threads", "out_shard_size", "quiet", "random_seed"),
    *("read_to_gpu", "safe_serialization", "transformers_cache", "trust_remote_code", "verbosity"),
    *("write_model_card", "write_threads"),
}

_TOKENIZERS = ("base", "union")  # which are one where all models have the same vocabulary


@dataclass(frozen=True)
class SliceSource:
    """A model within a slice.

    Attributes:
        key: where it stands in the configuration.
        model: its name.
        layers: (first, last + 1); None for all.
        parameters: said of it alone.

    >>> SliceSource("models.0", "a", None, {"weight": 0.5}).model
    'a'
    """

    key: str
    model: str
    layers: tuple[int, int] | None
    parameters: Parameters


@dataclass(frozen=True)
class Slice:
    """Layers of some models, merged with one another.

    Attributes:
        key: where it stands in the configuration.
        sources: the models.
        parameters: said of all of them.
        base: the one from which slerp's t counts here, where it is not the whole's.

    >>> Slice("slices.0", (), {"weight": 0.5}).parameters
    {'weight': 0.5}
    """

    key: str
    sources: tuple[SliceSource, ...]
    parameters: Parameters
    base: str | None = None


@dataclass(frozen=True)
class Configuration:
    """A mergekit configuration as slices; `models` is one slice of all layers.

    Attributes:
        method: mergekit's name of it.
        slices: at least one, in their order.
        base: the name of the base model.
        outer: what is said of the module, and of the whole.
        dtype: of what is written; None for that of the models.
        tokenizer: the name of the model whose tokenizer is asked for, if it is one's.
        chat_template: "auto" for the one that most models have, a template, or a template's name.

    >>> read_configuration({"merge_method": "linear", "models": [{"model": "a"}]}).slices[0].key
    'models'
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None
    outer: tuple[Parameters, Parameters]
    dtype: str | None
    tokenizer: str | None
    chat_template: str | None

    def scopes(self, part: Slice, source: SliceSource | None = None) -> list[Parameters]:
        """Return what is said of a slice, and of one of its sources, the innermost first."""
        inner = [] if source is None else [source.parameters]
        return [*inner, part.parameters, *self.outer]


def _known_method(name: str) -> str:
    known = (*MERGEKIT_METHODS, "passthrough")
    if name not in known:
        refuse([Fault("", f"'{name}' is not supported", nearest(name, known))])
    return name


class SourceForm(Section):
    """An entry of `models`, or of a slice's `sources`.

    >>> parse(SourceForm, {"model": "a", "layer_range": [0, 4]}).layer_range
    (0, 4)
    """

    model: Text = option("a model's directory or hub id", example="models/a")
    layer_range: Annotated[tuple[Whole, Whole] | None, Expected("[first, last + 1]")] = option(
        "the layers of a slice", None
    )
    parameters: dict[str, Any] | None = option("of this model", None)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterator[Fault]:
        """See `Section.cross_faults`."""
        yield from _parameter_faults(fields)

    def source(self, key: str) -> SliceSource:
        """Return what it says, as what stands under a key."""
        return SliceSource(key, self.model, self.layer_range, self.parameters or {})


class SliceForm(Section):
    """An entry of `slices`.

    >>> parse(SliceForm, {"sources": []})
    Traceback (most recent call last):
    evomerge.errors.BadInput: sources: is empty; write e.g. sources: [{model: models/a, ...}]
    """

    sources: list[SourceForm] = option(
        "of the slice", least=1, example=[{"model": "models/a", "layer_range": [0, 4]}]
    )
    parameters: dict[str, Any] | None = option("of these sources", None)
    base_model: Text | None = option("of slerp, as mergekit-evolve writes it", None)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterator[Fault]:
        """See `Section.cross_faults`."""
        yield from _parameter_faults(fields)


class PartsForm(Section):
    """What lists models, or slices of them.

    >>> parse(PartsForm, {})
    Traceback (most recent call last):
    evomerge.errors.BadInput: models: exactly one of models and slices has to be there; write one
    """

    models: list[SourceForm] | None = option("all layers of them are merged", None, least=1)
    slices: list[SliceForm] | None = option("of layers, in turn", None, least=1)
    parameters: dict[str, Any] | None = option("of all models", None)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterator[Fault]:
        """See `Section.cross_faults`."""
        yield from _one_of(fields, ("models", "slices"))
        yield from _parameter_faults(fields)

    def parts(self, prefix: str = "") -> tuple[Slice, ...]:
        """Return the slices, their keys after a prefix."""
        if self.models is not None:
            key = f"{prefix}models"
            sources = [entry.source(f"{key}.{i}") for i, entry in enumerate(self.models)]
            return (Slice(key, tuple(sources), {}),)
        parts = []
        for index, entry in enumerate(self.slices or ()):
            key = f"{prefix}slices.{index}"
            sources = [s.source(f"{key}.sources.{i}") for i, s in enumerate(entry.sources)]
            parts.append(Slice(key, tuple(sources), entry.parameters or {}, entry.base_model))
        return tuple(parts)


class ModulesForm(Section):
    """The modules of a model, of which a decoder has one.

    >>> parse(ModulesForm, {"default": {"models": [{"model": "a"}]}}).default.parts("default.")
    (Slice(key='default.models', ...
    """

    default: PartsForm = option("a decoder's one module")


class TokenizerForm(Section):
    """What the merged model's tokenizer is to be.

    >>> parse(TokenizerForm, {"source": "base", "pad_to_multiple_of": 64})
    Traceback (most recent call last):
    evomerge.errors.BadInput: pad_to_multiple_of: vocabularies are not padded; leave it out
    """

    source: Text | None = option("base, union, or a model", None)
    tokens: Any = option("embeddings of single tokens", None)
    pad_to_multiple_of: Any = option("of the vocabulary", None)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterator[Fault]:
        """See `Section.cross_faults`."""
        if fields.get("tokens"):
            yield Fault("tokens", "embeddings of single tokens are not set", "leave it out")
        if fields.get("pad_to_multiple_of") is not None:
            yield Fault("pad_to_multiple_of", "vocabularies are not padded", "leave it out")


class ConfigurationForm(PartsForm):
    """The YAML.

    >>> sorted(ConfigurationForm.model_fields)[:4]
    ['base_model', 'chat_template', 'dtype', 'merge_method']
    """

    merge_method: Annotated[Text, AfterValidator(_known_method)] = option("of merging")
    modules: ModulesForm | None = option("of which models or slices are", None)
    base_model: Text | None = option("the models' common ancestor", None)
    dtype: Dtype | None = option("that mergekit computes in", None)
    out_dtype: Dtype | None = option("of what is written, where it is another", None)
    tokenizer_source: Text | None = option("base, union, or a model", None)
    tokenizer: TokenizerForm | None = option("the same, and more of it", None)
    chat_template: Text | None = option("auto, a template, or its name", None)
    name: Any = option("of the merge", None)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterator[Fault]:
        """See `Section.cross_faults`."""
        yield from _one_of(fields, ("models", "slices", "modules"))
        yield from _parameter_faults(fields)
        yield from _base_faults(fields)
        chosen, tokenizer = fields.get("tokenizer_source"), fields.get("tokenizer")
        if chosen is not None and tokenizer is not None:
            yield Fault("tokenizer", "stands beside tokenizer_source", "write one of them")
        known = (*_TOKENIZERS, *_names(fields))
        sources = {"tokenizer_source": chosen}
        sources["tokenizer.source"] = None if tokenizer is None else tokenizer.source
        for key, source in sources.items():
            if source is not None and source not in known:
                yield Fault(key, f"'{source}' is none of the models", nearest(source, known))

    def configuration(self) -> Configuration:
        """Return what it says."""
        if self.modules is None:
            parts, module = self.parts(), None
        else:
            parts = self.modules.default.parts("modules.default.")
            module = self.modules.default.parameters
        outer = (module or {}, self.parameters or {})
        dtype = self.out_dtype or self.dtype
        chosen = self.tokenizer_source if self.tokenizer is None else self.tokenizer.source
        tokenizer = None if chosen in _TOKENIZERS else chosen
        how = (self.merge_method, parts, self.base_model, outer, dtype)
        return Configuration(*how, tokenizer, self.chat_template)


def _one_of(fields: Mapping[str, Any], keys: Sequence[str]) -> Iterator[Fault]:
    """Yield a fault unless exactly one of the keys is there; a wrong one counts as there."""
    given = [key for key in keys if fields.get(key, ...) is not None]
    if len(given) != 1:
        *most, last = keys
        wrong = f"exactly one of {', '.join(most)} and {last} has to be there"
        yield Fault("models", wrong, "write one")


def _parameter_faults(fields: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield why `parameters` will not do: names that mergekit does not know, or we do not do."""
    for name, value in (fields.get("parameters") or {}).items():
        key = f"parameters.{name}"
        if name not in _PARAMETERS:
            yield Fault(key, f"unknown parameter '{name}'", nearest(name, _PARAMETERS))
        elif name in _SWITCHES and value is not _SWITCHES[name]:
            mend = f"write {str(_SWITCHES[name]).lower()}, or leave it out"
            yield Fault(key, "is not supported", mend)


def _base_faults(fields: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield why slices have no base of their own."""
    for index, part in enumerate(fields.get("slices") or ()):
        if part is None or part.base_model is None:
            continue
        key, mend = f"slices.{index}.base_model", "write base_model for the whole"
        if fields.get("merge_method", "slerp") != "slerp":
            yield Fault(key, "is not supported but with slerp", mend)
        elif part.base_model not in (source.model for source in part.sources if source):
            yield Fault(key, f"'{part.base_model}' is none of the slice's sources", mend)


def _names(fields: Mapping[str, Any]) -> Iterable[str]:
    """Yield the names of the base and the models that are listed where nothing is wrong."""
    if fields.get("base_model") is not None:
        yield fields["base_model"]
    modules: ModulesForm | None = fields.get("modules")
    models: list[SourceForm | None] = list(fields.get("models") or ())
    slices: list[SliceForm | None] = list(fields.get("slices") or ())
    if modules is not None:
        models += modules.default.models or ()
        slices += modules.default.slices or ()
    for part in slices:
        models += part.sources if part is not None else ()
    for source in models:
        if source is not None:
            yield source.model


def read_configuration(data: Any) -> Configuration:
    """Return what a mergekit configuration describes.

    Args:
        data: the YAML's content.

    Raises:
        BadInput: with every fault of form, and what evomerge does not do.

    >>> read_configuration({"merge_method": "tise", "models": [{"model": "a"}]})
    Traceback (most recent call last):
    evomerge.errors.BadInput: merge_method: 'tise' is not supported; did you mean 'ties'?
    """
    if not isinstance(data, Mapping):
        wrong = "a mergekit configuration is a mapping"
        raise BadInput(Fault("", wrong, "see mergekit's README"))
    said = {key: value for key, value in data.items() if key not in _COMMAND}
    return parse(ConfigurationForm, said).configuration()
