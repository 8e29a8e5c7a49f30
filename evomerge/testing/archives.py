"""A small archive for examples and tests: two models, three proposals, two objectives."""

from pathlib import Path

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.recipes.parameters import single, uniform
from evomerge.scoring.outcome import Outcome
from evomerge.search.controllers import Proposal

PLAN = {
    "name": "example",
    "seed": 7,
    "sources": {"base": None, "models": {"ja": "models/ja", "maths": "models/maths"}},
    "stages": [],
    "controller": {"kind": "cmaes"},
    "fitness": [{"name": "accuracy"}, {"name": "length"}],
    "budget": {"evaluations": 8, "hours": None},
}
PROVENANCE = {
    "objectives": [
        {"name": "accuracy", "direction": "maximize"},
        {"name": "length", "direction": "minimize"},
    ],
    "sources": {
        "ja": {"name": "models/ja", "path": "/data/models/ja", "sha256": "9c1f"},
        "maths": {"name": "models/maths", "path": "/data/models/maths", "sha256": "5f0c"},
    },
    "seed": 7,
    "machine": {
        "versions": {"python": "3.12.0"},
        "git": None,
        "host": "node",
        "platform": "Linux",
        "cores": 2,
        "at": "2026-01-01T00:00:00+00:00",
    },
}
# Mean accuracy and length of each candidate; None for one that failed.
MEANS = [(0.25, 12.0), (0.5, 20.0), (0.75, 16.0), (0.5, 10.0), None]


def example_archive(path: Path | str = ":memory:") -> Archive:
    """Make an archive with the candidates 1 and 2 (baselines) and 3, 4 and 5 (proposals).

    The first proposal has the highest accuracy and the second the least length; the third could
    not be merged. Those of the front were scored on held-out items, on which the second failed.

    >>> archive = example_archive()
    >>> archive.front(), archive.best(), archive.final(4)["reason"]
    ([3, 4], 3, 'OutOfMemoryError')
    """
    archive = Archive(path, write=True)
    items = [(name, "search", n, "") for name in ("accuracy", "length") for n in range(4)]
    archive.begin("example", PLAN, PROVENANCE, items)

    def outcome(means: tuple[float, float] | None) -> Outcome:
        if means is None:
            return Outcome("failed", "a merged tensor is not finite")
        # Half of the items score more than the mean, half of them less.
        spread = np.array([-0.25, 0.25, -0.25, 0.25], np.float32)
        scores = {"accuracy": means[0] + spread, "length": means[1] + spread}
        return Outcome("ok", "", scores, 0.1, 2.0, "77ab", "node/1/cpu")

    for label in ("ja", "maths"):
        archive.add_baseline(label, single(f"models/{label}", "bfloat16"), label)
    recipe = uniform(("models/ja", "models/maths"), "bfloat16")
    for number in range(3):
        proposal = Proposal(np.array([0.25 * number]))
        archive.propose(1, [proposal], [(f"recipe {number}", recipe)])
    values = [0.5, 0.5, 1.25, 1.125, None]  # of `Scale`
    for number, (means, value) in enumerate(zip(MEANS, values, strict=True), start=1):
        archive.record(number, outcome(means), value)
    archive.record_final(3, outcome((0.625, 17.0)))
    archive.record_final(4, Outcome("failed", "OutOfMemoryError"))
    return archive
