"""What can be named in a campaign file, read off the registries."""

import inspect
from typing import Any

from evomerge.merging.methods import OPERATORS, Operator
from evomerge.registry import annotation_text, option_parameters
from evomerge.search.controllers import CONTROLLERS, RESERVED
from evomerge.search.spaces import SPACES


def listing(what: str | None = None) -> dict[str, list[dict]]:
    """Return the entries of `methods`, `spaces`, `controllers` and `fitness`, or of one of them."""
    every = {
        "methods": _methods,
        "spaces": _spaces,
        "controllers": _controllers,
        "fitness": _fitness,
    }
    return {name: make() for name, make in every.items() if what in (None, name)}


def _methods() -> list[dict]:
    return [_method(operator) for operator in OPERATORS.all().values()]


def _method(operator: Operator) -> dict:
    axes = {
        p.name: {
            "per_model": p.axis.per_model,
            "low": _bound(p.axis.low),
            "high": _bound(p.axis.high),
            "default": p.default,
        }
        for p in operator.parameters
    }
    return {
        "name": operator.name,
        "summary": operator.summary,
        "axes": axes,
        "options": operator.options,
        "needs_base": operator.needs_base,
        "takes_base": operator.takes_base,
        "models": operator.models,
        "paper": operator.paper,
    }


def _bound(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _controllers() -> list[dict]:
    return [
        {"name": name, "summary": _first_line(cls), "options": _options(cls.__init__)}
        for name, cls in CONTROLLERS.all().items()
    ]


def _spaces() -> list[dict]:
    return [
        {"name": name, "summary": _first_line(cls), "keys": cls.keys[1:], "breeds": cls.breeds}
        for name, cls in SPACES.all().items()
    ]


def _options(function: Any) -> dict[str, dict]:
    return {
        name: {"type": annotation_text(p.annotation), "default": p.default}
        for name, p in option_parameters(function, RESERVED).items()
    }


def _fitness() -> list[dict]:
    return [
        {
            "name": "task",
            "summary": "An lm-eval task by name or by the path of its YAML, with a metric that"
            " lm-eval averages over items.",
        },
        {
            "name": "function",
            "summary": "A Python file with items() and score(model, tokenizer, items), one float"
            " per item.",
        },
        {
            "name": "cost",
            "summary": "What a candidate costs to run, less is better: hops, parameters or"
            " seconds_per_token.",
        },
    ]


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]
