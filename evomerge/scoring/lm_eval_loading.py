"""Tasks of lm-eval by their names or their files: plain ones, and groups of them."""

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import BadInput, Fault, nearest, one_line
from evomerge.sandbox.programs import missing
from evomerge.scoring.code_metric import code_metric, is_refused, is_sandboxed
from evomerge.scoring.fitness import TaskSection

_RUNS_CODE = "runs code that models write"
_ALLOW = "write allow_code: true, which runs it in a sandbox, or take another task"
_NAMED = 2  # tasks of a group that a fault names
_LOGGERS = ("lm_eval", "datasets", "transformers", "httpx")
# dataset_path of local files; `datasets` calls them packaged modules
_FORMATS = {"json", "csv", "parquet", "text", "arrow", "pandas", "xml", "hdf5", "lance"}


def load_tasks(section: TaskSection) -> list[Any]:
    """Return the lm-eval task that a campaign's entry names, or the tasks of a group.

    Raises:
        BadInput: there is no such task, it cannot be loaded, or it is a group and the entry does
            not say how to take it.

    >>> load_tasks(TaskSection(name="x", task="x.yaml", metric="acc"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: task: there is no file 'x.yaml'; write a path to a task YAML
    """
    name = section.task
    is_file = name.endswith((".yaml", ".yml"))
    with quietly():
        manager, members = _found(name)
        _check_aggregate(section, members)
        is_group_file = is_file and members is not None
        called = _registered(Path(name), manager) if is_group_file else name
        try:
            with code_metric(section.allow_code):
                tasks = [*manager.load(called)["tasks"].values()]
        except Exception as error:
            if is_refused(error):
                raise _refused("task", f"'{name}' {_RUNS_CODE}", _ALLOW) from None
            wrong = f"'{name}' cannot be loaded: {_said(error)}"
            mend = _broken_line(name) if is_file else ""
            raise _refused("task", wrong, mend or "mend the task or its data") from error
    for task in tasks:
        _configure(task, section, name if members is None else task.config.task)
    return tasks


def members_of(name: str) -> list[str] | None:
    """Return the tasks of the group that lm-eval calls so, or that a file is of; None of a task.

    Raises:
        BadInput: there is no such task.

    >>> members_of("x.yaml")
    Traceback (most recent call last):
    evomerge.errors.BadInput: task: there is no file 'x.yaml'; write a path to a task YAML
    """
    with quietly():
        return _found(name)[1]


def _found(name: str) -> tuple[Any, list[str] | None]:
    """Return a manager that knows a task, and its members if it is a group; see `load_tasks`."""
    is_file = name.endswith((".yaml", ".yml"))
    if is_file and not Path(name).is_file():
        raise _refused("task", f"there is no file '{name}'", "write a path to a task YAML")
    if not is_file and "/" in name:
        raise _refused("task", f"there is no task '{name}'", "a task's path ends in .yaml")
    return _of_file(Path(name)) if is_file else _of_name(name)


def members_of_group(section: TaskSection) -> list[str]:
    """Return the tasks of a group: by name where they are lm-eval's own, else by their files.

    Raises:
        BadInput: it is no group.

    >>> from evomerge.testing.lm_eval_tasks import example_section
    >>> members_of_group(example_section(aggregate="objectives"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: aggregate: ... is one task, and no group; leave it out
    """
    import lm_eval.tasks

    with quietly():
        manager, members = _found(section.task)
    _check_aggregate(section, members)
    own = Path(lm_eval.tasks.__file__).parent
    found = []
    for member in members or ():
        file = Path(manager.task_index[member].yaml_path or own)
        found.append(member if file.is_relative_to(own) else str(file))
    return found


