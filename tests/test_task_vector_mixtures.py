"""Natural niches over sums of task vectors, against float64 and against task arithmetic itself."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.archive.archive import Archive
from evomerge.archive.stored_recipe import from_columns, to_columns
from evomerge.campaign.build import checked
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.kernels.checksum import tile_digests
from evomerge.merging.as_mixture import as_mixture
from evomerge.merging.merger import Merger
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.recipes.parameters import Group, ParametersRecipe, single, uniform
from evomerge.recipes.parse import parse_recipe
from evomerge.recipes.routing import whole
from evomerge.search.spaces import SourceShapes
from evomerge.search.spaces.mixture import MixtureSection, MixtureSpace
from evomerge.sources.source import open_source

MODELS = ("a", "b", "c")
MIXED = ("base", *MODELS)
HASHES = {name: name * 8 for name in MIXED}
NICHES = {
    "space": {"kind": "mixture", "task_vectors": True},
    "controller": {"kind": "niches", "population": 8, "warmup": 4},
}
SEEDS = ["sum", "a x1.5", "b x1.5", "c x1.5"]


@pytest.fixture(scope="module")
def sources(world):
    return {name: open_source(str(world / name)) for name in MIXED}


@pytest.fixture(scope="module")
def vectors(sources):
    """Each source's parameters in the index's order, float64."""
    return {name: merged(sources, single(name, "float32")) for name in MIXED}


def sizes(sources):
    return {name: tensor.elements for name, tensor in sources["base"].tensors.items()}


def make_space(sources, **spec):
    shapes = SourceShapes("base", MODELS, MODELS, 2, "float32", 0, sizes(sources))
    return MixtureSpace(MixtureSection(task_vectors=True, **spec), shapes)


def merged(sources, recipe):
    merger = Merger(sources, dict.fromkeys(sources, ""))
    return np.concatenate([t.double().reshape(-1).numpy() for _, t in merger.stream(recipe)])


def on_the_base(vectors, *weights):
    """W_0 + sum_k c_k (W_k - W_0) in float64."""
    taus = [vectors[model] - vectors["base"] for model in MODELS]
    return vectors["base"] + sum(c * tau for c, tau in zip(weights, taus, strict=True))


def task_arithmetic(*groups, scale=None):
    more = {} if scale is None else {"scale": scale}
    made = [Group(layers, part, {"weight": row, **more}) for layers, part, row in groups]
    return ParametersRecipe("task_arithmetic", MODELS, tuple(made), "base", "float32")


# --- individuals and their crossing ------------------------------------------------------------


def test_the_first_individuals_are_the_sources_their_sum_and_more_of_each(sources, vectors):
    space = make_space(sources)
    seeds = dict(space.seeds())
    assert list(seeds) == SEEDS
    expected = {
        "sum": (1.0, 1.0, 1.0),
        "a x1.5": (1.5, 0.0, 0.0),
        "b x1.5": (0.0, 1.5, 0.0),
        "c x1.5": (0.0, 0.0, 1.5),
    }
    for label, weights in expected.items():
        wanted = on_the_base(vectors, *weights)
        np.testing.assert_allclose(merged(sources, seeds[label]), wanted, rtol=1e-5, atol=1e-6)
    for name in MIXED:
        individual = space.individual(space.single(name))
        assert individual.models == MIXED
        assert np.array_equal(merged(sources, individual), vectors[name])  # bit for bit


def test_who_may_be_a_parent(sources):
    space = make_space(sources)
    assert all(space.takes("baseline", label) for label in (*MODELS, "base"))
    assert all(space.takes("seed", label) for label in SEEDS)
    assert not any(space.takes("baseline", label) for label in ("uniform", "model_stock", "greedy"))
    assert space.takes("search", None) and space.takes("warm_start", "runs/x#3")
    means = MixtureSpace(MixtureSection(), space.shapes)
    assert means.seeds() == [] and means.mixed == MODELS
    assert not any(means.takes("baseline", label) for label in ("base", *SEEDS, "uniform"))


@settings(max_examples=25)
@given(
    births=st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 99), *[st.floats(0.0, 1.0)] * 4),
        min_size=1,
        max_size=12,
    ),
    chromosomes=st.sampled_from([[], ["self_attn"], ["mlp", "norm"]]),
    split=st.booleans(),
)
def test_descendants_are_what_crossing_the_sums_gives(sources, vectors, births, chromosomes, split):
    space = make_space(sources, chromosomes=chromosomes, split=split)
    family = [space.single(name) for name in MIXED] + [recipe for _, recipe in space.seeds()]
    weights = [(0, 0, 0), *np.eye(3), (1, 1, 1), *(1.5 * np.eye(3))]
    bodies = [on_the_base(vectors, *row) for row in weights]
    total = space.index.total
    owner = np.empty(total)  # each parameter's chromosome
    for name, (first, last) in space.index.span.items():
        owner[first:last] = next((i for i, m in enumerate(chromosomes) if m in name), 99)
    at = np.arange(total)
    for first, second, *genes in births:
        i, j = first % len(family), second % len(family)
        genome = np.resize(genes, space.dimension)
        child = np.empty(total)
        for index, chromosome in enumerate([*range(len(chromosomes)), 99]):
            mix, *cut = genome.reshape(len(space.modules), -1)[index]
            left = at < int(cut[0] * total) if split else np.full(total, True)
            share = np.where(left, mix, 1.0 - mix)
            body = (1.0 - share) * bodies[i] + share * bodies[j]
            child[owner == chromosome] = body[owner == chromosome]
        family.append(space.cross(genome, [family[i], family[j]]))
        bodies.append(child)
    for chromosome in family[-1].chromosomes:  # still a base and what is added to it
        np.testing.assert_allclose(chromosome.coefficients.sum(axis=1), 1.0, atol=1e-9)
    np.testing.assert_allclose(merged(sources, family[-1]), bodies[-1], rtol=1e-5, atol=1e-6)
    read = parse_recipe(json.loads(json.dumps(family[-1].to_json())))
    unpacked = from_columns(**to_columns(family[-1]))
    assert read.id(HASHES) == unpacked.id(HASHES) == family[-1].id(HASHES)


def test_a_closed_form_of_crossing():
    shapes = SourceShapes("base", ("a", "b"), ("a", "b"), 1, "float32", 0, {"w": 8})
    space = MixtureSpace(MixtureSection(task_vectors=True), shapes)
    parents = [dict(space.seeds())["sum"], space.single("b")]
    (chromosome,) = space.cross(np.array([0.25, 0.5]), parents).chromosomes
    assert chromosome.edges.tolist() == [0, 4, 8]
    # left 3/4 of (-1, 1, 1) and 1/4 of (0, 0, 1), right the other way round
    assert chromosome.coefficients.tolist() == [[-0.75, 0.75, 1.0], [-0.25, 0.25, 1.0]]


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_float32_takes_nothing_from_small_task_vectors(scale):
    """Coefficients that cancel (-2.6 W_0 + ...) err by a few last bits of the weights."""
    torch.manual_seed(0)
    from evomerge.kernels.eager import weighted_sum

    base = torch.randn(1 << 16)
    models = [base + scale * torch.randn(1 << 16) for _ in range(3)]
    weights = np.array([1.3, 1.4, 0.9])
    found = weighted_sum([base, *models], np.array([1.0 - weights.sum(), *weights])).double()
    taus = [c * (m.double() - base.double()) for c, m in zip(weights, models, strict=True)]
    largest = float(max(m.abs().max() for m in [base, *models]))
    assert float((found - base.double() - sum(taus)).abs().max()) < 16 * 2.0**-24 * largest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_live_is_what_is_streamed(sources, dtype):
    space = make_space(sources, dtype=dtype)
    seeds = dict(space.seeds())
    first = space.cross(np.array([0.6, 0.77]), [seeds["sum"], space.single("base")])
    child = space.cross(np.array([0.3, 0.123]), [first, seeds["c x1.5"]])
    merger = Merger(sources, dict.fromkeys(sources, ""))
    live = {n: torch.empty(t.shape) for n, t in sources["a"].tensors.items()}
    digests = merger.fill(child, live)
    for name, tensor in merger.stream(child):
        assert torch.equal(live[name], tensor.float()), name
        assert np.array_equal(digests[name], tile_digests(tensor))


# --- recipes of other searches -----------------------------------------------------------------

number = st.floats(-2.0, 2.0).map(lambda x: round(x, 3))
row = st.tuples(number, number, number)


@settings(max_examples=30)
@given(rows=st.lists(row, min_size=7, max_size=7), scale=st.sampled_from([None, 0.5, 1.25]))
def test_task_arithmetic_is_a_mixture_bit_for_bit(sources, rows, scale):
    wheres = [
        ((0, 1), "self_attn"), ((0, 1), None), ((1, 2), "mlp"), ((1, 2), None),
        ("embed", None), ("norm", None), ("head", None),
    ]  # fmt: skip
    groups = [(*where, values) for where, values in zip(wheres, rows, strict=True)]
    recipe = task_arithmetic(*groups, scale=scale)
    for chromosomes in ([], ["self_attn"]):
        space = make_space(sources, chromosomes=chromosomes)
        mixture = space.individual(recipe)
        assert [c.modules for c in mixture.chromosomes] == [*chromosomes, None]
        assert np.array_equal(merged(sources, mixture), merged(sources, recipe))


def test_averages_and_mixtures_of_fewer_models_are_taken(sources, vectors):
    space = make_space(sources, chromosomes=["mlp"])
    soup = space.individual(uniform(("c", "a"), "bfloat16"))
    assert soup.dtype == "float32"
    assert [c.coefficients.tolist() for c in soup.chromosomes] == [[[0.0, 0.5, 0.0, 0.5]]] * 2
    # a mixture of the paper's kind, of other chromosomes and with the models in another order
    shapes = SourceShapes(None, ("c", "b"), ("c", "b"), 2, "float32", 0, sizes(sources))
    means = MixtureSpace(MixtureSection(chromosomes=["norm", "self_attn"]), shapes)
    child = means.cross(np.linspace(0.1, 0.9, 6), [means.single("c"), means.single("b")])
    taken = space.individual(child)
    assert taken.models == MIXED and [c.modules for c in taken.chromosomes] == ["mlp", None]
    np.testing.assert_allclose(merged(sources, taken), merged(sources, child), atol=1e-6)
    assert space.individual(taken) is taken


def test_methods_of_groups_are_weighed_each(sources):
    groups = (
        Group(None, "mlp", {"weight": (1.0, 1.0, 2.0)}, "linear"),
        Group(None, None, {"weight": (1.0, 1.0, 0.0), "scale": 0.5}),
    )
    recipe = ParametersRecipe("task_arithmetic", MODELS, groups, "base", "float32")
    mixture = as_mixture(recipe, MIXED, ParameterIndex(sizes(sources)))
    assert np.array_equal(merged(sources, mixture), merged(sources, recipe))
    rows = {tuple(r) for r in mixture.chromosomes[0].coefficients.tolist()}
    assert rows == {(0.0, 0.25, 0.25, 0.5), (0.0, 0.5, 0.5, 0.0)}


def test_what_is_no_individual_is_said(sources):
    space = make_space(sources)
    ties = ParametersRecipe(
        "ties", MODELS, (Group(None, None, {"weight": (1.0, 1.0, 1.0)}),), "base", "float32"
    )
    for recipe, message in (
        (ties, "method: ties is no weighted sum"),
        (single("d", "float32"), "has d, which is none of the models that are mixed"),
        (whole("a", 2, "float32"), "of kind routing, it is no weighted sum"),
        (task_arithmetic(("embed", None, (1.0, 1.0, 1.0))), "groups: no group of the recipe holds"),
    ):
        with pytest.raises(BadInput, match=message):
            space.individual(recipe)
    with pytest.raises(BadInput, match=r"parameter_index_hash: is of models whose tensors have"):
        as_mixture(space.first, MIXED, ParameterIndex({"w": 4}))
    means = MixtureSpace(MixtureSection(), space.shapes)  # the base is none of its models
    with pytest.raises(BadInput, match="has base, which is none of the models"):
        means.individual(task_arithmetic((None, None, (1.0, 1.0, 1.0))))


# --- campaigns ---------------------------------------------------------------------------------


def test_a_campaign_breeds_sums_and_its_best_is_exported(campaign_file, here, silent):
    file = campaign_file(**NICHES, name="sums", heldout=0.5)
    assert checked(file)[0].worker.frame == "base"
    assert run_campaign(file, observer=silent)
    archive = Archive(here / "runs/sums/archive.db")
    children = archive.candidates(origin="search")
    assert len(children) == 14
    founders = {c.id: c.label for c in (*archive.baselines(), *archive.candidates("seed"))}
    assert set(founders.values()) >= {"base", *MODELS, *SEEDS}
    parents = {founders[p] for child in children for p in child.parents if p in founders}
    assert parents & set(SEEDS) and "uniform" not in parents
    picked = next(
        c for c in reversed(children) if (c.recipe.chromosomes[0].coefficients < 0.0).any()
    )
    done = CliRunner().invoke(main, ["export", "runs/sums", "out", "--pick", str(picked.id)])
    assert done.exit_code == 0 and "as scored" in done.output, done.output
    assert "A merge of 4 models with `mixture`" in Path("out/README.md").read_text()
    assert not Path("out/mergekit_config.yml").exists()  # it knows no segments
    done = CliRunner().invoke(main, ["merge", "out/recipe.json", "again"])
    assert done.exit_code == 0, done.output
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in ("out", "again")]
    assert weights[0] == weights[1]
    shown = CliRunner().invoke(main, ["show", "runs/sums", str(picked.id)])
    assert shown.exit_code == 0 and "from parameter" in shown.output


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "no base": ({"sources__base": None}, "space.task_vectors: needs a base; write"),
        "one model": ({"sources__models": {"a": "a"}}, "space.kind: crosses two models or more"),
        "taken label": (
            {"sources__models": {"a": "a", "sum": "b"}},
            "space.task_vectors: begins with an individual 'sum', as a model is called",
        ),
        "slerp": ({"space__interpolation": "slerp"}, "space.interpolation: slerp is between"),
        "no flag": ({"space__task_vectors": "yes please"}, "space.task_vectors: "),
        "the base twice": ({"sources__models__d": "base"}, "sources.models.d: is listed before"),
    }.values(),
)
def test_what_does_not_fit_is_said(campaign_file, here, silent, changes, message):
    with pytest.raises(BadInput, match=message):
        run_campaign(campaign_file(**copy.deepcopy(NICHES), **changes), observer=silent)
