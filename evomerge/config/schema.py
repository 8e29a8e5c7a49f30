"""The form of a campaign file: which keys there are, and what kind of value each has."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from evomerge.dtypes import DTYPES
from evomerge.errors import Fault, nearest
from evomerge.recipes.soups import SOUPS

Text = Annotated[str, Field(min_length=1, strict=True)]

Whole = Annotated[int, Field(strict=True)]

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]

Flag = Annotated[bool, Field(strict=True)]

Cost = Literal["hops", "parameters", "seconds_per_token"]

Share = Annotated[Number, Field(ge=0.0, lt=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _with_adapter(value: Any) -> Any:
    """Write {model, adapter} as `model+adapter`, which recipes and mergekit know."""
    if not isinstance(value, Mapping):
        return value
    if "factory" in value:
        return _made_by(value)
    texts = [value.get("model"), value.get("adapter")]
    if len(value) != 2 or not all(isinstance(t, str) and t for t in texts):
        raise ValueError("a model with a LoRA adapter is {model: ..., adapter: ...}")
    return "+".join(texts)


def _made_by(value: Mapping) -> str:
    """Write {factory, weights or seed} as `factory@weights`, see `factories`."""
    seed, weights = value.get("seed"), value.get("weights")
    whole = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    named = isinstance(value["factory"], str) and ":" in value["factory"]
    file = isinstance(weights, str) and not weights.isdigit()
    given = whole if weights is None else seed is None and file
    if not named or not given or not set(value) <= {"factory", "seed", "weights"}:
        raise ValueError("a module is {factory: FILE.py:function, weights: FILE or seed: NUMBER}")
    return f"{value['factory']}@{seed if weights is None else weights}"


Model = Annotated[Text, BeforeValidator(_with_adapter)]


class SourcesPart(_Part):
    """`sources`."""

    base: Model | None = None
    models: dict[Text, Model] = Field(min_length=1)
    trust_remote_code: Flag = False


class FitnessPart(_Part):
    """An entry of `fitness`."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    task: Text | None = None
    metric: Text | None = None
    function: Text | None = None
    cost: Cost | None = None
    items: Annotated[Whole, Field(ge=1)] | None = None
    weight: Annotated[Number, Field(gt=0.0)] = 1.0
    direction: Literal["maximize", "minimize"] | None = None
    constraint: Text | None = None
    fewshot: Annotated[Whole, Field(ge=0)] | None = None
    generation: dict[str, Any] | None = None
    chat_template: Flag = False
    system: Text | None = None
    batch_size: Annotated[Whole, Field(ge=1)] | None = None


class _LastPart(_Part):
    last: Share


class _TestPart(_Part):
    split: Literal["test"]


class _BudgetPart(_Part):
    evaluations: Annotated[Whole, Field(ge=1)]
    hours: Annotated[Number, Field(gt=0.0)] | None = None


class _WorkersPart(_Part):
    pool: Literal["inline", "ray"] = "inline"
    count: Annotated[Whole, Field(ge=1)] = 1
    gpus_each: Annotated[Number, Field(ge=0.0)] = 0.0
    cpus_each: Annotated[Number, Field(gt=0.0)] | None = None
    threads: Annotated[Whole, Field(ge=1)] | None = None
    device: Text = "auto"
    timeout: Annotated[Number, Field(gt=0.0)] | None = None


class _StageBudgetPart(_Part):
    evaluations: Annotated[Whole, Field(ge=1)]
    hours: None = None


class _StagePart(_Part):
    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    space: dict[str, Any]
    controller: dict[str, Any] = Field(default_factory=lambda: {"kind": "cmaes"})
    budget: _StageBudgetPart


class CampaignPart(_Part):
    """A whole campaign file."""

    name: Text
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    sources: SourcesPart
    stages: list[_StagePart] = Field(default_factory=list)
    space: dict[str, Any] | None = None
    controller: dict[str, Any] | None = Field(default_factory=lambda: {"kind": "cmaes"})
    fitness: list[FitnessPart] = Field(min_length=1)
    compute_dtype: Literal[DTYPES] | None = None
    init: list[Text] = Field(default_factory=list)
    soups: list[Literal[SOUPS]] = Field(default_factory=list)
    start_from_soup: Flag = False
    heldout: Share | _LastPart | _TestPart = 0.5
    budget: _BudgetPart | None = None
    workers: _WorkersPart = Field(default_factory=_WorkersPart)
    finals: Annotated[Whole, Field(ge=0)] = 16
    allow_benchmarks: Flag = False


_SAID = {
    "missing": "is missing",
    "string_type": "is not a text",
    "string_too_short": "is empty",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is not true or false",
    "dict_type": "is not a mapping",
    "list_type": "is not a list",
    "model_type": "is not a mapping",
    "finite_number": "is not a finite number",
    "none_required": "is not supported here: stages are counted in evaluations",
    "string_pattern_mismatch": "has characters other than letters, digits, '.', '-' and '_'",
}


_SEE = "see 'A campaign file' in the README"

MENDS = {
    "space": "write e.g. space: {kind: routing}",
    "controller": "write e.g. controller: {kind: cmaes}",
    "budget": "write e.g. budget: {evaluations: 300}",
    "sources": "write e.g. sources: {base: MODEL, models: {ja: MODEL, maths: MODEL}}",
    "sources.models": "write a label and a model each, e.g. {ja: MODEL, maths: MODEL}",
    "fitness": "list what is scored, e.g. - {name: maths, task: gsm8k, metric: exact_match}",
    "soups": f"list some of {', '.join(SOUPS)}",
    "init": "list candidates of runs, e.g. [runs/NAME#front]",
}


def form_faults(error: ValidationError, data: Any, file: str) -> list[Fault]:
    """Return what pydantic found in a campaign's mapping, in our words."""
    faults = []
    for e in error.errors():
        path = [p for p in e["loc"] if p not in ("[key]",)]
        if path[:1] == ["heldout"]:
            mend = "write a share such as 0.5, {last: 0.2} or {split: test}"
            faults.append(Fault(file, "heldout", f"{data.get('heldout')!r} will not do", mend))
            continue
        key = ".".join(map(str, path))
        if e["type"] == "extra_forbidden":
            mend = nearest(str(path[-1]), _known_keys(path[:-1]))
            faults.append(Fault(file, key, f"unknown key '{path[-1]}'", mend))
            continue
        wrong = _SAID.get(e["type"], e["msg"][:1].lower() + e["msg"][1:])
        if e["type"] != "missing" and isinstance(e["input"], str | int | float | None):
            wrong = (
                f"{_plain(e['input'])} {wrong}"
                if e["type"] in _SAID
                else f"{_plain(e['input'])}: {wrong}"
            )
        faults.append(Fault(file, key, wrong, _mend(key, e["type"])))
    return faults


def _mend(key: str, kind: str) -> str:
    """Return what to write instead; pydantic's own words name what a literal may be."""
    if kind == "literal_error":
        return "write one of these"
    return "leave it out" if kind == "none_required" else MENDS.get(key, _SEE)


def _plain(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "null" if value is None else repr(value)


def _known_keys(path: Sequence[Any]) -> list[str]:
    model: Any = CampaignPart
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        arguments = getattr(annotation, "__args__", ())
        found = [
            a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, _Part)
        ]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)
