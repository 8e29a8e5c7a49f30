"""Constraints, picks from the front, and hypervolume as progress."""

import itertools

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

from evomerge.archive import summary
from evomerge.archive.archive import Archive
from evomerge.archive.selection import baselines_scale, front_points, pick
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import BadInput, EvomergeError
from evomerge.search.objectives import Constraints, ItemScale, Objective, Scale, parse_bound
from evomerge.search.pareto import beats, dominates, hypervolume, knee

BASELINES = {
    "base": {"x": 0.2, "y": 8.0},
    "a": {"x": 0.6, "y": 4.0},
    "uniform": {"x": 0.9, "y": 6.0},
}


@pytest.mark.parametrize(
    ("text", "bound"),
    {
        ">= 0.4": (1.0, None, 0.4),
        "<=12": (-1.0, None, 12.0),
        ">= -1e-3": (1.0, None, -0.001),
        ">= base - 0.01": (1.0, "base", -0.01),
        "<= my-model.2 + 3": (-1.0, "my-model.2", 3.0),
        ">=baseline": (1.0, "baseline", 0.0),
    }.items(),
)
def test_bounds_are_read(text, bound):
    assert parse_bound(text) == bound


@pytest.mark.parametrize(
    "text", ["", "0.4", "> 0.4", ">= ", ">= base * 2", ">= base - - 1", "== 1"]
)
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(ValueError, match="is no constraint"):
        parse_bound(text)


@pytest.mark.parametrize(
    ("constraint", "least"), {">= base - 0.1": 0.1, ">= baseline": 0.6, ">= 0.5": 0.5}.items()
)
def test_violation_is_what_is_missed_on_the_scale(constraint, least):
    objectives = [
        Objective("x", constraint=constraint),
        Objective("y", "minimize", 1.0, "<= a + 1"),
    ]
    scale = Scale(objectives, list(BASELINES.values()))
    found = Constraints(scale, BASELINES, ["base", "a"])
    assert found.violation({"x": least, "y": 5.0}) == 0.0
    assert found.violation({"x": least - 0.07, "y": 5.0}) == pytest.approx(0.07 / 0.7)
    assert found.violation({"x": least - 0.07, "y": 7.0}) == pytest.approx(0.07 / 0.7 + 2 / 4)


def test_a_baseline_that_failed_cannot_bound():
    scale = Scale([Objective("x", constraint=">= a")], [{"x": 1.0}])
    with pytest.raises(ValueError, match="baseline 'a' could not be scored"):
        Constraints(scale, {"base": {"x": 1.0}}, ["base"])


def test_item_scores_are_made_resources():
    objectives = [Objective("right"), Objective("loss", "minimize"), Objective("wrong", "minimize")]
    baselines = [{"right": [0, 1], "loss": [2.0, 6.0], "wrong": [0, 0.5]}]
    baselines = [{k: np.float32(v) for k, v in b.items()} for b in baselines]
    scale = ItemScale(objectives, baselines)
    scores = {"right": [1, 0.5], "loss": [3.0, 8.0], "wrong": [1.0, 0.25]}
    found = scale.vector({k: np.float32(v) for k, v in scores.items()})
    assert found.tolist() == [1.0, 0.5, 0.75, 0.0, 0.0, 0.75]


points = hnp.arrays(float, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 6))


@given(points)
def test_hypervolume_is_the_area_counted_out(found):
    inside = sum(
        any(x > cell[0] and y > cell[1] for x, y in found)
        for cell in itertools.product(range(6), range(6))
    )
    assert hypervolume(found, np.zeros(2)) == pytest.approx(inside)
    assert hypervolume(found[:, :1], np.zeros(1)) == pytest.approx(found[:, 0].max())


@given(points)
def test_the_knee_is_farthest_from_the_line_between_the_ends(found):
    front = [p for p in found if not any(dominates(q, p) for q in found)]
    front = np.unique(front, axis=0)
    chosen = front[knee(front)]
    if len(front) > 2:
        ends = front[[0, -1]]  # sorted by the first objective: its worst and its best
        across = ends[1] - ends[0]
        distance = [across[0] * (p - ends[0])[1] - across[1] * (p - ends[0])[0] for p in front]
        assert distance[front.tolist().index(chosen.tolist())] == pytest.approx(max(distance))


def test_less_violation_beats_any_score():
    assert beats((0.0, (0, 0)), (0.1, (9, 9))) and not beats((0.1, (9, 9)), (0.0, (0, 0)))
    assert beats((0.1, (1, 1)), (0.1, (0, 1))) and not beats((0.1, (0, 1)), (0.1, (1, 0)))


