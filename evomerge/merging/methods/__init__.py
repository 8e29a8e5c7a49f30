"""Merge methods, one file each. A method is a typed function whose signature is its schema.

Four families, all executed by the kernels:

- `@linear_method`: the function maps the parameters of a group (and, if its first argument is
  called `gram`, the tensor's Gram matrix) to one coefficient c_i per model. The merged tensor
  is sum c_i W_i, or W_0 + sum c_i tau_i where there is a base.
- `@masked_method`: the function maps them to a `Masked`: how the task vectors are thinned out and
  agreed upon before they are added to the base.
- `@prepared_method`: task vectors are first transformed, once for all recipes, by the method's
  `prepare`; the function maps them to coefficients d_i of what that gave: W_0 + sum d_i D_i.
- `@factored_method`: the models are LoRA adapters of the base; the function maps the parameters
  and the factors of what each adds to one weight to the factors of what the merge adds to it. What
  no parameter changes, such as a decomposition, its `analyse` finds once in each weight's factors.

Keyword-only parameters annotated with an `Axis` are searchable; bool ones, and those of `prepare`
or `analyse`, are options of the whole recipe. A text in the annotation describes either; the last
one holds, so that a method can say more of `weight` than `Weights` does. No torch at import:
methods compute on small float64 arrays, `prepare` imports what it needs.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from evomerge.dtypes import SIZE, packed_bytes
from evomerge.errors import nearest
from evomerge.kernels.masked import Masked
from evomerge.merging.method_parameters import ONE as ONE
from evomerge.merging.method_parameters import Axis as Axis
from evomerge.merging.method_parameters import Count as Count
from evomerge.merging.method_parameters import Densities as Densities
from evomerge.merging.method_parameters import Elect as Elect
from evomerge.merging.method_parameters import Fraction as Fraction
from evomerge.merging.method_parameters import Normalize as Normalize
from evomerge.merging.method_parameters import Positive as Positive
from evomerge.merging.method_parameters import Rescale as Rescale
from evomerge.merging.method_parameters import Scale as Scale
from evomerge.merging.method_parameters import Thresholds as Thresholds
from evomerge.merging.method_parameters import Weights as Weights
from evomerge.merging.task_vectors_view import Directions as Directions
from evomerge.merging.task_vectors_view import TaskVectorsView as TaskVectorsView
from evomerge.merging.update import Update
from evomerge.registry import Registry

if TYPE_CHECKING:
    from evomerge.sources.safetensors_file import Tensor

F = TypeVar("F", bound=Callable[..., object])
Reads = Literal["", "inputs", "curvature", "texts"]


Family = Literal["linear", "masked", "prepared", "factored"]


@dataclass(frozen=True)
class Parameter:
    """A searchable parameter of a method.

    Attributes:
        name: as recipes and campaign files have it.
        axis: its range.
        default: of each model where it is per model; None where the user must say it.
        description: what it does.

    >>> METHODS.get("slerp").parameter["t"].description
    'how far to go from the first model (0) to the second (1)'
    """

    name: str
    axis: Axis
    default: float | None
    description: str


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: its function, and what the signature and the decorator say of it.

    Attributes:
        name: as recipes have it.
        family: how it is merged; see the module.
        function: from parameters and options to coefficients, a `Masked` or an `Update`.
        parameters: those that can be searched.
        options: name -> default.
        option_descriptions: name -> what it does.
        ranges: of the options that are numbers: those of `prepare` or `analyse`.
        needs_base: whether there must be a base.
        takes_base: whether a base makes it merge task vectors.
        needs_gram: whether the function takes the Gram matrix.
        draws: whether it draws random masks.
        models: the exact number of models, where it is fixed.
        paper: where it is described.
        prepare: transforms task vectors, of the prepared family.
        analyse: finds what no parameter changes in one weight's factors, of the factored family.
        ordered: whether another order of the models is another merge.
        reads: what must be known of each model beside its weights, see `sources.evidence`:
            "inputs", "curvature", "texts", or "" for nothing.
        signs: whether what `prepare` gives is `Signs`, of matrices at least.

    >>> ties = METHODS.get("ties")
    >>> [parameter.name for parameter in ties.parameters], ties.options
    (['weight', 'density', 'scale'], {'normalize': True, 'whole': False})
    """

    name: str
    family: Family
    function: Callable[..., Masked | Update | np.ndarray]
    parameters: tuple[Parameter, ...]
    options: Mapping[str, bool | float]
    option_descriptions: Mapping[str, str]
    ranges: Mapping[str, Axis]
    needs_base: bool
    takes_base: bool
    needs_gram: bool
    draws: bool
    models: int | None
    paper: str
    prepare: Callable[..., Directions] | None
    analyse: Callable[..., object] | None
    ordered: bool
    reads: Reads
    signs: bool

    @property
    def of_weights(self) -> bool:
        """Whether it merges any models of one shape, with nothing known of them but the weights."""
        return self.family != "factored" and not self.reads

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    def option_fault(self, name: str, value: object) -> tuple[str, str] | None:
        """Return what is wrong with an option and what to write, if anything is."""
        if name not in self.options:
            return f"{self.name} has no option '{name}'", nearest(name, self.options)
        axis = self.ranges.get(name)
        if axis is None:
            if isinstance(value, bool):
                return None
            return f"{value!r} is not true or false", "write true or false"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and axis.low <= typing.cast(float, value) <= axis.high:
            return None
        allowed = f"a number from {axis.low:g} to {axis.high:g}"
        return f"{value!r} is not {allowed}", f"write {allowed}"

    @property
    def prepares(self) -> dict[str, bool | float]:
        """The options of `prepare` or `analyse`, with their defaults."""
        return {name: self.options[name] for name in self.ranges}

    def direction_bytes(self, tensors: "Iterable[Tensor]") -> int:
        """Return the bytes that one model's prepared direction takes at most.

        Args:
            tensors: the base's.
        """
        total = 0
        for tensor in tensors:
            is_packed = self.signs and len(tensor.shape) == 2
            dense = tensor.elements * SIZE[tensor.dtype]
            total += packed_bytes(tensor.elements, bits=2) if is_packed else dense
        return total

    @property
    def parameter(self) -> dict[str, Parameter]:
        """The parameters by name."""
        return {p.name: p for p in self.parameters}


