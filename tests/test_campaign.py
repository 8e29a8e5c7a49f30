"""The loop in one process: baselines, search, finals, failures as values, and continuing."""

import numpy as np
import pytest
from sql import change, query

from evomerge.archive import summary
from evomerge.archive.reader import ArchiveReader
from evomerge.campaign import evaluation
from evomerge.campaign.run import run_campaign
from evomerge.config.validate import read_plan
from evomerge.errors import BadInput, EvomergeError


def events(directory):
    rows = query(directory, "SELECT kind, candidate_id AS c FROM events ORDER BY seq")
    return [(r["kind"], r["c"]) for r in rows]


def test_a_campaign_scores_baselines_searches_and_holds_out(campaign_file, silent, here):
    file = campaign_file()
    assert run_campaign(file, observer=silent)
    run = here / "runs" / "tiny"
    assert {p.name for p in run.iterdir()} >= {"campaign.yaml", "archive.db", "log.txt"}
    archive = ArchiveReader(run / "archive.db")
    labels = [c.label for c in archive.baselines()]
    assert labels == ["base", "a", "b", "c", "uniform"]
    told = events(run)
    assert [k for k, _ in told[:5]] == ["tell"] * 5 and told[5][0] == "ask"
    assert archive.counts() == {"ok": 19, "stopped": 0, "failed": 0, "running": 0}
    assert archive.finals_done() >= {1, 2, 3, 4, 5, archive.best(), *archive.front()}
    assert archive.campaign["state"] == "finished"
    assert archive.campaign["provenance"]["objectives"][0]["direction"] == "maximize"
    best = archive.best()
    values = [archive.outcome(c.id)["value"] for c in archive.candidates()]
    assert archive.outcome(best)["value"] == max(values)
    search = archive.item_hashes("likely", "search").keys()
    held = archive.item_hashes("likely", "heldout").keys()
    assert len(search) == len(held) == 20 and not search & held


def test_the_best_that_was_found_is_held_out_though_a_baseline_is_better(
    campaign_file, silent, here
):
    (here / "still.py").write_text("""
from safetensors.torch import load_file

NAME = "model.embed_tokens.weight"


def items():
    return list(range(40))


def score(model, tokenizer, items):
    base = load_file("base/model.safetensors")[NAME].float().flatten()
    live = model.get_input_embeddings().weight.float().flatten()
    return [-abs(float(live[i] - base[i])) for i in items]
""")
    still = [{"name": "still", "function": "still.py", "direction": "maximize"}]
    axes = {"weight": {"low": 0.5, "high": 1.0}}
    file = campaign_file(
        fitness=still,
        space={"kind": "parameters", "method": "task_arithmetic", "axes": axes},
        budget__evaluations=6,
    )
    assert run_campaign(file, observer=silent)
    archive = ArchiveReader(here / "runs" / "tiny" / "archive.db")
    found, values = archive.best_found(), {}
    for candidate in archive.candidates(origin="search"):
        values[candidate.id] = archive.outcome(candidate.id)["value"]
    assert found == max(values, key=lambda c: (values[c], -c))
    assert archive.front() == [archive.best()] == [1]
    assert found in archive.finals_done() and found not in archive.front()


def test_one_trouble_of_candidate_after_candidate_stops_the_campaign(
    campaign_file, silent, here, monkeypatch
):
    monkeypatch.setattr(evaluation, "_SAME_FAILURES", 4)
    text = (here / "fit.py").read_text()
    head = "import itertools\nfrom pathlib import Path\nimport torch\ncount = itertools.count()\n"
    trouble = "raise torch.OutOfMemoryError(f'tried to allocate {next(count)} MiB')"
    body = f"    if Path('trouble').exists() and next(count) > 4:\n        {trouble}\n    ids ="
    (here / "troubled.py").write_text(head + text.replace("    ids =", body, 1))
    (here / "trouble").touch()
    fitness = [{"name": "likely", "function": "troubled.py"}]
    file = campaign_file(fitness=fitness, budget__evaluations=6)
    with pytest.raises(EvomergeError, match=r"4 candidates in a row failed with: .*OutOfMemory"):
        run_campaign(file, observer=silent)
    archive = ArchiveReader(here / "runs" / "tiny" / "archive.db")
    assert archive.counts()["ok"] == 5 and archive.counts()["failed"] == 4
    archive.close()
    (here / "trouble").unlink()
    assert run_campaign(file, observer=silent)
    counts = ArchiveReader(here / "runs" / "tiny" / "archive.db").counts()
    assert (counts["ok"], counts["failed"]) == (7, 4)


