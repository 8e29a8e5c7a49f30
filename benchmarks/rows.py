"""Rows of benchmarks that run for long: appended to a CSV as they come, and read again."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.search.pareto import hypervolume


class Quiet:
    """A campaign's progress that says nothing."""

    def say(self, text: str) -> None:
        pass

    def __call__(self, archive: Any) -> None:
        pass


def read(file: Path) -> list[dict]:
    """Return the rows that are there, all values as text."""
    if not file.exists():
        return []
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def append(file: Path, row: dict) -> None:
    """Append a row, and print it."""
    fresh = not file.exists()
    with open(file, "a", newline="") as stream:
        writer = csv.DictWriter(stream, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(*row.values(), flush=True)


class Searches:
    """Campaigns beside one another: a row each, with the held-out scores of the best found.

    That is no baseline, even if one is better. And with the hypervolume, above 0 in each task, of
    the held-out scores of the baselines and of the finalists, of the last stage where there are
    stages.
    """

    KEY = ("controller", "seed", "evaluations")

    def __init__(self, file: Path, folder: Path, tasks: Sequence[str]):
        """
        Args:
            file: the CSV.
            folder: of the runs.
            tasks: the objectives that are scores.
        """
        self._file, self._folder, self._tasks = file, folder, tuple(tasks)

    def make(
        self, name: str, seed: int, evaluations: int, campaign: Path, settings: Sequence[str]
    ) -> None:
        """Run one campaign, if its row is not there yet; one that was stopped goes on."""
        key = (name, str(seed), str(evaluations))
        if key in {tuple(row[k] for k in self.KEY) for row in read(self._file)}:
            return
        directory, started = self._folder / "-".join(key), time.perf_counter()
        settings = [f"seed={seed}", *settings]
        if not run_campaign(campaign, directory=directory, settings=settings, progress=Quiet()):
            raise SystemExit("interrupted; the same command goes on")
        archive = Archive(directory / "archive.db")
        finals = {c: archive.means(c, "heldout") for c in archive.finals_done()}
        best = finals[archive.best_found()]
        last = archive.candidates("stage = (SELECT MAX(stage) FROM candidates)")
        kept = {c.id for c in (*archive.baselines(), *last)} & finals.keys()
        points = np.array([[finals[c][task] for task in self._tasks] for c in sorted(kept)])
        row = {
            "controller": name,
            "seed": seed,
            "evaluations": evaluations,
            **{task: round(best[task], 4) for task in self._tasks},
            "mean": round(float(np.mean([best[t] for t in self._tasks])), 4),
            "hypervolume": round(hypervolume(points, np.zeros(len(self._tasks))), 4),
            "seconds": round(time.perf_counter() - started),
        }
        append(self._file, row)

    def table(self) -> str:
        """Return means over seeds with 95 % intervals (normal), of all rows there are."""
        groups: dict[tuple, list[dict]] = {}
        for row in read(self._file):
            groups.setdefault((row["controller"], row["evaluations"]), []).append(row)
        columns, body = (*self._tasks, "mean", "hypervolume"), []
        for key, group in sorted(groups.items()):
            found = [np.array([float(r[c]) for r in group]) for c in columns]
            wide = [1.96 * v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan for v in found]
            cells = [f"{v.mean():.3f} ± {w:.3f}" for v, w in zip(found, wide, strict=True)]
            body.append([*key, len(group), *cells])
        return tabulate(body, headers=["search", "candidates", "seeds", *columns])
