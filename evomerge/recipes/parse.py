"""A recipe of any kind, read back from its JSON."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field

from evomerge.dtypes import Dtype
from evomerge.errors import BadInput, Fault
from evomerge.recipes.lineage import Birth, ExplicitRecipe
from evomerge.recipes.mixture import Chromosome, MixtureRecipe
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import Hop, RoutingRecipe
from evomerge.section_types import Expected
from evomerge.sections import Number, Section, Text, Whole, option, parse

# Factors of weights or of the stream, and standard deviations: float32 ends at 3e38, and the
# weights or streams that they multiply are themselves above 1.
_LARGEST = 1e30

Position = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]  # as int64 counts
Layers = Annotated[
    tuple[Position, Position] | Literal["embed", "norm", "head"] | None,
    Expected("[first, last + 1], embed, norm, head or null"),
]
Value = Annotated[
    Number | tuple[Number, ...], Expected("a finite number or a list of them, one a model")
]
Segment = Annotated[
    tuple[Position, Position, tuple[Number, ...]],
    Expected("[first, last + 1, [one coefficient a model]]"),
]
Scale = Annotated[float, Field(strict=True, ge=-_LARGEST, le=_LARGEST)]
HopForm = Annotated[
    tuple[Position, Position, Scale] | tuple[Position, Position, Scale, tuple[Scale, Scale]],
    Expected("[model index, layer index, scale], perhaps with [attention gain, MLP gain]"),
]
Parent = Position | Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
BirthForm = Annotated[
    tuple[
        tuple[Parent, Parent],
        Share,
        Position,
        Annotated[float, Field(strict=True, ge=0, le=_LARGEST)],
        Position,
    ],
    Expected("[[parent, parent], mix from 0 to 1, split, sigma, seed]"),
]

_MODELS = "directories of models, hub ids or archived candidates"
_INDEX = "hash of the parameter index that positions refer to"


class GroupForm(BaseModel):
    """One of `groups`: coefficients, of whatever names the method knows, for some tensors.

    >>> parse(GroupForm, {"layers": [0, 4], "modules": "mlp", "weight": [0.3, 0.7]}).group().values
    {'weight': (0.3, 0.7)}
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Value]

    layers: Layers
    modules: Text | None
    method: Text | None = None

    def group(self) -> Group:
        """Return what the recipe has of it."""
        return Group(self.layers, self.modules, self._values(), self.method)

    def _values(self) -> dict[str, float | tuple[float, ...]]:
        return self.__pydantic_extra__


class ParametersForm(Section):
    """The JSON of a `ParametersRecipe`.

    >>> form = parse(ParametersForm, {"version": 1, "kind": "parameters", "method": "linear",
    ...     "models": ["a"], "base": None, "dtype": "float32",
    ...     "groups": [{"layers": None, "modules": None, "weight": [1]}]})
    >>> form.recipe().groups[0].values
    {'weight': (1.0,)}
    """

    version: Literal[1] = option("of this form")
    kind: Literal["parameters"] = option("of recipe")
    method: Text = option("merge method", example="ties")
    models: list[Text] = option(_MODELS, least=1, example=["a", "b"])
    base: Text | None = option("the models' common ancestor, for methods that need one", None)
    dtype: Dtype = option("of the merged weights")
    seed: Whole | None = option("of the method's random masks", None, ge=0)
    options: dict[str, Any] = option("of the method", factory=dict)
    groups: list[GroupForm] = option("coefficients by tensors, the first that fits", least=1)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        """See `Section.cross_faults`."""
        for index, group in enumerate(fields.get("groups", ())):
            span = group.layers if group is not None else None
            if isinstance(span, tuple) and span[0] >= span[1]:
                yield Fault(f"groups.{index}.layers", f"{list(span)} is not [first, last + 1]")

    def recipe(self) -> ParametersRecipe:
        """Return what it says."""
        return ParametersRecipe(
            self.method,
            tuple(self.models),
            tuple(group.group() for group in self.groups),
            self.base,
            self.dtype,
            self.seed,
            self.options,
        )