def test_baselines_score_what_the_models_themselves_score(campaign_file, silent, here):
    """The archive's numbers against the fitness called on plain transformers models."""
    import runpy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_campaign(campaign_file(budget__evaluations=1), observer=silent)
    archive = ArchiveReader(here / "runs" / "tiny" / "archive.db")
    module = runpy.run_path("fit.py")
    searched = sorted(archive.item_hashes("likely", "search"))
    for candidate in archive.baselines()[:2]:  # base and a
        model = AutoModelForCausalLM.from_pretrained(candidate.label, dtype=torch.bfloat16)
        with torch.inference_mode():
            wanted = [module["items"]()[i] for i in searched]
            plain = module["score"](model, AutoTokenizer.from_pretrained(candidate.label), wanted)
        found = archive.item_scores(candidate.id, "likely", "search")
        assert np.array_equal(found, np.array(plain, np.float32))


def test_a_larger_budget_goes_on_as_if_it_had_always_been(campaign_file, silent, here):
    run_campaign(campaign_file(budget__evaluations=5), observer=silent)
    run_campaign(campaign_file(budget__evaluations=14), observer=silent)
    run_campaign(campaign_file(), directory=here / "whole", observer=silent)
    parts, whole = (
        ArchiveReader(d / "archive.db") for d in (here / "runs" / "tiny", here / "whole")
    )
    proposals = [
        [(c.ordinal, c.recipe_id) for c in a.candidates(origin="search")] for a in (parts, whole)
    ]
    assert proposals[0] == proposals[1] and len(proposals[0]) == 14


def test_only_budget_workers_and_finals_may_change(campaign_file, silent):
    run_campaign(campaign_file(budget__evaluations=2), observer=silent)
    file = campaign_file(seed=8, space__layer_groups=1)
    with pytest.raises(BadInput) as error:
        run_campaign(file, observer=silent)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["seed", "space.layer_groups"]
    changed = campaign_file(
        budget__evaluations=3, finals=1, workers={"pool": "inline", "threads": 1}
    )
    assert run_campaign(changed, observer=silent)
    assert read_plan(changed.parent / "runs" / "tiny" / "campaign.yaml") == read_plan(changed)


def test_a_changed_source_is_refused_by_name_and_hash(campaign_file, silent, here, world):
    import shutil

    from evomerge.testing import tiny_llama

    (here / "a").unlink()
    shutil.copytree(world / "a", here / "a")
    run_campaign(campaign_file(budget__evaluations=2), observer=silent)
    shutil.rmtree(here / "a")
    tiny_llama(here / "a", 99, near=world / "base")
    with pytest.raises(BadInput, match=r"sources.models.a: .*a has changed: sha256"):
        run_campaign(campaign_file(), observer=silent)


def test_a_source_that_moved_is_remapped_and_checked(campaign_file, silent, here, world):
    run_campaign(campaign_file(budget__evaluations=2), observer=silent)
    (here / "a").unlink()
    with pytest.raises(BadInput, match=r"sources.models.a: there is no directory 'a'"):
        run_campaign(campaign_file(), observer=silent)
    with pytest.raises(BadInput, match="has changed"):
        run_campaign(campaign_file(), moved={"a": str(world / "b")}, observer=silent)
    with pytest.raises(BadInput, match=r"--source: z: is no source of this campaign"):
        run_campaign(campaign_file(), moved={"z": str(world / "b")}, observer=silent)
    assert run_campaign(campaign_file(), moved={"a": str(world / "a")}, observer=silent)


def test_changed_items_are_refused(campaign_file, silent, here):
    text = (here / "fit.py").read_text()
    (here / "mine.py").write_text(text)
    entry = [{"name": "likely", "function": "mine.py"}]
    run_campaign(campaign_file(budget__evaluations=2, fitness=entry), observer=silent)
    (here / "mine.py").write_text(text.replace("i * 7", "i * 9"))
    with pytest.raises(BadInput, match=r"fitness.0: the search items of likely are not those"):
        run_campaign(campaign_file(fitness=entry), observer=silent)
    (here / "mine.py").write_text(text + "# the same items, another scorer\n")
    with pytest.raises(BadInput, match=r"fitness.0.function: .*mine.py has changed: sha256 \w{16}"):
        run_campaign(campaign_file(fitness=entry), observer=silent)


def test_what_the_finalists_said_is_kept(campaign_file, silent, here):
    entry = [{"name": "said", "task": "generation.yaml", "metric": "exact_match"}]
    run_campaign(campaign_file(budget__evaluations=1, fitness=entry), observer=silent)
    archive = ArchiveReader(here / "runs" / "tiny" / "archive.db")
    heldout = archive.item_hashes("said", "heldout")
    answers = archive.answers(1)["said"]
    assert [a["ordinal"] for a in answers] == sorted(heldout)
    assert all(isinstance(a["answer"], str) for a in answers)
    shown = summary.show(here / "runs" / "tiny", 1)["answers"]["said"]
    assert shown == answers[:5]
    asked = {i: (f"w{i % 28} w{i * 5 % 28}", f"w{(i * 5 + i % 2) % 28}") for i in heldout}
    assert archive.item_texts("said") == asked


