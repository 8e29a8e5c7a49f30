"""vLLM beside transformers, item by item. It needs vLLM: `make test-vllm` runs this in an
environment of its own.
"""

import contextlib
import os
import re

import numpy as np
import pytest
import torch

# Ranks share this machine's cores as they like; read once, when vLLM first starts.
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

pytest.importorskip("vllm")

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.engines import ENGINES, EngineOptions
from evomerge.engines.alike import check_alike
from evomerge.engines.auto_engine import AutoEngine
from evomerge.errors import BadInput, CandidateFailure
from evomerge.export.candidates import export_candidate
from evomerge.merging.joined_adapter import join_adapters
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import Group, ParametersRecipe, single, uniform
from evomerge.scoring.fitness import CostSection, TaskSection
from evomerge.scoring.open_fitness import open_fitness
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing import WORDS, recipe_of, tiny_llama

KINDS = {
    "generation": "exact_match",
    "choice": "acc",
    "likelihood": "acc",
    "rolling": "bits_per_byte",
}
pytestmark = pytest.mark.xdist_group("vllm")  # an engine takes a process


class Both:
    """One merger, and both engines with the models that it merges."""

    def __init__(self, names, dtype="float32"):
        self.names = names
        opened = {name: open_source(name) for name in names}
        self.merger = Merger(opened, {n: digest(s).sha256 for n, s in opened.items()})
        self.engines = {
            name: ENGINES.get(name).open(opened[names[0]], EngineOptions(dtype))
            for name in ("transformers", "vllm")
        }

    def load(self, recipe):
        """Fill both engines; return the digests that each merge made."""
        found = []
        for engine in self.engines.values():
            digests = self.merger.fill(recipe, engine.direct) if engine.direct else {}
            others = [name for name in self.merger.shapes(recipe) if name not in digests]
            engine.load(self.merger.stream(recipe, others, digests))
            found.append(digests)
        return found

    def fitnesses(self, section, ordinals):
        fitnesses = []
        for engine in self.engines.values():
            fitness = open_fitness(section)
            fitness.prepare(engine, ordinals)
            fitnesses.append(fitness)
        return fitnesses


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def both(request, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    names = []
    for seed, name in enumerate("abc"):
        near = {"near": folder / "a", "spread": 0.3} if seed else {}
        tiny_llama(folder / name, seed, tie=request.param, hidden=64, **near)
        names.append(str(folder / name))
    both = Both(names)
    yield both
    both.engines["vllm"].close()


def test_every_kind_of_task_is_answered_alike_by_every_model(both, world, monkeypatch):
    """Back and forth, so that a weight that is not replaced shows, a tied head's too."""
    monkeypatch.chdir(world)
    recipes = [single(name, "bfloat16") for name in both.names]
    recipes.append(uniform(tuple(both.names), "bfloat16"))
    pairs = {}
    for kind, metric in KINDS.items():
        section = TaskSection(name=kind, task=f"{kind}.yaml", metric=metric, batch_size=16)
        pairs[kind] = both.fitnesses(section, range(60))
    seen = {kind: set() for kind in KINDS}
    for recipe in [*recipes, *recipes]:
        digests, streamed = both.load(recipe)
        assert all(np.array_equal(digests[name], streamed[name]) for name in digests)
        for kind, (plain, vllm) in pairs.items():
            with torch.inference_mode():
                wanted, found = plain.score(range(60)), vllm.score(range(60))
            seen[kind].add(tuple(wanted.round(4).tolist()))
            if kind == "rolling":
                assert np.allclose(wanted, found, rtol=1e-4)
            else:  # near-ties may fall otherwise
                assert (wanted != found).sum() <= 1, kind
            if kind == "generation":
                pairs_of = zip(plain.answers(range(60)), vllm.answers(range(60)), strict=True)
                assert sum(a != b for a, b in pairs_of) <= 1
    assert len(seen["rolling"]) == len(recipes)  # the models differ


def test_few_shot_prompts_share_their_beginning_and_not_the_weights_before(
    both, world, monkeypatch
):
    """The cache of prefixes belongs to the weights that it was made by."""
    monkeypatch.chdir(world)
    section = TaskSection(name="x", task="generation.yaml", metric="exact_match", fewshot=3)
    plain, vllm = both.fitnesses(section, range(60))
    for name in (*both.names, both.names[0]):
        both.load(single(name, "bfloat16"))
        with torch.inference_mode():
            assert (plain.score(range(60)) != vllm.score(range(60))).sum() <= 1


def test_answers_are_as_long(both, world, monkeypatch):
    monkeypatch.chdir(world)
    section = TaskSection(
        name="x",
        task="generation.yaml",
        metric="exact_match",
        generation={"max_gen_toks": 6, "until": ["w1"]},
    )
    lengths = []
    both.load(single(both.names[1], "bfloat16"))
    for fitness in both.fitnesses(section, range(60)):
        length = open_fitness(CostSection(name="length", cost="tokens"))
        length.follow({"x": fitness})
        with torch.inference_mode():
            fitness.score(range(60))
        lengths.append(length.score(range(60)))
    assert (lengths[0] != lengths[1]).sum() <= 1 and len(set(lengths[0])) > 1


def test_a_merge_that_fails_on_the_way_is_the_candidate_s_failure(both):
    def broken(recipe):
        stream = both.merger.stream(recipe)
        yield next(stream)
        raise CandidateFailure("merged tensor x is not finite")

    with pytest.raises(CandidateFailure, match=r"merged tensor x is not finite"):
        both.engines["vllm"].load(broken(single(both.names[1], "bfloat16")))
    both.load(single(both.names[0], "bfloat16"))  # and it goes on


def test_each_kind_of_request_goes_to_its_engine(both, world, monkeypatch):
    """One model in two engines, and each question answered by the one that was chosen."""
    monkeypatch.chdir(world)
    chosen = {"generate_until": "vllm", "loglikelihood": "transformers"}
    engine = AutoEngine(both.engines, chosen)
    assert [part.name for part in engine.parts] == ["transformers", "vllm"]
    recipe = uniform(tuple(both.names), "bfloat16")
    both.load(single(both.names[2], "bfloat16"))  # something else, that has to be replaced
    digests = engine.become(both.merger, recipe)
    assert sorted(digests) == sorted(both.merger.shapes(recipe))
    asked = []
    for name, one in both.engines.items():
        lm = one.language_model(TaskSection(name="x", task="choice.yaml", metric="acc"))
        for kind in ("generate_until", "loglikelihood"):
            monkeypatch.setattr(lm, kind, _noting(asked, (name, kind), getattr(lm, kind)))
    for kind in ("generation", "choice"):
        section = TaskSection(name=kind, task=f"{kind}.yaml", metric=KINDS[kind])
        fitness = open_fitness(section)
        fitness.prepare(engine, range(60))
        with torch.inference_mode():
            found = fitness.score(range(60))
            for plain in both.fitnesses(section, range(60)):
                assert (plain.score(range(60)) != found).sum() <= 1
    assert asked[:1] == [("vllm", "generate_until")] and ("transformers", "loglikelihood") in asked
    engine._language_models.clear()


def _noting(asked, what, answer):
    def noting(*args, **options):
        asked.append(what)
        return answer(*args, **options)

    return noting


def test_a_model_is_spread_over_two_ranks(world, tmp_path, monkeypatch):
    """Each merges all and keeps its share; on a processor the ranks are processes."""
    monkeypatch.chdir(world)
    names, words = [], (*WORDS, *(f"x{i}" for i in range(96)))  # so that both have some of them
    for seed, name in enumerate("abc"):
        near = {"near": tmp_path / "a", "spread": 0.3} if seed else {}
        tiny_llama(tmp_path / name, seed, hidden=64, words=words, **near)
        names.append(str(tmp_path / name))
    opened = {name: open_source(name) for name in names}
    merger = Merger(opened, {n: digest(s).sha256 for n, s in opened.items()})
    plain = ENGINES.get("transformers").open(opened[names[0]], EngineOptions("float32"))
    spread = ENGINES.get("vllm").open(opened[names[0]], EngineOptions("float32", gpus=2))
    try:
        section = TaskSection(name="x", task="choice.yaml", metric="acc")
        fitnesses = [open_fitness(section) for _ in range(2)]
        for fitness, engine in zip(fitnesses, (plain, spread), strict=True):
            fitness.prepare(engine, range(60))
        texts = ["w1 w2 w3 w4 w5", "w20 w3 w7"]
        for recipe in (*(single(n, "bfloat16") for n in names), uniform(tuple(names), "bfloat16")):
            wanted = plain.become(merger, recipe)
            found = spread.become(merger, recipe)
            assert sorted(found) == sorted(wanted)
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
            assert check_alike("vllm", spread, plain, section, texts, "float32") < 1e-4
        with torch.inference_mode():
            assert (fitnesses[0].score(range(60)) != fitnesses[1].score(range(60))).sum() <= 1
        groups = (Group(None, None, {"weight": (1e9,)}),)
        huge = ParametersRecipe("task_arithmetic", (names[1],), groups, names[0], "float16")
        with pytest.raises(CandidateFailure, match=r"not finite"):
            spread.become(merger, huge)
        for engine in (spread, plain):  # and it goes on
            engine.become(merger, single(names[0], "float16"))
        assert check_alike("vllm", spread, plain, section, texts, "float32") < 1e-4
    finally:
        spread.close()


def test_what_vllm_reads_is_compared_with_transformers(both, world, monkeypatch):
    monkeypatch.chdir(world)
    section = TaskSection(name="x", task="generation.yaml", metric="exact_match")
    both.load(single(both.names[1], "bfloat16"))
    pair = both.engines["vllm"], both.engines["transformers"]
    assert check_alike("vllm", *pair, section, ["w1 w2 w3 w4 w5"], "float32") < 1e-4
    both.engines["transformers"].become(both.merger, single(both.names[2], "bfloat16"))
    with pytest.raises(BadInput, match=r"workers.engine: vllm reads otherwise than transformers"):
        check_alike("vllm", *pair, section, ["w1 w2 w3 w4 w5"], "float32")


@pytest.fixture
def sources_for_vllm(here):
    for seed, name in enumerate(("base", "a", "b", "c")):  # of heads that vLLM takes
        (here / name).unlink()
        near = {"near": here / "base", "spread": 0.3} if seed else {}
        tiny_llama(here / name, seed, hidden=64, **near)


def test_a_campaign_whose_engine_is_measured(sources_for_vllm, campaign_file, here, silent):
    tasks = {"said": ("generation.yaml", "exact_match"), "chosen": ("choice.yaml", "acc")}
    file = campaign_file(
        fitness=[{"name": n, "task": task, "metric": m} for n, (task, m) in tasks.items()],
        workers={"engine": "auto", "threads": 1},
        budget={"evaluations": 4},
        compute_dtype="float32",
    )
    assert run_campaign(file, directory=here / "run", observer=silent)
    assert len([line for line in silent.said if line.startswith("trying which of")]) == 1
    with contextlib.closing(Archive(here / "run" / "archive.db")) as archive:
        assert archive.counts()["failed"] == 0
        measured = archive.campaign["provenance"]["engines"]
    seconds = measured["seconds"]
    assert set(measured["chosen"]) == {"generate_until", "loglikelihood"}
    assert set(seconds) == {"transformers", "vllm"}
    assert all(set(of) == {"generate_until", "loglikelihood", "update"} for of in seconds.values())
    settings = ["budget.evaluations=6"]
    assert run_campaign(file, directory=here / "run", settings=settings, observer=silent)
    assert len([line for line in silent.said if line.startswith("trying which of")]) == 1


def test_a_campaign_in_vllm_runs_and_resumes(sources_for_vllm, campaign_file, here, silent):
    file = campaign_file(
        fitness=[{"name": "said", "task": "generation.yaml", "metric": "exact_match"}],
        workers={"engine": "vllm", "threads": 1},
        budget={"evaluations": 8},
        compute_dtype="float32",
    )
    assert run_campaign(file, directory=here / "run", observer=silent)
    assert run_campaign(
        file, directory=here / "run", settings=["budget.evaluations=12"], observer=silent
    )
    with contextlib.closing(Archive(here / "run" / "archive.db")) as archive:
        assert archive.counts()["failed"] == 0 and archive.proposed() == 12
        assert archive.campaign["provenance"]["machine"]["engine"] == "vllm"
        best = archive.best()
        (agreement,) = archive.agreement(best).values()  # the best is compared at the end
        assert agreement.differing <= 1 < agreement.items
        assert agreement.mean == pytest.approx(archive.means(best, "heldout")["said"])
    compared = export_candidate(here / "run", here / "merged", "best").compared
    assert re.fullmatch(
        r"as scored; scored by vllm, [01] of \d+ held-out items fall otherwise by transformers",
        compared,
    )
    with pytest.raises(BadInput, match=r"workers.engine: differs from the campaign begun"):
        settings = ["budget.evaluations=14", "workers.engine=transformers"]
        run_campaign(file, directory=here / "run", settings=settings, observer=silent)


LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
WIDER = {"r": 5, "target_modules": ["q_proj", "gate_proj"], "use_rslora": True}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A base and names of adapters of it, whose ranks differ."""
    from test_adapters import adapted
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters")
    base = str(tiny_llama(folder / "base", 0, hidden=64))
    names = []
    for seed, options in enumerate((LORA, WIDER, LORA)):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted(model, folder / f"{seed}", options, seed)
        names.append(f"{base}+{folder / str(seed)}")
    return [base, *names]


class Served:
    """One merger, and vLLM with adapters beside transformers with merged weights."""

    def __init__(self, names, candidates):
        opened = {name: open_source(name) for name in names}
        self.merger = Merger(opened, {n: digest(s).sha256 for n, s in opened.items()})
        sources = tuple(opened.values())
        options = EngineOptions("float32", sources=sources, candidates=candidates)
        self.lora = ENGINES.get("vllm-lora").open(sources[0], options)
        self.plain = ENGINES.get("transformers").open(sources[0], options)


@pytest.fixture(scope="module")
def served(adapters):
    served = Served(adapters, 3)
    yield served
    served.lora.close()


def sums(names):
    """Recipes over adapters: the base, each, averages, and sums of other weights."""
    base, *models = names
    recipes = [single(base, "float32"), *(single(name, "float32") for name in models)]
    recipes.append(uniform(tuple(models), "float32"))
    for weight in ((0.7, -0.4, 0.3), (0.0, 1.5, 0.0), (0.2, 0.2, 1.0)):
        recipes.append(recipe_of("task_arithmetic", models, base, weight=weight))
    return recipes


@pytest.mark.parametrize("at_once", [1, 3])
def test_adapters_are_served_as_merged_weights_answer(
    served, adapters, world, monkeypatch, at_once
):
    monkeypatch.chdir(world)
    fitnesses = {}
    for kind, metric in KINDS.items():
        section = TaskSection(name=kind, task=f"{kind}.yaml", metric=metric, batch_size=16)
        fitnesses[kind] = [open_fitness(section) for _ in range(2)]
        for fitness, engine in zip(fitnesses[kind], (served.plain, served.lora), strict=True):
            fitness.prepare(engine, range(60))
    recipes, seen = sums(adapters), set()
    for first in range(0, len(recipes), at_once):
        group = recipes[first : first + at_once]
        if at_once > 1:
            served.lora.expect(served.merger, group)
        for recipe in group:
            served.plain.become(served.merger, recipe)
            served.lora.become(served.merger, recipe)
            assert served.lora.checksum == join_adapters(served.merger, recipe).checksum()
            for kind, (plain, lora) in fitnesses.items():
                with torch.inference_mode():
                    wanted, found = plain.score(range(60)), lora.score(range(60))
                if kind == "rolling":
                    assert np.allclose(wanted, found, rtol=1e-4)
                    seen.add(tuple(wanted.round(4).tolist()))
                else:  # near-ties may fall otherwise
                    assert (wanted != found).sum() <= 1, kind
    assert len(seen) == len(recipes)  # the models differ


def test_a_campaign_over_adapters(adapters, campaign_file, here, silent):
    """Scored as adapters, exported as one and as whole weights, and it says what was scored."""
    base, *models = adapters
    file = campaign_file(
        sources={"base": base, "models": dict(zip("xyz", models, strict=True))},
        fitness=[{"name": "said", "task": "generation.yaml", "metric": "exact_match"}],
        workers={"engine": "vllm-lora", "threads": 1, "candidates_each": 3},
        budget={"evaluations": 8},
        compute_dtype="float32",
    )
    assert run_campaign(file, directory=here / "run", observer=silent)
    settings = ["budget.evaluations=10", "workers.candidates_each=2"]
    assert run_campaign(file, directory=here / "run", settings=settings, observer=silent)
    with contextlib.closing(Archive(here / "run" / "archive.db")) as archive:
        assert archive.counts()["failed"] == 0 and archive.proposed() == 10
        assert archive.campaign["provenance"]["machine"]["engine"] == "vllm-lora"
        (agreement,) = archive.agreement(archive.best()).values()  # with merged weights
        assert agreement.differing <= 1 < agreement.items
        (found,) = [c.id for c in archive.candidates(origin="search")][-1:]
    as_weights = export_candidate(here / "run", here / "full", str(found))
    as_adapter = export_candidate(here / "run", here / "lora", str(found), as_adapter=True)
    assert as_weights.checksum == as_adapter.checksum
    assert as_weights.compared.startswith("merged from the factors that were scored; scored by vll")
    assert as_adapter.compared.startswith("as scored; scored by vllm-lora")
    card = (here / "full" / "README.md").read_text()
    assert "scored by vllm-lora, as LoRA adapters beside their base" in card
