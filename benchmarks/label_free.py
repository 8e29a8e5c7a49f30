"""How well fitness without labels foretells the score that it stands for.

    python benchmarks/label_free.py demo many     # appends rows to label_free.csv
    python benchmarks/label_free.py table         # of the rows that are there
    python benchmarks/label_free.py kept          # how exact predictions are that are kept small
    python benchmarks/label_free.py searches --seeds 3   # rows of label_free_searches.csv

`demo` is search_spaces/crosslingual-maths.yaml, `many` search_spaces/many-experts.yaml. Of each,
60 random merges of its space, and 60 along a search by CMA-ES on the real score (every other one of
120), are scored on 100 held-out items of each task, and without labels on prompts drawn from the
search's items: by entropy, and by agreement with the expert of each language on that language's
prompts. For comparison, the exact match on few of the search's items, with their labels.

Prints Spearman's rank correlation with the held-out exact match (entropy is turned round, so that
more is better throughout), and its 95 % interval by a bootstrap over merges.

`searches`: CMA-ES of both pools, or of those that are named too, told of each candidate the mean
agreement on the prompts, or the exact match on as many of the search's items; then the best of
those told, on all held-out items.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import torch
from rows import Rows, interval_of_mean
from scipy.stats import rankdata

from evomerge.campaign.build import checked
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.source_hashes import hash_sources
from evomerge.scoring.kept_predictions import divergence, keep
from evomerge.search.controllers import CONTROLLERS, Feedback, Problem, make_controller
from evomerge.search.controllers.cmaes import CmaEsSection
from evomerge.workers.protocol import Job
from evomerge.workers.worker import Worker

CSV = Path(__file__).with_suffix(".csv")
ANSWER = 4  # tokens, as the tasks have it
LABELLED = (5, 20, 50)  # items of each task, whose labels are known
LABELS = "labels"  # what a search is told that knows those of the prompts
SEARCHES = "label_free_searches.csv"


class Pool(NamedTuple):
    """A campaign, and whose trade each of its tasks is."""

    file: Path
    experts: Mapping[str, str]  # task -> label of the expert


POOLS = {
    "demo": Pool(
        Path("search_spaces/crosslingual-maths.yaml"), {"maths_ja": "ja", "maths_fr": "fr"}
    ),
    "many": Pool(
        Path("search_spaces/many-experts.yaml"),
        {f"maths_{language}": language for language in ("ja", "fr", "es", "id")},
    ),
}


def entries_of(task: str, expert: str, prompts: str) -> dict[str, dict[str, Any]]:
    """Return how a task's prompts are scored without labels, by what it is called in tables."""
    agreement = {"agreement": expert, "prompts": prompts, "max_tokens": ANSWER}
    entropy = {"prompts": prompts, "max_tokens": ANSWER}
    found = {
        "agreement, answer": agreement,
        "agreement, prompt": agreement | {"where": "prompt"},
        "agreement, hidden": agreement | {"measure": "hidden"},
        "entropy, answer": entropy | {"entropy": "answer"},
        "entropy, prompt": entropy | {"entropy": "prompt"},
    }
    return {
        name: {"name": f"{task}.{number}", **entry, "batch_size": 250}
        for number, (name, entry) in enumerate(found.items())
    }


MEASURES = list(entries_of("", "", ""))


