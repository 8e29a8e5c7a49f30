"""Recipes: canonical, hashable, and read back with every fault named."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.canonical import canonical_json
from evomerge.errors import BadInput
from evomerge.recipes.parameters import Group, Recipe, single, uniform
from evomerge.recipes.parse import from_json

floats = st.floats(allow_nan=False, allow_infinity=False, width=64)
groups = st.builds(
    Group,
    layers=st.one_of(
        st.none(), st.sampled_from(["embed", "norm", "head"]), st.sampled_from([(0, 2), (3, 9)])
    ),
    modules=st.one_of(st.none(), st.sampled_from(["mlp", "self_attn"])),
    values=st.fixed_dictionaries({"weight": st.tuples(floats, floats), "scale": floats}),
)
recipes = st.builds(
    Recipe,
    method=st.just("ties"),
    models=st.just(("x", "y")),
    groups=st.lists(groups, min_size=1, max_size=3).map(tuple),
    base=st.just("b"),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    seed=st.one_of(st.none(), st.integers(0, 2**63)),
)
HASHES = {"x": "1", "y": "2", "b": "3"}


@given(recipes)
def test_json_reads_back_and_keeps_the_id(recipe):
    again = from_json(recipe.to_json())
    assert again.id(HASHES) == recipe.id(HASHES)
    assert from_json(again.to_json()) == again


@given(recipes)
def test_id_hangs_on_content_not_on_where_models_lie(recipe):
    data = recipe.to_json() | {"models": ["/elsewhere/x", "y"]}
    moved = from_json(data)
    assert moved.id(HASHES | {"/elsewhere/x": "1"}) == recipe.id(HASHES)
    assert moved.id(HASHES | {"/elsewhere/x": "9"}) != recipe.id(HASHES)


def test_canonical_json_has_no_negative_zero_and_no_nan():
    assert canonical_json({"b": -0.0, "a": [(-0.0, 1)]}) == '{"a":[[0.0,1]],"b":0.0}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(math.nan)


def test_whole_numbers_in_json_are_coefficients_too():
    data = single("m", "bfloat16").to_json()
    data["groups"][0]["weight"] = [1]
    assert from_json(data) == single("m", "bfloat16")


def test_uniform_weights_are_one_nth():
    assert uniform(("a", "b"), "float32").groups[0].values["weight"] == (0.5, 0.5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"methode": 1}, "r.json: methode: unknown key 'methode'; did you mean 'method'?"),
        ({"version": 2}, "r.json: version: 2 will not do; write 1"),
        ({"kind": "soup"}, "r.json: kind: 'soup' will not do; write parameters"),
        ({"models": []}, "r.json: models: "),
        ({"models": "x"}, "r.json: models: "),
        ({"dtype": "int8"}, "r.json: dtype: 'int8' will not do; write one of bfloat16"),
        ({"seed": -1}, "r.json: seed: -1 will not do"),
        ({"groups": []}, "r.json: groups: "),
        ({"groups": [{"layers": [2, 1], "modules": None}]}, "layers [2, 1] is not [first, last"),
        ({"groups": [{"layers": "top", "modules": None}]}, "layers 'top' is not"),
        ({"groups": [{"layers": None, "modules": ""}]}, "modules '' is not a substring"),
        (
            {"groups": [{"layers": None, "modules": None, "weight": [float("nan")]}]},
            "weight: nan is not a finite number",
        ),
        ({"groups": [7]}, "r.json: groups.0: a group is an object"),
    ],
)
def test_faults_name_the_key(change, message):
    with pytest.raises(BadInput) as error:
        from_json(single("m", "bfloat16").to_json() | change, "r.json")
    assert message in str(error.value)


def test_all_faults_come_together():
    with pytest.raises(BadInput) as error:
        from_json({"version": 1, "kind": "parameters", "seed": "x"}, "r.json")
    assert len(error.value.faults) == 5


def test_no_recipe_at_all():
    with pytest.raises(BadInput, match="a recipe is a JSON object"):
        from_json([1], "r.json")
