"""The questions of `evomerge init`, in their order."""

import re
from collections.abc import Mapping
from typing import Any

import click

from evomerge.campaign.campaign import Campaign
from evomerge.cli.interview import Interview
from evomerge.config.parts import PLAIN_NAME
from evomerge.drafts.advice import known_method, recommended_items, recommended_method
from evomerge.drafts.first_campaign import (
    FirstCampaign,
    budget_of,
    default_name,
    gpus,
    search_items,
    share_of,
)
from evomerge.drafts.first_sources import FirstSources, likely_base
from evomerge.drafts.first_tasks import FirstTask, look_up, public_benchmark
from evomerge.drafts.found_here import models_below, tasks_below
from evomerge.errors import BadInput, Fault
from evomerge.text import printable

_NAMED = 12  # of what was found here


def asked(given: Mapping[str, Any], *, takes_defaults: bool) -> tuple[FirstCampaign, Campaign]:
    """Ask for a first campaign, and return it with what `evomerge check` opens of it.

    Args:
        given: the command's options by name; None where one was not given.
        takes_defaults: ask nothing.

    Raises:
        BadInput: an option is wrong, or missing where nobody can be asked.

    >>> from evomerge.testing.campaigns import example_folder
    >>> here = str(example_folder())
    >>> options = {"models": (here,), "tasks": (f"{here}/fit.py",), "budget": "500", "name": "x"}
    >>> keys = ("base", "heldout", "method", "front", "workers")
    >>> import contextlib, io
    >>> with contextlib.redirect_stdout(io.StringIO()) as said:
    ...     first, campaign = asked(dict.fromkeys(keys) | options, takes_defaults=True)
    >>> "llama" in said.getvalue()
    True
    >>> first.method, campaign.space.dimension
    ('task_arithmetic', 6)
    """
    interview = Interview(takes_defaults=takes_defaults)
    first = FirstCampaign(_sources(interview, given))
    first.base = _base(interview, given, first)
    tasks = _tasks(interview, given, first)
    first.heldout = _heldout(interview, given, tasks)
    first.front = _front(interview, given, first)
    first.method = _method(interview, given, first)
    first.workers = _workers(interview, given)
    first.name = interview.one(
        "A name for the campaign (its run will be runs/NAME)",
        given["name"],
        "--name",
        default_name(),
        _plain_name,
    )
    campaign = _budget(interview, given, first, tasks)
    return first, campaign


def _say(text: str) -> None:
    click.echo(printable(text))


def _list(what: str, found: list[str]) -> None:
    """Show what there is to choose from."""
    if found:
        more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        _say(f"{what} found here: {', '.join(found[:_NAMED])}{more}")


def _sources(interview: Interview, given: Mapping[str, Any]) -> dict[str, Any]:
    """Ask for the models until there are two."""
    sources = FirstSources()

    def read(answer: str) -> None:
        for line in sources.add(answer):
            _say(f"  {line}")

    models = given["models"]
    if not models and not interview.takes_defaults:
        _say("Which models are to be merged? Fine-tunes of one base merge best; name it too.")
        _list("Models", models_below())
    while True:
        question = "A model: a directory, of one or of several, or a hub id (empty: that is all)"
        interview.several(question, models, "--model", read)
        if len(sources.opened) > 1:
            return sources.opened
        wrong = f"{len(sources.opened)} model is too few" if sources.opened else "there is none"
        if models or interview.takes_defaults:
            raise BadInput(Fault("", wrong, "give two or more", "--model"))
        _say(f"  {wrong}; name two or more")


def _base(interview: Interview, given: Mapping[str, Any], first: FirstCampaign) -> str | None:
    """Ask which model is the others' base."""
    opened = FirstSources()
    opened.opened = dict(first.opened)

    def read(answer: str) -> str | None:
        base = opened.base(answer)
        if len([name for name in opened.opened if name != base]) < (2 if base is None else 1):
            raise BadInput(Fault("", "there is nothing to merge then", "write none"))
        return base

    names = list(first.opened)
    question = "Which is the base, from which the others were fine-tuned? (none: there is none)"
    base = interview.one(question, given["base"], "--base", likely_base(names) or "none", read)
    if base is not None:
        first.opened = {base: opened.opened[base], **opened.opened}
    return base


