"""Session fixtures: tiny real models, tasks with data, and campaign files over them."""

import copy
import functools
import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A thread of torch that waits for another sleeps: tests share the cores with each other, and on
# models so small the waits are most of the work. Read when torch is imported, here and below.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, which spin; read likewise
# Ray's 15 leaves its workers next to nothing beside other tests.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest
import torch
import warm
import yaml
from hypothesis import settings

from evomerge.archive.archive import Archive
from evomerge.campaign.observer import Silent
from evomerge.environment import cache_folder
from evomerge.testing import tiny_llama

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a Triton program is imported


def pytest_collection_modifyitems(items):
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_turn)  # what is in order stays so
    if not torch.cuda.is_available():
        skipped = pytest.mark.skip(reason="there is no GPU")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skipped)


def _turn(item) -> int:
    """Tell what runs first: Ray's tests, one after the other for minutes, and other groups."""
    group = item.get_closest_marker("xdist_group")
    return 2 if group is None else 0 if group.args == ("ray",) else 1


settings.register_profile("ci", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("ci")
torch.set_num_threads(1)
NATIVE = cache_folder("native")  # of whoever runs the tests: compiled once a machine

FITNESS = '''
"""Mean log-likelihood of a few sentences: cheap, and never equal for two models."""


def items():
    return [f"w{i} w{(i * 7) % 28} w{(i * 3) % 28}" for i in range(40)]


def score(model, tokenizer, items):
    ids = tokenizer(items, return_tensors="pt", padding=True)["input_ids"]
    logits = model(ids).logits[:, :-1].float().log_softmax(-1)
    return logits.gather(2, ids[:, 1:, None]).mean((1, 2)).tolist()
'''

TASK_DATA = """
import datasets


def load(**options):
    rows = [
        {
            "q": f"w{i % 28} w{(i * 5) % 28}",
            "a": f"w{(i * 5 + i % 2) % 28}",  # half of them echo the question
            "choices": [f"w{(i + k) % 28}" for k in range(2)],
            "gold": i % 2,
        }
        for i in range(60)
    ]
    half = datasets.Dataset.from_list(rows[:20])
    # of three words, so that none of them is an item
    shown = datasets.Dataset.from_list([row | {"q": row["q"] + " w9"} for row in rows[:12]])
    return {"validation": half, "test": datasets.Dataset.from_list(rows), "examples": shown}
"""

GENERATION = """
task: tiny_generation
custom_dataset: !function data.load
test_split: test
fewshot_split: examples
validation_split: validation
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["</s>"], max_gen_toks: 1, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""

CHOICE = """
task: tiny_choice
custom_dataset: !function data.load
test_split: test
fewshot_split: examples
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""

AGGREGATED = (
    CHOICE.replace("tiny_choice", "tiny_aggregated")
    + "  - {metric: f1, aggregation: f1, higher_is_better: true}\n"
)

LIKELIHOOD = """
task: tiny_likelihood
custom_dataset: !function data.load
test_split: test
fewshot_split: examples
output_type: loglikelihood
doc_to_text: "{{q}}"
doc_to_target: " {{a}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
"""

ROLLING = """
task: tiny_rolling
custom_dataset: !function data.load
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}} {{a}} {{q}}"
metric_list:
  - {metric: bits_per_byte}
  - {metric: word_perplexity}
"""


def cache_with_kernels(folder: Path) -> Path:
    """Make a folder for XDG_CACHE_HOME to name: empty, but for the compiled kernels."""
    NATIVE.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "evomerge").mkdir(parents=True)
    (folder / "evomerge" / "native").symlink_to(NATIVE)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with a base, three fine-tunes of it, a Python fitness and three lm-eval tasks."""
    folder = tmp_path_factory.mktemp("world")
    os.environ["XDG_CACHE_HOME"] = str(cache_with_kernels(folder / "cache"))
    tiny_llama(folder / "base", 0)
    for seed, name in enumerate("abc", start=1):
        tiny_llama(folder / name, seed, near=folder / "base", spread=0.1)
    files = {
        "fit.py": FITNESS,
        "data.py": TASK_DATA,
        "generation.yaml": GENERATION,
        "choice.yaml": CHOICE,
        "aggregated.yaml": AGGREGATED,
        "likelihood.yaml": LIKELIHOOD,
        "rolling.yaml": ROLLING,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty working folder from which the world's names can be written relatively."""
    for entry in world.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    gc.freeze()  # a campaign begins with a collection; half a million objects are no garbage
    yield tmp_path
    gc.unfreeze()


PLAN = {
    "name": "tiny",
    "seed": 7,
    "sources": {"base": "base", "models": {"a": "a", "b": "b", "c": "c"}},
    "space": {
        "kind": "parameters",
        "method": "task_arithmetic",
        "layer_groups": 2,
        "axes": {"weight": {"low": 0.0, "high": 1.0}},
    },
    "controller": {"kind": "cmaes", "population": 6},
    "fitness": [{"name": "likely", "function": "fit.py"}],
    "budget": {"evaluations": 14},
}


@pytest.fixture
def campaign_file(here):
    """Write a campaign file: PLAN with changes, dotted keys replaced or (None) taken out."""

    def write(**changes) -> Path:
        plan = copy.deepcopy(PLAN)
        for dotted, value in changes.items():
            *path, last = dotted.split("__")
            entry = plan
            for key in path:
                entry = entry[int(key)] if isinstance(entry, list) else entry.setdefault(key, {})
            if isinstance(entry, list):
                entry[int(last)] = value
            elif value is None:
                entry.pop(last, None)
            else:
                entry[last] = value
        path = here / "campaign.yaml"
        path.write_text(yaml.safe_dump(plan, sort_keys=False))
        return path

    return write


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture(scope="session")
def task_manager():
    """Make lm-eval's manager once of each kind: its own tasks are thousands of files."""
    from lm_eval.tasks import TaskManager

    return functools.cache(TaskManager)


@pytest.fixture
def one_index(task_manager, monkeypatch):
    """Let this test look for lm-eval's own tasks where another has looked already."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", task_manager)


def lm_evals_own(*arguments, **options) -> dict:
    """Evaluate by lm-eval's `simple_evaluate`, without a second for what it runs on."""
    from lm_eval import simple_evaluate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        return simple_evaluate(*arguments, **options)


def assert_killed_and_resumed_alike(plan: Path, points: list[str]) -> None:
    """Run a campaign whole, and killed at each point and resumed: the same ledgers must come."""
    script = Path(__file__).with_name("kill_points.py")
    run = warm.run([script, plan, "kill", "none", *points])
    assert run.returncode == 0, run.stderr[-2000:]
    whole, *reports = [json.loads(line) for line in run.stdout.splitlines()]

    def ledger(report: dict) -> tuple:
        archive = Archive(Path(report["directory"]) / "archive.db")
        found = archive.candidates()
        sums = [archive.outcome(c.id)["weights_checksum"] for c in found]
        return [(c.id, c.recipe_id, c.parents) for c in found], sums

    assert len(reports) == len(points)
    for report in reports:
        assert report["ends"] == [-signal.SIGKILL, 0]
        assert ledger(report) == ledger(whole)


OWN_CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({trace!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def own_code(folder, model_type="own"):
    """Let a model's directory have code of its own, which leaves a trace when it is run."""
    (folder / "own.py").write_text(OWN_CODE.format(trace=str(folder.resolve() / "was run")))
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": model_type,
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
