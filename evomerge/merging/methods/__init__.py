"""Merge methods, one file each. A method is a typed function whose signature is its schema.

Two families (design: "two kernels and a preparation"); `kernels.py` executes both:

- `@linear_method`: the function maps the parameters of a group (and, if its first argument is
  called `gram`, the tensor's Gram matrix) to one coefficient c_i per model. The merged tensor
  is sum c_i W_i, or W_0 + sum c_i tau_i where there is a base.
- `@masked_method`: the function maps them to a `Masked`: how the task vectors are thinned out and
  agreed upon before they are added to the base.
- `@prepared_method`: task vectors are first transformed, once for all recipes, by the method's
  `prepare`; the function maps them to coefficients d_i of what that gave: W_0 + sum d_i D_i.

Keyword-only parameters annotated with an `Axis` are searchable; bool ones, and those of
`prepare`, are options of the whole recipe. No torch at import: methods compute on small float64
arrays, `prepare` imports what it needs.
"""

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from evomerge.errors import nearest
from evomerge.registry import Registry


@dataclass(frozen=True)
class Axis:
    """The range in which a parameter makes sense; `per_model` ones hold one float per model."""

    low: float
    high: float
    per_model: bool = False


Weights = Annotated[np.ndarray, Axis(-np.inf, np.inf, per_model=True)]

Densities = Annotated[np.ndarray, Axis(0.0, 1.0, per_model=True)]

Scale = Annotated[float, Axis(-np.inf, np.inf)]

Fraction = Annotated[float, Axis(0.0, 1.0)]

Thresholds = Annotated[np.ndarray, Axis(0.0, np.inf, per_model=True)]

Count = Annotated[float, Axis(1.0, np.inf)]

Positive = Annotated[float, Axis(0.0, np.inf)]


@dataclass(frozen=True)
class Parameter:
    """A searchable parameter of a method. `default` is None where the user must say it."""

    name: str
    axis: Axis
    default: float | None


@dataclass(frozen=True)
class Operator:
    """A merge method: its function, and what the signature and the decorator say of it."""

    name: str
    family: str  # "linear" | "masked" | "prepared"
    function: Callable
    parameters: tuple[Parameter, ...]
    options: dict[str, bool | float]  # name -> default
    ranges: dict[str, Axis]  # of the options that are numbers
    needs_base: bool
    takes_base: bool  # the base makes it merge task vectors
    needs_gram: bool
    draws: bool
    models: int | None  # the exact number of models, where it is fixed
    paper: str
    prepare: Callable | None  # (TaskVectors, **options) -> (name, directions), tensor by tensor

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    def option_fault(self, name: str, value: Any) -> tuple[str, str] | None:
        """Return what is wrong with an option and what to write, if anything is."""
        if name not in self.options:
            return f"{self.name} has no option '{name}'", nearest(name, self.options)
        axis = self.ranges.get(name)
        if axis is None:
            fine, mend = isinstance(value, bool), "write true or false"
            return None if fine else (f"{value!r} is not true or false", mend)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        allowed = f"a number from {axis.low:g} to {axis.high:g}"
        if number and axis.low <= value <= axis.high:
            return None
        return f"{value!r} is not {allowed}", f"write {allowed}"

    @property
    def prepares(self) -> dict[str, float]:
        """The options of `prepare`, with their defaults."""
        return {name: self.options[name] for name in self.ranges}

    @property
    def parameter(self) -> dict[str, Parameter]:
        return {p.name: p for p in self.parameters}


OPERATORS = Registry("evomerge.merging.methods", "merge method")


def linear_method(*, paper: str, base: bool | None = False, models: int | None = None) -> Callable:
    """Register a method of the linear family.

    The function returns (models,) float64 coefficients of what it merges: the models' tensors,
    or their task vectors where there is a base. `gram` is the (models, models) float64 matrix
    of their inner products.

    Args:
        paper: where it is described.
        base: whether it needs a base; None if it takes one where there is one.
        models: the exact number of models, if it is fixed.
    """
    return _decorator("linear", paper, base, models, draws=False)


def masked_method(*, paper: str, draws: bool = False) -> Callable:
    """Register a method of the masked family; the function returns a `Masked`."""
    return _decorator("masked", paper, True, None, draws)


def prepared_method(*, paper: str, prepare: Callable) -> Callable:
    """Register a method of the prepared family; the function returns (models,) coefficients.

    Args:
        paper: where it is described.
        prepare: (vectors, **options) -> (tensor's name, one direction a model), of every tensor
            in `vectors.names`' order; `vectors` is a `prepare.TaskVectors`, directions are
            float tensors of the tensor's shape.
    """
    return _decorator("prepared", paper, True, None, False, prepare)


def _decorator(
    family: str,
    paper: str,
    base: bool | None,
    models: int | None,
    draws: bool,
    prepare: Callable | None = None,
) -> Callable:
    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function, eval_str=True).parameters
        parameters, options, ranges = [], {}, {}
        for p in signature.values():
            if p.kind is not p.KEYWORD_ONLY:
                continue
            if p.annotation is bool:
                options[p.name] = p.default
                continue
            axis = typing.get_args(p.annotation)[1]
            parameters.append(Parameter(p.name, axis, None if p.default is p.empty else p.default))
        for p in inspect.signature(prepare, eval_str=True).parameters.values() if prepare else ():
            if p.kind is p.KEYWORD_ONLY:
                options[p.name], ranges[p.name] = p.default, typing.get_args(p.annotation)[1]
        name = function.__name__
        OPERATORS.add(
            name,
            Operator(
                name,
                family,
                function,
                tuple(parameters),
                options,
                ranges,
                base is True,
                base is not False,
                "gram" in signature,
                draws,
                models,
                paper,
                prepare,
            ),
        )
        return function

    return decorate


def unit_weights(weight: np.ndarray) -> np.ndarray:
    """Return (n,) weights over their sum; equal ones where they cancel."""
    total = weight.sum()
    return weight / total if abs(total) >= 1e-8 else np.full(len(weight), 1.0 / len(weight))


def on_the_circle(gram: np.ndarray, t: float, chord_above: float) -> np.ndarray:
    """Return the two coefficients of spherical interpolation (Shoemake 1985).

    Args:
        gram: (2, 2) inner products.
        t: 0 at the first, 1 at the second.
        chord_above: |cosine| from which the chord stands for the arc.
    """
    norms = np.sqrt(np.diag(gram))
    cosine = gram[0, 1] / (norms[0] * norms[1]) if norms.all() else 1.0
    if abs(cosine) > chord_above:
        return np.array([1.0 - t, t])
    angle = np.arccos(cosine)
    return np.array([np.sin((1.0 - t) * angle), np.sin(t * angle)]) / np.sin(angle)
