"""What can be named in a campaign file, read off the registries and their sections.

`evomerge list`, and the generated parts of the guides in docs/, come from here.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from evomerge.config.parts import (
    BudgetSection,
    SourcesSection,
    StageBudgetSection,
    StageSection,
    WorkersSection,
)
from evomerge.config.schema import CampaignPlan
from evomerge.learning.learners import LEARNERS
from evomerge.merging.methods import METHODS, Axis, MergeMethod
from evomerge.registry import Registry
from evomerge.scoring.items import LastSection, TestSplitSection
from evomerge.scoring.kinds import FITNESSES
from evomerge.search.axes import AxisSection
from evomerge.search.controllers import CONTROLLERS
from evomerge.search.group_bounds import BoundSection
from evomerge.search.spaces import SPACES
from evomerge.search.spaces.routing import GainSection
from evomerge.section_types import rows_of
from evomerge.sections import Section
from evomerge.tracking import TRACKERS


class Field(TypedDict):
    """One option of something that can be named."""

    name: str
    kind: str
    unit: str
    default: str | None
    description: str


class Entry(TypedDict):
    """One thing that can be named in a campaign file.

    Attributes:
        name: as the file has it.
        summary: what it does, in a line.
        needs: what it asks of the sources, "" for nothing.
        paper: where it is described, "" where it is no method of a paper.
        package: the plug-in that it is of, with its version; "" for our own.
        fields: its options.
    """

    name: str
    summary: str
    needs: str
    paper: str
    package: str
    fields: list[Field]


def listing(what: str | None = None) -> dict[str, list[Entry]]:
    """Return the entries of all that can be named, methods and the rest, or of one kind.

    >>> [entry["name"] for entry in listing("fitness")["fitness"]][:2]
    ['agreement', 'cost']
    """
    every: dict[str, Callable[[], list[Entry]]] = {
        "methods": _methods,
        "spaces": _spaces,
        "controllers": _controllers,
        "fitness": _fitness,
        "learners": _learners,
        "trackers": _trackers,
    }
    return {name: make() for name, make in every.items() if what in (None, name)}


def _methods() -> list[Entry]:
    return [_method(method) for method in METHODS.all().values()]


def _method(method: MergeMethod) -> Entry:
    fields: list[Field] = []
    for parameter in method.parameters:
        kind = _range_text(parameter.axis)
        if parameter.axis.per_model:
            kind += ", one for each model"
        default = None if parameter.default is None else f"{float(parameter.default):g}"
        fields.append(_field(f"axes.{parameter.name}", kind, default, parameter.description))
    for name, value in method.options.items():
        axis = method.ranges.get(name)
        kind = "true or false" if axis is None else _range_text(axis)
        default = str(value).lower() if isinstance(value, bool) else f"{value:g}"
        fields.append(_field(f"options.{name}", kind, default, method.option_descriptions[name]))
    needs = [f"{method.models} models"] if method.models else []
    if method.family == "factored":
        needs.append("a base and LoRA adapters of it")
    elif method.needs_base:
        needs.append("a base")
    elif method.takes_base:
        needs.append("a base for task vectors, or none")
    return Entry(
        name=method.name,
        summary=method.summary,
        needs=" and ".join(needs),
        paper=method.paper,
        package=_package(METHODS, method.name),
        fields=fields,
    )


def _field(name: str, kind: str, default: str | None, description: str) -> Field:
    return Field(name=name, kind=kind, unit="", default=default, description=description)


def _range_text(axis: Axis) -> str:
    if math.isfinite(axis.low) and math.isfinite(axis.high):
        return f"a number from {axis.low:g} to {axis.high:g}"
    return f"a number of at least {axis.low:g}" if math.isfinite(axis.low) else "a number"


def _spaces() -> list[Entry]:
    return [_registered(SPACES, name, cls, cls.section) for name, cls in SPACES.all().items()]


def _controllers() -> list[Entry]:
    return [_registered(CONTROLLERS, name, c, c.section) for name, c in CONTROLLERS.all().items()]


def _fitness() -> list[Entry]:
    every = FITNESSES.all().items()
    return [_registered(FITNESSES, name, kind.section, kind.section) for name, kind in every]


def _learners() -> list[Entry]:
    return [_registered(LEARNERS, name, k.learn, k.section) for name, k in LEARNERS.all().items()]


def _trackers() -> list[Entry]:
    return [_registered(TRACKERS, name, cls, cls.section) for name, cls in TRACKERS.all().items()]


def _fields(section: type[Section]) -> list[Field]:
    fields = []
    for name, kind, unit, default, description in rows_of(section):
        field = Field(name=name, kind=kind, unit=unit, default=default, description=description)
        fields.append(field)
    return fields


def _registered(
    registry: Registry[Any], name: str, thing: Callable[..., Any], section: type[Section]
) -> Entry:
    summary = (inspect.getdoc(thing) or "").split("\n")[0]
    package = _package(registry, name)
    return Entry(
        name=name, summary=summary, needs="", paper="", package=package, fields=_fields(section)
    )


def _package(registry: Registry[Any], name: str) -> str:
    plugin = registry.plugin(name)
    return str(plugin) if plugin else ""


# --- the guides ------------------------------------------------------------------------------


def reference() -> str:
    """Return the reference of the campaign file, in Markdown.

    >>> reference().startswith("### The file")
    True
    """
    parts: list[tuple[str, str, type[Section]]] = [
        ("The file", "", CampaignPlan),
        ("sources", "", SourcesSection),
        ("budget", "", BudgetSection),
        ("workers", "", WorkersSection),
        ("stages", "Each entry.", StageSection),
        ("stages: budget", "", StageBudgetSection),
        *((f"fitness: {{{key}: ...}}", "", k.section) for key, k in FITNESSES.all().items()),
        ("heldout: {last: ...}", "", LastSection),
        ("heldout: {split: test}", "", TestSplitSection),
    ]
    for name, space in SPACES.all().items():
        parts.append((f"space: {{kind: {name}}}", _summary_of(space), space.section))
        if name == "parameters":
            parts.append(("space: an entry of axes", "", AxisSection))
            parts.append(("space: a range in groups", "", BoundSection))
        if name == "routing":
            parts.append(("space: gain", "", GainSection))
    for name, controller in CONTROLLERS.all().items():
        title = f"controller: {{kind: {name}}}"
        parts.append((title, _summary_of(controller), controller.section))
    for name, kind in LEARNERS.all().items():
        parts.append((f"learned: {{kind: {name}}}", _summary_of(kind.learn), kind.section))
    for name, tracker in TRACKERS.all().items():
        parts.append((f"track: {{kind: {name}}}", _summary_of(tracker), tracker.section))
    blocks = []
    for title, text, section in parts:
        rows = _fields(section)
        table = _table(rows) if rows else "No options."
        blocks.append("\n\n".join(part for part in (f"### {title}", text, table) if part))
    return "\n\n".join(blocks)


def methods_table() -> str:
    """Return the merge methods with their parameters and options, in Markdown.

    >>> "### ties" in methods_table()
    True
    """
    blocks = []
    for entry in _methods():
        needs = f"Needs {entry['needs']}. " if entry["needs"] else ""
        text = f"{entry['summary']} {needs}[Source]({entry['paper']})."
        blocks.append(f"### {entry['name']}\n\n{text}\n\n{_table(entry['fields'])}")
    return "\n\n".join(blocks)


def controllers_table() -> str:
    """Return the controllers with their options, in Markdown.

    >>> "### cmaes" in controllers_table()
    True
    """
    blocks = []
    for entry in _controllers():
        table = _table(entry["fields"]) if entry["fields"] else "No options."
        blocks.append(f"### {entry['name']}\n\n{entry['summary']}\n\n{table}")
    return "\n\n".join(blocks)


def _summary_of(thing: Callable[..., Any]) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _table(fields: Iterable[Mapping[str, Any]]) -> str:
    """Return fields as a Markdown table."""
    lines = ["| key | what it is | value | default |", "|---|---|---|---|"]
    for field in fields:
        unit = f" ({field['unit']})" if field["unit"] else ""
        default = "required" if field["default"] is None else f"`{field['default']}`"
        cells: Sequence[str] = (
            f"`{field['name']}`",
            field["description"],
            f"{field['kind']}{unit}",
            default,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
