"""Axes that are fixed or bounded in single groups of a parameter space."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.errors import BadInput
from evomerge.merging.validation import check_methods, group_index
from evomerge.recipes.parse import parse_recipe
from evomerge.search.axes import AxisSection
from evomerge.search.spaces import SourceShapes, make_space, quantize
from evomerge.search.spaces.choice import ChoiceSection
from evomerge.search.spaces.parameters import ParametersSection, ParametersSpace
from evomerge.sections import parse

WEIGHT = {"low": 0.0, "high": 1.5}
LAYERS = 8
LABELS = ("ja", "fr")


def section(axes=None, **spec):
    spec = {"method": "task_arithmetic", "layer_groups": 2} | spec
    return parse(ParametersSection, spec | {"axes": axes or {"weight": WEIGHT}})


def space(axes=None, **spec):
    """The space over `ja` and `fr` of eight layers; its options have no fault."""
    options = section(axes, **spec)
    assert [*options.faults(LABELS, True), *options.depth_faults(LAYERS)] == []
    return ParametersSpace(options, SourceShapes("b", LABELS, LABELS, LAYERS, "bfloat16", 7))


def faults(groups, axes=None, **spec):
    """What a campaign over `ja` and `fr` hears of its groups, in lines."""
    try:
        options = section(axes, groups=groups, **spec)
    except BadInput as error:
        return [str(fault) for fault in error.faults]
    return [str(f) for f in (*options.faults(LABELS, True), *options.depth_faults(LAYERS))]


def value_of(recipe, tensor, axis="weight"):
    return recipe.groups[group_index(recipe, tensor)].values[axis]


def tensor(layer, module="ln"):
    return f"model.layers.{layer}.{module}.w"


def test_fixed_values_have_no_gene_and_bounded_ones_a_range_of_their_own():
    groups = {
        "layers 0-3": {"weight": 0},
        "outside the layers": {"weight": {"high": 0.5}},
        "layers 4-7 self_attn": {"weight": {"low": 0.5, "start": 0.6}},
        "ja layers 4-7 self_attn": {"weight": 1},
    }
    bounded = space(module_groups=["self_attn"], groups=groups)
    assert bounded.names == [
        "weight fr layers 4-7 self_attn",
        "weight ja layers 4-7",
        "weight fr layers 4-7",
        "weight ja outside the layers",
        "weight fr outside the layers",
    ]
    assert bounded.levels == (0,) * 5
    assert bounded.start == pytest.approx([0.1, 1 / 3, 1 / 3, 0.95, 0.95])  # off the bounds
    recipe = bounded.decode(np.full(5, 0.5))
    assert value_of(recipe, tensor(0)) == value_of(recipe, tensor(3, "self_attn")) == (0.0, 0.0)
    assert value_of(recipe, tensor(5, "self_attn")) == (1.0, 1.0)  # 0.5 + 0.5 (1.5 - 0.5)
    assert value_of(recipe, tensor(5)) == (0.75, 0.75)
    assert value_of(recipe, "lm_head.weight") == (0.25, 0.25)


def test_a_number_among_the_axes_may_be_free_in_one_group():
    groups = {"layers 4-7": {"weight": {"low": 0.0, "high": 2.0, "start": 0.5}}}
    one = space({"weight": 0.0}, groups=groups)
    assert one.names == ["weight ja layers 4-7", "weight fr layers 4-7"]
    assert one.start.tolist() == [0.25, 0.25]
    recipe = one.decode(np.array([0.5, 1.0]))
    assert value_of(recipe, tensor(7)) == (1.0, 2.0)
    assert value_of(recipe, tensor(3)) == value_of(recipe, "lm_head.weight") == (0.0, 0.0)


def test_knots_that_are_fixed_pull_the_layers_between():
    axes = {"weight": WEIGHT | {"tied": ["models"]}}
    smooth = space(axes, layer_groups=3, smooth=True, groups={"knot 1": {"weight": 0.7}})
    assert smooth.names == [
        "weight knot 0",
        "weight knot 2",
        "weight outside the layers",
    ]
    recipe = smooth.decode(np.array([0.0, 1.0, 0.2]))
    values = [value_of(recipe, tensor(n))[0] for n in range(LAYERS)]
    assert values == pytest.approx(np.interp(np.arange(8), [0, 3.5, 7], [0.0, 0.7, 1.5]).tolist())
    assert smooth.encode(recipe) == pytest.approx([0.0, 1.0, 0.2])


def test_whole_numbers_and_logarithms_keep_their_kind_in_a_group():
    axes = {
        "weight": {"low": 0.01, "high": 1.0, "log": True, "tied": ["models"]},
        "least": {"low": 1, "high": 5, "integer": True},
    }
    groups = {
        "layers 0-3": {"weight": {"low": 0.1}, "least": {"low": 2, "high": 3}},
        "outside the layers": {"least": 2},
    }
    mixed = space(axes, method="consensus", groups=groups)
    assert mixed.names == [
        "weight layers 0-3",
        "weight layers 4-7",
        "weight outside the layers",
        "least layers 0-3",
        "least layers 4-7",
    ]
    assert mixed.levels == (0, 0, 0, 2, 5)
    recipe = mixed.decode(np.array([0.5, 0.5, 0.5, 0.6, 0.5]))
    assert value_of(recipe, tensor(0))[0] == pytest.approx(0.1**0.5)
    assert value_of(recipe, tensor(4))[0] == pytest.approx(0.1)
    assert [value_of(recipe, tensor(n), "least") for n in (0, 4)] == [3.0, 3.0]
    assert value_of(recipe, "lm_head.weight", "least") == 2.0


def test_what_is_tied_is_bounded_as_one():
    tied = {"weight": WEIGHT | {"tied": ["layers", "models"]}}
    assert space(tied, groups={"all layers": {"weight": {"high": 1.0}}}).genes[0].high == 1.0
    alike = {label: {"weight": {"high": 1.0}} for label in LABELS}
    assert space(tied, groups=alike).names == ["weight all layers"]
    outside = {"weight": WEIGHT | {"tied": ["outside"]}}
    follows = space(outside, groups={"layers 0-3": {"weight": 0.5}})
    assert follows.names == ["weight ja layers 4-7", "weight fr layers 4-7"]
    assert value_of(follows.decode(np.zeros(2)), "lm_head.weight") == (0.5, 0.5)


def test_a_space_that_is_fixed_all_over_has_no_genes():
    fixed = space(groups={label: {"weight": 0.5} for label in LABELS})
    assert fixed.dimension == len(fixed.start) == len(fixed.levels) == 0
    assert value_of(fixed.decode(fixed.start), tensor(0)) == (0.5, 0.5)


def test_a_choice_takes_the_groups_of_each_of_its_spaces():
    spaces = [
        {"method": "linear", "axes": {"weight": WEIGHT}, "groups": {"ja": {"weight": 0.5}}},
        {"method": "ties", "axes": {"weight": WEIGHT, "density": 0.5}},
    ]
    each = [{"kind": "parameters", "layer_groups": 2} | entry for entry in spaces]
    options = parse(ChoiceSection, {"kind": "choice", "each": "group", "spaces": each})
    assert [*options.faults(LABELS, True), *options.depth_faults(LAYERS)] == []
    shapes = SourceShapes("b", LABELS, LABELS, LAYERS, "bfloat16", 7)
    chosen = make_space(options, shapes)
    recipe = chosen.decode(chosen.start)
    check_methods(recipe)
    assert value_of(recipe, tensor(0))[0] == 0.5
    assert sum(name.startswith("1: weight") for name in chosen.names) == 3
    each[0]["groups"] = {"jaa": {"weight": 0.5}, "layers 0-2": {"weight": 0.5}}
    options = parse(ChoiceSection, {"kind": "choice", "spaces": each})
    (found,) = options.faults(LABELS, True)
    assert str(found).startswith("spaces.0.groups.jaa: no gene is called so; did you mean 'ja'?")
    (found,) = options.depth_faults(LAYERS)
    assert found.key == "spaces.0.groups.layers 0-2"


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ({"jaa": {"weight": 0}}, "groups.jaa: no gene is called so; did you mean 'ja'?"),
        ({"layer 0-3": {"weight": 0}}, "did you mean 'layers 0-3'?"),
        ({"layers 7-4": {"weight": 0}}, "did you mean 'layers 4-7'?"),
        ({"weight ja layers 0-3": {"weight": 0}}, "did you mean 'ja layers 0-3'?"),
        ({"ja mlp": {"weight": 0}}, "groups.ja mlp: no gene is called so"),
        ({"knot 1": {"weight": 0}}, "known: all layers, fr, ja, layers FIRST-LAST, outside the"),
        ({"": {"weight": 0}}, "'' is empty"),
        (
            {"layers 2-5": {"weight": 0}},
            "groups.layers 2-5: layers 2-5 are no whole groups; there are layers 0-3, layers 4-7",
        ),
        ({"layers 4-11": {"weight": 0}}, "layers 4-11 are no whole groups"),
        (
            {"ja": {"density": 0}},
            "groups.ja.density: there is no 'density' among the axes; known: weight",
        ),
        ({"ja": {"scale": 1}}, "groups.ja.scale: there is no 'scale' among the axes; write axes."),
        ({"ja": {"weight": "none"}}, "groups.ja.weight: 'none' is not a number"),
        ({"ja": {"weight": {"hi": 1}}}, "unknown key 'hi'; did you mean 'high'?"),
        ({"ja": {"weight": {"low": 1.5}}}, "groups.ja.weight: low 1.5 is not below high 1.5"),
        ({"ja": 0.5}, "groups.ja: 0.5 is not a mapping"),
        (
            {"ja": {"weight": 0.2}, "layers 0-3": {"weight": 0}},
            "groups.ja.weight: crosses 'layers 0-3', and they differ; write what holds in both, as"
            " an entry 'ja layers 0-3'",
        ),
        (
            {"outside the layers": {"weight": 0}, "fr": {"weight": 0.5}},
            "an entry 'fr outside the layers'",
        ),
    ],
)
def test_groups_that_will_not_do(groups, line):
    found = faults(groups)
    assert len(found) == 1 and line in found[0], found


def test_groups_that_agree_where_they_cross_and_ranges_of_several_groups_will_do():
    assert faults({"ja": {"weight": 0}, "layers 0-3": {"weight": 0.0}}) == []
    crossing = {"ja": {"weight": 0.2}, "layers 0-3": {"weight": 0}}
    assert faults(crossing | {"ja layers 0-3": {"weight": 0.1}}) == []
    assert faults({"layers 2-5": {"weight": 0}}, layer_groups=4) == []
    assert faults({"layers 0-5": {"weight": 0}, "layers 2-7": {"weight": 1}}, layer_groups=4) == [
        "groups.layers 0-5.weight: crosses 'layers 2-7', and they differ; write what holds in both,"
        " as an entry 'layers 2-5'"
    ]


def test_values_out_of_an_axis_sense_are_faults():
    axes = {
        "weight": WEIGHT,
        "density": {"low": 0.1, "high": 1.0, "log": True, "tied": ["models"]},
        "scale": 1.0,
    }
    groups = {
        "layers 0-3": {"density": 1.5, "scale": {"low": 0.5}},
        "layers 4-7": {"density": {"low": 0.0, "high": 2.0}},
        "outside the layers": {"density": {"high": 2.0, "start": 3.0}},
    }
    assert faults(groups, axes, method="ties") == [
        "groups.layers 0-3.density: 1.5 is out of range; write {low, high}, or a number within 0 to"
        " 1",
        "groups.layers 0-3.scale: needs low and high: the axis is a number elsewhere; write {low:"
        " ..., high: ...}",
        "groups.layers 4-7.density: a log axis needs low above 0; raise low",
        "groups.outside the layers.density.high: 2.0 is out of range; stay within 0 to 1",
        "groups.outside the layers.density.start: 3.0 is out of range; stay within 0 to 1",
    ]
    least = {"least": {"low": 1, "high": 3, "integer": True}, "weight": WEIGHT}
    groups = {"layers 0-3": {"least": 1.5}, "layers 4-7": {"least": {"high": 2.5}}}
    assert faults(groups, least, method="consensus") == [
        "groups.layers 0-3.least: 1.5 is not a whole number, as the axis asks; write one",
        "groups.layers 4-7.least: has a range that is none of integers; write whole numbers for low"
        " and high, and no log",
    ]


def tied_over(*tied):
    return {"weight": WEIGHT | {"tied": [*tied]}, "scale": WEIGHT}


@pytest.mark.parametrize(
    ("groups", "axes", "line"),
    [
        (
            {"ja": {"weight": 0}},
            tied_over("models", "modules"),
            "groups.ja.weight: bounds a part of one value: axes.weight is tied over models, modules"
            "; bound all that is tied alike, or untie it",
        ),
        ({"layers 0-3": {"weight": 0}}, tied_over("layers"), "groups.layers 0-3.weight: bounds a"),
        ({"mlp": {"weight": {"high": 1}}}, tied_over("modules"), "groups.mlp.weight: bounds a"),
        (
            {"outside the layers": {"weight": 0}},
            tied_over("outside"),
            "groups.outside the layers.weight: bounds a part of one value",
        ),
        (
            {"outside the layers": {"weight": 0}, "layers 0-3": {"weight": 1}},
            tied_over("outside"),
            "crosses 'layers 0-3', and they differ; leave one of them out",
        ),
        (
            {"ja": {"scale": 0}},
            tied_over(),
            "groups.ja.scale: scale has one value for all models; leave 'ja' out of the name",
        ),
        (
            {"outside the layers mlp": {"weight": 0}},
            tied_over(),
            "no value of weight is called so; what is outside the layers has no modules",
        ),
    ],
)
def test_groups_and_ties(groups, axes, line):
    found = faults(groups, axes, module_groups=["mlp"])
    assert len(found) == 1 and line in found[0], found


def test_models_and_modules_of_one_name_are_told_apart_or_refused():
    options = section(groups={"mlp": {"weight": 0}}, module_groups=["mlp"])
    (fault,) = options.faults(("mlp", "fr"), True)
    assert str(fault).startswith("groups.mlp: is a model as well as a part of tensors' names")
    options = section(groups={"mlp mlp": {"weight": 0}}, module_groups=["mlp"])
    assert list(options.faults(("mlp", "fr"), True)) == []


def test_a_start_out_of_a_group_s_range_is_told():
    options = section(groups={"ja": {"weight": {"high": 0.5, "start": 1.0}}})
    assert list(options.warnings()) == ["axis weight in ja: start 1.0 is not within 0.0 to 0.5"]
    axes = {"weight": WEIGHT | {"start": 1.0}}
    assert list(section(axes, groups={"ja": {"weight": {"high": 0.5}}}).warnings()) == []


PLACES = [None, "layers 0-3", "layers 4-7", "layers 0-7", "outside the layers", "all layers"]
KNOTS = [None, "knot 0", "knot 1", "outside the layers", "all layers"]


def names_of(smooth):
    parts = itertools.product([None, *LABELS], KNOTS if smooth else PLACES, [None, "mlp"])
    return [" ".join(filter(None, one)) for one in parts if any(one)]


bounds = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([{"high": 1.0}, {"low": 0.25}, {"low": 0.5, "high": 2.0, "start": 1.0}]),
)


@given(data=st.data(), smooth=st.booleans(), tied=st.sampled_from([[], ["models"], ["outside"]]))
def test_every_value_is_what_its_group_says_and_encode_inverts_decode(data, smooth, tied):
    axes = {"weight": {"low": 0.1, "high": 1.5, "tied": tied}, "scale": 0.7}
    names = st.sampled_from(names_of(smooth))
    groups = data.draw(st.dictionaries(names, bounds.map(lambda b: {"weight": b}), max_size=4))
    spec = {"module_groups": ["mlp"], "smooth": smooth}
    assume(faults(groups, axes, **spec) == [])
    bounded, whole = space(axes, groups=groups, **spec), space(axes, **spec)
    free = iter(whole.names)
    assert all(name in free for name in bounded.names)  # in their order
    assert len(bounded.levels) == len(bounded.start) == bounded.dimension
    assert ((bounded.start > 0) & (bounded.start < 1)).all()
    unit = hnp.arrays(float, bounded.dimension, elements=st.floats(0, 1))
    genome = quantize(data.draw(unit))
    recipe = bounded.decode(genome)
    check_methods(recipe)
    assert parse_recipe(recipe.to_json()) == recipe
    assert np.allclose(bounded.encode(recipe), genome, atol=1e-9)
    for (model, label), module in itertools.product(enumerate(LABELS), ("mlp", "ln")):
        for place, layers in {"0": (0, 0, 3), "1": (7, 4, 7), "outside": (None, 0, 0)}.items():
            held = [
                name
                for name in groups
                if meant(name, label, place, module if layers[0] is not None else "", tied)
            ]
            inner = [n for n in held if not any(o != n and is_part(o, n) for o in held)]
            name = "lm_head.weight" if layers[0] is None else tensor(layers[0], module)
            value = value_of(recipe, name)[model]
            if not inner:
                assert 0.1 <= value <= 1.5
                continue
            bound = groups[inner[0]]["weight"]
            if isinstance(bound, dict):
                assert bound.get("low", 0.1) - 1e-9 <= value <= bound.get("high", 1.5) + 1e-9
            else:
                assert value == pytest.approx(bound)


def meant(name, label, place, module, tied):
    """Whether a name is about a value: read again, by its words."""
    where = "0" if place == "outside" and "outside" in tied else place
    last = place == "outside" and "layers 0-3" in name
    return (
        not any(other in name.split() for other in LABELS if other != label)
        and ("mlp" not in name or module == "mlp")
        and ("layers 0-3" not in name or where == "0" or (last and "outside" in tied))
        and ("layers 4-7" not in name or where == "1")
        and ("layers 0-7" not in name or where in "01")
        and (f"knot {1 - int(where)}" not in name if where in "01" else "knot" not in name)
        and ("outside" not in name or place == "outside")
        and ("all layers" not in name or place in "01")
    )


def is_part(inner, outer):
    """Whether a name has all the parts of another."""
    for part in [*LABELS, "mlp", "outside the layers"]:
        if part in outer and part not in inner:
            return False
    for place in ("layers 0-3", "layers 4-7", "knot 0", "knot 1"):
        if place in outer and place not in inner:
            return False
    wide = [place for place in ("layers 0-7", "all layers") if place in outer]
    for place in wide:
        own = ("layers 0-3", "layers 4-7", "layers 0-7", "knot 0", "knot 1")
        own += ("all layers",) if place == "all layers" else ()
        if not any(part in inner for part in own):
            return False
    return True


def test_the_section_says_what_it_may_be():
    bound = section(groups={"ja": {"weight": {"high": 1}}}).groups["ja"]["weight"]
    assert (bound.low, bound.high, bound.start) == (None, 1.0, None)
    assert parse(ParametersSection, section(groups={"ja": {"weight": 0}}).model_dump()).groups == {
        "ja": {"weight": 0.0}
    }
    assert isinstance(section().axes["weight"], AxisSection)
