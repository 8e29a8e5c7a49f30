"""mergekit's YAML as a recipe.

Tensors before the layers belong to the first slice, those after them to the last.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.errors import BadInput, Fault, placed
from evomerge.mergekit.form import MERGEKIT_METHODS, Configuration, Slice, read_configuration
from evomerge.mergekit.passthrough import from_passthrough
from evomerge.mergekit.scopes import Depth, look_up
from evomerge.mergekit.tokenizers import warn_of_tokenizer
from evomerge.merging.methods import METHODS, MergeMethod
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.sources.source import Source, open_source
from evomerge.sources.trust import NOBODY, Trust
from evomerge.tensor_names import place
from evomerge.yaml_file import MOST_JSON, parse_json, read_text, read_yaml

Values = dict[str, float | tuple[float, ...]]  # parameter of a method -> one value, or one a model

# mergekit's own defaults; a weight has none
_DEFAULTS = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15, "scale": 1.0}

_UNWEIGHTED = ("karcher", "sce")  # mergekit gives these no weights


def read_file(file: Path) -> Any:
    """Return what a recipe's JSON or a mergekit configuration (.yml, .yaml) holds.

    Raises:
        BadInput: it cannot be read.

    >>> read_file(Path("nowhere.json"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere.json: cannot be read (No such file or directory)
    """
    if file.suffix in (".yml", ".yaml"):
        return read_yaml(file)
    try:
        data = parse_json(read_text(file, MOST_JSON))
        json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        return data
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
        raise BadInput(Fault("", wrong, file=str(file))) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(Fault("", f"is not JSON ({error})", "mend it", str(file))) from None


def from_mergekit(
    data: Any,
    seed: int = 0,
    trust: Trust = NOBODY,
) -> Recipe:
    """Return the recipe that a mergekit configuration describes.

    Args:
        data: the YAML's content.
        seed: of the masks of methods that draw; mergekit's own cannot be reproduced.
        trust: what code of the models may run.

    Raises:
        BadInput: with every fault, among them what evomerge does not do.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = (str(tiny_llama(f"{folder}/{n}", seed=i)) for i, n in enumerate("ab"))
    ...     recipe = from_mergekit({
    ...         "merge_method": "linear", "parameters": {"weight": 0.5},
    ...         "models": [{"model": a, "parameters": {"weight": 0.9}}, {"model": b}]})
    >>> recipe.groups
    (Group(layers=None, modules=None, values={'weight': (0.9, 0.5)}, method=None),)
    """
    configuration = read_configuration(data)
    if configuration.method == "passthrough":
        recipe: Recipe = from_passthrough(configuration, trust)
    else:
        recipe = _merged(configuration, seed, trust)
    warn_of_tokenizer(configuration, recipe)
    return recipe


def _merged(configuration: Configuration, seed: int, trust: Trust) -> ParametersRecipe:
    """Return the recipe of what is no passthrough; see `from_mergekit`."""
    name, implied = MERGEKIT_METHODS[configuration.method]
    method = METHODS.get(name)
    base = configuration.base
    models = _models(configuration, method)
    if not models:
        raise BadInput(Fault("models", "there is no model beside the base", "list some"))
    if method.takes_base and base is not None:
        with placed("base_model"):
            frame = open_source(base, trust)
    else:
        with placed(_key_of(models[0], configuration)):
            frame = open_source(models[0], trust)
    spans = _spans(configuration, frame)
    try:
        values = {}
        for tensor in frame.tensors:
            values[tensor] = _values(configuration, _span_of(tensor, spans), method, models, tensor)
    except ValueError as error:
        raise BadInput(Fault("parameters", str(error), "write numbers")) from None
    options = implied | _options(configuration, method)
    return ParametersRecipe(
        name,
        tuple(models),
        tuple(_groups(values)),
        base if method.takes_base else None,
        configuration.dtype or frame.dtype,
        seed if method.draws else None,
        options,
    )


def _options(configuration: Configuration, method: MergeMethod) -> dict[str, object]:
    """Return a method's options as a configuration sets them, the module's before the whole's.

    Raises:
        BadInput: one is neither true nor false, or mergekit has it with this method and we do not.
    """
    options: dict[str, object] = {}
    module, whole = configuration.outer
    for place_of, said in (("parameters", whole), ("modules.default.parameters", module)):
        for name in said.keys() & {*method.options, "normalize", "rescale"}:
            fault = None
            if name in method.options:
                options[name] = said[name]
                fault = method.option_fault(name, said[name])
            elif said[name] is not False:
                fault = f"is not supported with {configuration.method}", "leave it out"
            if fault:
                raise BadInput(Fault(f"{place_of}.{name}", *fault))
    return options


def _models(configuration: Configuration, method: MergeMethod) -> list[str]:
    """Return the models that are merged, without the base of task vectors."""
    names = [source.model for part in configuration.slices for source in part.sources]
    base = configuration.base
    listed = dict.fromkeys(names)
    models = [name for name in listed if name != base or not method.takes_base]
    if method.name == "slerp" and base is not None and base in names:
        # slerp's base is one of the two, the one at t = 0
        return [base, *(name for name in models if name != base)]
    return models


def _key_of(model: str, configuration: Configuration) -> str:
    """Return where a model first stands in a configuration."""
    sources = [source for part in configuration.slices for source in part.sources]
    return next(source.key for source in sources if source.model == model)


class _Span(NamedTuple):
    """A slice and its layers, from `first` to before `end`."""

    part: Slice
    first: int
    end: int


def _spans(configuration: Configuration, frame: Source) -> list[_Span]:
    """Return the slices with their layers: every layer once, in order, the same of each model."""
    spans = []
    end = 0
    for part in configuration.slices:
        ranges = {source.layers or (0, frame.layers) for source in part.sources}
        if len(ranges) != 1:
            wrong = f"its sources have different layers: {sorted(ranges)}"
            mend = "layers are merged with those of the same number; write one layer_range"
            raise BadInput(Fault(part.key, wrong, mend))
        first, last = ranges.pop()
        if first != end or last <= first or last > frame.layers:
            wrong = f"begins at layer {first} to {last}, not at {end}"
            mend = "slices follow one another, but in passthrough"
            raise BadInput(Fault(part.key, wrong, mend))
        spans.append(_Span(part, first, last))
        end = last
    if end != frame.layers:
        wrong = f"ends at layer {end} of {frame.layers}"
        raise BadInput(Fault(configuration.slices[-1].key, wrong, "cover every layer"))
    return spans


def _span_of(tensor: str, spans: Sequence[_Span]) -> _Span:
    where = place(tensor)
    if where.layer is None:
        return spans[0 if where.part == "embed" else -1]
    return next(span for span in spans if where.layer < span.end)


def _values(
    configuration: Configuration,
    span: _Span,
    method: MergeMethod,
    models: Sequence[str],
    tensor: str,
) -> Values:
    """Return the value of every parameter of a method for a tensor of a slice.

    Raises:
        ValueError: one is missing, or is no number.
    """
    part, first, end = span
    layer = place(tensor).layer
    depth = Depth(0 if layer is None else layer - first, end - first)
    by_model = {source.model: source for source in reversed(part.sources)}  # the first counts
    values: Values = {}
    for parameter in method.parameters:
        key = _mergekits_name(method, parameter.name)
        default = _DEFAULTS.get(parameter.name)
        if parameter.name == "weight" and method.name in _UNWEIGHTED:
            default = 1.0
        if not parameter.axis.per_model:
            value = look_up(configuration.scopes(part), key, tensor, depth)
            number = _given(value, default, f"{key} is missing")
            if part.base not in (None, models[0]):
                number = 1.0 - number  # slerp's way, counted from its other end
            values[parameter.name] = number
            continue
        each = []
        for model in models:
            scopes = configuration.scopes(part, by_model.get(model))
            value = look_up(scopes, key, tensor, depth)
            each.append(_given(value, default, f"{key} is missing for {model}"))
        values[parameter.name] = tuple(each)
    return values


def _mergekits_name(method: MergeMethod, parameter: str) -> str:
    if parameter == "scale":
        return "lambda"
    if parameter == "density" and method.name == "sce":
        return "select_topk"
    return parameter


def _given(value: float | None, default: float | None, wrong: str) -> float:
    if value is None:
        value = default
    if value is None:
        raise ValueError(wrong)
    return value


def _groups(values: dict[str, Values]) -> Iterator[Group]:
    """Yield groups that give every tensor its values: tensors of a layer that agree share one."""
    distinct = list(values.values())
    if all(value == distinct[0] for value in distinct):
        yield Group(None, None, distinct[0])
        return
    by_place: dict[int | str, list[str]] = {}
    for tensor in values:
        where = place(tensor)
        by_place.setdefault(where.part if where.layer is None else where.layer, []).append(tensor)
    for layer, tensors in by_place.items():
        span = (layer, layer + 1) if isinstance(layer, int) else layer
        listed = [values[tensor] for tensor in tensors]
        commonest = max(listed, key=listed.count)
        for tensor in tensors:
            if values[tensor] != commonest:
                yield Group(span, tensor, values[tensor])
        yield Group(span, None, commonest)
