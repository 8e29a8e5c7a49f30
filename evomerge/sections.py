"""Sections of the files that users write, as pydantic models.

A section's fields are declared once, with description, unit, bounds and an example: what checks a
file, `evomerge list`, the reference in docs/ and `evomerge schema` are all read off them.
"""

import contextlib
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from evomerge.errors import BadInput, Fault
from evomerge.section_faults import faults_of
from evomerge.section_types import bare_kind, declared_kind

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
            is_mapping = isinstance(data, Mapping)  # else there are no fields to compare
            more = tuple(cls.cross_faults(good_fields(cls, data))) if is_mapping else ()
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
        kind, value = declared_kind(field), given[name]
        with contextlib.suppress(ValidationError):
            fields[name] = TypeAdapter(kind).validate_python(value)
            continue
        if typing.get_origin(bare_kind(kind)) is list and isinstance(value, list):
            entry = typing.get_args(bare_kind(kind))[0]
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

    >>> parse(list[Whole], [1, 2.5])
    Traceback (most recent call last):
    evomerge.errors.BadInput: 1: 2.5 is not a whole number; write a whole number
    """
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_validate(data)
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        found = [fault for e in error.errors() for fault in faults_of(e, kind)]
        raise BadInput(*found) from None


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}  # one takes milliseconds to make


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
