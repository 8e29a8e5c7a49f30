"""Rows of benchmarks that run for hours: appended to a CSV as they come, averaged over seeds."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import common
import numpy as np
from scipy import stats

from evomerge.search.pareto import hypervolume

Row = Mapping[str, object]


class Rows:
    """Rows kept in a CSV; one that is there is not made again."""

    def __init__(self, file: Path, key: Sequence[str]):
        """
        Args:
            file: the CSV; it need not exist.
            key: the columns that tell rows apart.
        """
        self._file, self._key = file, tuple(key)

    def read(self) -> list[dict[str, str]]:
        """Return the rows that are there, all values as text."""
        if not self._file.exists():
            return []
        with open(self._file, newline="") as stream:
            return list(csv.DictReader(stream))

    def has(self, *key: object) -> bool:
        """Tell whether the row with this key is there."""
        wanted = tuple(map(str, key))
        return any(tuple(row[name] for name in self._key) == wanted for row in self.read())

    def append(self, row: Row) -> None:
        """Append a row, and print it."""
        fresh = not self._file.exists()
        with open(self._file, "a", newline="") as stream:
            writer = csv.DictWriter(stream, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print(*row.values(), flush=True)

    def table(
        self,
        groups: Mapping[str, str],
        columns: Sequence[str],
        spread: Callable[[np.ndarray], float],
    ) -> str:
        """Return the mean of each group of rows, over its seeds.

        Args:
            groups: column -> heading, of the columns that make a group.
            columns: those that are averaged.
            spread: of the (seeds,) values of a group, printed beside their mean.
        """
        grouped: dict[tuple[int | str, ...], list[dict[str, str]]] = {}
        for row in self.read():
            group = tuple(int(v) if v.isdigit() else v for v in (row[name] for name in groups))
            grouped.setdefault(group, []).append(row)
        body = []
        for group, rows in sorted(grouped.items()):
            cells = []
            for column in columns:
                values = np.array([float(row[column]) for row in rows])
                beside = f" ± {spread(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.3f}{beside}")
            body.append([*group, len(rows), *cells])
        return common.table([*groups.values(), "seeds", *columns], body)


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation of (seeds,) values."""
    return float(values.std(ddof=1))


def interval_of_mean(values: np.ndarray) -> float:
    """Return half the 95 % interval of the mean of (seeds,) values, by Student's t."""
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))


class Searches:
    """Campaigns at equal numbers of candidates: a row each, by held-out scores.

    A row has the scores of the best candidate that the search found, which is no baseline even if
    one is better, and the hypervolume, above 0 in each task, of the baselines and the finalists (of
    the last stage, where there are stages).
    """

    def __init__(self, file: Path, folder: Path, tasks: Sequence[str]):
        """
        Args:
            file: the CSV.
            folder: of the runs.
            tasks: the objectives that are scores.
        """
        self._rows = Rows(file, ("controller", "seed", "evaluations"))
        self._folder, self._tasks = folder, tuple(tasks)

    def make(
        self, name: str, seed: int, evaluations: int, campaign: Path, settings: Sequence[str]
    ) -> None:
        """Run one campaign, if its row is not there yet; one that was stopped goes on."""
        if self._rows.has(name, seed, evaluations):
            return
        directory = self._folder / f"{name}-{seed}-{evaluations}"
        started = time.perf_counter()
        archive = common.run_silently(campaign, directory, [f"seed={seed}", *settings])
        best, last = archive.best_found(), archive.last_candidate()
        assert best is not None and last is not None, "a finished campaign has found a candidate"
        heldout = {c: archive.means(c, "heldout") for c in archive.finals_done()}
        counted = {c.id for c in (*archive.baselines(), *archive.candidates(stage=last.stage))}
        points = [
            [means[task] for task in self._tasks]
            for candidate, means in heldout.items()
            if candidate in counted and means  # there are none of one that failed
        ]
        row: dict[str, object] = {"controller": name, "seed": seed, "evaluations": evaluations}
        row |= {task: round(heldout[best][task], 4) for task in self._tasks}
        row["mean"] = round(float(np.mean([heldout[best][task] for task in self._tasks])), 4)
        row["hypervolume"] = round(hypervolume(np.array(points), np.zeros(len(self._tasks))), 4)
        row["seconds"] = round(time.perf_counter() - started)
        self._rows.append(row)

    def table(self) -> str:
        """Return means over seeds with 95 % intervals, of all rows there are."""
        groups = {"controller": "search", "evaluations": "candidates"}
        return self._rows.table(groups, (*self._tasks, "mean", "hypervolume"), interval_of_mean)
