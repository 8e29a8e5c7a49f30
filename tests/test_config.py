"""Campaign files that a person would get wrong: one line a fault, exit 2, nothing written."""

from pathlib import Path

import pytest
import warm
import yaml

from evomerge.campaign import resume
from evomerge.campaign.build import checked_campaigns, open_campaign, read_and_check
from evomerge.campaign.estimate import estimate
from evomerge.config.validate import read_plan
from evomerge.errors import BadInput, placed
from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.lm_eval_task import TaskFitness
from evomerge.scoring.open_fitness import open_fitness

NAN, INF = float("nan"), float("inf")

SLERP = {"kind": "parameters", "method": "slerp", "axes": {"t": {"low": 0.0, "high": 1.0}}}

# (key with its value, what the one line must say)
MALFORMED = [
    (("budgets", {"evaluations": 3}), "budgets: unknown key 'budgets'; did you mean 'budget'?"),
    (("budget__evalutions", 3), "budget.evalutions: unknown key 'evalutions'; did you mean 'eval"),
    (("budget__evaluations", "many"), "budget.evaluations: 'many' is not a whole number"),
    (("budget__evaluations", "300"), "budget.evaluations: '300' is not a whole number"),
    (
        ("budget__evaluations", 0),
        "budget.evaluations: 0 is out of range; write a whole number of at",
    ),
    (("budget__evaluations", 2.5), "budget.evaluations: 2.5 is not a whole number"),
    (("budget__evaluations", True), "budget.evaluations: True is not a whole number"),
    (  # what YAML makes of {evaluations: 1,000}
        ("budget", {"evaluations": 1, 0: None}),
        "budget: the key 0 is not a text; mend the YAML there; numbers are written without commas",
    ),
    (("budget__hours", -1.0), "budget.hours: -1.0"),
    (("budget__hours", NAN), "budget.hours: nan is not a finite number"),
    (("budget", None), "budget: is missing"),
    (("budget", 300), "budget: 300 is not a mapping"),
    (("name", "../elsewhere"), "name: '../elsewhere' is no plain name"),
    (("name", "a/b"), "name: 'a/b' is no plain name"),
    (("name", ""), "name: '' is empty"),
    (("name", ".."), "name: '..' is no plain name"),
    (("name", 7), "name: 7 is not a text"),
    (("seed", "lucky"), "seed: 'lucky' is not a whole number"),
    (("seed", -1), "seed: -1"),
    (("sources", None), "sources: is missing"),
    (("sources__models", {}), "sources.models: "),
    (("sources__models", ["a", "b"]), "sources.models: is not a mapping"),
    (("sources__modles", {}), "sources.modles: unknown key 'modles'; did you mean 'models'?"),
    (("sources__base", None), "space.method: task_arithmetic needs a base; write sources.base"),
    (("space__kind", "parameter"), "space.kind: there is no space 'parameter'; did you mean 'para"),
    (("space__kind", None), "space.kind: is missing"),
    (
        ("space__method", "tie"),
        "space.method: there is no merge method 'tie'; did you mean 'ties'?",
    ),
    (("space", SLERP), "space.method: slerp merges 2 models; sources.models has 3; list 2"),
    (("space__layer_group", 3), "space.layer_group: unknown key 'layer_group'; did you mean 'lay"),
    (
        ("space__layer_groups", 0),
        "space.layer_groups: 0 is out of range; write a whole number of at least",
    ),
    (("space__layer_groups", "4"), "space.layer_groups: '4' is not a whole number"),
    (
        ("space__module_groups", "mlp"),
        "space.module_groups: 'mlp' is not a list; write e.g. module_groups: [",
    ),
    (("space__smooth", "yes please"), "space.smooth: 'yes please' is not true or false"),
    (
        ("space__dtype", "int4"),
        "space.dtype: 'int4' is none of what it may be; write bfloat16, float16,",
    ),
    (("space__axes", None), "space.axes: is missing"),
    (("space__axes", {}), "space.axes: is empty; write e.g. axes: {weight: "),
    (
        ("space__axes__wieght", {"low": 0, "high": 1}),
        "has no parameter 'wieght'; did you mean 'wei",
    ),
    (("space__axes__weight", {"low": 1.0, "high": 0.0}), "low 1.0 is not below high 0.0; swap"),
    (("space__axes__weight", {"low": 0.0, "high": NAN}), "weight.high: nan is not a finite number"),
    (("space__axes__weight", {"low": -INF, "high": 1}), "weight.low: -inf is not a finite number"),
    (("space__axes__weight", {"low": 0.0}), "space.axes.weight.high: is missing"),
    (
        ("space__axes__weight", {"low": 0, "high": 1, "hihg": 1}),
        "unknown key 'hihg'; did you mean 'high'?",
    ),
    (("space__axes__weight", "wide"), "space.axes.weight: 'wide' is not a number"),
    (("space__axes__weight", 1.0), "space.axes: nothing is searched"),
    (("space__axes__weight", {"low": 0, "high": 1, "log": True}), "a log axis needs low above 0"),
    (
        ("space__axes__weight", {"low": 0, "high": 1, "tied": ["depth"]}),
        "tied.0: 'depth' is none of what it may be; write layers, modules",
    ),
    (("space__options", {"normalise": True}), "space.options.normalise: task_arithmetic has no"),
    (("controller__kind", "cma-es"), "there is no controller 'cma-es'; did you mean 'cmaes'?"),
    (("controller", {"population": 6}), "controller.kind: is missing"),
    (("controller__sgima", 0.2), "controller.sgima: unknown key 'sgima'; did you mean 'sigma'?"),
    (
        ("controller__population", 1),
        "controller.population: 1 is out of range; write a whole number of at least 3",
    ),
    (
        ("controller__population", "big"),
        "controller.population: 'big' is not a whole number; write a whole",
    ),
    (
        ("controller__sigma", 4.0),
        "controller.sigma: 4.0 is out of range; write a number above 0 and at most 1",
    ),
    (("fitness", []), "fitness: "),
    (("budget", None), "budget: is missing"),
    (("space", None), "space: is missing"),
    (("controller", "cmaes"), "controller: 'cmaes' is not a mapping"),
    (("fitness__0__task", "choice.yaml"), "fitness.0: has task and function; write one of them"),
    (("fitness__0", {"name": "x"}), "fitness.0: needs one of task, cost, function"),
    (
        ("fitness__0", {"name": "x", "task": "choice.yaml"}),
        "fitness.0.metric: is missing; write e.g. metric: exact_match",
    ),
    (("fitness__0__metric", "acc"), "fitness.0.metric: belongs to tasks, not to a function"),
    (("fitness__0__name", "a b"), "fitness.0.name: 'a b' has characters other than"),
    (("fitness__0__wieght", 2), "fitness.0.wieght: unknown key 'wieght'; did you mean 'weight'?"),
    (("fitness__0__weight", 0), "fitness.0.weight: 0"),
    (("fitness__0__direction", "up"), "fitness.0.direction: 'up'"),
    (("fitness__0__items", -5), "fitness.0.items: -5"),
    (
        ("fitness", [{"name": "x", "function": "fit.py"}] * 2),
        "fitness.1.name: two objectives are called 'x'; rename one",
    ),
    (("heldout", 1.0), "heldout: 1.0 is out of range; write a number of at least 0 and below 1"),
    (("heldout", "half"), "heldout: 'half' is not a number"),
    (
        ("heldout", {"last": 2}),
        "heldout.last: 2 is out of range; write a number of at least 0 and",
    ),
    (
        ("heldout", {"split": "train"}),
        "heldout.split: 'train' is none of what it may be; write e.g. split: test",
    ),
    (("racing", True), "racing: unknown key 'racing'"),
    (("workers", {"pool": "threads"}), "workers.pool: 'threads'"),
    (
        ("workers", {"pool": "rey"}),
        "workers.pool: 'rey' is none of what it may be; write inline or ray",
    ),
    (("controller", "cmaes"), "controller: 'cmaes' is not a mapping; write e.g. controller: {kin"),
    (("budget", None), "budget: is missing; write e.g. budget: {evaluations: 300}"),
    (
        ("soups", "greedy"),
        "soups: 'greedy' is not a list; write e.g. soups: [model_stock, metrics, ",
    ),
    (("controller", {}), "controller.kind: is missing"),
    (("workers", {"count": 2}), "workers.count: the inline pool has one worker"),
    (("workers", {"timeout": 5}), "workers.timeout: the inline pool has one worker"),
    (("workers", {"gpus": 1}), "workers.gpus: unknown key 'gpus'; did you mean 'gpus_each'?"),
    (
        ("workers", {"pool": "ray", "gpus_each": 2, "engine": "auto"}),
        "workers.gpus_each: with engine: auto a model lies on one GPU, and the others would be",
    ),
    (
        ("workers", {"pool": "ray", "gpus_each": 1, "device": "cuda:1"}),
        "workers.device: a worker sees the GPU alone that Ray reserves for it, and no cuda:1",
    ),
    (
        ("workers", {"engine": "vllm", "device": "cuda:1"}),
        "workers.device: vLLM takes the first GPU that it sees, and not cuda:1",
    ),
    (("workers", {"sources_memory": -1}), "workers.sources_memory: -1"),
    (("workers", {"engine": "vlm"}), "workers.engine: 'vlm' is none of what it may be"),
    (("finals", -1), "finals: -1"),
]

