"""What a section's field may be, read off its annotation, and said to people."""

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union

import annotated_types as bounds
import yaml
from pydantic import BaseModel, GetCoreSchemaHandler, Tag
from pydantic.fields import FieldInfo
from pydantic_core import core_schema


class Expected:
    """An annotation for values of several forms: what a fault says that the value is not.

    >>> from evomerge.sections import Number, parse
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


def declared_kind(field: FieldInfo) -> Any:
    """Return a field's annotation with its metadata put back.

    >>> from evomerge.sections import Whole, Section, option
    >>> class Budget(Section):
    ...     evaluations: Whole = option("proposals", ge=1)
    >>> kind_text(declared_kind(Budget.model_fields["evaluations"]))
    'a whole number of at least 1'
    """
    kind: Any = field.annotation
    metadata = [m for m in (*field.metadata, field.discriminator) if m is not None]
    for entry in metadata:
        kind = Annotated[kind, entry]
    return kind


def split_kind(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what an annotation annotates, and its metadata.

    >>> split_kind(Annotated[int, "seconds"])
    (<class 'int'>, ('seconds',))
    """
    if typing.get_origin(kind) is Annotated:
        inner, *metadata = typing.get_args(kind)
        bare, more = split_kind(inner)
        return bare, (*more, *metadata)
    return kind, ()


def bare_kind(kind: Any) -> Any:
    """Return what an annotation annotates, of an optional one what is there besides None.

    >>> bare_kind(Annotated[int, "seconds"] | None)
    <class 'int'>
    """
    bare, _ = split_kind(kind)
    if typing.get_origin(bare) in (Union, types.UnionType):
        rest = [a for a in typing.get_args(bare) if a is not type(None)]
        if len(rest) == 1:
            return bare_kind(rest[0])
    return bare


def members_of(kind: Any) -> dict[str, Any]:
    """Return tag -> member of a union of sections; empty of anything else.

    >>> members_of(int | str)
    {}
    """
    bare = bare_kind(kind)
    if typing.get_origin(bare) not in (Union, types.UnionType):
        return {}
    found: dict[str, Any] = {}
    for member in typing.get_args(bare):
        section, metadata = split_kind(member)
        tags = [m.tag for m in metadata if isinstance(m, Tag)]
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        if not tags and is_section and "kind" in section.model_fields:
            tags = list(typing.get_args(section.model_fields["kind"].annotation))
        found |= dict.fromkeys(tags, member)
    return found


class FieldRow(NamedTuple):
    """One field of a section, as people read of it; `default` is None where it is required.

    >>> FieldRow("seed", "a whole number", "", "0", "of all draws").default
    '0'
    """

    name: str
    kind: str
    unit: str
    default: str | None
    description: str


def rows_of(section: type[BaseModel]) -> list[FieldRow]:
    """Return a section's fields in their order, without its `kind`.

    >>> from evomerge.sections import Number, Section, option
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
            kind_text(declared_kind(field)),
            str(extra.get("unit", "")),
            default,
            field.description or "",
        )
        rows.append(row)
    return rows


def kind_text(kind: Any) -> str:
    """Say what a value may be, e.g. `a whole number of at least 1, or null`.

    >>> from pydantic import Field
    >>> kind_text(Annotated[int, Field(ge=1)] | None)
    'a whole number of at least 1, or null'
    >>> kind_text(Literal["lerp", "slerp"])
    'lerp or slerp'
    """
    bare, metadata = split_kind(kind)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    for entry in metadata:
        if isinstance(entry, Expected):
            return entry.forms
    if bare is None or bare is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        if members := members_of(kind):
            names = [tag.strip("<>") for tag in members]
            return f"a mapping ({', '.join(names)})"
        members_said = []
        for argument in arguments:
            if argument is not type(None):
                inner = Annotated[argument, *metadata] if metadata else argument
                members_said.append(kind_text(inner))
        return " or ".join(members_said) + (", or null" if type(None) in arguments else "")
    if origin is Literal:
        *most, last = map(str, arguments)
        return f"{', '.join(most)} or {last}" if most else last
    if origin in (list, tuple):
        inner = kind_text(arguments[0]) if arguments else ""
        return f"a list of {_plural(inner)}" if inner else "a list"
    if origin in (dict, Mapping) or (isinstance(bare, type) and issubclass(bare, BaseModel)):
        return "a mapping"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return " ".join([words.get(bare, ""), *_bounds_text(metadata)]).strip()


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