class Bench:
    """A pool's worker, which scores merges on the tasks and without labels."""

    def __init__(
        self, pool: Pool, prompts: int, heldout: int, folder: Path, seed: int | None = None
    ):
        """
        Args:
            pool: what is merged.
            prompts: of each task, taken from its search items.
            heldout: items of each task.
            folder: of the files of prompts.
            seed: by which items are held out; the campaigns' own, if it is not given.
        """
        self._most = {"search": LABELLED[-1], "heldout": heldout}
        with common.errors_as_lines(pool.file):
            own = [] if seed is None else [f"seed={seed}"]
            (plain,) = checked(pool.file, own)
            fitness = [entry.model_dump(exclude_none=True) for entry in plain.plan.fitness]
            self._entries = {}
            for task, expert in pool.experts.items():
                file = folder / f"{task}.jsonl"
                file.write_text("".join(asked_of(plain, task, prompts)), encoding="utf-8")
                self._entries[task] = entries_of(task, expert, str(file))
                fitness += self._entries[task].values()
            (campaign,) = checked(pool.file, [*own, f"fitness={json.dumps(fitness)}"])
            self.campaign = hash_sources(campaign)
        self._worker = Worker(self.campaign.worker)
        self._tasks = list(pool.experts)

    def score(self, genome: np.ndarray) -> dict[str, float]:
        """Return the mean exact match on few of the search's items, and on fewer."""
        scored = self._scores(genome, self._sides("search"))
        found = {}
        for count in LABELLED:
            few = {task: scores[:count] for task, scores in scored.items()}
            found[f"{count} labels a task"] = mean_of(few)
        return found

    def told(self, genome: np.ndarray, name: str, count: int) -> float:
        """Return a candidate's mean over tasks of a measure, or of the exact match on few items."""
        if name != LABELS:
            entries = [self._entries[task][name]["name"] for task in self._tasks]
            hashes = self.campaign.fitness[entries[0]].hashes
            return mean_of(self._scores(genome, dict.fromkeys(entries, tuple(range(len(hashes))))))
        splits = self.campaign.splits
        return mean_of(
            self._scores(genome, {task: splits[task].search[:count] for task in self._tasks})
        )

    def exact_match(self, genome: np.ndarray, most: int | None) -> float:
        """Return the mean exact match on so many held-out items a task, or on all."""
        splits = self.campaign.splits
        held_out = {task: splits[task].heldout[:most] for task in self._tasks}
        return mean_of(self._scores(genome, held_out))

    def heldout(self, genome: np.ndarray) -> dict[str, float]:
        """Return the mean exact match on held-out items, and the scores without labels."""
        ordinals = self._sides("heldout")
        for entries in self._entries.values():
            for entry in entries.values():
                count = len(self.campaign.fitness[entry["name"]].hashes)
                ordinals[entry["name"]] = tuple(range(count))
        scores = self._scores(genome, ordinals)
        found = {"heldout": mean_of({task: scores[task] for task in self._tasks})}
        for measure in MEASURES:
            of_tasks = {t: scores[self._entries[t][measure]["name"]] for t in self._tasks}
            found[measure] = mean_of(of_tasks)
        return found

    def _scores(
        self, genome: np.ndarray, ordinals: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, np.ndarray]:
        recipe = self.campaign.space.decode(genome)
        outcome = self._worker.evaluate(Job(0, recipe, "search", ordinals=ordinals))
        assert outcome.status == "ok", outcome.reason
        return outcome.scores

    def _sides(self, side: str) -> dict[str, tuple[int, ...]]:
        splits, most = self.campaign.splits, self._most[side]
        return {task: splits[task].of(side)[:most] for task in self._tasks}


def asked_of(campaign: Campaign, task: str, count: int) -> Iterator[str]:
    """Yield lines of a file of prompts: what the first search items of a task ask."""
    fitness = campaign.fitness[task]
    for ordinal in campaign.splits[task].search[:count]:
        text = fitness.text(ordinal)
        assert text is not None, "the tasks are asked in words"
        yield json.dumps({"prompt": text.text}, ensure_ascii=False) + "\n"


def mean_of(scores: Mapping[str, np.ndarray]) -> float:
    """Return the mean over tasks of their items' mean."""
    return float(np.mean([np.mean(items, dtype=np.float64) for items in scores.values()]))