def is_of_public_data(task: Any) -> bool:
    """Tell whether a task's documents are a data set that others have too.

    >>> from evomerge.testing.lm_eval_tasks import example_task
    >>> is_of_public_data(example_task())
    False
    """
    path = task.config.dataset_path
    if path is None or callable(task.config.custom_dataset) or path in _FORMATS:
        return False
    return (
        not Path(path).expanduser().exists()
    )  # of a folder and a hub id, `datasets` takes the folder


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep lm-eval, datasets and tqdm from writing over the campaign's own output.

    >>> with quietly():
    ...     logging.getLogger("lm_eval").level == logging.ERROR
    True
    """
    parallelism = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns wherever one forks
    try:
        with levels_kept(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            mute_loggers()
            warnings.simplefilter("ignore")
            yield
    finally:
        if parallelism is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)


def mute_loggers() -> None:
    """Let the loggers of lm-eval and what it uses say errors alone.

    >>> with levels_kept():
    ...     mute_loggers()
    ...     logging.getLogger("datasets").level == logging.ERROR
    True
    """
    _set_levels(dict.fromkeys(_LOGGERS, logging.ERROR))


@contextlib.contextmanager
def levels_kept() -> Iterator[None]:
    """Put back, on leaving, the levels that `mute_loggers` sets.

    >>> before = logging.getLogger("datasets").level
    >>> with levels_kept():
    ...     mute_loggers()
    >>> before == logging.getLogger("datasets").level
    True
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        yield
    finally:
        _set_levels(levels)


def _set_levels(levels: Mapping[str, int]) -> None:
    """Set the levels of loggers by name, where they are others.

    Each time, Python empties the caches of all loggers; those of our libraries are five hundred.
    """
    for name, level in levels.items():
        if logging.getLogger(name).level != level:
            logging.getLogger(name).setLevel(level)


def _of_name(name: str) -> tuple[Any, list[str] | None]:
    """Return a manager that knows a name, and the tasks of the group or tag that it is of."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if name in manager.all_subtasks:
        return manager, None
    if name in manager.all_tasks:
        return manager, sorted(set(_leaves([name], manager)))
    known = manager.all_tasks
    mend = nearest(name, known) if known else "write a path to a task YAML"
    mend = mend if mend.startswith("did") else "`lm-eval ls tasks` lists them"
    raise _refused("task", f"there is no task '{name}'", mend)


def _of_file(path: Path) -> tuple[Any, list[str] | None]:
    """Return a manager for a file, and the tasks of the group that it is of."""
    from lm_eval.tasks import TaskManager

    written = _written(path)
    if "group" not in written or "class" in written:
        return TaskManager(include_defaults=False), None
    # its tasks are files beside it or lm-eval's own, which take seconds to find
    manager = TaskManager(include_path=str(path.parent), include_defaults=False)
    children = written.get("task") or []
    children = [children] if isinstance(children, str) else children
    members = sorted(set(_leaves(children, manager)))
    if not set(members) <= set(manager.all_tasks):
        manager = TaskManager(include_path=str(path.parent))
        members = sorted(set(_leaves(children, manager)))
    for member in members:
        if member not in manager.all_tasks:
            wrong = f"'{path}' is a group of tasks, and there is no task '{member}'"
            mend = nearest(member, manager.all_tasks)
            mend = mend if mend.startswith("did") else "write the tasks' files beside it"
            raise _refused("task", wrong, mend)
    return manager, members


def _registered(path: Path, manager: Any) -> str:
    """Return the name of a group's file: lm-eval loads groups by their names alone."""
    group = str(_written(path)["group"])
    entry = manager.task_index.get(group)
    if entry is None or Path(entry.yaml_path).resolve() != path.resolve():
        wrong = f"lm-eval does not find '{path}' by its name, '{group}'"
        mend = "give the group a name that no other file has, and the file the ending .yaml"
        raise _refused("task", wrong, mend)
    return group


def _leaves(children: Iterable[str | Mapping[str, Any]], manager: Any) -> Iterator[str]:
    """Return the names of all tasks below the entries of a group."""
    for child in children:
        inner: Any = None
        if isinstance(child, str):
            name = child
        else:
            name = str(child.get("group") or child.get("task"))
            inner = child.get("task") if "group" in child else None
        if name in manager.all_groups:
            inner = manager.task_index[name].cfg.get("task")
        elif name in manager.all_tags:
            inner = sorted(manager.task_index[name].tags)
        if inner is None:
            yield name
        else:
            yield from _leaves([inner] if isinstance(inner, str) else inner, manager)


