"""What scores: a Python module, an lm-eval task (lm_eval.py), or a cost (costs.py).

A module has `items()`, which returns a list, and `score(model, tokenizer, items)`, which
returns one float per item.
"""

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evomerge.canonical import file_hash, item_hash
from evomerge.errors import BadInput, Fault, one_line
from evomerge.scoring.costs import CostFitness
from evomerge.scoring.items import Fitness
from evomerge.scoring.lm_eval_task import TaskFitness

_DEFINE = "define items() and score(model, tokenizer, items)"


def open_fitness(spec: Mapping[str, Any], file: str, key: str) -> Fitness:
    """Open the fitness of a campaign's entry `spec`; loads its items but no model.

    Raises:
        BadInput: the task, metric, file or items will not do.
    """
    if "function" in spec:
        return FunctionFitness(spec, file, key)
    if "cost" in spec:
        return CostFitness(spec)
    return TaskFitness(spec, file, key)


class FunctionFitness:
    """A Python module's `items()` and `score(model, tokenizer, items)`."""

    def __init__(self, spec: Mapping[str, Any], file: str, key: str):
        self.direction = spec.get("direction") or "maximize"
        self.test_from = None
        self._module = _import_file(Path(spec["function"]), file, f"{key}.function")
        self.definition = file_hash(Path(spec["function"]))
        try:
            self._items = list(self._module.items())
        except Exception as error:
            wrong = f"{spec['function']}: items() failed with {one_line(error)}"
            raise BadInput(Fault(file, f"{key}.function", wrong, "mend items()")) from error
        self.hashes = [item_hash(item) for item in self._items]

    def prepare(self, model: Any, tokenizer: Any, ordinals: Sequence[int]) -> None:
        self._model, self._tokenizer = model, tokenizer

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        items = [self._items[i] for i in ordinals]
        scores = np.asarray(self._module.score(self._model, self._tokenizer, items), np.float32)
        if scores.shape != (len(items),):
            raise ValueError(f"score() gave shape {scores.shape} for {len(items)} items")
        return scores

    def answers(self, ordinals: Sequence[int]) -> None:
        return None


def _import_file(path: Path, file: str, key: str) -> ModuleType:
    if not path.is_file():
        raise BadInput(Fault(file, key, f"there is no file '{path}'", "write a path to a .py file"))
    spec = importlib.util.spec_from_file_location(f"evomerge_fitness_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        wrong = f"{path} cannot be imported: {one_line(error)}"
        raise BadInput(Fault(file, key, wrong, "mend the module")) from error
    if missing := [n for n in ("items", "score") if not callable(getattr(module, n, None))]:
        wrong = f"{path} has no function {missing[0]}"
        raise BadInput(Fault(file, key, wrong, _DEFINE))
    for name, count in (("items", 0), ("score", 3)):
        try:
            inspect.signature(getattr(module, name)).bind(*range(count))
        except TypeError:
            wrong = f"{path}: {name} does not take {count} arguments"
            raise BadInput(Fault(file, key, wrong, _DEFINE)) from None
        except ValueError:  # made in C: it says nothing of its arguments
            continue
    return module