class ChromosomeForm(Section):
    """One of a mixture's `chromosomes`.

    >>> parse(ChromosomeForm, {"modules": None, "segments": [[0, 9, [0.5, 0.5]], [8, 9, [1, 0]]]})
    Traceback (most recent call last):
    evomerge.errors.BadInput: segments: do not follow one another from 0
    """

    modules: Text | None = option("a substring of tensor names; null: whatever the others leave")
    segments: Annotated[list[Segment], FailFast()] = option("coefficients by parameters", least=1)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        """See `Section.cross_faults`."""
        segments = fields.get("segments", ())
        if None in segments:
            return
        position = 0
        for first, last, _ in segments:
            if first != position or last <= first:
                yield Fault("segments", "do not follow one another from 0")
                return
            position = last

    def chromosome(self) -> Chromosome:
        """Return what the recipe has of it."""
        edges = np.array([0, *(last for _, last, _ in self.segments)], np.int64)
        coefficients = np.array([row for _, _, row in self.segments], np.float64)
        return Chromosome(self.modules, edges, coefficients)


class MixtureForm(Section):
    """The JSON of a `MixtureRecipe`.

    >>> sorted(MixtureForm.model_fields)
    ['chromosomes', 'dtype', 'kind', 'models', 'parameter_index_hash', 'version']
    """

    version: Literal[1] = option("of this form")
    kind: Literal["mixture"] = option("of recipe")
    models: list[Text] = option(_MODELS, least=1, example=["a", "b"])
    dtype: Dtype = option("of the merged weights")
    parameter_index_hash: Text = option(_INDEX)
    chromosomes: list[ChromosomeForm] = option("coefficients by modules", least=1)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        """See `Section.cross_faults`."""
        chromosomes = fields.get("chromosomes", ())
        if "models" in fields:
            models = len(fields["models"])
            for index, chromosome in enumerate(chromosomes):
                if chromosome is None:
                    continue
                for number, (_, _, row) in enumerate(chromosome.segments):
                    if len(row) != models:
                        wrong = f"has {len(row)} coefficients for {models} models"
                        yield Fault(f"chromosomes.{index}.segments.{number}", wrong)
                        break
        if not chromosomes or None in chromosomes:
            return
        if chromosomes[-1].modules is not None:
            wrong = "leave out tensors without one of the substrings"
            yield Fault("chromosomes", wrong, "let the last one's modules be null")
        if len({chromosome.segments[-1][1] for chromosome in chromosomes}) > 1:
            yield Fault("chromosomes", "end at different parameters", "end them alike")

    def recipe(self) -> MixtureRecipe:
        """Return what it says."""
        chromosomes = tuple(entry.chromosome() for entry in self.chromosomes)
        return MixtureRecipe(tuple(self.models), chromosomes, self.dtype, self.parameter_index_hash)


class RoutingForm(Section):
    """The JSON of a `RoutingRecipe`.

    >>> parse(RoutingForm, {"version": 1, "kind": "routing", "models": ["a"], "dtype": "float32",
    ...     "frame": 1, "path": [[0, 0, 1.0], [0, 1, 0]]})
    Traceback (most recent call last):
    evomerge.errors.BadInput: path.1: the scale 0 leaves nothing of the stream; write another
    frame: there is no model 1; write 0
    """

    version: Literal[1] = option("of this form")
    kind: Literal["routing"] = option("of recipe")
    models: list[Text] = option(_MODELS, least=1, example=["a", "b"])
    path: list[HopForm] = option("layers in turn", least=1, example=[[0, 0, 1.0], [0, 1, 1.0]])
    frame: Position = option("index of the model that gives all but the layers", example=0)
    dtype: Dtype = option("of the merged weights")

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        """See `Section.cross_faults`."""
        path = fields.get("path", ())
        models = len(fields["models"]) if "models" in fields else None
        indices = "" if models is None else "write 0" if models == 1 else f"write 0 to {models - 1}"
        sound = models is not None and bool(path)
        for index, hop in enumerate(path):
            if hop is None:
                sound = False
            elif models is not None and hop[0] >= models:
                yield Fault(f"path.{index}", f"there is no model {hop[0]}", indices)
            elif hop[2] == 0:
                wrong = "the scale 0 leaves nothing of the stream"
                yield Fault(f"path.{index}", wrong, "write another")
                sound = False
        frame = fields.get("frame")
        if frame is not None and models is not None and frame >= models:
            yield Fault("frame", f"there is no model {frame}", indices)
        if sound and not _is_bounded(path):
            wrong = "the scales' product leaves the range of numbers"
            yield Fault("path", wrong, "write scales nearer to 1")

    def recipe(self) -> RoutingRecipe:
        """Return what it says."""
        return RoutingRecipe(tuple(self.models), _hops(self.path), self.frame, self.dtype)