# one slip with more than one consequence: another method has other axes
CONSEQUENCES = ("space__method", "space__axes__wieght", "sources__models")

# these are seen only when the sources and tasks are opened
MISSING = [
    (("sources__base", "bsae"), "sources.base: there is no directory 'bsae'"),
    (("sources__models__b", "./b2"), "sources.models.b: there is no directory './b2'"),
    (("fitness__0__function", "fti.py"), "fitness.0.function: there is no file 'fti.py'"),
    (("fitness__0__items", 41), "fitness.0.items: 41 items are more than the 40 there are; write"),
    (("heldout", {"split": "test"}), "heldout: 'likely' has no validation and test split"),
    (
        ("space__module_groups", ["self_atn"]),
        "space.module_groups: no tensor's name holds 'self_at",
    ),
    (
        ("fitness__0", {"name": "x", "task": "./choice", "metric": "acc"}),
        "fitness.0.task: there is no task './choice'; a task's path ends in .yaml",
    ),
    (
        (
            "fitness__0",
            {"name": "x", "task": "choice.yaml", "metric": "acc", "chat_template": True},
        ),
        "fitness.0.chat_template: 'base', whose tokenizer merges get, has no chat template; put",
    ),
    (
        ("fitness__0", {"name": "x", "task": "choice.yaml", "metric": "accuracy"}),
        "fitness.0.metric: 'tiny_choice' has no metric 'accuracy'",
    ),
    # each end of two layers stays the frame's
    (
        ("space", {"kind": "routing", "order": "exchange", "gains": "none"}),
        "space: has no genes: there is nothing to search; leave an axis or a choice free",
    ),
]


