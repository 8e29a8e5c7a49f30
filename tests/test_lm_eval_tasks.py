"""Tasks of lm-eval that need care: those that shuffle, show examples, are groups, or are broken."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.archive.archive import Archive
from evomerge.campaign.build import checked_campaigns, pinned_plan, read_and_check
from evomerge.campaign.resume import differences
from evomerge.campaign.run import run_campaign
from evomerge.config.schema import CampaignPlan
from evomerge.errors import BadInput
from evomerge.scoring.any_fitness import AnyFitness
from evomerge.scoring.items import TestSplitSection, split_items
from evomerge.scoring.lm_eval_model import LoadedModel
from evomerge.scoring.open_fitness import open_fitness
from evomerge.sections import parse
from evomerge.testing.lm_eval_tasks import example_section

DATA = """
import random

import datasets


def rows(first, count):
    return [
        {
            "q": f"item{i:03d} w{i % 20}",
            "a": f"w{i % 20 + 2}",
            "c": [f"w{i % 20 + 2}", f"w{i * 7 % 25}", f"w{i * 3 % 26}"],
            "g": 0,
        }
        for i in range(first, first + count)
    ]


def load(one=24, dev=0, train=0, first=0, **options):
    sizes = {"test": one, "dev": dev, "train": train}
    splits = {}
    for name, count in sizes.items():
        if count:
            splits[name] = datasets.Dataset.from_list(rows(first, count))
            first += count
    return splits


def shuffled(docs):
    def shuffle(doc):
        choices = list(doc["c"])
        random.shuffle(choices)
        return doc | {"c": choices, "g": choices.index(doc["c"][0])}

    return docs.map(shuffle, load_from_cache_file=False)
"""

HEAD = """
task: {name}
custom_dataset: !function few_data.load
test_split: test
"""

SAY = """
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["</s>"], max_gen_toks: 2, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""

CHOOSE = """
output_type: multiple_choice
doc_to_text: "A {{c[0]}} B {{c[1]}} C {{c[2]}}"
doc_to_choice: [w1, w2, w3]
doc_to_target: g
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def write(here):
    """Write a task's file; its data lie beside it."""
    (here / "few_data.py").write_text(DATA)

    def writing(name, *lines, body=SAY):
        path = here / f"{name}.yaml"
        path.write_text(
            HEAD.replace("{name}", name) + "".join(f"{line}\n" for line in lines) + body
        )
        return path.name

    return writing


