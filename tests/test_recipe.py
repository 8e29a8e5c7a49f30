"""Recipes: canonical, hashable, and read back with every fault named."""

import functools
import json
import math
import timeit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.canonical import canonical_json
from evomerge.errors import BadInput
from evomerge.recipes.mixture import Chromosome, MixtureRecipe, packed, unpacked
from evomerge.recipes.parameters import Group, ParametersRecipe, single, uniform
from evomerge.recipes.parse import parse_recipe

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
    ParametersRecipe,
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
    again = parse_recipe(recipe.to_json())
    assert again.id(HASHES) == recipe.id(HASHES)
    assert parse_recipe(again.to_json()) == again


@given(recipes)
def test_id_depends_on_content_not_on_where_models_lie(recipe):
    data = recipe.to_json() | {"models": ["/elsewhere/x", "y"]}
    moved = parse_recipe(data)
    assert moved.id(HASHES | {"/elsewhere/x": "1"}) == recipe.id(HASHES)
    assert moved.id(HASHES | {"/elsewhere/x": "9"}) != recipe.id(HASHES)


def test_canonical_json_has_no_negative_zero_and_no_nan():
    assert canonical_json({"b": -0.0, "a": [(-0.0, 1)]}) == '{"a":[[0.0,1]],"b":0.0}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(math.nan)


def test_whole_numbers_in_json_are_coefficients_too():
    data = single("m", "bfloat16").to_json()
    data["groups"][0]["weight"] = [1]
    assert parse_recipe(data) == single("m", "bfloat16")


def test_uniform_weights_are_one_nth():
    assert uniform(("a", "b"), "float32").groups[0].values["weight"] == (0.5, 0.5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"methode": 1}, "methode: unknown key 'methode'; did you mean 'method'?"),
        ({"version": 2}, "version: 2 is none of what it may be; write 1"),
        ({"kind": "soup"}, "kind: there is no kind 'soup'; known: explicit, mixture, parameters"),
        ({"models": []}, "models: is empty"),
        ({"models": "x"}, "models: 'x' is not a list"),
        ({"dtype": "int8"}, "dtype: 'int8' is none of what it may be; write bfloat16"),
        ({"seed": -1}, "seed: -1 is out of range; write a whole number of at least 0"),
        ({"groups": []}, "groups: is empty"),
        (
            {"groups": [{"layers": [2, 1], "modules": None}]},
            "groups.0.layers: [2, 1] is not [first, last + 1]",
        ),
        ({"groups": [{"layers": "top", "modules": None}]}, "groups.0.layers: 'top' is not [first"),
        ({"groups": [{"layers": None, "modules": ""}]}, "groups.0.modules: '' is empty"),
        (
            {"groups": [{"layers": None, "modules": None, "weight": [float("nan")]}]},
            "groups.0.weight: [nan] is not a finite number",
        ),
        (
            {"groups": [{"layers": None, "modules": None, "weight": 10**400}]},
            "is not a finite number",
        ),
        ({"groups": [7]}, "groups.0: 7 is not a mapping"),
    ],
)
def test_faults_name_the_key(change, message):
    with pytest.raises(BadInput) as error:
        parse_recipe(single("m", "bfloat16").to_json() | change)
    assert message in str(error.value)


def test_all_faults_come_together():
    with pytest.raises(BadInput) as error:
        parse_recipe({"version": 1, "kind": "parameters", "seed": "x"})
    keys = [fault.key for fault in error.value.faults]
    assert keys == ["method", "models", "dtype", "seed", "groups"]


def test_no_recipe_at_all():
    with pytest.raises(BadInput, match="a recipe is a JSON object"):
        parse_recipe([1])


def test_mixtures_pack_without_loss():
    """Also those of many segments, whose numbers are not round."""
    draw = np.random.default_rng(0)
    edges = np.concatenate([[0], np.sort(draw.choice(10**6, 499, replace=False)) + 1, [10**7]])
    many = Chromosome("mlp", edges, draw.normal(size=(500, 3)))
    one = Chromosome(None, np.array([0, 10**7]), np.array([[1.0, 0.0, -0.5]]))
    recipe = MixtureRecipe(("x", "y", "b"), (many, one), "bfloat16", "0f")
    data, numbers = packed(recipe)
    again = unpacked(json.loads(json.dumps(data)), numbers)
    assert again.id(HASHES) == recipe.id(HASHES)
    assert again.to_json() == recipe.to_json() == parse_recipe(recipe.to_json()).to_json()
    assert len(json.dumps(data)) < 300


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chromosomes": [{"modules": "a", "segments": [[0, 9, [1, 0]]]}]}, "last one's modules"),
        ({"chromosomes": [{"modules": None, "segments": [[0, 9, [1]]]}]}, "1 coefficients for 2"),
        (
            {"chromosomes": [{"modules": None, "segments": [[0, 4, [1, 0]], [5, 9, [1, 0]]]}]},
            "chromosomes.0.segments: do not follow one another from 0",
        ),
        (
            {"chromosomes": [{"modules": None, "segments": [[0, 4, [1, 0]], [4, 9, [1, "x"]]]}]},
            "chromosomes.0.segments.1: [4, 9, [1, 'x']] is not [first, last + 1, [one",
        ),
        ({"chromosomes": [{"segments": []}]}, "chromosomes.0.modules: is missing"),
    ],
)
def test_faults_of_mixtures_name_the_segment(change, message):
    whole = Chromosome(None, np.array([0, 9]), np.array([[1.0, 0.0]]))
    data = MixtureRecipe(("x", "y"), (whole,), "float32", "0f").to_json()
    with pytest.raises(BadInput) as error:
        parse_recipe(data | change)
    assert message in str(error.value)


def test_recipes_are_read_quickly():
    """Ten times what it takes on one core: the archive reads thousands of them."""
    weights = {"weight": (0.3, 0.7), "density": (0.5, 0.5), "scale": 1.0}
    groups = (Group((0, 2), "mlp", weights),) * 200
    many = ParametersRecipe("ties", ("x", "y"), groups, "b").to_json()
    segments = Chromosome(None, np.arange(5001), np.random.default_rng(0).random((5000, 3)))
    long = MixtureRecipe(("x", "y", "b"), (segments,), "float32", "0f").to_json()
    for data, most in ((many, 0.01), (long, 0.2)):
        seconds = timeit.repeat(functools.partial(parse_recipe, data), number=1, repeat=5)
        assert min(seconds) < most
