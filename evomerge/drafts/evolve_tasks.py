"""mergekit-evolve's tasks as the objectives of a campaign."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.drafts.command_line import CommandLine
from evomerge.drafts.labels import objective_names
from evomerge.drafts.task_files import task_file
from evomerge.errors import BadInput, Fault, Faults
from evomerge.mergekit.evolve_form import EvolveForm, TaskForm
from evomerge.scoring.fitness import Fitness, TaskSection
from evomerge.scoring.items import split_items
from evomerge.scoring.lm_eval_loading import members_of
from evomerge.scoring.open_fitness import open_fitness
from evomerge.sections import parse

_HELD_OUT = 0.5  # so that as many items are searched on as there are, twice as many are taken


@dataclass(frozen=True)
class ConvertedTasks:
    """A campaign's `fitness`.

    Attributes:
        entries: of it.
        search_items: of all entries together.
        differs: one line for each thing that is not as in mergekit-evolve.

    >>> ConvertedTasks([{"name": "maths", "cost": "hops"}], 1, []).search_items
    1
    """

    entries: list[dict[str, Any]]
    search_items: int
    differs: list[str]


def convert_tasks(form: EvolveForm, options: CommandLine, chat: bool) -> ConvertedTasks:
    """Return the tasks as objectives, opened to see that they are there.

    Args:
        form: the configuration.
        options: of the command line.
        chat: whether prompts get the chat template.

    Raises:
        BadInput: with what is wrong with each task, keys those of the configuration.

    >>> form = EvolveForm(genome={"models": ["a"], "merge_method": "linear"}, tasks=["no/task"])
    >>> convert_tasks(form, CommandLine(), chat=False)
    Traceback (most recent call last):
    evomerge.errors.BadInput: tasks.0.name: there is no task 'no/task'; a task's path ends in .yaml
    """
    faults, differs = Faults(), []
    entries: list[dict[str, Any]] = []
    searched = 0
    counted = [task for task in form.tasks if task.weight]
    names = iter(objective_names(task.name for task in counted))
    for number, task in enumerate(form.tasks):
        if not task.weight:
            differs.append(f"tasks.{number}.weight: 0 counts for nothing; the task is left out")
            continue
        with faults.gather(f"tasks.{number}"):
            entry = {"name": next(names), **_entry(task, form, options, chat)}
            fitness = _opened(entry)
            search, line = _items(entry, fitness, form.limit)
            searched += search
            if line:
                differs.append(f"limit: {entry['name']}: {line}")
            differs += _direction(entry, fitness, task, f"tasks.{number}.weight")
            entries.append(entry)
    faults.check()
    if not entries:
        raise BadInput(Fault("tasks", "none has a weight", "give one a weight other than 0"))
    if len(entries) > 1:
        differs.append(
            "tasks: mergekit-evolve adds up weight x metric as it is; here each objective is scaled"
            " by its baselines first (0 the worst, 1 the best), then averaged by these weights"
        )
    if form.limit is not None:
        drawn = "" if form.shuffle else "; mergekit-evolve takes the first"
        differs.append(f"limit: items are drawn by the campaign's seed{drawn}")
    if form.shuffle:
        differs.append("shuffle: the items are the same for every candidate")
    if chat and not form.fewshot_as_multiturn and form.num_fewshot:
        differs.append(
            "fewshot_as_multiturn: worked examples are turns of the chat, as by lm-eval's command"
            " line"
        )
    return ConvertedTasks(entries, searched, differs)


def _entry(task: TaskForm, form: EvolveForm, options: CommandLine, chat: bool) -> dict[str, Any]:
    """Return an objective without its name, items and direction.

    Raises:
        BadInput: there is no such task.
    """
    name = task_file(task.name, options.task_search_path) or task.name
    metric = task.metric.removesuffix(",none")
    entry: dict[str, Any] = {"task": name, "metric": metric}
    try:
        if members_of(name) is not None:
            entry["aggregate"] = "mean"
    except BadInput as error:
        raise BadInput(*(_of_name(fault, options) for fault in error.faults)) from None
    if abs(task.weight) != 1.0:
        entry["weight"] = abs(task.weight)
    if form.num_fewshot is not None:
        entry["fewshot"] = form.num_fewshot
    if chat:
        entry["chat_template"] = True
    if options.batch_size is not None:
        entry["batch_size"] = options.batch_size
    return entry


def _of_name(fault: Fault, options: CommandLine) -> Fault:
    """Return a fault of a task as one of the name by which mergekit-evolve knows it."""
    if fault.key != "task":
        return fault
    mend = fault.mend
    if "lm-eval ls" in mend and not options.task_search_path:
        mend = "give --task-search-path FOLDER, as to mergekit-evolve"
    elif "lm-eval ls" in mend:
        folders = ", ".join(options.task_search_path)
        mend = f"no file below {folders} has `task:` with this name"
    return Fault("name", fault.wrong, mend)


def _opened(entry: Mapping[str, Any]) -> Fitness:
    """Open an objective.

    Raises:
        BadInput: keys those of a task in the configuration.
    """
    try:
        return open_fitness(parse(TaskSection, dict(entry)))
    except BadInput as error:
        keys = {"task": "name", "metric": "metric"}
        found = [Fault(keys.get(f.key, f.key), f.wrong, f.mend) for f in error.faults]
        raise BadInput(*found) from None


def _items(entry: dict[str, Any], fitness: Fitness, limit: int | None) -> tuple[int, str]:
    """Write how many items are taken; return how many are searched on, and what is to be said."""
    count, line = len(fitness.hashes), ""
    if limit is not None and count > 2 * limit:
        entry["items"] = 2 * limit
    taken = entry.get("items", count)
    search = len(split_items(count, None, taken, _HELD_OUT, 0).search)
    if limit is not None and search < min(limit, count):
        line = f"of its {count} items half are searched on, {search}, and not {min(limit, count)}"
    return search, line


def _direction(entry: dict[str, Any], fitness: Fitness, task: TaskForm, key: str) -> list[str]:
    """Write what is better where it is not what the task says, and say it."""
    wanted = "maximize" if task.weight > 0 else "minimize"
    if fitness.direction == wanted:
        return []
    entry["direction"] = wanted
    less = "less" if fitness.direction == "minimize" else "more"
    return [f"{key}: the task says that {less} is better, and mergekit-evolve would {wanted} it"]
