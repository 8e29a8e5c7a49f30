"""Sections of the files that users write, as pydantic models; and pydantic's errors in our words.

A section's fields are declared once, with description, unit, bounds and an example: what checks a
file, `evomerge list`, the reference in docs/ and `evomerge schema` are all read off them.
"""

import contextlib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, Union

import annotated_types as bounds
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from evomerge.errors import BadInput, Fault, nearest

Text = Annotated[str, Field(min_length=1, strict=True)]
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]

_S = TypeVar("_S")


class Section(BaseModel):
    """A mapping in a user's file: frozen, its keys and their kinds known.

    >>> class Budget(Section):
    ...     evaluations: Whole = option("proposals of the controller", ge=1, example=300)
    >>> parse(Budget, {"evaluations": 12})
    Budget(evaluations=12)
    >>> parse(Budget, {"evaluation": 12.5})
    Traceback (most recent call last):
    evomerge.errors.BadInput: evaluations: is missing; write e.g. evaluations: 300
    evaluation: unknown key 'evaluation'; did you mean 'evaluations'?
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        """Return what is wrong between fields that are right by themselves.

        Args:
            fields: name -> value, defaults filled in; those that are wrong are missing.
        """
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Hold the fields against one another, those too that stand beside a wrong one."""
        try:
            section = handler(data)
        except ValidationError as error:
            # pydantic stops before it compares fields; its errors and ours have to come together
            more = tuple(cls.cross_faults(good_fields(cls, data)))
            known = []
            for e in error.errors():
                context = {**e.get("ctx", {}), "said": e["msg"]}
                again = PydanticCustomError(e["type"], "{said}", context)
                known.append(_line(again, e["loc"], e["input"]))
            if more:
                known.append(_line(_custom(more), (), data))
            raise ValidationError.from_exception_data(cls.__name__, known) from None
        if isinstance(data, cls):  # it was checked when it was made
            return section
        refuse(cls.cross_faults({name: getattr(section, name) for name in cls.model_fields}))
        return section


def good_fields(section: type[Section], data: Any) -> dict[str, Any]:
    """Return the fields of a mapping that are right by themselves, with the defaults of others.

    Of a list the entries that are right, None in the place of others.

    >>> class Limits(Section):
    ...     hours: Number
    ...     counts: list[Whole]
    ...     seed: Whole = 0
    >>> good_fields(Limits, {"hours": "long", "counts": [1, "two"], "strange": 1})
    {'counts': [1, None], 'seed': 0}
    """
    fields: dict[str, Any] = {}
    given = data if isinstance(data, Mapping) else {}
    for name, field in section.model_fields.items():
        if name not in given:
            if not field.is_required():
                fields[name] = field.get_default(call_default_factory=True)
            continue
        kind, value = _declared(field), given[name]
        with contextlib.suppress(ValidationError):
            fields[name] = TypeAdapter(kind).validate_python(value)
            continue
        if typing.get_origin(_bare(kind)) is list and isinstance(value, list):
            entry = typing.get_args(_bare(kind))[0]
            fields[name] = [_right(entry, item) for item in value]
    return fields