def _tasks(interview: Interview, given: Mapping[str, Any], first: FirstCampaign) -> list[FirstTask]:
    """Ask for the tasks, and how each is scored."""
    tasks: list[FirstTask] = []

    def read(answer: str) -> None:
        name, _, metric = answer.partition(":")
        if name in (task.name for task in tasks):
            raise BadInput(Fault("", f"'{name}' is listed already", "name another one"))
        task = look_up(name)
        said = f"  {name}: {task.items} items"
        if task.metrics:
            said += f"; scored by {' or '.join(task.metrics)}"
        _say(said)
        chosen: str | None = metric or None
        if task.metrics:
            if len(task.metrics) == 1:
                chosen = chosen or task.metrics[0]
            question = f"  Which metric of {name}?"
            chosen = interview.one(question, chosen, "--task", task.metrics[0], task.metric)
        tasks.append(task)
        first.fitness.append(task.entry(chosen))

    given_tasks = given["tasks"]
    if not given_tasks and not interview.takes_defaults:
        _say("\nWhat shall the merge be good at? A task for each skill, the sources' own too.")
        _list("Tasks", tasks_below())
    while True:
        question = "A task: of lm-eval by name or YAML file, or a Python file (empty: that is all)"
        interview.several(question, given_tasks, "--task", read)
        if tasks:
            return tasks
        _say("  there is none; name one or more. `lm-eval ls tasks` lists those of lm-eval")


def _heldout(interview: Interview, given: Mapping[str, Any], tasks: list[FirstTask]) -> Any:
    """Ask how many items the search never sees; of public benchmarks it sees no test item."""
    if public := public_benchmark(tasks):
        _say(f"  {public} is a public benchmark: its test items are held out, others searched")
        return {"split": "test"}
    question = "The share of the items that the search never sees"
    return interview.one(question, given["heldout"], "--heldout", "0.5", share_of)


def _front(interview: Interview, given: Mapping[str, Any], first: FirstCampaign) -> bool:
    if given["front"] is not None or len(first.fitness) < 2:
        return bool(given["front"])

    def read(answer: str) -> bool:
        if answer.lower() not in ("one", "front"):
            raise BadInput(Fault("", f"'{answer}' is neither", "write one or front"))
        return answer.lower() == "front"

    question = "One best merge by the mean, or a front of several to choose from? (one, front)"
    return interview.one(question, None, "--front", "one", read)


def _method(interview: Interview, given: Mapping[str, Any], first: FirstCampaign) -> str:
    models = first.models
    method, why = recommended_method(models)
    if given["method"] is None and not interview.takes_defaults:
        _say(f"  {method} is recommended: {why}; `evomerge list methods` has all")
    return interview.one(
        "The merge method",
        given["method"],
        "--method",
        method,
        lambda answer: known_method(answer, models),
    )


def _workers(interview: Interview, given: Mapping[str, Any]) -> int:
    if given["workers"] is not None:
        return int(given["workers"])
    count = gpus()

    def read(answer: str) -> int:
        if not answer.isdigit() or int(answer) > 10**4:
            raise BadInput(Fault("", f"'{answer}' is no number of GPUs", "write e.g. 1"))
        return int(answer)

    if not count:
        return 0
    return interview.one("GPUs to use, each by a worker", None, "--workers", str(count), read)


def _plain_name(answer: str) -> str:
    if not re.fullmatch(PLAIN_NAME, answer):
        mend = "use letters, digits, '.', '-' and '_'"
        raise BadInput(Fault("", f"'{answer}' is no plain name", mend))
    return answer


def _budget(
    interview: Interview, given: Mapping[str, Any], first: FirstCampaign, tasks: list[FirstTask]
) -> Campaign:
    """Ask how long the search goes on; open the campaign with each answer."""
    share = first.heldout if isinstance(first.heldout, float) else 0.5
    items = search_items(first.fitness, [task.items for task in tasks], share)

    default = recommended_items(items, len(first.opened))
    first.budget = {"items": default}
    first.checked()  # what is wrong without regard to the budget

    def read(answer: str) -> Campaign:
        first.budget = budget_of(answer)
        return first.checked()

    question = "The budget: items to score in all, or hours as in 8h"
    return interview.one(question, given["budget"], "--budget", str(default), read)