def random_genomes(bench: Bench, count: int) -> Iterator[tuple[np.ndarray, dict[str, float]]]:
    """Yield genomes all over the box, with their scores on the search's items."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        genome = rng.random(bench.campaign.space.dimension)
        yield genome, bench.score(genome)


def searched_genomes(bench: Bench, count: int) -> Iterator[tuple[np.ndarray, dict[str, float]]]:
    """Yield every other genome of a search on the real score, with its scores."""
    space = bench.campaign.space
    options = bench.campaign.search.controller
    assert isinstance(options, CmaEsSection)
    problem = Problem(space.dimension, 1, space.start)
    controller = make_controller(problem, options)
    assert isinstance(controller, CONTROLLERS.get("cmaes"))
    for ordinal in range(2 * count):
        (proposal,) = controller.ask(1)
        scores = bench.score(proposal.genome)
        value = scores[f"{LABELLED[-1]} labels a task"]
        controller.tell(Feedback(ordinal, proposal.genome, value, (value,), candidate=ordinal))
        if ordinal % 2:
            yield proposal.genome, scores


def search(pool: str, told: str, seed: int, options: argparse.Namespace) -> dict[str, object]:
    """Search by what is told; return a row of the best, and of where the search began."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(POOLS[pool], options.prompts, options.items, Path(folder), seed)
        section, space = bench.campaign.search.controller, bench.campaign.space
        assert isinstance(section, CmaEsSection)
        controller = make_controller(Problem(space.dimension, seed, space.start), section)
        best, highest = space.start, -np.inf
        for ordinal in range(options.searched):
            (proposal,) = controller.ask(1)
            value = bench.told(proposal.genome, told, options.prompts)
            controller.tell(Feedback(ordinal, proposal.genome, value, (value,), candidate=ordinal))
            if value > highest:
                best, highest = proposal.genome, value
        most = options.items if options.short else None
        found = {"began": bench.exact_match(space.start, most)}
        found |= {"found": bench.exact_match(best, most)}
    key = {"pool": pool, "told": told, "prompts": options.prompts}
    key |= {"candidates": options.searched, "seed": seed}
    return key | {name: round(value, 4) for name, value in found.items()}


def searches(options: argparse.Namespace, folder: Path) -> str:
    """Make the rows of searches that are not there yet; return their table."""
    rows = Rows(folder / SEARCHES, ("pool", "told", "prompts", "candidates", "seed"))
    pools = [what for what in options.what if what in POOLS] or [*POOLS]
    for seed in range(1, 1 + options.seeds):
        for pool in pools:
            for told in (MEASURES[0], LABELS):
                if not rows.has(pool, told, options.prompts, options.searched, seed):
                    rows.append(search(pool, told, seed, options))
    groups = {"pool": "pool", "told": "told", "prompts": "prompts", "candidates": "candidates"}
    return rows.table(groups, ("began", "found"), interval_of_mean)


MERGES = {"random": random_genomes, "search": searched_genomes}


def measure(pool: str, options: argparse.Namespace, rows: Rows) -> None:
    """Append the rows of a pool that are not there yet, of both sets of merges in turn."""
    count = options.candidates
    if all(rows.has(pool, merges, count - 1) for merges in MERGES):
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(POOLS[pool], options.prompts, options.items, Path(folder))
        sources = {merges: genomes(bench, count) for merges, genomes in MERGES.items()}
        for number in range(count):
            for merges, genomes in sources.items():
                genome, scores = next(genomes)
                if rows.has(pool, merges, number):
                    continue
                found = bench.heldout(genome) | scores
                rounded = {name: round(value, 6) for name, value in found.items()}
                rows.append({"pool": pool, "merges": merges, "number": number, **rounded})


