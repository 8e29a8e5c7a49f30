"""pydantic's errors in our words: where it is, what is wrong, what to write instead."""

import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from evomerge.errors import Fault, nearest
from evomerge.section_types import bare_kind, declared_kind, kind_text, members_of

_WRONG = {
    "missing": "is missing",
    "string_type": "is not a text",
    "string_too_short": "is empty",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is not true or false",
    "dict_type": "is not a mapping",
    "list_type": "is not a list",
    "tuple_type": "is not a list",
    "model_type": "is not a mapping",
    "model_attributes_type": "is not a mapping",
    "finite_number": "is not a finite number",
    "none_required": "has to be left out",
    "too_short": "is empty",
    "literal_error": "is none of what it may be",
    "string_pattern_mismatch": "has characters other than letters, digits, '.', '-' and '_'",
    **dict.fromkeys(
        ("greater_than", "greater_than_equal", "less_than", "less_than_equal"), "is out of range"
    ),
}


def faults_of(error: ErrorDetails, kind: Any) -> list[Fault]:
    """Return what one of pydantic's errors says, as faults.

    Args:
        error: of `ValidationError.errors()`.
        kind: what was validated against.

    >>> from pydantic import TypeAdapter, ValidationError
    >>> try:
    ...     TypeAdapter(list[int]).validate_python(["x"], strict=True)
    ... except ValidationError as error:
    ...     print(faults_of(error.errors()[0], list[int])[0])
    0: 'x' is not a whole number; write a whole number
    """
    place = _place(kind, error["loc"])
    key = ".".join(map(str, place.path))
    given, context = error["input"], error.get("ctx", {})
    if error["type"] == "faults":
        return [fault.under(key) for fault in context["faults"]]
    if error["type"] == "extra_forbidden":
        name = str(place.path[-1])
        return [Fault(key, f"unknown key '{name}'", nearest(name, place.known))]
    if error["type"] == "invalid_key":
        wrong = f"the key {_plain(given)} is not a text"
        mend = "mend the YAML there; numbers are written without commas"
        return [Fault(".".join(map(str, place.path[:-1])), wrong, mend)]
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return [_kind_fault(place, key, given, context.get("tag"))]
    if error["type"] == "expected":
        return [Fault(key, f"{_plain(given)} is not {error['msg']}")]
    mend = place.mend
    wrong = _WRONG.get(error["type"], error["msg"][:1].lower() + error["msg"][1:])
    if error["type"] == "too_short" and context["min_length"] > 1:
        wrong = f"has fewer than {context['min_length']} entries"
    if wrong == "is out of range":
        mend = f"write {kind_text(place.kind)}"
    if error["type"] != "missing" and isinstance(given, str | int | float | None):
        wrong = f"{_plain(given)} {wrong}"
    return [Fault(key, wrong, mend)]


def _kind_fault(place: "_Place", key: str, given: Any, tag: str | None) -> Fault:
    """Return why a mapping is none of a union's sections."""
    known = sorted(members_of(place.kind))
    if not isinstance(given, Mapping | BaseModel):
        return Fault(key, f"{_plain(given)} is not a mapping", place.mend)
    if tag is not None:
        # an entry of a list has the list's name
        noun = next((step for step in reversed(place.path) if isinstance(step, str)), "kind")
        return Fault("kind", f"there is no {noun} '{tag}'", nearest(tag, known)).under(key)
    wrong = "is missing"
    if isinstance(given, Mapping) and "kind" in given:
        wrong = f"{_plain(given['kind'])} is not a text"
    return Fault("kind", wrong, nearest("", known)).under(key)


def _plain(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "null" if value is None else repr(value)[:80]


class _Place(NamedTuple):
    """Where an error is: the path without pydantic's tags, and what is known there."""

    path: tuple[str | int, ...]
    kind: Any  # what is declared there
    known: tuple[str, ...]  # keys of the section that the last step is in
    mend: str


def _place(kind: Any, location: Sequence[str | int]) -> _Place:
    """Follow an error's location through the types, leaving out the tags of unions."""
    path: list[str | int] = []
    known: tuple[str, ...] = ()
    field: FieldInfo | None = None
    for step in location:
        if step == "[key]":
            continue
        kind = bare_kind(kind)
        if members := members_of(kind):
            kind = members.get(str(step), Any)
            continue
        if str(step).startswith("<"):  # the tag of a union of one
            continue
        path.append(step)
        field = None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            known = tuple(kind.model_fields)
            field = kind.model_fields.get(str(step))
            kind = declared_kind(field) if field else Any
        else:
            arguments = typing.get_args(kind)
            kind = arguments[-1] if typing.get_origin(kind) in (dict, Mapping) else (
                arguments[0] if arguments else Any)  # fmt: skip
    return _Place(tuple(path), kind, known, _mend(path, kind, field))


def _mend(path: Sequence[str | int], kind: Any, field: FieldInfo | None) -> str:
    if field is not None and field.examples:
        example = yaml.safe_dump(
            {str(path[-1]): field.examples[0]}, default_flow_style=True, width=1000, sort_keys=False
        )
        return f"write e.g. {example.strip()[1:-1]}"
    if bare_kind(kind) is type(None):
        why = f": {field.description}" if field and field.description else ""
        return f"leave it out{why}"
    said = kind_text(kind)
    return f"write {said}" if said else "see docs/campaign-file.md"