FAILING = """
calls = 0


def items():
    return list(range(30))


def score(model, tokenizer, items):
    global calls
    calls += 1
    if calls > 5 and calls % 3 == 0:
        raise RuntimeError("the task\\nbroke")
    if calls > 5 and calls % 3 == 1:
        return [float("nan")] * len(items)
    return [float(model.get_input_embeddings().weight.float().sum())] * len(items)
"""


def test_failing_candidates_are_outcomes_with_reasons(campaign_file, silent, here):
    (here / "failing.py").write_text(FAILING)
    entry = [{"name": "f", "function": "failing.py"}]
    assert run_campaign(campaign_file(fitness=entry), observer=silent)
    archive = ArchiveReader(here / "runs" / "tiny" / "archive.db")
    reasons = {archive.outcome(c.id)["reason"] for c in archive.candidates()}
    assert reasons == {
        "",
        "f: failing.py, line 13: RuntimeError: the task broke",
        "f scored nan on item 0",
    }
    counts = archive.counts()
    assert counts["failed"] == 10 and counts["ok"] == 9


def test_sources_that_cannot_be_scored_stop_the_campaign_in_one_line(campaign_file, silent, here):
    (here / "broken.py").write_text(
        "items = lambda: [1, 2]\ndef score(m, t, i): raise ValueError('no such luck')\n"
    )
    file = campaign_file(fitness=[{"name": "f", "function": "broken.py"}])
    with pytest.raises(EvomergeError, match=r"scored: f: broken\.py, line 2: ValueError: no"):
        run_campaign(file, observer=silent)
    status = summary.status(here / "runs" / "tiny")
    assert status["state"] == "failed" and "no such luck" in status["reason"]


def test_equal_recipes_are_scored_once(campaign_file, silent, here):
    """A space of one tied gene that rounding to few values makes repeat itself."""
    text = (here / "fit.py").read_text()
    counting = text.replace(
        "def score(model, tokenizer, items):",
        "def score(model, tokenizer, items):\n    open('calls', 'a').write('x')",
    )
    (here / "counting.py").write_text(counting)
    axes = {"weight": {"low": 0.5, "high": 0.5 + 1e-12, "tied": ["layers", "modules", "models"]}}
    file = campaign_file(
        fitness=[{"name": "f", "function": "counting.py"}],
        space__axes=axes,
        heldout=0.0,
        budget__evaluations=6,
    )
    plan_values = {0.5 + 1e-12 * u for u in np.linspace(0, 1, 5)}
    assert len(plan_values) > 1
    run_campaign(file, observer=silent)
    archive = ArchiveReader(here / "runs" / "tiny" / "archive.db")
    search = archive.candidates(origin="search")
    distinct = {c.recipe_id for c in search}
    scored = len((here / "calls").read_text()) - 5  # the baselines
    assert scored == len(distinct)
    assert archive.counts()["ok"] == 11


def test_hours_are_a_budget_too(campaign_file, silent, here):
    file = campaign_file(budget={"evaluations": 10_000, "hours": 1e-4})
    assert run_campaign(file, observer=silent)
    assert summary.status(here / "runs" / "tiny")["budget"]["proposed"] < 10_000


def test_a_ledger_that_the_controller_does_not_reproduce_names_the_event(
    campaign_file, silent, here
):
    run_campaign(campaign_file(budget__evaluations=8), observer=silent)
    path = here / "runs" / "tiny" / "archive.db"
    sql = "UPDATE candidates SET genome = ? WHERE ordinal = 3"
    change(path.parent, sql, (np.full(9, 0.25).tobytes(),))
    with pytest.raises(EvomergeError, match=r"event \d+: cmaes no longer proposes what"):
        run_campaign(campaign_file(), observer=silent)
    file = campaign_file(budget__evaluations=11)
    assert run_campaign(file, rebuild_controller=True, observer=silent)
    assert ("rebuild", None) in events(path.parent)
    assert run_campaign(campaign_file(), observer=silent)  # the ledger replays again
    assert ArchiveReader(path).proposed() == 14


@pytest.mark.parametrize("kind", ["cmaes", "tpe", "nsga2"])
def test_a_campaign_chooses_among_methods(campaign_file, here, silent, kind):
    axes = {"weight": {"low": 0.0, "high": 1.0}}
    spaces = [
        {"kind": "parameters", "method": "linear", "axes": axes},
        {
            "kind": "parameters",
            "method": "consensus",
            "axes": axes | {"threshold": 0.1, "least": {"low": 1, "high": 3, "integer": True}},
        },
    ]
    space = {"kind": "choice", "spaces": spaces}
    file = campaign_file(space=space, controller={"kind": kind}, budget__evaluations=40)
    assert run_campaign(file, observer=silent)
    archive = ArchiveReader(here / "runs/tiny/archive.db")
    found = {c.recipe.method for c in archive.candidates(origin="search")}
    assert found == {"linear", "consensus"} and not archive.counts()["failed"]
