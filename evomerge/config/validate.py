"""Campaign files: YAML in, a checked plan out, or every fault at once.

pydantic knows the form; what hangs on methods, controllers and spaces is asked of them.
Nothing is loaded here but this text: `check.py` goes on to the sources and the tasks.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.config import overrides
from evomerge.config.schema import CampaignPart, FitnessPart, SourcesPart, form_faults
from evomerge.config.stages import as_campaigns, stage_faults, whole_budget
from evomerge.errors import BadInput, Fault, nearest
from evomerge.recipes.soups import SOUPS
from evomerge.registry import option_faults
from evomerge.search.controllers import CONTROLLERS, RESERVED
from evomerge.search.objectives import parse_bound
from evomerge.search.spaces import SPACES

_SCORERS = ("task", "function", "cost")

_TASK_KEYS = ("metric", "fewshot", "generation", "chat_template", "system", "batch_size")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def load(path: Path | str, settings: Sequence[str] = ()) -> dict:
    """Read a campaign file and return its plan: plain data with every default written out.

    Args:
        path: the YAML file.
        settings: `a.b=YAML` overrides, in order.

    Raises:
        BadInput: with all faults of form, of the space, and of the controller.
    """
    return check_plan(overrides.read(path, settings), str(path))


def check_plan(data: Mapping[str, Any], file: str) -> dict:
    """Check a campaign's mapping and return it with every default written out."""
    faults: list[Fault] = []
    plan: dict = {}
    try:
        plan = CampaignPart.model_validate(data).model_dump()
    except ValidationError as error:
        faults += form_faults(error, data, file)
    name = data.get("name")
    if isinstance(name, str) and name and not _NAME.fullmatch(name):
        wrong = f"'{name}' is no plain name"
        mend = "use letters, digits, '.', '-' and '_': it names the folder under runs/"
        faults.append(Fault(file, "name", wrong, mend))
    models = _get(data, "sources", "models")
    for label in ("base", "baseline", "uniform", *SOUPS):
        if isinstance(models, Mapping) and label in models:
            wrong = f"the label '{label}' is kept for a baseline"
            faults.append(Fault(file, f"sources.models.{label}", wrong, "rename the model"))
        for index, stage in enumerate(plan.get("stages", ())):
            if stage["name"] == label:
                wrong = f"the name '{label}' is kept for a baseline"
                faults.append(Fault(file, f"stages.{index}.name", wrong, "rename the stage"))
    faults += stage_faults(data, file)
    for prefix, part in as_campaigns(data):
        found = _search_faults(part, file, not faults)
        faults += [replace(f, key=prefix + f.key) for f in found]
    faults += _fitness_faults(data.get("fitness"), file)
    faults += _constraint_faults(data, file)
    faults += _workers_faults(data.get("workers"), file)
    faults += _init_faults(data.get("init"), file)
    if "model_stock" in (data.get("soups") or ()) and not _get(data, "sources", "base"):
        faults.append(Fault(file, "soups", "model_stock needs a base", "write sources.base"))
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    if plan["stages"]:
        plan |= {"space": None, "controller": None, "budget": whole_budget(plan["stages"])}
    return plan


def _search_faults(data: Mapping[str, Any], file: str, formed: bool) -> list[Fault]:
    """Return what is wrong with a space and its controller; `formed`: the rest is right."""
    faults: list[Fault] = []
    models = _get(data, "sources", "models")
    if isinstance(models, Mapping) and models:
        faults += _space_faults(data.get("space"), models, _get(data, "sources", "base"), file)
    controller = data.get("controller")
    controller = {"kind": "cmaes"} if controller is None else controller  # null beside stages
    faults += _controller_faults(controller, file)
    if formed and not faults:
        faults += _breeding_faults(data, data["space"]["kind"], controller["kind"], file)
    return faults


