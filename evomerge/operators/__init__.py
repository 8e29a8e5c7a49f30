"""Merge methods, one file each. A method is a typed function whose signature is its schema.

Two families (design: "two kernels and a preparation"); `kernels.py` executes both:

- `@linear_method`: the function maps the parameters of a group (and, if its first argument is
  called `gram`, the tensor's Gram matrix) to one coefficient per source. The merged tensor
  is sum_k c_k W_k.
- `@masked_method`: the function maps them to a `Masked`: how the task vectors are thinned out and
  agreed upon before they are added to the base.

Keyword-only parameters annotated with an `Axis` are searchable; bool ones are options of
the whole recipe. No torch here: methods compute on small float64 arrays.
"""

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np

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


@dataclass(frozen=True)
class Parameter:
    """A searchable parameter of a method. `default` is None where the user must say it."""

    name: str
    axis: Axis
    default: float | None


@dataclass(frozen=True)
class Masked:
    """What the masked kernel does with task vectors tau_i = W_i - W_base, i = 1..n.

    Attributes:
        weight, density: (n,) float64; density is the share of tau_i's elements kept.
        thin: "magnitude" keeps the largest of each tensor, "random" draws them.
        rescale: divide what a random mask kept by its density, so the mean stays.
        elect: drop the elements whose sign is not that of the weighted sum.
        normalize: divide by the sum of |weight| of the elements that are left.
        scale: multiplier of the merged task vector (lambda).
    """

    weight: np.ndarray
    density: np.ndarray
    thin: str
    rescale: bool = False
    elect: bool = False
    normalize: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Operator:
    """A merge method: its function, and what the signature and the decorator say of it."""

    name: str
    family: str  # "linear" | "masked"
    function: Callable
    parameters: tuple[Parameter, ...]
    options: dict[str, bool]  # name -> default
    needs_base: bool
    needs_gram: bool
    draws: bool
    models: int | None  # the exact number of models, where it is fixed
    paper: str

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    @property
    def parameter(self) -> dict[str, Parameter]:
        return {p.name: p for p in self.parameters}


OPERATORS = Registry("evomerge.operators", "merge method")


def linear_method(*, paper: str, base: bool = False, models: int | None = None) -> Callable:
    """Register a method of the linear family.

    The function returns float64 coefficients, (models,), or (1 + models,) with the base's
    first if it needs one. `gram` is the float64 matrix of inner products of the same
    sources' tensors, in the same order.
    """
    return _decorator("linear", paper, base, models, draws=False)


def masked_method(*, paper: str, draws: bool = False) -> Callable:
    """Register a method of the masked family; the function returns a `Masked`."""
    return _decorator("masked", paper, True, None, draws)


def _decorator(family: str, paper: str, base: bool, models: int | None, draws: bool) -> Callable:
    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function, eval_str=True).parameters
        parameters, options = [], {}
        for p in signature.values():
            if p.kind is not p.KEYWORD_ONLY:
                continue
            if p.annotation is bool:
                options[p.name] = p.default
                continue
            axis = typing.get_args(p.annotation)[1]
            parameters.append(Parameter(p.name, axis, None if p.default is p.empty else p.default))
        name = function.__name__
        OPERATORS.add(
            name,
            Operator(
                name,
                family,
                function,
                tuple(parameters),
                options,
                base,
                "gram" in signature,
                draws,
                models,
                paper,
            ),
        )
        return function

    return decorate
