"""Nothing of the whole process is other after a call of the library than it was before."""

import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading

import pytest
import warm

from evomerge.archive import summary
from evomerge.archive.reader import ArchiveReader
from evomerge.campaign.build import checked_campaigns, read_and_check
from evomerge.campaign.run import run_campaign
from evomerge.errors import BadInput, EvomergeError
from evomerge.scoring.fitness import FunctionSection
from evomerge.scoring.function import FunctionFitness

# Imports have their own effects, which last; so what is imported comes before the first look.
SESSION = """
import json
import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import cma
import datasets
import lm_eval.models.huggingface
import numpy as np
import optuna
import scipy.stats
import sympy
import torch
import transformers
from lm_eval.tasks import TaskManager

from evomerge.archive import summary
from evomerge.campaign.build import checked_campaigns, read_and_check
from evomerge.campaign.estimate import estimate
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.export.candidates import export_candidate
from evomerge.merging.methods import METHODS
from evomerge.search.controllers import CONTROLLERS

METHODS.all(), CONTROLLERS.all()
estimate


def mine(number, frame):
    "A handler of the caller's."


signal.signal(signal.SIGINT, mine)
signal.signal(signal.SIGTERM, mine)
torch.set_num_threads(2)
random.seed(1), np.random.seed(2), torch.manual_seed(3)
root = logging.getLogger()
root.addHandler(logging.StreamHandler(sys.stderr))
root.setLevel(logging.DEBUG)
NAMED = ["", "evomerge", "lm_eval", "datasets", "transformers", "httpx", "huggingface_hub", "ray"]


def look():
    loggers = [logging.getLogger(name) for name in NAMED]
    return {
        "loggers": {n: [l.level, l.propagate, l.disabled, list(map(repr, l.handlers))]
                    for n, l in zip(NAMED, loggers)},
        "raiseExceptions": logging.raiseExceptions,
        "environment": dict(os.environ),
        "signals": [repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": str(torch.get_default_dtype()),
        "python": repr(random.getstate()),
        "numpy": repr(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "filters": list(map(repr, warnings.filters)),
        "streams": [repr(sys.stdout), repr(sys.stderr)],
        "files": open_files(),
        "users": [name for name in sys.modules if name.split("_")[-1] in ("fit", "drawn")],
    }


def open_files():
    places = []
    for number in os.listdir("/proc/self/fd"):
        try:
            places.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the folder's own
            continue
    return sorted(places)


file, run = Path("campaign.yaml"), Path("runs/tiny")
steps = {
    "check": lambda: list(map(estimate, checked_campaigns(read_and_check(file)))),
    "run": lambda: run_campaign(file, observer=Silent()),
    "run again": lambda: run_campaign(file, settings=["budget.evaluations=5"], observer=Silent()),
    "status": lambda: summary.status(run),
    "front": lambda: [summary.front(run), summary.standing(run)],
    "show": lambda: summary.show(run, "best"),
    "export": lambda: export_candidate(run, Path("out"), "best"),
}
for name, step in steps.items():
    before = look()
    step()
    after = look()
    for what in before:
        if before[what] != after[what]:
            told = [name, what, str(before[what])[-600:], str(after[what])[-600:]]
            if isinstance(before[what], list):
                told += [[v for v in after[what] if v not in before[what]],
                         [v for v in before[what] if v not in after[what]]]
            print(json.dumps(told[:2] + told[-2:]))
print(json.dumps("done"))
"""