def checked(file: Path) -> None:
    with placed(file=str(file)):
        open_campaign(read_plan(file))


def written(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("change, message", MALFORMED, ids=lambda v: str(v[0])[:40])
def test_malformed_files_get_one_clear_line(campaign_file, change, message):
    file = campaign_file(**dict([change]))
    with pytest.raises(BadInput) as error:
        read_plan(file)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert sum(message in line for line in lines) == 1
    assert len(lines) == 1 or change[0] in CONSEQUENCES


@pytest.mark.parametrize("change, message", MISSING, ids=lambda v: str(v[0])[:40])
def test_what_is_not_there_gets_one_clear_line(campaign_file, here, change, message):
    file = campaign_file(**dict([change]))
    before = written(here)
    with pytest.raises(BadInput) as error:
        checked(file)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{file}: ") and message in line
    assert written(here) == before


def test_a_text_that_yaml_would_fold_is_told_to_be_quoted(campaign_file):
    file = campaign_file()
    file.write_text(file.read_text() + "constraint: >= base - 0.1\n")
    with pytest.raises(BadInput, match=r"line \d+: .*; quote a text that begins with >"):
        read_plan(file)


def test_a_model_that_is_the_base_is_warned_of(campaign_file):
    file = campaign_file(sources={"base": "base", "models": {"a": "a", "same": "base"}})
    (campaign,) = checked_campaigns(read_plan(file))
    assert campaign.warnings == ("'same' is the base itself: its task vector is zero",)
    axes = {"weight": {"low": 0.0, "high": 1.0, "start": 3}}
    linear = {"kind": "parameters", "method": "linear", "axes": axes}
    (campaign,) = checked_campaigns(read_plan(campaign_file(space=linear)))
    assert campaign.warnings == ("axis weight: start 3.0 is not within 0.0 to 1.0",)


def test_on_a_gpu_each_worker_has_the_sources_too(campaign_file):
    found = []
    for device in ("cpu", "cuda"):
        workers = {"pool": "ray", "count": 3, "device": device}
        (campaign,) = checked_campaigns(read_plan(campaign_file(workers=workers)))
        found.append(estimate(campaign))
    sources = sum(source.bytes for source in campaign.sources.values())
    assert found[1]["memory_bytes"] - found[0]["memory_bytes"] == 3 * sources
    assert [any("share one GPU" in w for w in f["warnings"]) for f in found] == [False, True]


def test_all_faults_come_together(campaign_file):
    file = campaign_file(
        budget__evaluations="many",
        space__method="tie",
        controller__kind="cam",
        name="a/b",
        extra=1,
    )
    with pytest.raises(BadInput) as error:
        read_plan(file)
    assert len(str(error.value).splitlines()) == 5


def test_faults_of_form_and_of_what_is_named_come_together(campaign_file):
    fitness = [
        {"name": "x", "task": "absent.yaml", "metric": "acc"},
        {"name": "y", "function": "absent.py"},
        {"name": "z", "function": "fit.py", "metric": "acc"},
    ]
    file = campaign_file(
        budget__evaluations="many",
        sources={"base": "base", "models": {"a": "nowhere", "b": "b"}},
        fitness=fitness,
    )
    with pytest.raises(BadInput) as error:
        read_and_check(file, moved={"c": "elsewhere"})
    keys = {line.split(": ")[1] for line in str(error.value).splitlines()}
    named = {"sources.models.a", "fitness.0.task", "fitness.1.function", "c"}
    assert keys == {"budget.evaluations", "fitness.2.metric"} | named


def test_yaml_faults_name_the_line(here):
    for text, message in [
        ("name: x\nname: y\n", "line 2: the key 'name' stands twice"),
        ("name: [x\nseed: 1\n", "line 2: "),
        ("- a\n- b\n", "a campaign file is a mapping of keys"),
        ("", "a campaign file is a mapping of keys"),
    ]:
        (here / "bad.yaml").write_text(text)
        with pytest.raises(BadInput) as error:
            read_plan(here / "bad.yaml")
        assert message in str(error.value)
    with pytest.raises(BadInput, match="cannot be read"):
        read_plan(here / "absent.yaml")


def test_bad_input_exits_2_without_traceback_and_writes_nothing(campaign_file, here):
    file = campaign_file(budget__evaluations="many", sources__modles={})
    before = written(here)
    for command in ("check", "run"):
        run = warm.run(["-m", "evomerge", command, file])
        assert run.returncode == 2
        assert len(run.stderr.splitlines()) == 2 and "Traceback" not in run.stderr
        assert not run.stdout
    assert written(here) == before


def test_settings_override_by_dotted_key(campaign_file):
    file = campaign_file()
    settings = ["budget.evaluations=3", "fitness.0.weight=2", "workers={pool: ray, count: 2}"]
    plan = read_plan(file, settings)
    assert plan.budget.evaluations == 3
    assert plan.fitness[0].weight == 2.0
    assert plan.workers.count == 2


@pytest.mark.parametrize(
    "setting, message",
    [
        ("budget", "is not key=value"),
        ("budget.evaluations=[", "is not YAML"),
        ("fitness.4.items=3", "there is no entry '4'"),
        ("name.first=x", "'name' is no mapping"),
    ],
)
def test_settings_that_will_not_do(campaign_file, setting, message):
    with pytest.raises(BadInput, match="--set") as error:
        read_plan(campaign_file(), [setting])
    assert message in str(error.value)


def test_exponents_are_numbers(here, campaign_file):
    file = campaign_file()
    text = file.read_text().replace("low: 0.0", "low: 1e-3")
    file.write_text(text)
    assert read_plan(file).space.axes["weight"].low == 0.001


def test_a_plan_survives_its_own_yaml(campaign_file, here):
    plan = read_plan(campaign_file())
    (here / "again.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    assert read_plan(here / "again.yaml") == plan


def test_differences_name_dotted_keys_and_spare_what_may_change(campaign_file):
    old = read_plan(campaign_file())
    new = read_plan(campaign_file(seed=8, space__layer_groups=1, budget__evaluations=99))
    assert resume.differences(old, new) == ["seed", "space.layer_groups"]


def test_public_test_splits_are_refused_without_the_flag(here, campaign_file, monkeypatch):
    monkeypatch.setattr(TaskFitness, "is_public_test_split", lambda self: True)
    entry = {"name": "x", "task": "choice.yaml", "metric": "acc"}
    file = campaign_file(fitness=[entry])
    with pytest.raises(BadInput, match="test split of a public benchmark; write heldout"):
        open_campaign(read_plan(file))
    allowed = campaign_file(fitness=[entry], allow_benchmarks=True)
    assert open_campaign(read_plan(allowed)).splits["x"].search


def test_a_public_test_split_is_recognized(here):
    fitness = open_fitness(TaskSection(name="x", task="choice.yaml", metric="acc"))
    assert not fitness.is_public_test_split()  # local data
    fitness._task.config.custom_dataset = None
    fitness._task.config.dataset_path = "json"
    assert not fitness.is_public_test_split()
    fitness._task.config.dataset_path = "openai/gsm8k"
    assert fitness.is_public_test_split()
    fitness._task.config.test_split = None
    assert not fitness.is_public_test_split()


@pytest.mark.parametrize("inner", [False, True])
def test_more_groups_of_layers_than_layers_are_told(campaign_file, inner):
    space = {"kind": "parameters", "method": "linear", "layer_groups": 999}
    space |= {"axes": {"weight": {"low": 0.0, "high": 1.0}}}
    if inner:
        space = {"kind": "choice", "spaces": [space, space | {"module_groups": ["mlp"]}]}
    with pytest.raises(BadInput) as caught:
        checked(campaign_file(space=space))
    key = "space.spaces.0.layer_groups" if inner else "space.layer_groups"
    assert f"{key}: 999 are more than the 2 layers of the models; write 1 to 2" in str(caught.value)


def test_models_that_do_not_fit_the_gpu_are_refused_and_sources_that_do_not_are_told(
    campaign_file, monkeypatch
):
    """A GPU of so many bytes is seen here; a tiny model's weights take 10,400."""
    from evomerge.campaign import device_room

    file = campaign_file(workers={"device": "cuda"})
    plan = read_and_check(file)
    monkeypatch.setattr(device_room, "gpu_bytes", lambda device: 13_000)
    with pytest.raises(BadInput, match=r"workers.device: models of 10.4 kB do not fit a worker's"):
        checked_campaigns(plan)
    monkeypatch.setattr(device_room, "gpu_bytes", lambda device: 20_000)
    (campaign,) = checked_campaigns(plan)
    assert device_room.kept_bytes(campaign) == 15_000 - 10_400
    (told,) = [line for line in estimate(campaign)["warnings"] if "stay on the GPU" in line]
    assert told == (
        "of the sources' 41.6 kB, 4.6 kB stay on the GPU and 37.0 kB are read again for every"
        " candidate"
    )
