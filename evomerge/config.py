"""Campaign files: YAML in, a checked plan out, or every fault at once.

pydantic knows the form; what hangs on methods, controllers and spaces is asked of them.
Nothing is loaded here but this text: `check.py` goes on to the sources and the tasks.
"""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from evomerge import campaign_file
from evomerge.controllers import CONTROLLERS, RESERVED
from evomerge.errors import BadInput, Fault, nearest
from evomerge.recipe import DTYPES
from evomerge.registry import option_faults
from evomerge.soups import SOUPS
from evomerge.spaces import SPACES

# What may change when a campaign is continued; all else is the campaign.
MAY_CHANGE = ("budget", "workers", "finals")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Text = Annotated[str, Field(min_length=1, strict=True)]
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Share = Annotated[Number, Field(ge=0.0, lt=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _with_adapter(value: Any) -> Any:
    """Write {model, adapter} as `model+adapter`, which recipes and mergekit know."""
    if not isinstance(value, Mapping):
        return value
    texts = [value.get("model"), value.get("adapter")]
    if len(value) != 2 or not all(isinstance(t, str) and t for t in texts):
        raise ValueError("a model with a LoRA adapter is {model: ..., adapter: ...}")
    return "+".join(texts)


Model = Annotated[Text, BeforeValidator(_with_adapter)]


class _SourcesPart(_Part):
    base: Model | None = None
    models: dict[Text, Model] = Field(min_length=1)
    trust_remote_code: Flag = False


class _FitnessPart(_Part):
    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    task: Text | None = None
    metric: Text | None = None
    function: Text | None = None
    items: Annotated[Whole, Field(ge=1)] | None = None
    weight: Annotated[Number, Field(gt=0.0)] = 1.0
    direction: Literal["maximize", "minimize"] | None = None
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


class _CampaignPart(_Part):
    name: Text
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    sources: _SourcesPart
    space: dict[str, Any]
    controller: dict[str, Any] = Field(default_factory=lambda: {"kind": "cmaes"})
    fitness: list[_FitnessPart] = Field(min_length=1)
    compute_dtype: Literal[DTYPES] | None = None
    init: list[Text] = Field(default_factory=list)
    soups: list[Literal[SOUPS]] = Field(default_factory=list)
    start_from_soup: Flag = False
    heldout: Share | _LastPart | _TestPart = 0.5
    budget: _BudgetPart
    workers: _WorkersPart = Field(default_factory=_WorkersPart)
    finals: Annotated[Whole, Field(ge=0)] = 16
    allow_benchmarks: Flag = False


def load(path: Path | str, settings: Sequence[str] = ()) -> dict:
    """Read a campaign file and return its plan: plain data with every default written out.

    Args:
        path: the YAML file.
        settings: `a.b=YAML` overrides, in order.

    Raises:
        BadInput: with all faults of form, of the space, and of the controller.
    """
    return check_plan(campaign_file.read(path, settings), str(path))


def check_plan(data: Mapping[str, Any], file: str) -> dict:
    """Check a campaign's mapping and return it with every default written out."""
    faults: list[Fault] = []
    plan: dict = {}
    try:
        plan = _CampaignPart.model_validate(data).model_dump()
    except ValidationError as error:
        faults += _form_faults(error, data, file)
    name = data.get("name")
    if isinstance(name, str) and name and not _NAME.fullmatch(name):
        wrong = f"'{name}' is no plain name"
        mend = "use letters, digits, '.', '-' and '_': it names the folder under runs/"
        faults.append(Fault(file, "name", wrong, mend))
    models = _get(data, "sources", "models")
    for label in ("base", "uniform", *SOUPS):
        if isinstance(models, Mapping) and label in models:
            wrong = f"the label '{label}' is kept for a baseline"
            faults.append(Fault(file, f"sources.models.{label}", wrong, "rename the model"))
    if isinstance(models, Mapping) and models:
        faults += _space_faults(data.get("space"), models, _get(data, "sources", "base"), file)
    faults += _controller_faults(data.get("controller", {"kind": "cmaes"}), file)
    faults += _fitness_faults(data.get("fitness"), file)
    faults += _workers_faults(data.get("workers"), file)
    faults += _init_faults(data.get("init"), file)
    if "model_stock" in (data.get("soups") or ()) and not _get(data, "sources", "base"):
        faults.append(Fault(file, "soups", "model_stock needs a base", "write sources.base"))
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    return plan


def well_formed_parts(data: Mapping[str, Any]) -> tuple[dict, dict[int, dict]]:
    """Return the sources and the fitness entries, by index, that are right by themselves."""
    sources, entries = {"base": None, "models": {}, "trust_remote_code": False}, {}
    with contextlib.suppress(ValidationError):
        sources = _SourcesPart.model_validate(data.get("sources")).model_dump()
    listed = data.get("fitness")
    for index, entry in enumerate(listed if isinstance(listed, list) else []):
        with contextlib.suppress(ValidationError):
            spec = _FitnessPart.model_validate(entry).model_dump()
            if not _fitness_faults([entry], ""):
                entries[index] = spec
    return sources, entries


def _get(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _space_faults(space: Any, models: Mapping, base: Any, file: str) -> list[Fault]:
    if not isinstance(space, Mapping):
        return []  # pydantic has said so
    kinds = SPACES.all()
    kind = space.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        wrong = f"there is no space '{kind}'" if "kind" in space else "is missing"
        return [Fault(file, "space.kind", wrong, nearest(str(kind), kinds))]
    return kinds[kind].faults(space, len(models), base is not None, file)


def _controller_faults(controller: Any, file: str) -> list[Fault]:
    if not isinstance(controller, Mapping):
        return []
    kinds = CONTROLLERS.all()
    kind = controller.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        wrong = f"there is no controller '{kind}'" if "kind" in controller else "is missing"
        return [Fault(file, "controller.kind", wrong, nearest(str(kind), kinds))]
    options = {str(k): v for k, v in controller.items() if k != "kind"}
    faults = option_faults(kinds[kind].__init__, options, RESERVED, file=file, key="controller")
    if not faults:
        import numpy as np

        try:
            kinds[kind](dimension=2, seed=0, start=np.full(2, 0.5), **options)
        except (ValueError, OverflowError) as error:
            key, _, wrong = str(error).partition(": ")
            faults.append(Fault(file, f"controller.{key}", wrong))
    return faults


def _fitness_faults(entries: Any, file: str) -> list[Fault]:
    faults, seen = [], set()
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, Mapping):
            continue
        key = f"fitness.{index}"
        entry = {k: v for k, v in entry.items() if v not in (None, False)}
        if ("task" in entry) == ("function" in entry):
            wrong = "needs a task or a function" if "task" not in entry else "has task and function"
            faults.append(Fault(file, key, wrong, "write one of the two"))
        elif "task" in entry and "metric" not in entry:
            mend = "write e.g. exact_match"
            faults.append(Fault(file, f"{key}.metric", "is missing for a task", mend))
        elif "function" in entry:
            for k in ("metric", "fewshot", "generation", "chat_template", "system", "batch_size"):
                if k in entry:
                    wrong = "belongs to tasks, not to functions"
                    faults.append(Fault(file, f"{key}.{k}", wrong, "leave it out"))
        name = entry.get("name")
        if isinstance(name, str) and name in seen:
            wrong = f"two objectives are called '{name}'"
            faults.append(Fault(file, f"{key}.name", wrong, "rename one"))
        seen.add(str(name))
    return faults


def _init_faults(entries: Any, file: str) -> list[Fault]:
    faults = []
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        run, _, which = str(entry).rpartition("#")
        if isinstance(entry, str) and not (run and re.fullmatch(r"front|best|\d{1,18}", which)):
            mend = "write RUN#front, RUN#best or RUN#NUMBER"
            faults.append(Fault(file, f"init.{index}", f"'{entry}' names no candidates", mend))
    return faults


def _workers_faults(workers: Any, file: str) -> list[Fault]:
    if not isinstance(workers, Mapping):
        return []
    faults = []
    device = workers.get("device", "auto")
    if isinstance(device, str) and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        wrong = f"there is no device '{device}'"
        faults.append(Fault(file, "workers.device", wrong, "write auto, cpu, cuda or cuda:1"))
    if workers.get("pool", "inline") != "inline":
        return faults
    for key, harmless in (("timeout", None), ("count", 1), ("gpus_each", 0)):
        if workers.get(key, harmless) != harmless:
            wrong = f"the inline pool has one worker, in this process, and no {key}"
            faults.append(Fault(file, f"workers.{key}", wrong, "write workers.pool: ray"))
    return faults


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
    "string_pattern_mismatch": "has characters other than letters, digits, '.', '-' and '_'",
}


def _form_faults(error: ValidationError, data: Any, file: str) -> list[Fault]:
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
        faults.append(Fault(file, key, wrong, "see the README's table of keys"))
    return faults


def _plain(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "null" if value is None else repr(value)


def _known_keys(path: Sequence[Any]) -> list[str]:
    model: Any = _CampaignPart
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


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the dotted keys in which two plans differ, what `MAY_CHANGE` names left out."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            d
            for k in keys
            if path or (k not in MAY_CHANGE and (k in old or new[k]))  # not a later version's key
            for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
        ]
    return [] if old == new else [path]