def test_the_librarys_calls_leave_the_process_as_it_was(campaign_file, here):
    fitness = [
        {"name": "likely", "function": "fit.py"},
        {"name": "says", "task": "generation.yaml", "metric": "exact_match", "fewshot": 1},
        {"name": "drawn", "function": "drawn.py"},
    ]
    (here / "drawn.py").write_text(
        "import random\nimport numpy as np\nimport torch\ndef items(): return [1, 2, 3, 4]\n"
        "def score(m, t, items):\n"
        "    return [random.random() + np.random.rand() + torch.rand(1).item() for _ in items]\n"
    )
    campaign_file(fitness=fitness, budget__evaluations=3)
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    run = warm.run(["-c", SESSION], env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    told = [json.loads(line) for line in run.stdout.splitlines() if line.startswith(("[", '"'))]
    assert told == ["done"]


def test_a_campaign_runs_and_is_stopped_in_another_thread(campaign_file, here, silent):
    found = []
    asked = []

    def stop():
        asked.append(threading.current_thread())
        run = here / "runs" / "tiny"
        return summary.status(run)["candidates"]["ok"] >= 6

    def work():
        file = campaign_file(budget__evaluations=100)
        found.append(run_campaign(file, observer=silent, stop=stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert found == [False] and set(asked) == {thread}
    status = summary.status(here / "runs" / "tiny")
    assert status["state"] == "interrupted" and status["candidates"]["running"] == 0
    assert 6 <= status["candidates"]["ok"] < 20


def test_a_campaign_that_fails_leaves_the_log_as_it_was(campaign_file, here, silent):
    (here / "broken.py").write_text("items = lambda: [1, 2]\ndef score(m, t, i): return i[5]\n")
    log = logging.getLogger("evomerge")
    log.setLevel(logging.ERROR)
    try:
        before = (log.level, log.propagate, list(log.handlers), logging.raiseExceptions)
        with pytest.raises(EvomergeError):
            run_campaign(
                campaign_file(fitness=[{"name": "f", "function": "broken.py"}]), observer=silent
            )
        assert before == (log.level, log.propagate, list(log.handlers), logging.raiseExceptions)
    finally:
        log.setLevel(logging.NOTSET)


def test_an_error_of_a_python_fitness_is_located_and_logged(campaign_file, here, silent):
    (here / "broken.py").write_text(
        "import json\n\n\ndef items():\n    return [1, 2]\n\n\n"
        "def inner(text):\n    return json.loads(text)\n\n\n"
        "def score(model, tokenizer, items):\n    return [inner('{') for _ in items]\n"
    )
    with pytest.raises(EvomergeError, match=r"f: broken\.py, line 9: JSONDecodeError: Expecting"):
        run_campaign(
            campaign_file(fitness=[{"name": "f", "function": "broken.py"}]), observer=silent
        )
    log = (here / "runs" / "tiny" / "log.txt").read_text()
    assert len(re.findall(r'broken\.py", line 13, in score', log)) == 1  # each reason once
    assert "decoder.py" in log and "candidate 4 failed: f: broken.py, line 9" in log


@pytest.mark.parametrize(
    "text, told",
    [
        (
            "def items():\n    x = 1\n    return [x / 0]\nscore = max\n",
            "mine.py, line 3: items() f",
        ),
        ("x = 1\n\ny = x / 0\n", "mine.py, line 3 cannot be imported: ZeroDivisionError"),
    ],
)
def test_an_error_before_scoring_is_located_too(here, text, told):
    (here / "mine.py").write_text(text)
    with pytest.raises(BadInput) as error:
        FunctionFitness(FunctionSection(name="f", function="mine.py"))
    assert told in str(error.value)


def open_archives():
    places = []
    for number in os.listdir("/proc/self/fd"):
        try:
            places.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the folder's own
            continue
    return [place for place in places if "archive.db" in place]


def test_no_archive_stays_open_when_something_is_wrong_with_it(campaign_file, here, silent):
    gc.collect()  # what tests before this one left in cycles
    run = here / "runs" / "tiny"
    run_campaign(campaign_file(budget__evaluations=2), observer=silent)
    gc.collect()
    kept = []  # a traceback keeps what its frames hold
    for wrong in (lambda: summary.show(run, 99), lambda: summary.show(run, "no-such-objective")):
        with pytest.raises(BadInput) as error:
            wrong()
        kept.append(error)
    with pytest.raises(BadInput) as error:
        checked_campaigns(read_and_check(campaign_file(init=["runs/tiny#77"], name="other")))
    kept.append(error)
    assert open_archives() == []
    (run / "archive.db").write_bytes(b"SQLite format 3\0" + bytes(2000))
    with pytest.raises(EvomergeError) as error:
        ArchiveReader(run / "archive.db")
    kept.append(error)
    assert open_archives() == [] and len(kept) == 4


RAY = """
import logging
import os
import signal
import sys
import time

import ray

from evomerge.config.parts import WorkersSection
from evomerge.testing.campaigns import example_campaign
from evomerge.workers.ray_pool import RayPool


def mine(number, frame):
    "A handler of the caller's."


signal.signal(signal.SIGTERM, mine)
logger = logging.getLogger("ray")


def look():
    forms = [handler.formatter for handler in logger.handlers]
    found = {"signal": signal.getsignal(signal.SIGTERM), "level": logger.level, "forms": forms}
    return found | dict(os.environ)


WORKERS = WorkersSection(pool="ray", count=1, threads=1)
plan = example_campaign(hashed=True).worker
before = look()
pool = RayPool(plan, WORKERS)
after = look()
print("other:", {key: value for key, value in after.items() if before.get(key) != value})
pool.close()
after = look()
print("then:", {key: value for key, value in after.items() if before.get(key) != value})
print("ours is down:", not ray.is_initialized())
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, namespace="theirs")


@ray.remote(num_cpus=0)
class Theirs:
    def answer(self):
        return 42


def names():
    return ray.util.list_named_actors(all_namespaces=True)


theirs = Theirs.options(name="theirs").remote()
assert ray.get(theirs.answer.remote()) == 42
before, printing = look(), ray._private.worker.print_to_stdstream
pool = RayPool(plan, WORKERS)
assert names() == [{"name": "theirs", "namespace": "theirs"}]
assert ray._private.worker.print_to_stdstream is printing
pool.close()
print("the caller's is up:", ray.is_initialized() and look() == before)
while ray.available_resources().get("CPU") != 1.0:
    time.sleep(0.1)
try:
    ray.get(pool._mailbox.take.remote(), timeout=60)
except ray.exceptions.RayActorError:
    print("theirs alone is alive:", ray.get(theirs.answer.remote()) == 42)
ray.shutdown()
"""


def test_a_ray_of_the_callers_stays_up_and_ours_does_not():
    run = subprocess.run([sys.executable, "-c", RAY], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "'signal'" not in run.stdout and "'level'" not in run.stdout
    assert "then: {}\nours is down: True\nthe caller's is up: True" in run.stdout
    assert "theirs alone is alive: True" in run.stdout
