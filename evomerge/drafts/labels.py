"""Short names for models and tasks, as campaign files have them."""

import re
from collections.abc import Iterable
from pathlib import PurePath

from evomerge.recipes.soups import SOUPS

_KEPT = ("base", "baseline", "uniform", *SOUPS)  # for baselines


def plain(name: str) -> str:
    """Return a text with nothing but letters, digits, '.', '-' and '_', a letter or digit first.

    >>> plain("été/à la carte")
    't-la-carte'
    """
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return re.sub(r"-{2,}", "-", text) or "x"


def labels_of(names: Iterable[str]) -> list[str]:
    """Return a label for each model: the end of its name, with more of it where two are alike.

    >>> labels_of(["models/ja", "org/maths-7b@v2", "other/ja", "models/base"])
    ['ja', 'maths-7b', 'other-ja', 'base-model']
    """
    found: list[str] = []
    for name in names:
        parts = PurePath(name.partition("@")[0].split("+")[-1]).parts
        candidates = [plain("-".join(parts[-count:])) for count in range(1, len(parts) + 1)]
        candidates += [f"{candidates[0]}-{number}" for number in range(2, 10**6)]
        free = (c for c in candidates if c not in found and c not in _KEPT)
        label = f"{candidates[0]}-model" if candidates[0] in _KEPT else next(free)
        found.append(label if label not in found else next(free))
    return found


def objective_names(tasks: Iterable[str]) -> list[str]:
    """Return a name for each objective: its task's, without folders and endings.

    >>> objective_names(["gsm8k", "tasks/maths.yaml", "gsm8k"])
    ['gsm8k', 'maths', 'gsm8k-2']
    """
    found: list[str] = []
    for task in tasks:
        stem = PurePath(task).stem if task.endswith((".yaml", ".yml", ".py")) else task
        name, number = plain(stem), 2
        while name in found:
            name, number = f"{plain(stem)}-{number}", number + 1
        found.append(name)
    return found
