"""An archive of a whole search whose scores are drawn: of any kind of recipe, size and names."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.archive.records import PartScores, Recommended
from evomerge.archive.selection import baselines_scale, finalists
from evomerge.recipes.lineage import Birth, ExplicitRecipe
from evomerge.recipes.mixture import Chromosome, MixtureRecipe
from evomerge.recipes.parameters import Group, ParametersRecipe, single, uniform
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import Hop, RoutingRecipe
from evomerge.scoring.items import ItemText
from evomerge.scoring.outcome import Outcome
from evomerge.search.controllers import Proposal

GENES = 6
_LAYERS = 4
_WORKERS = ("node/1/cpu", "node/2/cpu")


def searched_archive(
    path: Path | str,
    *,
    kind: str = "parameters",
    candidates: int = 60,
    objectives: Sequence[str] = ("maths_ja", "maths_fr"),
    labels: Sequence[str] = ("ja", "fr"),
    items: int = 40,
    finals: int = 6,
    controller: str = "cmaes",
    name: str = "search",
    seed: int = 0,
    say: Callable[[str, int], str] = "{}: {}".format,
    texts: bool = True,
    in_parts: bool = False,
) -> None:
    """Write the archive of a search that is finished; none of its models was ever made.

    Items are solved with a probability that a candidate's genes decide: the first two matter, the
    others do not. Every 20th candidate fails.

    Args:
        path: of the archive.
        kind: of the recipes: parameters, mixture, routing or explicit.
        candidates: how many are proposed.
        objectives: their names.
        labels: of the models.
        items: of each objective, on each side of the split.
        finals: candidates of the front that are scored on held-out items; -1: the search still
            runs, and nobody is.
        controller: its kind, as the plan has it.
        name: of the campaign.
        seed: of what is drawn.
        say: of an objective and an ordinal, what is asked, what is right and what is answered.
        texts: whether the archive keeps what the items ask.
        in_parts: whether candidates are scored on a quarter of the items, and every tenth then
            recommended and scored on all.

    >>> archive = Archive(":memory:", write=True)
    >>> import tempfile
    >>> from evomerge.archive.reader import ArchiveReader
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     searched_archive(f"{folder}/archive.db", candidates=20)
    ...     ArchiveReader(f"{folder}/archive.db").counts()
    {'ok': 22, 'stopped': 0, 'failed': 1, 'running': 0}
    """
    rng = np.random.default_rng(seed)
    models = tuple(f"models/{number}" for number in range(len(labels)))
    archive = Archive(path, write=True)
    ordinals = {"search": range(0, 2 * items, 2), "heldout": range(1, 2 * items, 2)}
    rows = [
        (objective, side, ordinal, f"{objective} {ordinal}")
        for objective in objectives
        for side, numbers in ordinals.items()
        for ordinal in numbers
    ]
    plan, provenance = _plan(name, seed, labels, models, objectives, controller, candidates)
    archive.begin(name, plan, provenance, rows)
    start = archive.start(provenance["machine"])
    if texts:
        for objective in objectives:
            words = [
                (n, ItemText(say(objective, n), say(objective, n))) for n in ordinals["heldout"]
            ]
            archive.add_item_texts(objective, words)

    # one draw an item: who solves it does so against the same luck as all others
    luck = {(o, side): rng.random(items) for o in objectives for side in ordinals}

    def outcome(skills: Sequence[float], side: str) -> Outcome:
        scores, said = {}, {}
        for objective, skill in zip(objectives, skills, strict=True):
            own = 0.7 * luck[objective, side] + 0.3 * rng.random(items)
            scores[objective] = (own < skill).astype(np.float32)
            if side == "heldout":
                said[objective] = [say(objective, n) for n in ordinals[side]]
        worker = _WORKERS[int(rng.integers(2))]
        return Outcome("ok", "", scores, 0.01, 0.1, "77ab", worker, said)

    skills: dict[int, list[float]] = {}
    for index, label in enumerate(labels):
        skill = [0.6 if index == n % len(labels) else 0.3 for n in range(len(objectives))]
        baseline = archive.add_baseline(label, single(models[index], "bfloat16"), label)
        skills[baseline.id] = skill
    average = archive.add_baseline("uniform", uniform(models, "bfloat16"), "uniform")
    skills[average.id] = [0.45] * len(objectives)
    outcomes = {candidate: outcome(skill, "search") for candidate, skill in skills.items()}
    for baseline_id, found in outcomes.items():
        archive.record(baseline_id, found, None)
    scale = baselines_scale(archive)
    archive.set_values({c: (scale.value(found.means or {}), 0.0) for c, found in outcomes.items()})

    for number in range(candidates):
        settled = number / max(1, candidates)
        genome = np.clip(0.5 + (1.0 - 0.6 * settled) * rng.normal(0.0, 0.2, GENES), 0.0, 1.0)
        parents = (average.id - 1, max(1, number)) if kind in ("mixture", "explicit") else ()
        recipe = _recipe(kind, genome, models, number, parents)
        recipe_id = f"{number:064x}"
        proposals = [Proposal(genome, parents, part=number)]
        recipes = [(recipe_id, recipe)]
        (candidate,) = archive.propose(1, proposals, recipes, in_parts=in_parts)
        if number % 20 == 19:
            failed = Outcome("failed", "a merged tensor is not finite", worker=_WORKERS[0])
            archive.record(candidate.id, failed, None, items=items * len(objectives))
            continue
        near = 1.0 - abs(genome[0] - 0.7) - 0.5 * abs(genome[1] - 0.3)
        skills[candidate.id] = [
            float(np.clip(0.75 * near + 0.1 * (genome[0] - 0.5) * (-1) ** n, 0.05, 0.95))
            for n in range(len(objectives))
        ]
        found = outcome(skills[candidate.id], "search")
        if not in_parts:
            archive.record(candidate.id, found, scale.value(found.means or {}))
            continue
        which = {
            o: np.sort(rng.choice(items, max(2, items // 4), replace=False)) for o in objectives
        }
        some = replace(found, scores={o: found.scores[o][which[o]] for o in objectives})
        part = PartScores(which, some.scores, some.summaries)
        archive.record(candidate.id, some, scale.value(some.means or {}), part=part)
        if number % 10 == 5:
            row = Recommended(recipe_id, recipe, "promising", genome, parents, candidate.id)
            (again,) = archive.recommend([row], 1, is_last=False)
            skills[again.id] = skills[candidate.id]
            archive.record(again.id, found, scale.value(found.means or {}))
    archive.set_seconds(start, 0.06 * candidates + 1.0)
    if finals >= 0:
        for candidate_id in finalists(archive, scale, finals, stage=0):
            archive.record_final(candidate_id, outcome(skills[candidate_id], "heldout"))
        archive.set_state("finished")
    archive.close()


def _plan(
    name: str,
    seed: int,
    labels: Sequence[str],
    models: Sequence[str],
    objectives: Sequence[str],
    controller: str,
    candidates: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    plan = {
        "name": name,
        "seed": seed,
        "sources": {"base": None, "models": dict(zip(labels, models, strict=True))},
        "stages": [],
        "controller": {"kind": controller},
        "fitness": [{"name": objective} for objective in objectives],
        "budget": {"items": None, "evaluations": candidates, "hours": None},
        "workers": {"count": len(_WORKERS)},
    }
    provenance = {
        "objectives": [{"name": objective, "direction": "maximize"} for objective in objectives],
        "genes": [f"weight {number}" for number in range(GENES)],
        "sources": {
            label: {"name": model, "path": f"/data/{model}", "sha256": f"{n:064x}"}
            for n, (label, model) in enumerate(zip(labels, models, strict=True))
        },
        "seed": seed,
        "machine": {
            "versions": {"python": "3.12.0"},
            "git": {"commit": "0" * 40, "dirty": True},
            "host": "node",
            "platform": "Linux",
            "cores": 2,
            "at": "2026-01-01T00:00:00+00:00",
            "device": "cpu",
        },
    }
    return plan, provenance


def _recipe(
    kind: str, genome: np.ndarray, models: tuple[str, ...], number: int, parents: Sequence[int]
) -> Recipe:
    count = len(models)
    weights = [tuple(float(genome[(g + m) % GENES]) for m in range(count)) for g in range(3)]
    if kind == "parameters":
        places: list[tuple[int, int] | str] = [(0, 2), (2, _LAYERS), "embed"]
        groups = [
            Group(place, module, {"weight": weights[n], "density": float(genome[n])})
            for n, place in enumerate(places)
            for module in ("mlp", None)
        ]
        return ParametersRecipe("ties", models, tuple(groups), base="models/0")
    if kind == "mixture":
        edges = np.array([0, 300, 1000])
        return MixtureRecipe(
            models, (Chromosome(None, edges, np.array(weights[:2])),), "float32", "x"
        )
    if kind == "routing":
        path = [
            Hop(0, 0),
            *(Hop(int(genome[n] > 0.5), n, 0.5 + genome[n]) for n in (1, 2)),
            Hop(0, 3),
        ]
        return RoutingRecipe(models, tuple(path), 0, "bfloat16")
    mother, father = f"{max(0, number - 1):064x}", f"{0:064x}"
    return ExplicitRecipe(
        models, (Birth((mother, father), float(genome[0]), 5, 0.01, number),), "x"
    )
