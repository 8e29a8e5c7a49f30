"""Campaigns in stages and over paths: one archive, costs as objectives, kills between stages."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import assert_killed_and_resumed_alike, own_code
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.archive import summary
from evomerge.archive.archive import Archive
from evomerge.campaign.build import checked
from evomerge.campaign.run import run_campaign
from evomerge.campaign.source_hashes import hash_sources
from evomerge.cli import tables
from evomerge.cli.main import main
from evomerge.config.validate import read_plan
from evomerge.errors import BadInput, EvomergeError
from evomerge.export.candidates import export_candidate
from evomerge.search.controllers import Feedback, Problem
from evomerge.search.controllers.cmaes import CmaEs, CmaEsSection
from evomerge.search.objectives import Objective, Scale
from evomerge.testing import tiny_tokenizer
from evomerge.workers.protocol import Job
from evomerge.workers.worker import Worker

FITNESS = [
    {"name": "likely", "function": "fit.py"},
    {"name": "depth", "cost": "hops", "weight": 0.1},
    {"name": "size", "cost": "parameters", "weight": 0.1},
]
ROUTING = {"kind": "routing", "order": "depth", "repeats": 2}
STAGES = [
    {
        "name": "merged",
        "space": {
            "kind": "parameters",
            "method": "task_arithmetic",
            "axes": {"weight": {"low": 0.0, "high": 1.0}},
        },
        "controller": {"kind": "cmaes", "population": 4},
        "budget": {"evaluations": 6},
    },
    {
        "name": "routed",
        "space": {**ROUTING, "frame": "merged"},
        "controller": {"kind": "nsga2", "population": 4},
        "budget": {"evaluations": 8},
    },
]
STAGED = {"stages": STAGES, "space": None, "controller": None, "budget": None, "fitness": FITNESS}


def tiny_olmo2(folder):
    """Save a random model of a family whose norms are on what its branches put out."""
    config = AutoConfig.for_model(
        "olmo2", vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def scored(run):
    archive = Archive(run / "archive.db")
    return archive, {c.id: archive.means(c.id) for c in archive.candidates()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where a run of STAGED is kept, for tests that look at one or go on with it."""
    return tmp_path_factory.mktemp("staged") / "run"


@pytest.fixture
def staged(finished, campaign_file, silent, here):
    file, directory = campaign_file(**STAGED), here / "runs" / "tiny"
    if finished.exists():
        shutil.copytree(finished, directory)
    else:
        assert run_campaign(file, observer=silent)
        shutil.copytree(directory, finished)
    return directory


def test_a_stage_goes_on_from_the_best_of_the_one_before(staged, here):
    archive, means = scored(staged)
    assert [archive.proposed_in(stage) for stage in (0, 1, 2)] == [6, 8, 0]
    assert archive.proposed() == 14 and not archive.unfinished()
    labels = {c.label: c for c in archive.baselines()}
    assert list(labels) == ["base", "a", "b", "c", "uniform", "merged"]
    found = archive.best_found(0)
    assert means[labels["merged"].id] == pytest.approx(means[found])  # the same model, routed
    routed = [c for c in archive.candidates(origin="search") if c.recipe_json["kind"] == "routing"]
    assert len(routed) == 8
    for candidate in routed:
        assert candidate.recipe_json["models"] == ["a", "b", "c", f"runs/tiny#{found}"]
        assert candidate.recipe_json["frame"] == 3
        assert means[candidate.id]["depth"] == len(candidate.recipe_json["path"])
    assert archive.campaign["state"] == "finished"
    status = summary.status(staged)
    limits = {"items": None, "evaluations": 14, "hours": None}
    assert status["budget"] == limits | {"proposed": 14}
    assert [s["proposed"] for s in status["stages"]] == [6, 8]
    assert "  routed: 8 of 8" in tables.status(status)
    assert "merged" in archive.campaign["provenance"]["sources"]


