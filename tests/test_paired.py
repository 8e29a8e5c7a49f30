"""Two candidates item by item, against scipy and by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

from evomerge.archive.paired import Paired, mean_difference, paired
from evomerge.archive.reader import ArchiveReader
from evomerge.campaign.run import run_campaign
from evomerge.errors import EvomergeError
from evomerge.scoring.outcome import Score


@pytest.mark.parametrize(("better", "worse"), [(12, 4), (4, 12), (7, 7), (0, 9), (1, 0), (0, 0)])
def test_mcnemars_test_is_the_binomial_one(better, worse):
    found = Paired(Score(0.0, 0.0, 400), better, worse).p_value
    unequal = better + worse
    assert found == pytest.approx(binomtest(better, unequal).pvalue if unequal else 1.0)


def test_many_differing_items_do_not_overflow():
    found = Paired(Score(0.0, 0.0, 10_000), 2100, 1900).p_value
    assert found == pytest.approx(binomtest(2100, 4000).pvalue)


@pytest.fixture
def run(campaign_file, here):
    fitness = [
        {"name": "likely", "function": "fit.py", "weight": 3.0},
        {"name": "choice", "task": "choice.yaml", "metric": "acc"},
        {"name": "layers", "cost": "parameters", "direction": "minimize"},
    ]

    def make(name, seed):
        file = campaign_file(
            fitness=fitness, seed=seed, budget__evaluations=3, controller={"kind": "random"}
        )
        run_campaign(file, directory=name)
        return ArchiveReader(here / name / "archive.db")

    return make


def test_candidates_are_compared_item_by_item(run):
    archive, others = run("one", 7), run("other", 8)
    best, first = archive.best_found(), archive.baselines()[0].id
    pairs = paired(archive, best, first)
    assert set(pairs) == {"likely", "choice"}
    for name, pair in pairs.items():
        one, other = (archive.item_scores(n, name, "heldout").astype(float) for n in (best, first))
        assert pair.difference.mean == pytest.approx((one - other).mean())
        assert (pair.better, pair.worse) == ((one > other).sum(), (one < other).sum())
        if np.ptp(one - other):
            t = ttest_rel(one, other).statistic
            assert pair.difference.mean / pair.difference.stderr == pytest.approx(t)
    mean = mean_difference(archive, pairs)
    likely, choice = (pairs[name].difference for name in ("likely", "choice"))
    assert mean.mean == pytest.approx(0.75 * likely.mean + 0.25 * choice.mean)
    assert mean.stderr == pytest.approx(np.hypot(0.75 * likely.stderr, 0.25 * choice.stderr))
    assert mean_difference(archive, {"likely": pairs["likely"]}) is None
    with pytest.raises(EvomergeError, match="has other heldout items of 'likely'"):
        paired(archive, best, first, rivals=others)