METHODS: Registry[MergeMethod] = Registry("evomerge.merging.methods", "merge method")


def linear_method(
    *, paper: str, base: bool | None = False, models: int | None = None
) -> Callable[[F], F]:
    """Register a method of the linear family.

    The function returns (models,) float64 coefficients of what it merges: the models' tensors,
    or their task vectors where there is a base. `gram` is the (models, models) float64 matrix
    of their inner products.

    Args:
        paper: where it is described.
        base: whether it needs a base; None if it takes one where there is one.
        models: the exact number of models, if it is fixed.

    >>> METHODS.get("linear").family
    'linear'
    """
    return _decorator("linear", paper, base, models=models)


def masked_method(*, paper: str, draws: bool = False) -> Callable[[F], F]:
    """Register a method of the masked family; the function returns a `Masked`.

    Args:
        paper: where it is described.
        draws: whether it draws random masks.

    >>> METHODS.get("dare_ties").draws
    True
    """
    return _decorator("masked", paper, True, draws=draws)


def prepared_method(
    *,
    paper: str,
    prepare: Callable[..., Directions],
    ordered: bool = False,
    reads: Reads = "",
    signs: bool = False,
) -> Callable[[F], F]:
    """Register a method of the prepared family; the function returns (models,) coefficients.

    Args:
        paper: where it is described.
        prepare: (vectors, **options) -> (tensor's name, one direction a model), of every tensor
            in `vectors.names`' order; `vectors` is a `TaskVectorsView`, directions are float
            tensors of the tensor's shape, or `Signs` of it, which are merged without a dense copy.
        ordered: whether the models' order changes what is prepared.
        reads: what `prepare` asks the view for beside task vectors.
        signs: whether directions are `Signs`, of matrices at least: what they take is told by it.

    >>> METHODS.get("wudi").prepares
    {'ridge': 0.1}
    """
    return _decorator(
        "prepared", paper, True, prepare=prepare, ordered=ordered, reads=reads, signs=signs
    )


def factored_method(
    *, paper: str, analyse: Callable[..., object], draws: bool = False, ordered: bool = False
) -> Callable[[F], F]:
    """Register a method of the factored family, which merges LoRA adapters within their factors.

    The function takes what `analyse` found, and one `Update` a model of what it adds to a weight
    (of rank 0 where it adds nothing); it returns the `Update` that the merge adds.

    Args:
        paper: where it is described.
        analyse: (updates, **options) -> what no parameter changes, small beside the factors.
        draws: whether it draws random masks; then the function's third argument is the random
            generator's keys, two 32-bit words a model.
        ordered: whether the models' order changes the merge.

    >>> METHODS.get("lora_lego").prepares
    {'rank': 0}
    """
    return _decorator("factored", paper, True, draws=draws, analyse=analyse, ordered=ordered)


def _decorator(
    family: Family,
    paper: str,
    base: bool | None,
    *,
    models: int | None = None,
    draws: bool = False,
    prepare: Callable[..., Directions] | None = None,
    analyse: Callable[..., object] | None = None,
    ordered: bool = False,
    reads: Reads = "",
    signs: bool = False,
) -> Callable[[F], F]:
    once = prepare or analyse

    def decorate(function: F) -> F:
        parameters: list[Parameter] = []
        options: dict[str, bool | float] = {}
        descriptions: dict[str, str] = {}
        ranges: dict[str, Axis] = {}
        for p in _keyword_only(function):
            axis, text = _annotated(p)
            if axis is None:
                options[p.name], descriptions[p.name] = p.default, text
            else:
                default = None if p.default is p.empty else float(p.default)
                parameters.append(Parameter(p.name, axis, default, text))
        for p in _keyword_only(once) if once else ():
            axis, text = _annotated(p)
            assert axis is not None, f"option '{p.name}' needs an Axis"
            options[p.name], descriptions[p.name], ranges[p.name] = p.default, text, axis
        name = function.__name__
        method = MergeMethod(
            name=name,
            family=family,
            function=typing.cast("Callable[..., Masked | Update | np.ndarray]", function),
            parameters=tuple(parameters),
            options=options,
            option_descriptions=descriptions,
            ranges=ranges,
            needs_base=base is True,
            takes_base=base is not False,
            needs_gram="gram" in inspect.signature(function).parameters,
            draws=draws,
            models=models,
            paper=paper,
            prepare=prepare,
            analyse=analyse,
            ordered=ordered,
            reads=reads,
            signs=signs,
        )
        METHODS.add(name, method)
        return function

    return decorate


def _keyword_only(function: Callable[..., object]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [p for p in parameters if p.kind is p.KEYWORD_ONLY]


def _annotated(parameter: inspect.Parameter) -> tuple[Axis | None, str]:
    """Return what an annotation says beside the type: the range, and the last of its texts."""
    notes = typing.get_args(parameter.annotation)[1:]
    axes = [note for note in notes if isinstance(note, Axis)]
    texts = [note for note in notes if isinstance(note, str)]
    return (axes[-1] if axes else None), (texts[-1] if texts else "")