def correlations(rows: list[dict[str, str]], name: str) -> tuple[float, float, float]:
    """Return Spearman's rank correlation with the held-out score, and its 95 % interval."""
    truth = np.array([float(row["heldout"]) for row in rows])
    sign = -1.0 if name.startswith("entropy") else 1.0
    values = sign * np.array([float(row[name]) for row in rows])
    rng = np.random.default_rng(0)
    which = rng.integers(len(rows), size=(2000, len(rows)))
    drawn = rank_correlation(truth[which], values[which])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(rank_correlation(truth, values)), float(low), float(high)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's correlations of two (..., n) arrays along their last axis."""
    ranks = [rankdata(values, axis=-1) for values in (a, b)]  # equal ones share a rank
    apart = [rank - rank.mean(-1, keepdims=True) for rank in ranks]
    lengths = [np.sqrt((x * x).sum(-1)) for x in apart]
    with np.errstate(invalid="ignore"):  # where all are equal there is no correlation
        return np.asarray((apart[0] * apart[1]).sum(-1) / (lengths[0] * lengths[1]))


def table(rows: Rows) -> str:
    """Return the correlations, a row each way of scoring and a column each set of merges."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows.read():
        groups.setdefault((row["pool"], row["merges"]), []).append(row)
    lines = []
    for name in (*MEASURES, *(f"{count} labels a task" for count in LABELLED)):
        cells = []
        for of_group in groups.values():
            value, low, high = correlations(of_group, name)
            cells.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
        lines.append([name, *cells])
    heads = [f"{pool}, {len(of)} {merges}" for (pool, merges), of in groups.items()]
    return common.table(["", *heads], lines)


def kept_table(short: bool) -> str:
    """Return by how much divergences of predictions that are kept small are off."""
    lines: list[list[object]] = []
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (4000,) if short else (32_000, 128_000):
        for temperature in (1.0, 3.0):
            for kept in (64, 128, 256, 512):
                apart, held = [], []
                for spread in (0.1, 0.5, 2.0):  # from hardly another model to quite another
                    expert = 2.0 * torch.randn(24, vocabulary, generator=generator)
                    expert += 8.0 * (torch.rand(24, vocabulary, generator=generator) < 1e-4)
                    noise = torch.randn(24, vocabulary, generator=generator)
                    logits = (expert, expert + spread * noise)
                    p, q = ((x.double() / temperature).log_softmax(-1) for x in logits)
                    whole = (p.exp() * (p - q)).sum(-1)
                    offsets = np.random.default_rng(1).random(24)
                    small = keep(expert, temperature, kept, offsets)
                    found = divergence(small, logits[1], temperature)
                    apart.append(abs(float(found.mean() / whole.mean()) - 1.0))
                    held.append(1.0 - float(small.rest.mean()))
                likeliest = float(np.mean(held))
                lines.append([vocabulary, temperature, kept, likeliest, max(apart)])
    heads = ["vocabulary", "temperature", "kept", "mass of the likeliest", "largest error"]
    return common.table(heads, lines, ("", ".0f", "", ".2f", ".3f"))


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("what", nargs="+", choices=[*POOLS, "table", "kept", "searches"])
    parser.add_argument("--candidates", type=int, default=60, help="merges of each set")
    parser.add_argument("--items", type=int, default=100, help="held-out ones of each task")
    parser.add_argument("--prompts", type=int, default=25, help="of each task")
    parser.add_argument("--searched", type=int, default=200, help="candidates of each search")
    parser.add_argument("--seeds", type=int, default=3, help="of searches, from 1 on")
    common.with_out(parser, CSV, Path("runs"))
    options = common.parsed(parser, candidates=3, prompts=4, items=10, searched=2, seeds=1)
    torch.set_num_threads(1)
    rows = Rows(
        options.out / CSV.name if options.out else CSV,
        ("pool", "merges", "number"),
    )
    for what in options.what:
        if what == "kept":
            print(kept_table(options.short), end="\n\n")
        elif what == "searches":
            print(searches(options, options.out or CSV.parent), end="\n\n")
        elif what != "table":
            started = time.perf_counter()
            measure(what, options, rows)
            seconds = time.perf_counter() - started
            print(f"{what}: {seconds:.0f} s, of which {time.process_time():.0f} s of a core")
    if set(options.what) - {"kept", "searches"}:
        print(table(rows))


if __name__ == "__main__":
    main()