def _hops(path: Iterable[tuple[Any, ...]]) -> tuple[Hop, ...]:
    return tuple(Hop(*hop) for hop in path)


def _is_bounded(path: Iterable[tuple[Any, ...]]) -> bool:
    """Tell whether products of the scales along a path stay numbers, and not too small ones."""
    try:
        shares = RoutingRecipe(("",), _hops(path), 0, "float32").shares()
    except (ZeroDivisionError, OverflowError):
        return False
    return all(1 / _LARGEST < abs(share) < _LARGEST for share in shares)


class ExplicitForm(Section):
    """The JSON of an `ExplicitRecipe`.

    >>> parse(ExplicitForm, {"version": 1, "kind": "explicit", "models": ["a"], "dtype": "float32",
    ...     "parameter_index_hash": "0f", "interpolation": "lerp",
    ...     "births": [[[0, 1], 0.5, 9, 0.01, 7]]})
    Traceback (most recent call last):
    evomerge.errors.BadInput: births.0: parent 1 is none of those before
    """

    version: Literal[1] = option("of this form")
    kind: Literal["explicit"] = option("of recipe")
    models: list[Text] = option(_MODELS, least=1, example=["a", "b"])
    dtype: Literal["float32"] = option("of the weights")
    parameter_index_hash: Text = option(_INDEX)
    interpolation: Literal["slerp", "lerp"] = option("of two parents")
    births: list[BirthForm] = option("crossings in turn", least=1)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        """See `Section.cross_faults`."""
        if "models" not in fields:
            return
        models = len(fields["models"])
        for index, birth in enumerate(fields.get("births", ())):
            for parent in birth[0] if birth is not None else ():
                if isinstance(parent, int) and parent >= models + index:
                    wrong = f"parent {parent} is none of those before"
                    yield Fault(f"births.{index}", wrong)

    def recipe(self) -> ExplicitRecipe:
        """Return what it says."""
        births = tuple(Birth(*birth) for birth in self.births)
        index_hash = self.parameter_index_hash
        return ExplicitRecipe(tuple(self.models), births, index_hash, self.interpolation)


RecipeForm: Any = Annotated[  # mypy knows no type of such a type
    ParametersForm | MixtureForm | RoutingForm | ExplicitForm, Field(discriminator="kind")
]


def parse_recipe(data: Any) -> Recipe:
    """Return the recipe of any kind that JSON describes.

    Args:
        data: what `json.load` gave.

    Raises:
        BadInput: with every fault of form. Whether the method knows the parameters and whether
            the sources exist is for `merging.validation` to say.

    >>> parse_recipe({"version": 1, "kind": "parameters", "method": "linear", "models": ["a"],
    ...     "dtype": "float32", "group": []})
    Traceback (most recent call last):
    evomerge.errors.BadInput: groups: is missing; write a list of mappings
    group: unknown key 'group'; did you mean 'groups'?
    """
    if not isinstance(data, Mapping):
        raise BadInput(Fault("", "a recipe is a JSON object", "write {version, kind, models, ...}"))
    form: ParametersForm | MixtureForm | RoutingForm | ExplicitForm = parse(RecipeForm, data)
    return form.recipe()