def well_formed_parts(data: Mapping[str, Any]) -> tuple[dict, dict[int, dict]]:
    """Return the sources and the fitness entries, by index, that are right by themselves."""
    sources, entries = {"base": None, "models": {}, "trust_remote_code": False}, {}
    with contextlib.suppress(ValidationError):
        sources = SourcesPart.model_validate(data.get("sources")).model_dump()
    listed = data.get("fitness")
    for index, entry in enumerate(listed if isinstance(listed, list) else []):
        with contextlib.suppress(ValidationError):
            spec = FitnessPart.model_validate(entry).model_dump()
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
    return kinds[kind].faults(space, list(map(str, models)), base is not None, file)


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
            kinds[kind](dimension=2, seed=0, start=np.full(2, 0.5), objectives=2, **options)
        except (ValueError, OverflowError) as error:
            key, _, wrong = str(error).partition(": ")
            faults.append(Fault(file, f"controller.{key}", wrong))
    return faults


def _breeding_faults(data: Mapping, space: str, controller: str, file: str) -> list[Fault]:
    spaces, controllers = SPACES.all(), CONTROLLERS.all()
    wanted = spaces[space].breeds
    models, base = data["sources"]["models"], data["sources"].get("base")
    listed = [base, *models.values()]
    twice = [k for i, (k, m) in enumerate(models.items(), start=1) if m in listed[:i]]
    if wanted and twice:
        wrong = "is listed before, and an individual is a mean of different models"
        return [Fault(file, f"sources.models.{twice[0]}", wrong, "leave one of the two out")]
    if wanted and (data.get("init") or data.get("start_from_soup")):
        key = "init" if data.get("init") else "start_from_soup"
        wrong = f"a space of individuals, as {space} is, begins with its models"
        return [Fault(file, key, wrong, "leave it out")]
    if data.get("start_from_soup") and not spaces[space].weighs:
        wrong = f"a soup is no point of a space of kind {space}"
        return [Fault(file, "start_from_soup", wrong, "leave it out")]
    if wanted == controllers[controller].breeds:
        return []
    fitting = ", ".join(n for n, c in controllers.items() if c.breeds == wanted)
    what = "individuals to be crossed" if wanted else "points of a box"
    wrong = f"{controller} does not search a space of {what}, as {space} is"
    return [Fault(file, "controller.kind", wrong, f"write one of {fitting}")]


def _constraint_faults(data: Mapping, file: str) -> list[Fault]:
    faults = []
    entries, models = data.get("fitness"), _get(data, "sources", "models")
    known = ["baseline", *(models if isinstance(models, Mapping) else ())]
    known += ["uniform"] if len(known) > 2 else []
    known += ["base"] if _get(data, "sources", "base") else []
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        text = entry.get("constraint") if isinstance(entry, Mapping) else None
        if not isinstance(text, str):
            continue
        key = f"fitness.{index}.constraint"
        try:
            named = parse_bound(text).baseline
        except ValueError as error:
            mend = 'write e.g. ">= 0.4" or ">= base - 0.01"'
            faults.append(Fault(file, key, str(error), mend))
            continue
        if named is not None and named not in known:
            wrong = f"there is no baseline '{named}'"
            faults.append(Fault(file, key, wrong, nearest(named, known)))
    return faults


def _fitness_faults(entries: Any, file: str) -> list[Fault]:
    faults, seen = [], set()
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, Mapping):
            continue
        key = f"fitness.{index}"
        entry = {k: v for k, v in entry.items() if v not in (None, False)}
        given = [k for k in _SCORERS if k in entry]
        if len(given) != 1:
            wrong = f"has {' and '.join(given)}" if given else "needs a task, a function or a cost"
            faults.append(Fault(file, key, wrong, "write one of them"))
        elif "task" in entry and "metric" not in entry:
            mend = "write e.g. exact_match"
            faults.append(Fault(file, f"{key}.metric", "is missing for a task", mend))
        elif "task" not in entry:
            for k in _TASK_KEYS + (("items",) if "cost" in entry else ()):
                if k in entry:
                    wrong = f"belongs to tasks, not to a {given[0]}"
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