def _check_aggregate(section: TaskSection, members: list[str] | None) -> None:
    """Refuse a group that is not to be averaged, and a plain task that is."""
    if members is None and section.aggregate:
        wrong = f"'{section.task}' is one task, and no group"
        raise _refused("aggregate", wrong, "leave it out")
    if members is not None and not section.aggregate:
        named = ", ".join(members[:_NAMED])
        named += ", ..." if len(members) > _NAMED else ""
        count = f"{len(members)} task{'s' if len(members) > 1 else ''}"
        wrong = f"'{section.task}' is a group of {count} ({named})"
        mend = "write one objective for each, or aggregate: mean or objectives"
        raise _refused("task", wrong, mend)


def _check_code(task: Any, section: TaskSection, name: str) -> None:
    """Refuse a task that runs code, unless that is allowed, and in our sandbox."""
    if not section.allow_code:
        raise _refused("task", f"'{name}' {_RUNS_CODE}", _ALLOW)
    # a task's own functions could run what they like, in the worker itself
    own = task.config.process_results is not None or not is_sandboxed(task._metric_fn_list)
    if own:
        wrong = f"'{name}' runs code by itself, and not by code_eval, which we run in a sandbox"
        raise _refused("task", wrong, "take another task")
    if why := missing():
        raise _refused("allow_code", f"not on this machine: {why}", "take another task")


def _configure(task: Any, section: TaskSection, name: str) -> None:
    """Give a task what the campaign's entry says otherwise."""
    if getattr(task, "MULTIMODAL", False):
        raise _refused("task", f"'{name}' needs images", "take another task")
    if getattr(task, "UNSAFE_CODE", False):
        _check_code(task, section, name)
    if section.fewshot is not None:
        task.set_config("num_fewshot", section.fewshot)
    elif task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    if section.generation:
        if task.OUTPUT_TYPE != "generate_until":
            wrong = f"'{name}' generates nothing ({task.OUTPUT_TYPE})"
            raise _refused("generation", wrong, "leave it out")
        task.set_config("generation_kwargs", section.generation, update=True)


def _said(error: BaseException) -> str:
    """Return why a task cannot be loaded: `datasets` says it in the cause."""
    while error.__cause__ is not None and type(error).__module__.startswith("datasets"):
        error = error.__cause__
    return one_line(error)


def _broken_line(name: str) -> str:
    """Return a mend that says which line of a task's JSONL file is no JSON; "" if none is found."""
    try:
        written = _written(Path(name))
        files = written["dataset_kwargs"]["data_files"]
        listed = files.values() if isinstance(files, dict) else [files]
        every = [f for entry in listed for f in ([entry] if isinstance(entry, str) else entry)]
        lined = [Path(file) for file in every if file.endswith(".jsonl")]
        for file in lined if written["dataset_path"] == "json" else ():
            for number, line in enumerate(file.read_bytes().splitlines(), start=1):
                try:
                    json.loads(line or b"null")
                except ValueError as error:
                    return f"mend {file}, line {number} ({one_line(error)})"
    except (KeyError, TypeError, AttributeError, OSError, BadInput):
        return ""  # a file of another form, of which we know no more than `datasets` said
    return ""


def _written(path: Path) -> dict[str, Any]:
    """Return what a task's file says, its functions as their names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        written: dict[str, Any] = load_yaml(path, resolve_func=False)
    except Exception as error:
        wrong = f"'{path}' cannot be loaded: {one_line(error)}"
        raise _refused("task", wrong, "mend the task's file") from error
    return written


def _refused(key: str, wrong: str, mend: str) -> BadInput:
    return BadInput(Fault(key, wrong, mend))
