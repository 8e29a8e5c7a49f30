"""The metric `code_eval`, by which lm-eval's tasks score programs, run in our sandbox.

Such tasks ask the library `evaluate` for it while they are loaded. What it gives them runs a
program in a process that shares the user's files and network, after fetching its own code from the
hub; here they are given `CodeEval` instead, which does neither.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evomerge.environment import cores
from evomerge.errors import EvomergeError
from evomerge.sandbox.programs import run_program

_NAME = "code_eval"


class CodeRefused(EvomergeError):
    """A task would run code, and nobody has allowed it.

    >>> issubclass(CodeRefused, EvomergeError)
    True
    """


class CodeEval:
    """Scores programs by the tests that they pass: what `evaluate.load("code_eval")` is.

    pass@k is the chance that one of k programs out of n, of which c pass, does: 1 - C(n - c, k) /
    C(n, k) (Chen et al. 2021, arXiv:2107.03374, equation 1).

    >>> programs = [["def add(a, b): return a + b", "def add(a, b): return a * b"]]
    >>> CodeEval().compute(references=["assert add(2, 3) == 5"], predictions=programs, k=[1])[0]
    {'pass@1': 0.5}
    """

    def compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,
        timeout: float = 3.0,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Return pass@k, and of each task what became of its programs.

        Args:
            predictions: of each task its programs.
            references: of each task the tests, which come after the program.
            k: of pass@k; those above the number of programs are left out.
            num_workers: programs at once.
            timeout: seconds of the processor for each.
        """
        whole = [
            (task, number, f"{program}\n{references[task]}")
            for task, programs in enumerate(predictions)
            for number, program in enumerate(programs)
        ]
        with ThreadPoolExecutor(min(num_workers, cores())) as pool:
            runs = list(pool.map(lambda one: run_program(one[2], math.ceil(timeout)), whole))
        results: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for (task, number, _), run in zip(whole, runs, strict=True):
            told = {"task_id": task, "passed": run.has_passed, "completion_id": number}
            results.setdefault(task, []).append((number, told))
        counts = [
            (len(of_one), sum(told["passed"] for _, told in of_one)) for of_one in results.values()
        ]
        found = {}
        for wanted in k:
            if counts and all(n >= wanted for n, _ in counts):
                chances = [_pass_at(n, c, wanted) for n, c in counts]
                found[f"pass@{wanted}"] = sum(chances) / len(chances)
        return found, results


def _pass_at(n: int, c: int, k: int) -> float:
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


class _Refusing:
    """Stands in the metric's place until code is allowed."""

    def compute(self, **arguments: Any) -> None:
        raise CodeRefused("it runs code that models write")


@contextlib.contextmanager
def code_metric(allowed: bool) -> Iterator[None]:
    """Let tasks that are loaded within have our metric, or be refused it.

    Args:
        allowed: whether code may run.

    >>> import evaluate
    >>> with code_metric(allowed=True):
    ...     type(evaluate.load("code_eval")).__name__
    'CodeEval'
    """
    import evaluate

    plain = evaluate.load

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        if path == _NAME:
            return CodeEval() if allowed else _Refusing()
        return plain(path, *arguments, **options)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = plain


def is_refused(error: BaseException) -> bool:
    """Tell whether an error, or one that it comes from, is that code was not allowed.

    >>> is_refused(ValueError())
    False
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CodeRefused):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def is_sandboxed(metrics: Mapping[str, Any]) -> bool:
    """Tell whether a task's metrics run code by ours, and by no other way that is known.

    Args:
        metrics: of a task, its functions by name.

    >>> is_sandboxed({"pass@1": CodeEval().compute}), is_sandboxed({"acc": sum})
    (True, False)
    """
    return bool(metrics) and all(_takes_ours(metric) for metric in metrics.values())


def _takes_ours(metric: Any) -> bool:
    owner = getattr(metric, "__self__", None)
    if isinstance(owner, CodeEval):
        return True
    if not hasattr(metric, "__code__") and callable(owner):  # lm-eval keeps a function's __call__
        metric = owner
    known = getattr(metric, "__globals__", {})
    names = getattr(getattr(metric, "__code__", None), "co_names", ())
    return any(isinstance(known.get(name), CodeEval) for name in names)
