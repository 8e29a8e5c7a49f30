"""The parameter space: every genome is a recipe, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.errors import BadInput, placed
from evomerge.merging.methods import METHODS
from evomerge.merging.validation import check_methods, group_index, method_of
from evomerge.recipes.parse import parse_recipe
from evomerge.search.spaces import SourceShapes, quantize
from evomerge.search.spaces.choice import ChoiceSection, ChoiceSpace
from evomerge.search.spaces.parameters import ParametersSection, ParametersSpace
from evomerge.sections import parse
from evomerge.tensor_names import place

NAMES = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(f"model.layers.{i}.{m}" for i in range(7) for m in ("self_attn.q.w", "mlp.up.w", "ln.w")),
]


def make(method="ties", layers=7, models=("x", "y", "z"), **spec):
    operator = METHODS.get(method)
    axes = {
        p.name: {"low": 0.1, "high": 1.0}
        for p in operator.parameters
        if p.default is None or p.name == "density"
    } or {"scale": {"low": 0.1, "high": 1.0}}
    models = models[: operator.models] if operator.models else models
    options = parse(ParametersSection, {"method": method, "axes": axes} | spec)
    assert list(options.faults(models, True)) == []
    return ParametersSpace(options, SourceShapes("b", models, models, layers, "bfloat16", 7))


specs = st.fixed_dictionaries(
    {
        "method": st.sampled_from(sorted(METHODS.all())),
        "layers": st.integers(1, 9),
        "layer_groups": st.integers(1, 12),
        "module_groups": st.sampled_from([[], ["self_attn"], ["self_attn", "mlp"]]),
        "smooth": st.booleans(),
        "outside": st.sampled_from(["own", "first", "nearest"]),
    }
)


@given(spec=specs, seed=st.integers(0, 99))
def test_decode_gives_sound_recipes_that_encode_inverts(spec, seed):
    space = make(**spec)
    genome = quantize(np.random.default_rng(seed).random(space.dimension))
    recipe = space.decode(genome)
    method_of(recipe)  # fits the method's signature
    for name in NAMES:
        where = place(name)
        if where.layer is None or where.layer < spec["layers"]:
            assert group_of(recipe, name).values.keys() == space.axes.keys()
    assert np.allclose(space.encode(recipe), genome, atol=1e-9)
    assert parse_recipe(recipe.to_json()) == recipe
    assert len(set(space.names)) == space.dimension == len(space.start)
    assert ((space.start > 0) & (space.start < 1)).all()


def test_groups_are_runs_of_layers_and_modules():
    space = make("task_arithmetic", layers=6, layer_groups=3, module_groups=["self_attn", "mlp"])
    assert space.dimension == 3 * (3 * 3 + 1)
    recipe = space.decode(np.linspace(0, 1, space.dimension))
    same = [group_of(recipe, f"model.layers.{i}.mlp.up.w").values["weight"] for i in (2, 3)]
    assert same[0] == same[1]
    assert same[0] != group_of(recipe, "model.layers.4.mlp.up.w").values["weight"]
    assert same[0] != group_of(recipe, "model.layers.2.self_attn.q.w").values["weight"]
    outside = {group_of(recipe, n).values["weight"] for n in NAMES[:3]}
    assert len(outside) == 1


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("outside", ["first", "nearest"])
def test_what_is_outside_the_layers_may_belong_to_the_groups_at_the_ends(outside, smooth):
    axes = {"weight": {"low": 0.0, "high": 1.0}}
    spec = {"layers": 6, "layer_groups": 3, "module_groups": ["norm"], "axes": axes}
    space = make("task_arithmetic", models=("x",), outside=outside, smooth=smooth, **spec)
    assert space.dimension == 3 * 2 and not any("outside" in name for name in space.names)
    recipe = space.decode(np.linspace(0, 1, space.dimension))
    values = [group_of(recipe, name).values["weight"][0] for name in NAMES[:3]]
    last = 2 if outside == "nearest" else 0
    # genes by group, in each that of the norms before that of the rest
    assert values == pytest.approx([0.2 * 1, 0.2 * 2 * last, 0.2 * (2 * last + 1)])


def test_smooth_interpolates_between_knots():
    axes = {"weight": {"low": 0.0, "high": 2.0, "tied": ["models", "modules"]}}
    space = make("linear", layers=5, layer_groups=2, smooth=True, axes=axes)
    assert space.dimension == 3  # two knots and what is outside the layers
    recipe = space.decode(np.array([0.0, 1.0, 0.5]))
    values = [group_of(recipe, f"model.layers.{i}.mlp.w").values["weight"] for i in range(5)]
    assert np.allclose([v[0] for v in values], [0.0, 0.5, 1.0, 1.5, 2.0])
    assert all(len(set(v)) == 1 for v in values)
    assert group_of(recipe, "lm_head.weight").values["weight"][0] == 1.0


def test_tied_axes_share_one_gene():
    axes = {
        "weight": {"low": 0.0, "high": 1.0},
        "density": {"low": 0.1, "high": 1.0, "tied": ["layers", "modules", "models"]},
    }
    space = make("ties", layer_groups=2, axes=axes)
    assert [n for n in space.names if n.startswith("density")] == ["density all layers"]


def test_log_axes_are_geometric_and_numbers_are_fixed():
    axes = {"weight": {"low": 0.01, "high": 1.0, "log": True}, "scale": 0.7}
    space = make("task_arithmetic", models=("x",), axes=axes)
    recipe = space.decode(np.full(space.dimension, 0.5))
    assert np.isclose(recipe.groups[0].values["weight"][0], 0.1)
    assert recipe.groups[0].values["scale"] == 0.7


def test_weights_start_at_one_nth():
    space = make("task_arithmetic", axes={"weight": {"low": 0.0, "high": 1.5}})
    assert np.allclose(space.start, (1 / 3) / 1.5)


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=5))
def test_quantized_genomes_are_multiples_in_the_box(values):
    genome = quantize(np.array(values))
    assert ((genome >= 0) & (genome <= 1)).all()
    assert np.array_equal(genome * 2**24, np.round(genome * 2**24))
    assert np.array_equal(quantize(genome), genome)


@pytest.mark.parametrize("name, layer", [("h.3.attn.w", 3), ("model.layers.11.mlp.w", 11)])
def test_layers_are_read_off_names(name, layer):
    assert place(name).layer == layer


def test_two_tied_knots_are_lines_depth_scaling():
    """lambda_l = alpha + beta (l - 1) / (L - 1) for block l of L, alpha elsewhere."""
    axes = {"weight": {"low": 0.0, "high": 2.0, "tied": ["models", "outside"]}}
    space = make("task_arithmetic", layers=6, layer_groups=2, smooth=True, axes=axes)
    assert space.dimension == 2
    recipe = space.decode(np.array([0.1, 0.4]))
    alpha, beta = 0.2, 0.6
    for group in recipe.groups:
        block = group.layers[0] + 1 if isinstance(group.layers, tuple) else 1
        wanted = alpha + beta * (block - 1) / 5
        assert group.values["weight"] == pytest.approx((wanted,) * 3), group.layers
    assert space.encode(recipe) == pytest.approx([0.1, 0.4])


TWO = {
    "kind": "choice",
    "spaces": [
        {
            "kind": "parameters",
            "method": "consensus",
            "axes": {
                "weight": {"low": 0.0, "high": 1.0, "tied": ["models"]},
                "threshold": 0.2,
                "least": {"low": 1, "high": 3, "integer": True},
            },
        },
        {"kind": "parameters", "method": "linear", "axes": {"weight": {"low": -1.0, "high": 1.0}}},
    ],
}


def group_of(recipe, name):
    """The group of a recipe that holds a tensor."""
    return recipe.groups[group_index(recipe, name)]


def faults_of(space):
    """What a campaign over x, y and z hears of a space."""
    try:
        with placed("space"):
            section = parse(ChoiceSection, space)
    except BadInput as error:
        return error.faults
    return [fault.under("space") for fault in section.faults("xyz", True)]


SHAPE = SourceShapes("base", ("a", "b", "c"), ("a", "b", "c"), 4, "bfloat16", 7)


@given(st.data())
def test_a_choice_is_the_chosen_space(data):
    space = ChoiceSpace(parse(ChoiceSection, TWO), SHAPE)
    inner = [ParametersSpace(parse(ParametersSection, s), SHAPE) for s in TWO["spaces"]]
    assert list(parse(ChoiceSection, TWO).faults("xyz", True)) == []
    assert space.dimension == 1 + sum(s.dimension for s in inner) == len(space.names)
    assert len(space.levels) == space.dimension and space.levels[0] == 2
    genome = quantize(data.draw(hnp.arrays(float, space.dimension, elements=st.floats(0, 1))))
    recipe = space.decode(genome)
    if genome[0] < 0.5:
        own = genome[1 : 1 + inner[0].dimension]
        assert recipe == inner[0].decode(own) and recipe.method == "consensus"
        assert all(g.values["least"] in (1.0, 2.0, 3.0) for g in recipe.groups)
    else:
        assert recipe == inner[1].decode(genome[1 + inner[0].dimension :])
    again = space.decode(space.encode(recipe))
    assert again.method == recipe.method
    for ours, theirs in zip(again.groups, recipe.groups, strict=True):
        for name, value in theirs.values.items():
            np.testing.assert_allclose(ours.values[name], value, atol=1e-9)


def test_whole_numbers_share_the_gene_evenly():
    space = ChoiceSpace(parse(ChoiceSection, TWO), SHAPE)
    at = next(i for i, n in enumerate(space.names) if "least" in n)
    genome, found = space.start, []
    for unit in np.linspace(0, 1, 300, endpoint=False):
        genome[at] = unit
        found.append(space.decode(genome).groups[0].values["least"])
    assert [found.count(v) for v in (1.0, 2.0, 3.0)] == [100, 100, 100]


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "one": ({"spaces": TWO["spaces"][:1]}, "space.spaces: has fewer than 2 entries"),
        "none": ({"spaces": None}, "space.spaces: null is not a list"),
        "kind": ({"spaces": [{"kind": "mixture"}, {"kind": "choice"}]}, "space.spaces.0.kind"),
        "inner": (
            {"spaces": [TWO["spaces"][1] | {"method": "liner"}, TWO["spaces"][1]]},
            "space.spaces.0.method: there is no merge method 'liner'; did you mean 'linear'",
        ),
        "dtype": (
            {"spaces": [TWO["spaces"][1] | {"dtype": "float32"}, TWO["spaces"][1]]},
            "space.spaces: differ in dtype",
        ),
        "whole": (
            {
                "spaces": [
                    TWO["spaces"][1]
                    | {"axes": {"weight": {"low": 0.5, "high": 2, "integer": True}}},
                    TWO["spaces"][1],
                ]
            },
            "space.spaces.0.axes.weight.integer: has a range that is none of integers",
        ),
    }.values(),
)
def test_choices_that_will_not_do(change, message):
    faults = faults_of(TWO | change)
    assert any(message in str(fault) for fault in faults), faults


def grouped(**change):
    axes = {"weight": {"low": 0.0, "high": 1.5}}
    dense = axes | {"density": {"low": 0.1, "high": 1.0}}
    common = {"kind": "parameters", "layer_groups": 2, "module_groups": ["self_attn"]}
    spaces = [
        common | {"method": "linear", "axes": axes},
        common | {"method": "ties", "axes": dense, "options": {"normalize": False}},
        common | {"method": "dare_linear", "axes": dense},
    ]
    return {"kind": "choice", "each": "group", "spaces": spaces} | change


@given(st.data())
def test_each_group_has_a_method_of_its_own(data):
    space = ChoiceSpace(parse(ChoiceSection, grouped()), SHAPE)
    assert list(parse(ChoiceSection, grouped()).faults("xyz", True)) == []
    assert space.levels[:5] == (3,) * 5 and space.levels[5] == 0
    assert len(set(space.names)) == len(space.names) == space.dimension
    genome = quantize(data.draw(hnp.arrays(float, space.dimension, elements=st.floats(0, 1))))
    recipe = space.decode(genome)
    check_methods(recipe)
    assert parse_recipe(recipe.to_json()) == recipe
    wanted = [space.spaces[min(int(u * 3), 2)] for u in genome[:5]]
    wanted += [wanted[-1]] * 2  # norm and head, with the embeddings
    for index, inner in enumerate(wanted):
        at = space.spaces.index(inner)
        own = inner.decode(genome[space._parts[at]])
        group = recipe.groups[index]
        assert (group.method or recipe.method) == own.method
        assert group.values == own.groups[index].values
    assert (recipe.seed is not None) == ("dare_linear" in recipe.methods)
    again = space.decode(space.encode(recipe))
    assert again.methods == recipe.methods
    for ours, theirs in zip(again.groups, recipe.groups, strict=True):
        for name, value in theirs.values.items():
            np.testing.assert_allclose(ours.values[name], value, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"each": "layer"}, "space.each: 'layer' is none of what it may be; write model or group"),
        ({"spaces__1__layer_groups": 3}, "space.spaces.0.layer_groups: differs"),
        ({"spaces__2__options": {"normalize": True}}, "space.spaces.0.options.normalize: differs"),
        ({"spaces__2__method": "ties"}, "space.spaces: has a method twice"),
    ],
)
def test_groups_that_cannot_take_each_other_s_place(change, message):
    spec = grouped()
    for dotted, value in change.items():
        *path, last = dotted.split("__")
        entry = spec
        for key in path:
            entry = entry[int(key) if key.isdigit() else key]
        entry[last] = value
    faults = faults_of(spec)
    assert any(message in str(f) for f in faults), faults


def test_a_step_moves_the_weights_as_far_in_every_group():
    """Each gene's step is inverse to sqrt(sum of |tau|^2 / |W_0|^2) over the tensors it weighs."""
    tensors = {
        "model.embed_tokens.weight": 8,
        "model.layers.0.self_attn.q_proj.weight": 4,
        "model.layers.0.mlp.up_proj.weight": 4,
        "model.layers.1.self_attn.q_proj.weight": 4,
        "model.layers.1.mlp.up_proj.weight": 4,
        "model.norm.weight": 2,
    }
    moves = np.array([[1.0, 4.0], [0.25, 1.0], [0.25, 1.0], [1.0, 1.0], [3.0, 15.0], [3.0, 5.0]])
    shapes = SourceShapes(
        "base", ("a", "b"), ("a", "b"), 2, "float32", 0, tensors, moves=lambda: moves
    )
    axes = {"weight": {"low": 0.0, "high": 1.0}}
    section = ParametersSection(method="task_arithmetic", layer_groups=2, axes=axes)
    space = ParametersSpace(section, shapes)
    names = ["weight a layers 0-0", "weight b layers 0-0", "weight a layers 1-1"]
    names += ["weight b layers 1-1", "weight a outside the layers", "weight b outside the layers"]
    assert space.names == names
    inverse = 1.0 / np.sqrt([0.5, 2.0, 4.0, 16.0, 4.0, 9.0])
    np.testing.assert_allclose(space.steps(), inverse / np.exp(np.log(inverse).mean()))
    tied = {"weight": axes["weight"] | {"tied": ["layers", "outside"]}}
    section = ParametersSection(method="task_arithmetic", layer_groups=2, axes=tied)
    inverse = 1.0 / np.sqrt([8.5, 27.0])
    expected = inverse / np.exp(np.log(inverse).mean())
    np.testing.assert_allclose(ParametersSpace(section, shapes).steps(), expected)
    near = ParametersSection(method="task_arithmetic", layer_groups=2, axes=axes, outside="nearest")
    inverse = 1.0 / np.sqrt([1.5, 6.0, 7.0, 21.0])
    expected = inverse / np.exp(np.log(inverse).mean())
    np.testing.assert_allclose(ParametersSpace(near, shapes).steps(), expected)
    without = ParametersSpace(
        section, SourceShapes("base", ("a", "b"), ("a", "b"), 2, "float32", 0)
    )
    assert without.steps() is None


def test_a_search_may_begin_along_the_sum_of_task_vectors():
    shapes = SourceShapes("base", ("a", "b", "c"), ("a", "b", "c"), 2, "float32", 0)

    def seeds(method, **axis):
        axes = {"weight": {"low": 0.0, "high": 1.5} | axis}
        section = ParametersSection(method=method, layer_groups=1, axes=axes)
        return ParametersSpace(section, shapes).seeds()

    found = seeds("task_arithmetic")
    assert [label for label, _ in found] == ["sum x0.33", "sum x0.5", "sum x0.75", "sum x1"]
    weights = [recipe.groups[0].values["weight"] for _, recipe in found]
    np.testing.assert_allclose(weights, np.repeat([[1 / 3], [0.5], [0.75], [1.0]], 3, axis=1))
    assert seeds("task_arithmetic", start=0.6) == []  # the file says where to begin
    assert seeds("ties") == []  # which divides by the sum of the weights