def test_a_routed_candidate_is_exported_as_deep_as_it_was_scored(staged, tmp_path):
    archive, means = scored(staged)
    routed = [c for c in archive.candidates(origin="search") if c.recipe_json["kind"] == "routing"]
    deepest = max(routed, key=lambda c: len(c.recipe_json["path"]))
    how = export_candidate(staged, tmp_path / "out", str(deepest.id)).compared
    assert how == "scales folded in"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == means[deepest.id]["depth"] == len(model.model.layers)
    stored = sum(t.numel() for t in load_file(tmp_path / "out" / "model.safetensors").values())
    assert stored == means[deepest.id]["size"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`cmaes`, then `nsga2`" in card


def test_the_recipe_that_is_exported_needs_no_run(staged, here):
    archive, _ = scored(staged)
    routed = [c for c in archive.candidates(origin="search") if c.recipe_json["kind"] == "routing"]
    used = next(c for c in routed if any(hop[0] == 3 for hop in c.recipe_json["path"]))
    export_candidate(staged, here / "out", str(used.id))
    recipe = json.loads((here / "out" / "recipe.json").read_text())
    assert recipe["models"][:3] == ["a", "b", "c"]
    assert recipe["models"][3]["method"] == "task_arithmetic"
    shutil.rmtree(staged)
    done = CliRunner().invoke(main, ["merge", "out/recipe.json", "again"])
    assert done.exit_code == 0, done.output
    ours, again = (load_file(here / f / "model.safetensors") for f in ("out", "again"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items())
    assert json.loads((here / "again" / "recipe.json").read_text()) == recipe
    assert "#" not in (here / "again" / "README.md").read_text().split("tags:")[0]


def test_a_path_is_shown_as_a_picture(staged):
    archive, _ = scored(staged)
    routed = [c for c in archive.candidates(origin="search") if c.recipe_json["kind"] == "routing"]
    for candidate in routed:
        path = candidate.recipe_json["path"]
        text = tables.show(summary.show(staged, candidate.id))
        rows = {int(line[:3]): line[4:] for line in text.split("\n") if line[:3].strip().isdigit()}
        drawn = [
            ("abcd".index(row[hop]), layer)
            for hop in range(len(path))
            for layer, row in rows.items()
            if row[hop] != "."
        ]
        assert drawn == [(model, layer) for model, layer, *_ in path]


def test_values_stay_on_the_first_stage_s_scale(staged):
    archive, means = scored(staged)
    sources = [means[c.id] for c in archive.baselines(stage=0)]
    scale = Scale(archive.objectives, sources)
    for candidate, found in means.items():
        assert archive.outcome(candidate)["value"] == pytest.approx(scale.value(found))


def test_killed_between_and_within_stages_it_goes_on_alike(campaign_file, here):
    points = ["add_baseline:after:6", "record:before:17", "record_final:before:3"]
    assert_killed_and_resumed_alike(campaign_file(**STAGED), points)


def test_the_last_stage_goes_on_with_a_larger_budget(staged, campaign_file, silent):
    more = [STAGES[0], {**STAGES[1], "budget": {"evaluations": 11}}]
    assert run_campaign(campaign_file(**STAGED | {"stages": more}), observer=silent)
    assert Archive(staged / "archive.db").proposed_in(1) == 11
    earlier = [{**STAGES[0], "budget": {"evaluations": 9}}, more[1]]
    with pytest.raises(BadInput, match=r"stages.0.budget.evaluations: differs"):
        run_campaign(campaign_file(**STAGED | {"stages": earlier}), observer=silent)


def test_a_stage_without_a_model_stops_in_one_line(campaign_file, silent, here):
    (here / "picky.py").write_text(
        (here / "fit.py").read_text()
        + "\n\nfrom itertools import count\nplain, calls = score, count()\n\n\n"
        "def score(model, tokenizer, items):\n"
        "    if next(calls) >= 5:\n"
        "        raise ValueError(f'no {next(calls)}')\n"
        "    return plain(model, tokenizer, items)\n"
    )
    fitness = [{"name": "likely", "function": "picky.py"}]
    with pytest.raises(EvomergeError, match="no candidate of the stage 'merged'"):
        run_campaign(campaign_file(**STAGED | {"fitness": fitness}), observer=silent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": {"evaluations": 3}}, "budget: belongs to the stages"),
        ({"stages": {"one": 1}}, "stages: "),
        ({"stages__0__name": "a"}, "stages.0.name: 'a' names a model or a stage before"),
        ({"stages__0__name": "uniform"}, "stages.0.name: the name 'uniform' is kept"),
        ({"stages__1__space__frame": "routed"}, "stages.1.space.frame"),
        ({"stages__0__space__method": "tie"}, "stages.0.space.method: .*did you mean 'ties'"),
        ({"stages__1__controller": {"kind": "niches"}}, "stages.1.controller.kind: niches"),
        ({"stages__1__budget": {"evaluations": 2, "hour": 1}}, "stages.1.budget.hour: unknown key"),
        (
            {"stages__0__space": ROUTING, "stages__1__space": STAGES[0]["space"]},
            "let stages of kind",
        ),
        (
            {"stages__1__budget": {"evaluations": 2, "hours": 1}},
            "stages are counted in items or evaluations",
        ),
        ({"stages__1__space__gains": ["mlp"]}, "stages.1.space.gains"),
        ({"fitness__1__cost": "money"}, "fitness.1.cost"),
        ({"fitness__1__function": "fit.py"}, "fitness.1: has cost and function"),
        ({"fitness__1__items": 3}, "fitness.1.items: belongs to tasks, not to a cost"),
    ],
)
def test_faults_name_the_stage(campaign_file, change, said):
    changed = json.loads(json.dumps(STAGED)) | {k: v for k, v in change.items() if "__" not in k}
    file = campaign_file(**changed)
    plan = yaml.safe_load(file.read_text())
    for dotted, value in change.items():
        *path, last = dotted.split("__")
        entry = plan
        for key in path:
            entry = entry[int(key) if key.isdigit() else key]
        entry[last] = value
    file.write_text(yaml.safe_dump(plan))
    with pytest.raises(BadInput, match=said):
        checked(file)


def test_methods_are_chosen_for_each_group_and_exported_as_scored(campaign_file, silent, here):
    axes = {"weight": {"low": 0.0, "high": 1.0}}
    common = {"kind": "parameters", "layer_groups": 2, "axes": axes}
    spaces = [common | {"method": method} for method in ("linear", "ties", "task_arithmetic")]
    space = {"kind": "choice", "each": "group", "spaces": spaces}
    plan = {"space": space, "controller": {"kind": "cmaes", "population": 4}}
    assert run_campaign(campaign_file(**plan), observer=silent)
    run = here / "runs" / "tiny"
    archive, _ = scored(run)
    every = archive.candidates(origin="search")
    mixed = [c for c in every if any("method" in group for group in c.recipe_json["groups"])]
    assert mixed and not archive.counts()["failed"]
    export_candidate(run, here / "out", str(mixed[-1].id))  # the checksum is compared
    again = plan | {"name": "again", "init": [f"runs/tiny#{mixed[-1].id}"]}
    assert run_campaign(campaign_file(**again), observer=silent)
    (ours,) = Archive(here / "runs/again/archive.db").warm_starts()
    methods = [[g.get("method") for g in c.recipe_json["groups"]] for c in (ours, mixed[-1])]
    assert methods[0] == methods[1]
    assert not (here / "out" / "mergekit_config.yml").exists()


def test_finals_are_scored_by_the_stage_s_own_worker(campaign_file, silent, here):
    """The uniform average of four layers is no model of two, nor are evolved weights a path."""
    from evomerge.testing import tiny_llama

    for seed, name in enumerate("xy"):
        tiny_llama(here / name, seed, layers=4, tie=False)
    stages = [
        {"name": "short", "space": ROUTING | {"longest": 2}, "budget": {"evaluations": 2}},
        {"name": "again", "space": ROUTING | {"frame": "short"}, "budget": {"evaluations": 2}},
    ]
    plan = STAGED | {"stages": stages, "sources": {"models": {"x": "x", "y": "y"}}}
    assert run_campaign(campaign_file(**plan), observer=silent)
    archive, means = scored(here / "runs" / "tiny")
    finals = {c: archive.means(c, "heldout") for c in archive.finals_done()}
    assert archive.baselines()[2].label == "uniform"
    assert all(finals[c]["depth"] == means[c]["depth"] for c in finals)
    assert {c.id for c in archive.baselines()} <= finals.keys()
    assert {finals[c.id]["depth"] for c in archive.baselines()} == {2, 4}


def test_a_run_that_was_renamed_is_continued_and_exported(staged, campaign_file, silent, here):
    archive, _ = scored(staged)
    routed = [c for c in archive.candidates(origin="search") if c.recipe_json["kind"] == "routing"]
    moved = here / "elsewhere"
    staged.rename(moved)
    more = [STAGES[0], {**STAGES[1], "budget": {"evaluations": 10}}]
    file = campaign_file(**STAGED | {"stages": more})
    assert run_campaign(file, directory=moved, observer=silent)
    again = Archive(moved / "archive.db")
    assert not again.counts()["failed"] and again.proposed_in(1) == 10
    names = {tuple(c.recipe_json["models"]) for c in again.candidates(origin="search", stage=1)}
    assert len(names) == 1
    export_candidate(moved, here / "out", str(routed[-1].id))
    head = (here / "out" / "README.md").read_text().split("tags:")[0]
    # nothing that others can find
    assert head == "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
    assert not (here / "out" / "mergekit_config.yml").exists()


def test_what_a_campaign_began_with_may_be_a_stage_s_best(campaign_file, silent, here):
    first = {"name": "first", "space": ROUTING, "fitness": FITNESS, "budget__evaluations": 4}
    assert run_campaign(campaign_file(**first), observer=silent)
    stages = [
        {"name": name, "space": ROUTING, "budget": {"evaluations": 1}} for name in ("one", "two")
    ]
    best = Archive(here / "runs" / "first" / "archive.db").best_found(0)
    plan = STAGED | {"stages": stages, "init": [f"runs/first#{best}"]}
    assert run_campaign(campaign_file(**plan), observer=silent)
    archive, _ = scored(here / "runs" / "tiny")
    mine = [c for c in archive.candidates(stage=0) if c.origin != "baseline"]
    values = {c.id: archive.outcome(c.id)["value"] for c in mine}
    assert "warm_start" in {c.origin for c in mine}
    assert archive.best_found(0) == max(values, key=lambda c: (values[c], -c))


def test_sources_of_several_depths_have_no_average_to_hang_on(campaign_file, here):
    from evomerge.testing import tiny_llama

    tiny_llama(here / "deep", 5, layers=4)
    plan = {"sources": {"models": {"a": "a", "deep": "deep"}}, "space": ROUTING}
    fitness = [{"name": "likely", "function": "fit.py", "constraint": ">= uniform"}]
    with pytest.raises(BadInput) as caught:
        checked(campaign_file(**plan, soups=["metrics"], fitness=fitness))
    assert {f.key for f in caught.value.faults} == {"soups", "fitness.0.constraint"}


def test_an_average_that_was_scored_bounds_later_stages_of_any_depth(campaign_file, silent, here):
    stages = [
        {
            "name": name,
            "space": {**ROUTING, "prior": None, "gains": "none"},
            "controller": {"kind": "random"},
            "budget": {"evaluations": 3},
        }
        for name in ("once", "twice")
    ]
    fitness = [
        {"name": "depth", "cost": "hops", "constraint": "<= uniform + 9"},
        {"name": "likely", "function": "fit.py", "weight": 0.01},
    ]
    file = campaign_file(**STAGED | {"stages": stages, "fitness": fitness})
    assert run_campaign(file, observer=silent)
    archive, means = scored(here / "runs" / "tiny")
    labels = {c.label: c for c in archive.baselines()}
    assert means[labels["once"].id]["depth"] != means[labels["a"].id]["depth"]
    assert archive.proposed_in(1) == 3


def test_the_faults_of_all_stages_are_told_at_once(campaign_file, here):
    from evomerge.testing import tiny_llama

    tiny_llama(here / "deep", 5, layers=4)
    deep = {"sources": {"base": "base", "models": {"a": "a", "deep": "deep"}}}
    routed = [{**stage, "space": ROUTING} for stage in STAGES]
    file = campaign_file(**STAGED | deep | {"stages": routed, "seed": "seven", "finals": "few"})
    with pytest.raises(BadInput) as caught:
        checked(file)
    assert {f.key for f in caught.value.faults} == {"seed", "finals"}  # depths may differ
    models = {name: f"post-{name}" for name in "ab"}
    for folder in models.values():
        tiny_olmo2(here / folder)
    plan = {"sources": {"base": "post-a", "models": models}, "init": ["runs/none#best"]}
    with pytest.raises(BadInput) as caught:
        checked(campaign_file(**STAGED | plan))
    said = str(caught.value)
    assert "runs/none: is no run's directory" in said  # of the first stage
    assert "'post-b': olmo2 cannot be routed with scales" in said  # of the second


def test_code_of_its_own_is_trusted_in_every_stage_or_in_none(campaign_file, silent, here):
    for name in ("a", "b"):
        shutil.copytree(here / name, here / f"own-{name}")
        own_code(here / f"own-{name}")
    models = {"a": "own-a", "b": "own-b"}
    stages = [STAGES[0], {**STAGES[0], "name": "again"}]
    plan = STAGED | {"sources": {"base": "own-a", "models": models, "trust_remote_code": True}}
    assert run_campaign(campaign_file(**plan | {"stages": stages}), observer=silent)
    again = {"base": None, "models": {"found": "runs/tiny#best", "b": "own-b"}}
    space = {**STAGES[0]["space"], "method": "linear"}
    file = campaign_file(name="again", space=space, sources=again)
    with pytest.raises(BadInput) as caught:
        checked(file)
    keys = [f.key for f in caught.value.faults]
    assert keys == ["sources.models.found", "sources.models.b"]
    assert all("code of its own" in str(f) for f in caught.value.faults)


def test_a_worker_of_paths_has_its_sources_as_models_and_keeps_no_tensors_beside(campaign_file):
    for space in (ROUTING, STAGES[0]["space"]):
        (campaign,) = checked(campaign_file(space=space))
        worker = Worker(hash_sources(campaign).worker)
        routed = space is ROUTING
        assert not routed or worker._router._models.keys() == campaign.sources.keys()
        (average,) = [recipe for label, recipe in campaign.baselines() if label == "uniform"]
        outcome = worker.evaluate(Job(1, average, "search"))
        assert outcome.status == "ok" and outcome.weights_checksum
        assert bool(worker._merger.weights._on_device) != routed


def test_a_soup_is_no_path(campaign_file):
    file = campaign_file(space=ROUTING, start_from_soup=True, soups=["metrics"])
    with pytest.raises(BadInput, match="start_from_soup: a soup is no point"):
        checked(file)


def test_families_that_cannot_be_routed_are_refused_before_any_model_is_loaded(campaign_file, here):
    for name in "abc":
        tiny_olmo2(here / f"post-{name}")
    models = {name: f"post-{name}" for name in "abc"}
    file = campaign_file(space=ROUTING, sources={"models": models})
    with pytest.raises(BadInput, match="'post-a': olmo2 cannot be routed with scales"):
        checked(file)


def test_models_of_several_depths_are_routed_and_not_averaged(campaign_file, silent, here):
    from evomerge.testing import tiny_llama

    tiny_llama(here / "deep", 5, layers=4)
    models = {"a": "a", "deep": "deep"}
    plan = {"sources": {"models": models}, "space": ROUTING, "fitness": FITNESS}
    assert run_campaign(campaign_file(**plan, budget__evaluations=4), observer=silent)
    archive, means = scored(here / "runs" / "tiny")
    depths = {c.label: means[c.id]["depth"] for c in archive.baselines()}
    assert depths == {"a": 2, "deep": 4}


def test_a_search_begins_with_paths_of_another_run(staged, campaign_file, silent, here):
    archive, _ = scored(staged)
    routed = [
        c.id for c in archive.candidates(origin="search") if c.recipe_json["kind"] == "routing"
    ]
    with pytest.raises(BadInput, match="which is no source of this campaign"):
        file = campaign_file(name="other", space=ROUTING, init=[f"runs/tiny#{routed[0]}"])
        run_campaign(file, observer=silent)
    with pytest.raises(BadInput, match="of kind routing, this space's are not"):
        file = campaign_file(name="other", init=[f"runs/tiny#{routed[0]}"])
        run_campaign(file, observer=silent)
    first = {"name": "first", "space": ROUTING, "fitness": FITNESS, "budget__evaluations": 4}
    assert run_campaign(campaign_file(**first), observer=silent)
    best = Archive(here / "runs" / "first" / "archive.db").best_found(0)
    again = first | {"name": "again", "init": [f"runs/first#{best}"]}
    assert run_campaign(campaign_file(**again), observer=silent)
    theirs = Archive(here / "runs" / "first" / "archive.db").candidate(best)
    ours = Archive(here / "runs" / "again" / "archive.db").warm_starts()[0]
    assert ours.recipe_id == theirs.recipe_id


def test_seconds_per_token_are_measured(campaign_file, silent, here):
    fitness = [FITNESS[0], {"name": "pace", "cost": "seconds_per_token"}]
    plan = {"space": ROUTING, "fitness": fitness, "budget__evaluations": 2, "heldout": 0}
    assert run_campaign(campaign_file(**plan), observer=silent)
    _, means = scored(here / "runs" / "tiny")
    assert all(0 < m["pace"] < 10 for m in means.values())


def test_a_cost_is_scaled_by_the_dearest_baseline():
    objectives = (Objective("acc"), Objective("depth", "minimize", cost=True))
    scale = Scale(objectives, [{"acc": 0.2, "depth": 6.0}, {"acc": 0.7, "depth": 6.0}])
    assert scale.vector({"acc": 0.45, "depth": 3.0}) == pytest.approx((0.5, 0.5))
    assert scale.vector({"acc": 0.2, "depth": 9.0}) == pytest.approx((0.0, -0.5))


def test_costs_are_for_language_models(campaign_file, here):
    (here / "net.py").write_text(
        "import torch\n\n\ndef make():\n    return torch.nn.Linear(2, 2)\n"
    )
    models = {
        "x": {"factory": "net.py:make", "seed": 1},
        "y": {"factory": "net.py:make", "seed": 2},
    }
    file = campaign_file(
        sources={"models": models},
        space={"kind": "mixture"},
        controller={"kind": "niches"},
        fitness=[{"name": "depth", "cost": "hops"}],
    )
    with pytest.raises(BadInput, match="costs are those of language models"):
        checked(file)


def test_what_has_no_say_is_archived_and_told_at_its_start(campaign_file, silent, here):
    plan = {"space": ROUTING, "fitness": FITNESS[:1], "budget__evaluations": 12}
    file = campaign_file(**plan)
    assert run_campaign(file, observer=silent)
    (campaign,) = checked(file)
    archive = Archive(here / "runs" / "tiny" / "archive.db")
    for candidate in archive.candidates(origin="search"):
        assert np.array_equal(campaign.space.settled(candidate.genome), candidate.genome)


def test_cma_es_learns_from_the_genome_that_was_scored():
    """Genes that are put back do not widen the search: their deviation falls, others' does not."""

    def deviations(put_back):
        search = CmaEs(Problem(6, 3, np.full(6, 0.5)), CmaEsSection(population=8))
        rng = np.random.default_rng(0)
        for ordinal in range(240):
            genome = search.ask(1)[0].genome.copy()
            genome[3:] = 0.5 if put_back else genome[3:]
            search.tell(Feedback(ordinal, genome, float(rng.random()), (0.0,)))
        return search._es.sigma * search._es.sm.variances**0.5

    held, free = deviations(True), deviations(False)
    assert held[3:].max() < 0.5 * free[3:].min()


def test_a_plan_of_stages_survives_its_own_yaml(staged):
    file = staged / "campaign.yaml"
    again = read_plan(file)
    assert again.model_dump(mode="json") == yaml.safe_load(file.read_text())
    assert [s.budget.evaluations for s in again.searches] == [6, 8] and again.hours is None


def test_a_stage_has_what_those_before_found_among_its_models(campaign_file):
    plan = read_plan(campaign_file(**STAGED, soups=["greedy"]))
    assert plan.model_names(1, ["runs/x#3"]).models["merged"] == "runs/x#3"
    assert plan.searches[1].space.kind == "routing"
    first, second = checked(campaign_file(**STAGED, soups=["greedy"]))
    assert (first.soups, second.soups) == (("greedy",), ())