FITNESS = """
def items():
    return list(range(20))

def score(model, tokenizer, items):
    weight = model.model.layers[{layer}].mlp.up_proj.weight.double()
    return [float(weight.sum()) + 0.0 * i for i in items]
"""


@pytest.fixture
def two(here, campaign_file):
    for layer in (0, 1):
        (here / f"layer{layer}.py").write_text(FITNESS.format(layer=layer))

    def write(constraint, **changes):
        fitness = [{"name": f"f{i}", "function": f"layer{i}.py"} for i in (0, 1)]
        fitness[0]["constraint"] = constraint
        return campaign_file(fitness=fitness, budget__evaluations=40, **changes)

    return write


@pytest.mark.parametrize("kind", ["cmaes", "random"])
def test_a_campaign_keeps_what_it_has_to(two, here, silent, kind):
    options = {"controller": {"kind": kind}}
    assert run_campaign(two(">= -1e9", name="free", **options), observer=silent)
    free = Archive(here / "runs/free/archive.db")
    best = free.means(free.best())
    bound = round(best["f0"] + 0.1, 3)  # which the best of a free search misses
    assert run_campaign(two(f">= {bound}", name="bound", **options), observer=silent)
    archive = Archive(here / "runs/bound/archive.db")
    kept = {}
    for candidate in archive.candidates():
        means, span = archive.means(candidate.id), baselines_scale(archive).range[0]
        missed = archive.violation(candidate.id)
        assert missed == pytest.approx(max(0.0, bound - means["f0"]) / span)
        kept[candidate.id] = (missed, (means["f0"], means["f1"]))
    brute = {c for c, v in kept.items() if not any(beats(w, v) for w in kept.values())}
    copies = {c for c in kept if (archive.outcome(c) or {}).get("copy_of")}
    assert set(archive.front()) == brute - copies
    assert any(missed > 0 for missed, _ in kept.values())
    least = min(missed for missed, _ in kept.values())
    assert kept[archive.best()][0] == least
    rows = CliRunner().invoke(main, ["front", "runs/bound"])
    assert "misses a constraint" in rows.output


def test_picks_are_of_the_front(two, here, silent):
    file = two(">= -1e9", controller={"kind": "random"})
    assert run_campaign(file, observer=silent)
    archive = Archive(here / "runs/tiny/archive.db")
    ids, found = front_points(archive)
    assert pick(archive, "f1") == ids[int(found[:, 1].argmax())]
    assert pick(archive, "knee") == ids[knee(found)]
    weighted = pick(archive, "weights=f0:0.3,f1:2")
    assert weighted == ids[int((found @ [0.3, 2.0]).argmax())]
    for which, message in {
        "weights=f2:1": "there is no objective 'f2'",
        "weights=f0": "'f0' is no weight",
        "knees": "write best, knee",
    }.items():
        with pytest.raises(BadInput, match=message):
            pick(archive, which)
    done = CliRunner().invoke(main, ["export", "runs/tiny", "out", "--pick", "knee"])
    assert done.exit_code == 0, done.output
    volume = summary.status("runs/tiny")["hypervolume"]
    everything = [
        baselines_scale(archive).vector(archive.means(c.id)) for c in archive.candidates()
    ]
    assert volume == pytest.approx(hypervolume(np.array(everything), np.full(2, -0.1)))
    assert "hypervolume" in CliRunner().invoke(main, ["status", "runs/tiny"]).output


@pytest.mark.parametrize(
    ("constraint", "message"),
    {
        ">= other - 0.1": "fitness.0.constraint: there is no baseline 'other'",
        "at least 3": "fitness.0.constraint: 'at least 3' is no constraint",
    }.items(),
)
def test_constraints_that_will_not_do(two, silent, constraint, message):
    with pytest.raises(BadInput, match=message):
        run_campaign(two(constraint), observer=silent)


def test_a_source_that_failed_and_bounds_stops_with_one_line(two, here, silent):
    norm = load_file((here / "a").resolve() / "model.safetensors")["model.norm.weight"][0]
    check = f"    assert abs(float(model.model.norm.weight[0]) - {float(norm)!r}) > 1e-9\n"
    text = FITNESS.format(layer=0).replace("    weight =", f"{check}    weight =")
    file = two(">= a")
    (here / "layer0.py").write_text(text)
    with pytest.raises(EvomergeError, match="baseline 'a' could not be scored; mend the source"):
        run_campaign(file, observer=silent)
