"""Natural niches over mixtures: coefficients on segments against the weights themselves."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import PLAN, assert_killed_and_resumed_alike
from hypothesis import given, settings
from hypothesis import strategies as st
from sql import query

from evomerge.archive import summary
from evomerge.archive.archive import Archive
from evomerge.archive.reader import ArchiveReader
from evomerge.campaign.build import checked
from evomerge.campaign.controller_history import controller_history
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import BadInput, CandidateFailure, EvomergeError
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.native import NativeKernels
from evomerge.merging.merger import Merger
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.recipes.parameters import single
from evomerge.recipes.parse import parse_recipe
from evomerge.search.controllers import Feedback, Problem
from evomerge.search.controllers.niches import NaturalNiches, NichesSection
from evomerge.search.spaces import SourceShapes, quantize
from evomerge.search.spaces.mixture import MixtureSection, MixtureSpace
from evomerge.sources.source import open_source

MODELS = ("a", "b", "c")
NICHES = {
    "sources": {"models": {m: m for m in MODELS}},
    "space": {"kind": "mixture", "chromosomes": ["self_attn"]},
    "controller": {"kind": "niches", "population": 6, "warmup": 4},
}


@pytest.fixture(scope="module")
def models(world):
    return {m: open_source(str(world / m)) for m in MODELS}


def flattened(models):
    """Each model's parameters in the index's order, float64, and the index."""
    merger = Merger(models, dict.fromkeys(models, ""))
    vectors = {}
    for model in models:
        parts = [t.double().reshape(-1) for _, t in merger.stream(single(model, "float32"))]
        vectors[model] = torch.cat(parts).numpy()
    sizes = {n: t.elements for n, t in models["a"].tensors.items()}
    return vectors, ParameterIndex(sizes)


def make_space(models, grams=None, **spec):
    sizes = {n: t.elements for n, t in models["a"].tensors.items()}
    shapes = SourceShapes(None, MODELS, MODELS, 2, "float32", 0, sizes, grams=grams)
    return MixtureSpace(MixtureSection(**spec), shapes)


def merged(models, recipe):
    merger = Merger(models, dict.fromkeys(models, ""))
    return np.concatenate([t.double().reshape(-1).numpy() for _, t in merger.stream(recipe)])


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
def test_descendants_are_what_crossing_the_weights_gives(models, births, chromosomes, split):
    vectors, positions = flattened(models)
    space = make_space(models, chromosomes=chromosomes, split=split)
    family = [single(m, "float32") for m in MODELS]
    bodies = [vectors[m] for m in MODELS]
    owner = np.concatenate(
        [
            np.full(last - first, next((i for i, m in enumerate(chromosomes) if m in n), 99))
            for n, (first, last) in positions.span.items()
        ]
    )
    at = np.arange(positions.total)
    for first, second, *genes in births:
        i, j = first % len(family), second % len(family)
        genome = np.resize(genes, space.dimension)
        child = np.empty(positions.total)
        for index, chromosome in enumerate([*range(len(chromosomes)), 99]):
            mix, *cut = genome.reshape(len(space.modules), -1)[index]
            left = at < int(cut[0] * positions.total) if split else np.full(positions.total, True)
            share = np.where(left, mix, 1.0 - mix)
            body = (1.0 - share) * bodies[i] + share * bodies[j]
            child[owner == chromosome] = body[owner == chromosome]
        family.append(space.cross(genome, [family[i], family[j]]))
        bodies.append(child)
    recipe = parse_recipe(json.loads(json.dumps(family[-1].to_json())))
    hashes = {m: m * 64 for m in MODELS}
    assert recipe.id(hashes) == family[-1].id(hashes)
    np.testing.assert_allclose(merged(models, recipe), bodies[-1], rtol=1e-5, atol=1e-6)
    for name, (first, last) in positions.span.items():
        starts, rows = recipe.runs(name, first, last)
        assert starts[0] == 0 and len(starts) == len(rows)
        assert (np.diff(starts) > 0).all() and starts[-1] < last - first


def test_slerp_turns_by_the_angle_of_the_whole_vectors(models):
    vectors, positions = flattened(models)
    spans = list(positions.span.values())

    def grams():
        stacked = np.stack([vectors[m] for m in MODELS])
        return np.stack([stacked[:, a:b] @ stacked[:, a:b].T for a, b in spans])

    space = make_space(models, grams, interpolation="slerp")
    a, b, c = (single(m, "float32") for m in MODELS)
    cut = spans[5][0] / positions.total  # between tensors
    first = space.cross(np.array([0.3, cut]), [a, b])
    child = space.cross(np.array([0.8, 0.5]), [first, c])

    def slerp(x, y, t):
        angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        assert angle > 0.1  # these are no neighbours
        return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)

    at = np.arange(positions.total)
    x, y, z = (vectors[m] for m in MODELS)
    mine = np.where(at < int(cut * positions.total), slerp(x, y, 0.3), slerp(x, y, 0.7))
    np.testing.assert_allclose(merged(models, first), mine, rtol=1e-5, atol=1e-6)
    whole = np.where(at < positions.total // 2, slerp(mine, z, 0.8), slerp(mine, z, 0.2))
    np.testing.assert_allclose(merged(models, child), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("native", [True, False])
def test_every_way_out_gives_the_same_bits(models, dtype, native, monkeypatch):
    if not native:
        monkeypatch.setattr(NativeKernels, "takes", lambda *_: False)
    space = make_space(models, dtype=dtype)
    a, b, c = (single(m, dtype) for m in MODELS)
    child = space.cross(np.array([0.3, 0.123]), [space.cross(np.array([0.6, 0.77]), [a, b]), c])
    merger = Merger(models, dict.fromkeys(models, ""))
    live = {n: torch.empty(t.shape) for n, t in models["a"].tensors.items()}
    digests = merger.fill(child, live)
    for name, tensor in merger.stream(child):
        assert torch.equal(live[name], tensor.float()), name
        assert np.array_equal(digests[name], tile_digests(tensor))


def test_a_mixture_of_other_models_fails_by_itself(models):
    space = make_space(models)
    child = space.cross(np.array([0.3, 0.4]), [single("a", "float32"), single("b", "float32")])
    data = child.to_json() | {"parameter_index_hash": "0" * 16}
    with pytest.raises(CandidateFailure, match="other names or sizes"):
        merged(models, parse_recipe(data))


def test_an_empty_chromosome_has_no_angle(models):
    def grams():
        return np.ones((len(models["a"].tensors), 3, 3)) + np.eye(3)

    space = make_space(models, grams, chromosomes=["model"], interpolation="slerp")
    child = space.cross(np.full(4, 0.4), [single("a", "float32"), single("b", "float32")])
    assert np.isfinite(child.chromosomes[1].coefficients).all()
    assert child.id({m: m * 64 for m in MODELS})


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_passes_in_a_narrower_dtype_export_what_was_scored(campaign_file, here, silent, compute):
    space = {"kind": "mixture", "dtype": "float32"}
    file = campaign_file(**(NICHES | {"space": space}), compute_dtype=compute, name="narrow")
    assert run_campaign(file, observer=silent)
    done = CliRunner().invoke(main, ["export", "runs/narrow", "out", "--pick", "12"])
    assert done.exit_code == 0 and "as scored" in done.output, done.output


def test_the_first_model_gives_config_and_tokenizer(campaign_file, here, silent):
    """As in the exported directory; a base beside the models has no part in a mixture."""
    shutil.copytree((here / "base").resolve(), here / "eps")
    config = json.loads((here / "eps/config.json").read_text())
    (here / "eps/config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    file = campaign_file(
        **(NICHES | {"sources": {"base": "eps", "models": {m: m for m in MODELS}}})
    )
    assert checked(file)[0].worker.frame == "a"


def test_selection_is_the_equations():
    """Shared fitness and attraction of equations 3 to 5, written out in loops."""
    rng = np.random.default_rng(0)
    scores = (rng.random((6, 30)) < rng.random(30)).astype(np.float32)
    scores[:, 3] = 0.0
    for alpha in (0.0, 0.5, 1.0, 2.0):
        niches = NaturalNiches(
            Problem(2, 0, np.zeros(2)), NichesSection(population=6, alpha=alpha, warmup=0)
        )
        for candidate, row in enumerate(scores):
            niches.tell(Feedback(None, None, 0.5, (0.5,), 0.0, candidate, row, True))
        shared = np.zeros_like(scores, float)
        for i in range(6):
            for j in range(30):
                used = sum(float(scores[k, j]) for k in range(6))
                shared[i, j] = scores[i, j] / (used or 1.0) ** alpha
        pairs = Counter(p.parents for p in niches.ask(20_000))
        fitness = shared.sum(axis=1) / shared.sum()
        for i in range(6):
            first = sum(n for (x, _), n in pairs.items() if x == i) / 20_000
            assert first == pytest.approx(fitness[i], abs=0.015)
            gains = np.array([np.maximum(shared[j] - shared[i], 0).sum() for j in range(6)])
            for j in range(6):
                second = pairs[i, j] / max(1, sum(n for (x, _), n in pairs.items() if x == i))
                assert second == pytest.approx(gains[j] / gains.sum(), abs=0.04)


def test_the_least_fit_makes_room_and_a_specialist_stays():
    niches = NaturalNiches(Problem(2, 0, np.zeros(2)), NichesSection(population=3, warmup=0))
    good, same, specialist = [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]
    for candidate, row in enumerate([good, same, specialist, good]):
        niches.tell(Feedback(None, None, 0.5, (0.5,), 0.0, candidate, np.float32(row), True))
    assert {p for proposal in niches.ask(300) for p in proposal.parents} == {0, 2, 3}
    niches.tell(Feedback(None, None, 9.0, (9.0,), 0.3, 4, np.float32([1, 1, 1, 1]), True))
    assert 4 not in {p for proposal in niches.ask(300) for p in proposal.parents}  # it violates


def test_all_alike_still_mate_and_nobody_is_an_error():
    niches = NaturalNiches(Problem(2, 0, np.zeros(2)), NichesSection(population=3, warmup=0))
    with pytest.raises(EvomergeError, match="no source that could be a parent"):
        niches.ask(1)
    for candidate in range(3):
        niches.tell(
            Feedback(None, None, 0.0, (0.0,), 0.0, candidate, np.zeros(4, np.float32), True)
        )
    pairs = Counter(p.parents for p in niches.ask(600))
    assert len(pairs) == 6 and min(pairs.values()) > 50  # every pair of two, none with itself


def test_parents_that_were_forgotten_are_read_again(campaign_file, here, silent, monkeypatch):
    monkeypatch.setattr("evomerge.campaign.runner._PARENTS_KEPT", 1)
    assert run_campaign(campaign_file(**NICHES, name="forgetful"), observer=silent)
    monkeypatch.setattr("evomerge.campaign.runner._PARENTS_KEPT", 256)
    assert run_campaign(campaign_file(**NICHES, name="mindful"), observer=silent)
    runs = [Archive(here / "runs" / name / "archive.db") for name in ("forgetful", "mindful")]
    ids = [[c.recipe_id for c in archive.candidates()] for archive in runs]
    assert ids[0] == ids[1] and len(ids[0]) == 18


def test_a_campaign_breeds_and_its_best_is_exported(campaign_file, here, silent):
    file = campaign_file(**NICHES, name="bred", heldout=0.5)
    assert run_campaign(file, observer=silent)
    archive = Archive(here / "runs/bred/archive.db")
    children = archive.candidates(origin="search")
    assert len(children) == 14
    seeds = {c.id for c in archive.baselines() if c.label in MODELS}
    born = set(seeds)
    for child in children:
        parents = child.parents
        assert len(parents) == 2 and set(parents) <= born
        born.add(child.id)
    done = CliRunner().invoke(main, ["export", "runs/bred", "out", "--pick", str(children[-1].id)])
    assert done.exit_code == 0 and "as scored" in done.output, done.output
    done = CliRunner().invoke(main, ["merge", "out/recipe.json", "again"])
    assert done.exit_code == 0, done.output
    assert (
        Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    )
    shown = CliRunner().invoke(main, ["show", "runs/bred", str(children[-1].id)])
    assert shown.exit_code == 0 and "from parameter" in shown.output
    assert summary.front("runs/bred")


def test_killed_and_resumed_breeds_the_same(here, tmp_path):
    points = ["propose:after:5", "record:before:9", "record:after:12", "score:before:8"]
    plan = PLAN | NICHES | {"finals": 2, "workers": {"pool": "inline", "threads": 1}}
    (here / "niches.yaml").write_text(yaml.safe_dump(plan))
    assert_killed_and_resumed_alike(Path("niches.yaml"), points)


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "box": ({"controller__kind": "cmaes"}, "controller.kind: cmaes does not search a space of"),
        "soup": ({"start_from_soup": True}, "start_from_soup: a space of individuals"),
        "one": ({"sources__models": {"a": "a"}}, "space.kind: crosses two models or more"),
        "key": ({"space__splits": True}, "space.splits: unknown key 'splits'"),
        "way": ({"space__interpolation": "nlerp"}, "space.interpolation: 'nlerp' is none"),
        "twice": (
            {"sources__models": {"a": "a", "b": "b", "x": "a"}},
            "sources.models.x: is listed",
        ),
        "base": ({"sources__base": "b"}, "sources.models.b: is listed before"),
        "typo": ({"space__chromosomes": ["self_atn"]}, "no tensor's name holds 'self_atn'"),
        "few": ({"controller__population": 1}, "controller.population: 1 is out of range"),
    }.values(),
)
def test_what_does_not_fit_is_said(campaign_file, here, silent, changes, message):
    plan = {"controller": {"kind": "niches"}, "space": {"kind": "mixture"}}
    plan["sources"] = {"models": dict(NICHES["sources"]["models"])}
    with pytest.raises(BadInput, match=message):
        run_campaign(campaign_file(**plan, **changes), observer=silent)


def test_a_ledger_told_again_is_at_the_same_place(campaign_file, here):
    """What the controller of a history proposes next is what the campaign, continued, proposes."""
    run = here / "runs/tiny"

    def to(evaluations):
        file = campaign_file(
            space={"kind": "mixture"},
            controller={"kind": "niches", "population": 4, "warmup": 3},
            budget__evaluations=evaluations,
            finals=0,
        )
        assert run_campaign(file, directory=run)
        return ArchiveReader(run / "archive.db").candidates("search")

    to(12)
    kinds, members = Counter(), []
    for event, controller in controller_history(run):
        kinds[event.kind] += 1
        members.append(controller.members)
    events = query(run, "SELECT kind, COUNT(*) AS n FROM events GROUP BY kind")
    told = {row["kind"]: row["n"] for row in events}
    assert kinds == {"ask": told["ask"], "tell": told["tell"]}
    assert members[0] == () and len(members[-1]) == 4  # the base, told first, is no individual
    (proposal,) = controller.ask(1)
    last = to(13)[-1]
    assert (last.ordinal, proposal.parents) == (12, last.parents)
    assert np.array_equal(quantize(proposal.genome), last.genome)