@pytest.fixture(scope="module")
def live(world):
    model = AutoModelForCausalLM.from_pretrained(world / "a", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(world / "a")


def opened(own_test=False, **entry):
    return open_fitness(parse(AnyFitness, {"name": "t"} | entry), own_test)


def fault(own_test=False, **entry):
    with pytest.raises(BadInput) as error:
        opened(own_test, **entry)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- tasks that shuffle ---------------------------------------------------------------------


def states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def test_a_task_that_shuffles_has_the_same_items_in_every_process(write, here, live):
    task = write("mixed", "process_docs: !function few_data.shuffled", body=CHOOSE)
    before = states()
    first = opened(task=task, metric="acc")
    first.prepare(LoadedModel(*live), range(24))
    first.score(range(24))
    assert states() == before
    random.seed(99)
    again = opened(task=task, metric="acc")
    assert again.hashes == first.hashes and len(set(first.hashes)) == 24
    prompts = [request.args[0] for request in first.requests(range(24))]
    again.prepare(LoadedModel(*live), range(24))
    assert prompts == [request.args[0] for request in again.requests(range(24))]
    # what is asked is what was hashed: the task is not shuffled anew for its requests
    asked = [request.doc for request in first.requests(range(24))][::3]
    assert all(
        f"A {doc['c'][0]} B" in prompt for doc, prompt in zip(asked, prompts[::3], strict=True)
    )
    code = (
        "from evomerge.scoring.fitness import TaskSection\n"
        "from evomerge.scoring.lm_eval_task import TaskFitness\n"
        "import random; random.seed(1)\n"
        f"fitness = TaskFitness(TaskSection(name='t', task='{task}', metric='acc'), False)\n"
        "print(*fitness.hashes)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == first.hashes, run.stderr


def test_a_campaign_over_a_task_that_shuffles_goes_on(write, campaign_file, silent):
    task = write("mixed", "process_docs: !function few_data.shuffled", body=CHOOSE)
    entry = [{"name": "t", "task": task, "metric": "acc"}]
    assert run_campaign(campaign_file(fitness=entry, budget__evaluations=2), observer=silent)
    random.seed(5)
    assert run_campaign(campaign_file(fitness=entry, budget__evaluations=4), observer=silent)
    archive = Archive(Path("runs/tiny/archive.db"))
    assert archive.proposed() == 4
    archive.close()


# --- few-shot examples ----------------------------------------------------------------------


def name_of(doc):
    return doc["q"].split()[0]


def prompts_of(fitness, live):
    """Each item's name and prompt."""
    ordinals = range(len(fitness.hashes))
    fitness.prepare(LoadedModel(*live), ordinals)
    return [(name_of(r.doc), r.args[0]) for o in ordinals for r in fitness.requests([o])[:1]]


@pytest.mark.parametrize(
    "lines", [[], ["fewshot_split: test"], ["fewshot_config: {sampler: first_n}"]]
)
def test_examples_from_the_only_split_are_never_scored(write, live, lines):
    fitness = opened(task=write("few", *lines), metric="exact_match", fewshot=5)
    assert len(fitness.hashes) == 19
    assert fitness.notes == [
        "5 of its 24 documents serve as few-shot examples and are never scored"
    ]
    prompts = prompts_of(fitness, live)
    scored = {name for name, _ in prompts}
    assert len(scored) == 19
    for own, prompt in prompts:
        shown = {word for word in prompt.split() if word.startswith("item")}
        assert len(shown) == 6 and shown & scored == {own} and prompt.count(own) == 1
    again = opened(task="few.yaml", metric="exact_match", fewshot=5)
    assert again.hashes == fitness.hashes and prompts_of(again, live) == prompts


def test_a_split_that_is_searched_shows_nothing_of_it(write, live):
    task = write("few", "validation_split: dev", "dataset_kwargs: {dev: 12}")
    fitness = opened(own_test=True, task=task, metric="exact_match", fewshot=3)
    assert fitness.test_from == 9 and len(fitness.hashes) == 33
    split = split_items(33, 9, None, TestSplitSection(split="test"), 0)
    prompts = prompts_of(fitness, live)
    scored = {name for name, _ in prompts}
    for side in (split.search, split.heldout):
        for own, prompt in (prompts[ordinal] for ordinal in side):
            assert {w for w in prompt.split() if w.startswith("item")} & scored == {own}


def test_copies_of_an_example_are_not_scored_either(write, live, here):
    text = (here / "few_data.py").read_text()
    (here / "few_data.py").write_text(text.replace('f"item{i:03d}', 'f"item{i // 2:03d}'))
    text = (
        (here / "few_data.py").read_text().replace('w{i % 20}"', 'w1"').replace("i % 20", "i // 2")
    )
    (here / "few_data.py").write_text(text.replace("i * 7", "i // 2").replace("i * 3", "i // 2"))
    fitness = opened(task=write("few"), metric="exact_match", fewshot=3)
    assert len(fitness.hashes) == 18  # three pairs are out
    prompts = prompts_of(fitness, live)
    scored = {name for name, _ in prompts}
    for own, prompt in prompts:
        assert {w for w in prompt.split() if w.startswith("item")} & scored == {own}


def test_examples_of_a_task_that_shuffles_are_told_by_their_place(write, live):
    """Shuffled, a document is another each time that it is read, and yet it is the same."""
    body = CHOOSE.replace('"A ', '"{{q}} A ')
    task = write("mixed", "process_docs: !function few_data.shuffled", body=body)
    fitness = opened(task=task, metric="acc", fewshot=4)
    prompts = prompts_of(fitness, live)
    scored = {name for name, _ in prompts}
    assert len(scored) == 20
    for own, prompt in prompts:
        assert {w for w in prompt.split() if w.startswith("item")} & scored == {own}


def test_examples_of_their_own_split_are_lm_evals(write, live):
    from lm_eval.tasks import TaskManager

    task = write("few", "training_split: train", "dataset_kwargs: {train: 9}")
    fitness = opened(task=task, metric="exact_match", fewshot=3)
    assert len(fitness.hashes) == 24 and list(fitness.notes) == []
    (theirs,) = TaskManager(include_defaults=False).load(task)["tasks"].values()
    theirs.set_config("num_fewshot", 3)
    theirs.set_fewshot_seed(1234)
    theirs.build_all_requests()
    assert [p for _, p in prompts_of(fitness, live)] == [r.args[0] for r in theirs.instances]


def test_examples_that_are_written_down_take_no_document(write, live):
    samples = json.dumps([{"q": f"shown{i}", "a": "w1"} for i in range(4)])
    task = write("few", f"fewshot_config: {{samples: {samples}}}")
    fitness = opened(task=task, metric="exact_match", fewshot=4)
    assert len(fitness.hashes) == 24
    assert all(prompt.count("shown") == 4 for _, prompt in prompts_of(fitness, live))


def test_too_few_documents_for_examples(write):
    task = write("few")
    entry = {"task": task, "metric": "exact_match"}
    assert "24 examples leave none of the 24 documents" in fault(**entry, fewshot=24)
    assert "fewshot: 25 examples are more than the 24 documents" in fault(**entry, fewshot=25)
    task = write("taught", "training_split: train", "dataset_kwargs: {train: 3}")
    wrong = fault(task=task, metric="exact_match", fewshot=4)
    assert "4 examples are more than the 3 documents" in wrong


def test_check_warns_of_examples_among_the_items(write, campaign_file):
    entry = {"name": "maths", "task": write("few"), "metric": "exact_match", "fewshot": 5}
    (campaign,) = checked_campaigns(read_and_check(campaign_file(fitness=[entry])))
    told = "maths: 5 of its 24 documents serve as few-shot examples and are never scored"
    assert told in campaign.warnings


# --- groups ---------------------------------------------------------------------------------


@pytest.fixture
def group(write, here):
    """A group of two tasks with 10 and 14 items, one of them in a group of its own."""
    write("one", "dataset_kwargs: {one: 10, dev: 4, first: 100}", "validation_split: dev")
    write("two", "dataset_kwargs: {one: 14, dev: 5, first: 200}", "validation_split: dev")
    (here / "both.yaml").write_text("group: both\ntask: [one, inner]\n")
    (here / "inner.yaml").write_text("group: inner\ntask: [two]\n")
    return {"task": "both.yaml", "metric": "exact_match"}


@pytest.mark.xdist_group("index")
def test_a_group_is_told_to_be_one(group, one_index):
    told = "task: 'both.yaml' is a group of 2 tasks (one, two); write one objective for each, or"
    assert fault(**group).startswith(told) and "aggregate: mean" in fault(**group)
    told = "aggregate: 'one.yaml' is one task, and no group; leave it out"
    assert fault(**group | {"task": "one.yaml"}, aggregate="mean") == told
    found = fault(task="mmlu", metric="acc")
    assert found.startswith("task: 'mmlu' is a group of 57 tasks (mmlu_abstract_algebra, ")
    found = fault(task="ai2_arc", metric="acc")
    assert "'ai2_arc' is a group of 2 tasks (arc_challenge, arc_easy)" in found


def test_a_group_is_scored_over_the_items_of_its_tasks(group, live):
    whole = opened(**group, aggregate="mean", batch_size=1)
    one, two = (opened(**group | {"task": f"{t}.yaml"}, batch_size=1) for t in ("one", "two"))
    assert whole.hashes == one.hashes + two.hashes and len(whole.hashes) == 24
    for fitness in (whole, one, two):
        fitness.prepare(LoadedModel(*live), range(len(fitness.hashes)))
    apart = [*one.score(range(10)), *two.score(range(14))]
    said = one.answers(range(10)) + two.answers(range(14))
    assert whole.score(range(24)).tolist() == apart and whole.answers(range(24)) == said
    mixed = [23, 3, 11, 0]
    assert whole.score(mixed).tolist() == [apart[i] for i in mixed]
    assert whole.answers(mixed) == [said[i] for i in mixed]
    wanted = (one.characters() * 10 + two.characters() * 14) / 24
    assert whole.characters() == pytest.approx(wanted)
    assert whole.direction == "maximize" and not whole.is_public_test_split()


def test_a_group_holds_out_the_test_splits_of_its_tasks(group, live):
    whole = opened(own_test=True, **group, aggregate="mean", fewshot=2)
    assert whole.notes == ["4 of its 33 documents serve as few-shot examples and are never scored"]
    assert whole.test_from == 5 and len(whole.hashes) == 29
    whole.prepare(LoadedModel(*live), range(29))
    asked = [whole._places[ordinal] for ordinal in range(29)]
    names = [name_of(task.requests([own])[0].doc) for task, own in asked]
    assert len(set(names)) == 29
    assert {int(n[4:]) for n in names[:5]} <= {110, 111, 112, 113, *range(214, 219)}
    assert [int(n[4:]) for n in names[5:]] == [*range(100, 110), *range(200, 214)]
    for name, (task, own) in zip(names, asked, strict=True):
        prompt = task.requests([own])[0].args[0]
        assert {w for w in prompt.split() if w.startswith("item")} & set(names) == {name}


def test_tasks_of_a_group_show_no_items_of_one_another(write, here, live):
    """Two tasks over the same documents, which draw differently many examples."""
    write("one", "num_fewshot: 2")
    write("two", "num_fewshot: 4", body=SAY.replace('doc_to_text: "', 'doc_to_text: "w5 '))
    (here / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    whole = opened(task="both.yaml", metric="exact_match", aggregate="mean")
    whole.prepare(LoadedModel(*live), range(len(whole.hashes)))
    requests = [task.requests([own])[0] for task, own in whole._places]
    scored = {name_of(request.doc) for request in requests}
    assert 24 - 6 <= len(scored) <= 24 - 4 and len(whole.hashes) == 2 * len(scored)
    for request in requests:
        shown = {word for word in request.args[0].split() if word.startswith("item")}
        assert shown & scored == {name_of(request.doc)}


def test_a_group_whose_tasks_lack_the_metric_names_them(group, write):
    write("two", body=CHOOSE)
    told = fault(**group, aggregate="mean")
    assert "metric: 'exact_match' cannot be had of 1 of the 2 tasks of 'both.yaml' (two)" in told
    text = Path("two.yaml").read_text().replace("true", "false").replace("acc", "exact_match")
    Path("two.yaml").write_text(text)
    assert "direction: less is better in two and more in the other tasks" in fault(
        **group, aggregate="mean"
    )


def test_a_group_with_a_task_that_is_not_there(group, here):
    (here / "both.yaml").write_text("group: both\ntask: [one, twoo]\n")
    told = fault(**group, aggregate="mean")
    assert "there is no task 'twoo'; did you mean 'two'?" in told


def test_a_campaign_over_a_group_notices_a_task_that_has_changed(group, campaign_file, silent):
    entry = [group | {"name": "t", "aggregate": "mean"}]
    assert run_campaign(campaign_file(fitness=entry, budget__evaluations=1), observer=silent)
    archive = Archive(Path("runs/tiny/archive.db"))
    scores = archive.scores(1, "search")["t"]
    archive.close()
    assert scores.items == 12
    Path("two.yaml").write_text(Path("two.yaml").read_text().replace('"{{q}}"', '"{{q}} w1"'))
    with pytest.raises(BadInput, match="has changed"):
        run_campaign(campaign_file(fitness=entry, budget__evaluations=2), observer=silent)


# --- local data, and faults in a task's own files -------------------------------------------

JSONL = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
"""


def rows(path, count=24):
    lines = [json.dumps({"q": f"item{i:02d} w{i % 20}", "a": f"w{i}"}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return lines


def test_a_local_folder_is_no_public_benchmark(here, monkeypatch):
    (here / "folder").mkdir()
    rows(here / "folder" / "test.jsonl")
    for place in ("folder", str(here / "folder")):
        text = JSONL.replace("json\ndataset_kwargs: {data_files: {test: rows.jsonl}}", place)
        (here / "own.yaml").write_text(text + SAY)
        fitness = opened(task="own.yaml", metric="exact_match")
        assert len(fitness.hashes) == 24 and not fitness.is_public_test_split()
    fitness._task.config.dataset_path = "openai/gsm8k"  # a hub's id, of which nothing is here
    assert fitness.is_public_test_split()


def test_a_broken_line_of_a_jsonl_file_is_located(here):
    (here / "own.yaml").write_text(JSONL + SAY)
    lines = rows(here / "rows.jsonl")
    lines[6] = lines[6][:-3]
    (here / "rows.jsonl").write_text("\n".join(lines))
    told = fault(task="own.yaml", metric="exact_match")
    assert "task: 'own.yaml' cannot be loaded: " in told and "mend rows.jsonl, line 7 (" in told


def test_a_wrong_metric_in_the_tasks_file_is_mended_there(write):
    task = write("few", body=SAY.replace("exact_match", "exact_mtach"))
    for metric in ("exact_match", "exact_mtach"):
        told = fault(task=task, metric=metric)
        assert "'few' lists the metric 'exact_mtach', which lm-eval does not have" in told
        assert "in the task's file: did you mean 'exact_match'?" in told


# --- what people read of an item ---------------------------------------------------------


@pytest.mark.parametrize("generates", [False, True])
def test_an_items_words_are_what_it_asks_and_what_is_right(generates):
    fitness = open_fitness(example_section(generates=generates))
    for i in (0, 5):
        right = (i + i % 2) % 20 if not generates else i
        assert fitness.text(i) == (f"w{i % 20} w{i}", f"w{right}")


def test_a_group_has_its_tasks_words(group):
    fitness = opened(**group, aggregate="mean")
    one, two = (opened(**group | {"task": f"{t}.yaml"}) for t in ("one", "two"))
    apart = [*map(one.text, range(10)), *map(two.text, range(14))]
    assert [fitness.text(ordinal) for ordinal in range(24)] == apart
    assert len({words.text for words in apart}) > 10


def plan_of(fitness, campaign_file, **changes):
    return checked_campaigns(read_and_check(campaign_file(fitness=fitness, **changes)))[0]


def test_a_list_of_tasks_is_scored_over_the_items_of_all(group, live):
    entry = {"tasks": ["one.yaml", "two.yaml"], "metric": "exact_match", "batch_size": 1}
    whole, listed = opened(**group, aggregate="mean", batch_size=1), opened(**entry)
    assert listed.hashes == whole.hashes and listed.definition != whole.definition
    for fitness in (whole, listed):
        fitness.prepare(LoadedModel(*live), range(24))
    assert listed.score(range(24)).tolist() == whole.score(range(24)).tolist()
    wrong = {"tasks": ["one.yaml", "none.yaml"], "metric": "exact_match"}
    assert fault(**wrong).startswith("tasks.1.task: there is no file 'none.yaml'")


@pytest.mark.parametrize(
    "entry", [{"task": "both.yaml"}, {"tasks": ["one.yaml", "two.yaml"]}], ids=["group", "list"]
)
def test_tasks_become_objectives_that_share_a_weight(group, entry, campaign_file):
    shared = {"name": "all", "metric": "exact_match", "aggregate": "objectives", "weight": 3.0}
    length = {"name": "length", "cost": "tokens", "of": ["all"]}
    campaign = plan_of([shared | entry, length], campaign_file)
    objectives = [(o.name, o.weight) for o in campaign.objectives]
    assert objectives == [("all.one", 1.5), ("all.two", 1.5), ("length", 1.0)]
    assert [len(campaign.fitness[f"all.{name}"].hashes) for name in ("one", "two")] == [10, 14]
    assert campaign.fitness["length"].follows == ("all.one", "all.two")
    again = parse(CampaignPlan, campaign.plan.model_dump(mode="json"))  # as an archive gives it
    assert differences(again, pinned_plan(campaign.plan, again)) == []


def test_faults_of_tasks_that_become_objectives_have_the_keys_of_the_file(group, campaign_file):
    first = {"name": "likely", "function": "fit.py"}
    entry = {"name": "all", "metric": "f1", "aggregate": "objectives", "tasks": ["one.yaml"] * 2}
    with pytest.raises(BadInput) as error:
        plan_of([first, entry], campaign_file)
    assert "two objectives are called 'all.one'" in str(error.value)
    entry["tasks"] = ["one.yaml", "two.yaml"]
    with pytest.raises(BadInput) as error:
        plan_of([entry, first], campaign_file)
    assert str(error.value).count("fitness.0.metric: ") == 2
    entry = {"name": "all", "metric": "exact_match", "aggregate": "objectives", "task": "one.yaml"}
    with pytest.raises(BadInput, match=r"fitness\.0\.aggregate: 'one\.yaml' is one task, and no"):
        plan_of([entry], campaign_file)
