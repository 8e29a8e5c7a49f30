"""Dominance and hypervolume against brute force."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evomerge.search.objectives import Objective, Scale
from evomerge.search.pareto import dominates, hypervolume_contributions

vectors = st.lists(st.integers(0, 3), min_size=3, max_size=3)


@given(vectors, vectors, vectors)
def test_dominance_is_a_strict_partial_order(a, b, c):
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))
    if dominates(a, b) and dominates(b, c):
        assert dominates(a, c)


def area(points, reference):
    """Exact area dominated in two dimensions, by cells of the points' own grid."""
    xs = sorted({reference[0], *(p[0] for p in points if p[0] > reference[0])})
    ys = sorted({reference[1], *(p[1] for p in points if p[1] > reference[1])})
    return sum(
        (x1 - x0) * (y1 - y0)
        for x0, x1 in itertools.pairwise(xs)
        for y0, y1 in itertools.pairwise(ys)
        if any(p[0] >= x1 and p[1] >= y1 for p in points)
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7))
def test_contributions_are_what_is_lost_without_a_point(points):
    reference = (-0.5, -0.5)
    found = hypervolume_contributions(np.array(points, float), np.array(reference))
    front = [p for p in points if not any(dominates(q, p) for q in points)]
    for point, contribution in zip(points, found, strict=True):
        others = [q for q in front if q != point] + [point] * (front.count(point) - 1)
        lost = area(front, reference) - area(others, reference) if point in front else 0.0
        assert np.isclose(contribution, lost)


@given(st.lists(st.integers(-1, 9), min_size=1, max_size=5))
def test_contributions_on_a_line(values):
    found = hypervolume_contributions(np.array(values, float)[:, None], np.zeros(1))
    for i, value in enumerate(values):
        others = max([0, *values[:i], *values[i + 1 :]])
        assert found[i] == max(0, value - others)


def test_no_point_contributes_nothing():
    assert hypervolume_contributions(np.zeros((0, 2)), np.zeros(2)).shape == (0,)


def test_scale_signs_and_divides_by_the_baselines_range():
    objectives = [Objective("acc", weight=3.0), Objective("loss", "minimize")]
    scale = Scale(objectives, [{"acc": 0.2, "loss": 3.0}, {"acc": 0.6, "loss": 1.0}])
    assert np.allclose(scale.vector({"acc": 0.6, "loss": 1.0}), (1.0, 1.0))
    assert np.allclose(scale.vector({"acc": 0.2, "loss": 3.0}), (0.0, 0.0))
    assert np.isclose(scale.value({"acc": 0.4, "loss": 0.0}), (3 * 0.5 + 1.5) / 4)


def test_scale_leaves_an_objective_without_range_in_its_unit():
    scale = Scale([Objective("acc")], [{"acc": 0.5}, {"acc": 0.5}])
    assert scale.vector({"acc": 0.75}) == (0.25,)
