"""A fitness of one's own: a Python module with `items()` and `score(model, tokenizer, items)`."""

import importlib.util
import inspect
import json
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evomerge.canonical import file_hash, item_hash
from evomerge.errors import BadInput, CandidateFailure, Fault, one_line, placed
from evomerge.scoring.fitness import Fitness, FunctionSection, Scorable
from evomerge.scoring.items import ItemText

_DEFINE = "define items() and score(model, tokenizer, items)"


class FunctionFitness(Fitness):
    """A Python module's `items()`, a list, and its `score`, one float for each item.

    >>> import tempfile
    >>> from evomerge.scoring.lm_eval_model import LoadedModel
    >>> code = "def items(): return ['a', 'b']\\ndef score(m, t, items): return [1, 0.5]"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "fit.py").write_text(code)
    ...     section = FunctionSection(name="mine", function=f"{folder}/fit.py")
    ...     fitness = FunctionFitness(section)
    >>> fitness.prepare(LoadedModel(None, None), [0, 1])
    >>> fitness.score([0, 1]).tolist()
    [1.0, 0.5]
    """

    def __init__(self, section: FunctionSection):
        """
        Raises:
            BadInput: there is no such file, or it has not what it needs.
        """
        self.direction = section.direction or "maximize"
        self._objective, self._path = section.name, Path(section.function)
        path = self._path
        with placed("function"):
            self._module = _import_file(path)
            self.definition = file_hash(path)
            try:
                self._items = list(self._module.items())
            except Exception as error:  # the user's code: whatever it raises means the same
                wrong = f"{path}{_line(error, path)}: items() failed with {one_line(error)}"
                raise BadInput(Fault("", wrong, "mend items()")) from error
        self.hashes = [item_hash(item) for item in self._items]
        self._last: tuple[tuple[int, ...], list[Any]] = ((), [])  # that were scored

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        self._model, self._tokenizer = live.model, live.tokenizer

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        if self._last[0] != tuple(ordinals):
            self._last = tuple(ordinals), [self._items[i] for i in ordinals]
        items = list(self._last[1])  # the user's code may change it
        try:
            found = self._module.score(self._model, self._tokenizer, items)
            scores = np.asarray(found, np.float32)
            if scores.shape != (len(items),):
                raise ValueError(f"score() gave shape {scores.shape} for {len(items)} items")
        except (Exception, SystemExit) as error:
            place = f"{self._objective}: {self._path.name}{_line(error, self._path)}"
            raise CandidateFailure(f"{place}: {one_line(error)}") from error
        return scores

    def text(self, ordinal: int) -> ItemText | None:
        item = self._items[ordinal]
        try:
            return ItemText(item if isinstance(item, str) else json.dumps(item), "")
        except (TypeError, ValueError):  # pictures, say
            return None


def _line(error: BaseException, path: Path) -> str:
    """Return `, line N` of the deepest place in a file that an error came through, if any."""
    numbers = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == os.path.abspath(path)  # as importlib calls it
    ]
    return f", line {numbers[-1]}" if numbers else ""


def _import_file(path: Path) -> ModuleType:
    """Import a fitness's file and check that it has the two functions."""
    if not path.is_file():
        raise BadInput(Fault("", f"there is no file '{path}'", "write a path to a .py file"))
    spec = importlib.util.spec_from_file_location(f"evomerge_fitness_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(Fault("", f"{path} is no Python module", "write a path to a .py file"))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        wrong = f"{path}{_line(error, path)} cannot be imported: {one_line(error)}"
        raise BadInput(Fault("", wrong, "mend the module")) from error
    for name, count in (("items", 0), ("score", 3)):
        function = module.__dict__.get(name)
        if not callable(function):
            raise BadInput(Fault("", f"{path} has no function {name}", _DEFINE))
        try:
            inspect.signature(function).bind(*range(count))
        except TypeError:
            wrong = f"{path}: {name} does not take {count} arguments"
            raise BadInput(Fault("", wrong, _DEFINE)) from None
        except ValueError:  # made in C: it says nothing of its arguments
            continue
    return module
