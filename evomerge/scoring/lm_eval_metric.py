"""A metric of an lm-eval task as a score of each item."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from evomerge.errors import BadInput, Fault, nearest

_OF_ITEMS = ("mean", "nanmean", "bits_per_byte")  # how lm-eval averages what is one of items


class Metric(NamedTuple):
    """A task's metric that is a mean over items, and the filter after which it is taken.

    Attributes:
        name: as the task reports it.
        filter: its name.
        of_one: what the task reports of one document -> its score.
        direction: "maximize" or "minimize".

    >>> Metric("acc", "none", float, "maximize").of_one(True)
    1.0
    """

    name: str
    filter: str
    of_one: Callable[[Any], float]
    direction: Literal["maximize", "minimize"]


def choose_metric(task: Any, wanted: str) -> Metric:
    """Return a task's metric by its name in a campaign file.

    Args:
        task: lm-eval's.
        wanted: METRIC, or METRIC,FILTER.

    Raises:
        BadInput: the task has no such metric, or it is no mean of items.

    >>> from evomerge.testing.lm_eval_tasks import example_task
    >>> choose_metric(example_task(), "acc").direction
    'maximize'
    """
    aggregation = task.aggregation()
    name, _, chosen = wanted.partition(",")
    name, reported = _expanded(task, name)
    unknown = _unknown_metrics(task)
    if unknown and (name in unknown or name not in aggregation):
        wrong = f"'{task.config.task}' lists the metric '{unknown[0]}', which lm-eval does not have"
        raise _refused(wrong, f"in the task's file: {_mend(unknown[0])}")
    if name not in aggregation:
        raise _refused(f"'{task.config.task}' has no metric '{name}'", nearest(name, aggregation))
    averaged_by = _averaged_by(aggregation[name])
    if averaged_by not in _OF_ITEMS:
        usable = [m for m, a in aggregation.items() if getattr(a, "__name__", "") == "mean"]
        wrong = f"'{name}' is no mean of items (lm-eval aggregates it by {averaged_by})"
        mend = f"take one of {', '.join(usable)}" if usable else "take another task"
        raise _refused(wrong, mend)
    filters = [f.name for f in task._filters]
    if not chosen and len(filters) > 1:
        wrong = f"'{name}' is reported after each of the filters {', '.join(filters)}"
        raise _refused(wrong, f"write e.g. '{name},{filters[0]}'")
    if chosen and chosen not in filters:
        raise _refused(f"'{task.config.task}' has no filter '{chosen}'", nearest(chosen, filters))
    # Of one document bits per byte is a score like any; lm-eval weighs documents by length.
    of_one = (lambda v: aggregation[name]([v])) if averaged_by == "bits_per_byte" else float
    better = task.higher_is_better()[name]
    return Metric(reported, chosen or filters[0], of_one, "maximize" if better else "minimize")


def _expanded(task: Any, wanted: str) -> tuple[str, str]:
    """Return a metric's name in the task's list, and as the task reports it of a document.

    A function such as `pass_at_k` reports `pass@1`, and one score for every k that it is given.
    """
    for name, arguments in task._metric_fn_kwargs.items():
        reported = [f"pass@{k}" for k in (arguments or {}).get("k", ())]
        if wanted in reported:
            return name, wanted
        if wanted == name and len(reported) == 1:
            return name, reported[0]
    return wanted, wanted


def usable_metrics(task: Any) -> list[str]:
    """Return what `choose_metric` takes of a task, as campaign files write it.

    >>> from evomerge.testing.lm_eval_tasks import example_task
    >>> usable_metrics(example_task())
    ['acc']
    """
    unknown, filters = _unknown_metrics(task), [f.name for f in task._filters]
    found = []
    for name, aggregate in task.aggregation().items():
        if name not in unknown and _averaged_by(aggregate) in _OF_ITEMS:
            several = len(filters) > 1
            found += [f"{name},{filtered}" for filtered in filters] if several else [name]
    return found


def _averaged_by(aggregate: Any) -> str:
    return str(getattr(aggregate, "__name__", aggregate))


def _unknown_metrics(task: Any) -> list[str]:
    """Return the metrics in a task's file that lm-eval could not find; it goes on without them."""
    if task.config.process_results is not None:  # which computes them itself
        return []
    return [name for name, function in task._metric_fn_list.items() if function is None]


def _mend(unknown: str) -> str:
    from lm_eval.api.registry import metric_registry

    mend = nearest(unknown, metric_registry.keys())
    return mend if mend.startswith("did") else "write one of lm-eval's metrics"


def _refused(wrong: str, mend: str) -> BadInput:
    return BadInput(Fault("metric", wrong, mend))