def _right(kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


def _custom(faults: tuple[Fault, ...]) -> PydanticCustomError:
    return PydanticCustomError("faults", "has faults", {"faults": faults})


def _line(
    kind: PydanticCustomError, location: tuple[str | int, ...], given: Any
) -> InitErrorDetails:
    return InitErrorDetails(type=kind, loc=location, input=given)


def option(
    description: str,
    default: Any = ...,
    *,
    unit: str = "",
    example: Any = None,
    factory: Callable[[], Any] | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    pattern: str | None = None,
    least: int | None = None,
    may_change: bool = False,
) -> Any:
    """Declare a field of a section.

    Args:
        description: what it is, for whoever writes the file.
        default: its value where it is left out; required if there is none.
        unit: of a number, e.g. "seconds".
        example: what a fault proposes to write.
        factory: makes the default, where that is a list or a mapping.
        ge, gt, le, lt: bounds of a number.
        pattern: a regular expression of a text.
        least: the least length of a list or mapping.
        may_change: whether another value may be given when a campaign is continued.

    >>> option("seconds for one candidate", None, unit="s", gt=0).description
    'seconds for one candidate'
    """
    extra: dict[str, Any] = {"unit": unit} if unit else {}
    if may_change:
        extra["may_change"] = True
    made: dict[str, Any] = {"default_factory": factory} if factory else {"default": default}
    return Field(
        **made,
        description=description,
        examples=None if example is None else [example],
        json_schema_extra=extra or None,
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        pattern=pattern,
        min_length=least,
    )


class Expected:
    """An annotation for values of several forms: what a fault says that the value is not.

    >>> parse(Annotated[Number | list[Number], Expected("a number or a list of them")], "x")
    Traceback (most recent call last):
    evomerge.errors.BadInput: 'x' is not a number or a list of them
    """

    def __init__(self, forms: str):
        self.forms = forms

    def __get_pydantic_core_schema__(
        self, kind: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.custom_error_schema(
            handler(kind), custom_error_type="expected", custom_error_message=self.forms
        )


def one_of(members: Mapping[str, Any], choose: Callable[[Any], str]) -> Any:
    """Return a union of sections, or of other types, whose raw value tells which one it is.

    Args:
        members: tag -> section.
        choose: raw value -> tag.

    >>> class Last(Section):
    ...     last: Number
    >>> union = one_of({"last": Last}, lambda value: "last")
    >>> parse(union, {"last": 0.5})
    Last(last=0.5)
    """
    tagged = [Annotated[member, Tag(f"<{tag}>")] for tag, member in members.items()]

    def chosen(value: Any) -> str:
        if isinstance(value, Section):
            return next(f"<{tag}>" for tag, member in members.items() if type(value) is member)
        return f"<{choose(value)}>"

    return Annotated[Union[tuple(tagged)], Discriminator(chosen)]  # noqa: UP007


def refuse(faults: Iterable[Fault]) -> None:
    """Raise what a pydantic validator raises, with faults whose keys are relative to its section.

    >>> refuse([])
    """
    found = tuple(faults)
    if found:
        raise _custom(found)


def parse(kind: type[_S], data: Any) -> _S:
    """Return raw data as what `kind` says: a section, or any type that pydantic knows.

    Raises:
        BadInput: with every fault, keys relative to `data`.
    """
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        found = [fault for e in error.errors() for fault in _faults(e, kind)]
        raise BadInput(*found) from None


@functools.lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # which takes milliseconds to make


# --- pydantic's errors in our words ----------------------------------------------------------

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
    "greater_than": "is out of range",
    "greater_than_equal": "is out of range",
    "less_than": "is out of range",
    "less_than_equal": "is out of range",
}


def _faults(error: ErrorDetails, kind: Any) -> list[Fault]:
    """Return what one of pydantic's errors says, as faults."""
    place = _place(kind, error["loc"])
    key = ".".join(map(str, place.path))
    given, context = error["input"], error.get("ctx", {})
    if error["type"] == "faults":
        return [fault.under(key) for fault in context["faults"]]
    if error["type"] == "extra_forbidden":
        name = str(place.path[-1])
        return [Fault(key, f"unknown key '{name}'", nearest(name, place.known))]
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag, known = context.get("tag"), _tags(place.kind)
        if tag is None:
            said = given.get("kind", ...) if isinstance(given, Mapping) else ...
            wrong = "is missing" if said is ... else f"{_plain(said)} is not a text"
        else:
            wrong = f"there is no '{tag}'"
        if not isinstance(given, Mapping | Section):
            return [Fault(key, f"{_plain(given)} is not a mapping", place.mend)]
        return [Fault("kind", wrong, nearest(str(tag), known)).under(key)]
    if error["type"] == "expected":
        return [Fault(key, f"{_plain(given)} is not {error['msg']}")]
    wrong = _WRONG.get(error["type"])
    if wrong is None:
        wrong = error["msg"][:1].lower() + error["msg"][1:]
    mend = place.mend
    if wrong == "is out of range":
        wrong, mend = f"{_plain(given)} is out of range", f"write {kind_text(place.kind)}"
    elif error["type"] != "missing" and isinstance(given, str | int | float | None):
        wrong = f"{_plain(given)} {wrong}"
    return [Fault(key, wrong, mend)]


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
        kind = _bare(kind)
        if members := _members(kind):
            kind = members.get(str(step), Any)
            continue
        if str(step).startswith("<"):  # the tag of a union of one
            continue
        path.append(step)
        field = None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            known = tuple(kind.model_fields)
            field = kind.model_fields.get(str(step))
            kind = _declared(field) if field else Any
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
    if _bare(kind) is type(None):
        return "leave it out"
    said = kind_text(kind)
    return f"write {said}" if said else "see docs/campaign-file.md"


def _declared(field: FieldInfo) -> Any:
    """Return a field's annotation with its metadata put back."""
    kind: Any = field.annotation
    metadata = [m for m in (*field.metadata, field.discriminator) if m is not None]
    for entry in metadata:
        kind = Annotated[kind, entry]
    return kind


def _split(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what an annotation annotates, and its metadata."""
    if typing.get_origin(kind) is Annotated:
        inner, *metadata = typing.get_args(kind)
        bare, more = _split(inner)
        return bare, (*more, *metadata)
    return kind, ()


def _bare(kind: Any) -> Any:
    """Return what an annotation annotates, of an optional one what is there besides None."""
    bare, _ = _split(kind)
    if typing.get_origin(bare) in (Union, types.UnionType):
        rest = [a for a in typing.get_args(bare) if a is not type(None)]
        if len(rest) == 1:
            return _bare(rest[0])
    return bare


def _members(kind: Any) -> dict[str, Any]:
    """Return tag -> member of a union of sections; empty of anything else."""
    bare = _bare(kind)
    if typing.get_origin(bare) not in (Union, types.UnionType):
        return {}
    found: dict[str, Any] = {}
    for member in typing.get_args(bare):
        section, metadata = _split(member)
        tags = [m.tag for m in metadata if isinstance(m, Tag)]
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        if not tags and is_section and "kind" in section.model_fields:
            tags = list(typing.get_args(section.model_fields["kind"].annotation))
        found |= dict.fromkeys(tags, member)
    return found


def _tags(kind: Any) -> list[str]:
    return sorted(_members(kind))


# --- what a field may be, said to people -----------------------------------------------------


class FieldRow(NamedTuple):
    """One field of a section, as people read of it; `default` is None where it is required."""

    name: str
    kind: str
    unit: str
    default: str | None
    description: str


def rows_of(section: type[Section]) -> list[FieldRow]:
    """Return a section's fields in their order, without its `kind`.

    >>> class Budget(Section):
    ...     hours: Number | None = option("wall time over all starts", None, unit="hours", gt=0)
    >>> rows_of(Budget)[0]
    FieldRow(name='hours', kind='a number above 0, or null', unit='hours', default='null', \
description='wall time over all starts')
    """
    rows = []
    for name, field in section.model_fields.items():
        if name == "kind":
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = None
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            plain = value.model_dump() if isinstance(value, BaseModel) else value
            text = yaml.safe_dump(plain, default_flow_style=True, width=1000, sort_keys=False)
            default = text.removesuffix("\n").removesuffix("\n...")
        row = FieldRow(
            name,
            kind_text(_declared(field)),
            str(extra.get("unit", "")),
            default,
            field.description or "",
        )
        rows.append(row)
    return rows


def kind_text(kind: Any) -> str:
    """Say what a value may be, e.g. `a whole number of at least 1, or null`.

    >>> kind_text(Annotated[Whole, Field(ge=1)] | None)
    'a whole number of at least 1, or null'
    >>> kind_text(Literal["lerp", "slerp"])
    'lerp or slerp'
    """
    bare, metadata = _split(kind)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    for entry in metadata:
        if isinstance(entry, Expected):
            return entry.forms
    if origin in (Union, types.UnionType):
        if members := _members(kind):
            names = [tag.strip("<>") for tag in members]
            return f"a mapping ({', '.join(names)})"
        said = [kind_text(Annotated[a, *metadata] if metadata else a)
                for a in arguments if a is not type(None)]  # fmt: skip
        return " or ".join(said) + (", or null" if type(None) in arguments else "")
    if origin is Literal:
        *most, last = map(str, arguments)
        return f"{', '.join(most)} or {last}" if most else last
    if origin in (list, tuple):
        inner = kind_text(arguments[0]) if arguments else ""
        return f"a list of {_plural(inner)}" if inner else "a list"
    if origin in (dict, Mapping) or (isinstance(bare, type) and issubclass(bare, BaseModel)):
        return "a mapping"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return " ".join([names.get(bare, ""), *_bounds_text(metadata)]).strip()


def _plural(said: str) -> str:
    one, _, rest = said.partition(" ")
    return f"{rest}s" if one in ("a", "an") and " " not in rest else said


def _bounds_text(metadata: Iterable[Any]) -> list[str]:
    """Say the bounds of a number, whether pydantic took a `Field` apart already or not."""
    flat = [m for entry in metadata for m in (getattr(entry, "metadata", None) or [entry])]
    said = []
    for entry in flat:
        if isinstance(entry, bounds.Ge):
            said.append(f"of at least {entry.ge:g}")
        elif isinstance(entry, bounds.Gt):
            said.append(f"above {entry.gt:g}")
        elif isinstance(entry, bounds.Le):
            said.append(f"of at most {entry.le:g}")
        elif isinstance(entry, bounds.Lt):
            said.append(f"below {entry.lt:g}")
    return [" and ".join(said).replace("and of", "and")] if said else []
