"""Tasks that run programs: refused unless allowed, scored as code_eval does, and without harm."""

import ast
import os
import time
from pathlib import Path

import pytest
from sql import query

from evomerge.archive.archive import Archive
from evomerge.campaign.build import checked
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.errors import BadInput
from evomerge.sandbox import programs
from evomerge.sandbox.programs import run_program
from evomerge.scoring.any_fitness import AnyFitness
from evomerge.scoring.code_metric import CodeEval
from evomerge.scoring.open_fitness import open_fitness
from evomerge.sections import parse

UTILS = """
import datasets
import evaluate

compute_ = evaluate.load("code_eval")
compute_.compute(references=["assert add(2, 3) == 5"], predictions=[["add = min"]], k=[1])


def load(**options):
    rows = [
        {
            "task_id": n,
            "prompt": f"def f{n}():\\n    return '",
            "test": f"def check(candidate):\\n    assert len(candidate()) % 2 == {n % 2}\\n",
            "entry_point": f"f{n}",
        }
        for n in range(12)
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def pass_at_k(references, predictions, k=None):
    return compute_.compute(references=references, predictions=predictions, k=k)[0]


def build_predictions(resps, docs):
    return [[d["prompt"] + r + "'" for r in resp] for resp, d in zip(resps, docs)]


def runs_itself(references, predictions):
    exec(predictions[0][0] + references[0], {})
    return 1.0
"""

# in the form of lm-eval's humaneval
TASK = """
task: programs
custom_dataset: !function code.load
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{test}}\\ncheck({{entry_point}})"
metric_list:
  - metric: !function code.pass_at_k
    aggregation: mean
    higher_is_better: true
    k: [1]
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
repeats: 1
filter_list:
  - name: create_test
    filter:
      - {function: custom, filter_fn: !function code.build_predictions}
"""


@pytest.fixture
def task(here) -> Path:
    (here / "code.py").write_text(UTILS)
    (here / "programs.yaml").write_text(TASK)
    return here / "programs.yaml"


def entry(**changes):
    return {"name": "code", "task": "programs.yaml", "metric": "pass@1", "batch_size": 4} | changes


def test_a_campaign_scores_programs_by_the_tests_that_they_pass(task, campaign_file):
    file = campaign_file(
        fitness=[entry(allow_code=True)], budget={"evaluations": 1}, finals=0, heldout=0.5
    )
    directory = file.parent / "run"
    assert run_campaign(file, directory=directory, observer=Silent())
    archive = Archive(directory / "archive.db")
    (campaign,) = checked(file)
    fitness = campaign.fitness["code"]
    candidate = archive.baselines()[1].id
    scores = archive.item_scores(candidate, "code", "heldout")
    ordinals = campaign.splits["code"].heldout
    rows = query(directory, f"SELECT * FROM answers WHERE candidate_id = {candidate}")
    said = {row["ordinal"]: row["answer"] for row in rows}
    expected = []
    for ordinal in ordinals:
        (program,) = ast.literal_eval(said[ordinal])
        words = program.split("return '")[1].removesuffix("'")
        expected.append(float(len(words) % 2 == ordinal % 2))
    assert scores.tolist() == expected
    assert fitness.direction == "maximize" and set(expected) <= {0.0, 1.0}
    every = [archive.means(c.id)["code"] for c in archive.candidates()]
    assert 0.0 < sum(every) < len(every)  # some programs pass, and some do not


def test_nothing_runs_unless_it_is_allowed(task):
    said = "'programs.yaml' runs code that models write; write allow_code: true, which runs it"
    with pytest.raises(BadInput, match=f"task: {said}"):
        open_fitness(parse(AnyFitness, entry()))


@pytest.mark.xdist_group("index")
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_lm_evals_own_tasks_are_refused_in_the_same_words(name, one_index):
    section = parse(AnyFitness, {"name": "x", "task": name, "metric": "pass@1"})
    with pytest.raises(BadInput, match=f"task: '{name}' runs code that models write; write allow"):
        open_fitness(section)


def test_a_task_that_runs_code_by_itself_is_refused_though_code_is_allowed(task):
    own = TASK.replace("code.pass_at_k", "code.runs_itself").replace("    k: [1]\n", "")
    task.write_text(own)
    section = parse(AnyFitness, entry(allow_code=True, metric="runs_itself"))
    with pytest.raises(
        BadInput, match=r"'programs\.yaml' runs code by itself, and not by code_eval"
    ):
        open_fitness(section)


def test_a_machine_that_cannot_hold_programs_is_refused(task, monkeypatch):
    monkeypatch.setattr("evomerge.scoring.lm_eval_loading.missing", lambda: "no Linux")
    with pytest.raises(BadInput, match="allow_code: not on this machine: no Linux"):
        open_fitness(parse(AnyFitness, entry(allow_code=True)))


def test_pass_at_k_is_the_chance_that_one_of_k_passes():
    programs = [["x = 1"] * 2 + ["x = 2"] * 3, ["x = 2"] * 5]
    found, results = CodeEval().compute(programs, ["assert x == 1"] * 2, k=[1, 2, 10])
    # of pairs of five programs, two of which pass, 3 of 10 have none of the two
    assert found == pytest.approx({"pass@1": (0.4 + 0.0) / 2, "pass@2": (0.7 + 0.0) / 2})
    assert [told["passed"] for _, told in results[0]] == [True, True, False, False, False]


def denied(code: str) -> bool:
    """Whether a program that does something is told that it may not."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    wrapped = f"try:\n{lines}except PermissionError: pass\nelse: raise SystemError\n"
    return run_program(wrapped).has_passed


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.kill(-1, 9)",
        "open('file', 'w')",
        "open('/etc/passwd')",
        "import os; open(f'/proc/{os.getppid()}/environ')",
        "import os; os.chmod('.', 0)",
    ],
)
def test_what_reaches_beyond_the_process_is_denied(code):
    assert denied(code)


def test_files_of_the_user_stay_as_they_are(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("words")
    for code in (f"import os; os.remove({str(kept)!r})", f"open({str(kept)!r}, 'a')"):
        assert denied(code)
    assert not run_program(f"open({str(kept)!r}).read()").has_passed
    assert kept.read_text() == "words"


def test_what_uses_up_time_or_memory_ends_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(programs, "_WALL", 1.0)
    began = time.monotonic()
    hungry = [
        "while True: pass",
        "import time; time.sleep(1000)",
        "x = bytearray(1 << 33)",
        "x = []\nwhile True: x.append(' ' * 10**7)",
        "def f(): f()\nimport sys; sys.setrecursionlimit(10**9); f()",
        "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
    ]
    assert not any(run_program(code, seconds=1).has_passed for code in hungry)
    assert time.monotonic() - began < 60
    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_program(p)]
    assert left == []


def _is_program(process: Path) -> bool:
    """Whether a process is a sandbox that this one started."""
    try:
        status = (process / "status").read_text()
        words = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return f"PPid:\t{os.getpid()}\n" in status and b"confined.py" in words


def test_a_program_passes_only_by_coming_to_its_end():
    for code in ("raise SystemExit(0)", "import os; os._exit(0)", "quit(", "1 / 0"):
        assert not run_program(code).has_passed
    # it knows neither the word that tells of its end nor anything of the user's environment
    assert not run_program("import os\nfor n in range(3, 9):\n  os.write(n, b'x')").has_passed
    own = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HOME", "LC_CTYPE"}
    assert run_program(f"import os; assert set(os.environ) <= {own}").has_passed
    assert run_program("import numpy; assert numpy.ones(2).sum() == 2").has_passed
