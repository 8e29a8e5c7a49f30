"""What the README and the guides say is so: commands, YAML, links, paths, columns, examples."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import warm
import yaml

import evomerge
from evomerge.archive.schema import MIGRATIONS
from evomerge.cli.main import main
from evomerge.config.schema import CampaignPlan
from evomerge.config.validate import checked_plan
from evomerge.testing import tiny_llama

ROOT = Path(evomerge.__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("*.md"))
WRITTEN = [ROOT / "README.md", *GUIDES]
PAGES = [
    *WRITTEN,
    ROOT / "benchmarks/README.md",
    ROOT / "benchmarks/smollm2/README.md",
    ROOT / "runs/README.md",
    ROOT / "search_spaces/tiny_models/README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
OTHER_TOOLS = {
    *(".", "datasette", "mlflow", "optuna-dashboard", "pip", "ray", "sqlite-utils"),
    *("tensorboard", "trackio", "wandb"),
}  # that the guides name

# What a block that is a part of a campaign file is put into.
CAMPAIGN = """
name: part
sources: {base: models/base, models: {ja: models/ja, fr: models/fr, maths: models/maths}}
space: {kind: parameters, method: linear, axes: {weight: {low: 0.0, high: 1.0}}}
fitness: [{name: likely, function: fitness/likely.py}]
budget: {evaluations: 10}
workers: {threads: 1}
"""


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """Return the fenced blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return [block for found, block in FENCE.findall(text) if found == language]


def spans(page):
    """Return what stands in backticks within the prose, each on one line."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def simple_commands(text):
    """Yield the words of each command in a shell's text, without variables and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r" > \S+", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = []
        for token in [*lexer, ";"]:
            if token in ("&&", "|", ";"):
                if words:
                    yield words
                words = []
            elif words or not re.fullmatch(r"[A-Z_]+=\S*", token):
                words.append(token)


def commands(page):
    """Yield the words of every command on a page: in fenced blocks, and in backticks."""
    for block in blocks(page, "bash"):
        yield from simple_commands(block)
    for span in spans(page):
        if re.match(r"(RAY_\w+=\S+ )?(evomerge|make|python benchmarks/\S+|time) ", span):
            optional = re.sub(r"\[(--[^\]]+)\]", r"\1", span)  # as a synopsis writes it
            yield from simple_commands(optional.removeprefix("time "))


# --- the pages themselves --------------------------------------------------------------------


def test_the_readme_is_short_and_the_index_names_every_guide():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    missing = [g.name for g in GUIDES if g.name != "index.md" and f"({g.name})" not in index]
    assert missing == []


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_block_says_its_language(page):
    languages = {language for language, _ in FENCE.findall(page.read_text(encoding="utf-8"))}
    assert languages <= {"bash", "python", "sql", "text", "toml", "yaml"}
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


def slugs(page):
    """Return the anchors that GitHub gives a page's headings."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in slugs(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_is_there(page):
    folders = "benchmarks|docs|evomerge|fitness|notebooks|search_spaces|tests"
    paths = [span for span in spans(page) if re.fullmatch(rf"({folders})/[\w./-]+", span)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_generated_parts_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = [p.name for p, text in generate.pages().items() if p.read_text("utf-8") != text]
    assert stale == [], "run python docs/generate.py"


# --- commands --------------------------------------------------------------------------------


def wrong_with(words):
    """Return what is wrong with a command, or None; scripts are left to `script_faults`."""
    program, *arguments = words
    if program == "evomerge":
        if arguments in ([], ["--help"]):
            return None
        if arguments[0] not in main.commands:
            return "there is no such command"
        if arguments[1:] in ([], ["..."]):  # it is only named
            return None
        try:
            main.commands[arguments[0]].make_context(arguments[0], arguments[1:])
        except click.exceptions.Exit:  # of --help
            return None
        except click.UsageError as error:
            return error.message
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        unknown = [word for word in arguments if "=" not in word and word not in targets]
        return f"no target {unknown}" if unknown else None
    elif program == "python":
        return None if (ROOT / arguments[0]).is_file() else "there is no such script"
    elif program not in OTHER_TOOLS:
        return "an unknown tool"
    return None


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_command_is_one(page):
    faults = {" ".join(words): wrong_with(words) for words in commands(page)}
    assert {command: fault for command, fault in faults.items() if fault} == {}


PARSE_ONLY = """
import argparse, json, runpy, sys
from pathlib import Path

class Parsed(BaseException):
    "Raised in the place of what the script would do."

def parse_args(self, *given, parse=argparse.ArgumentParser.parse_args):
    parse(self, *given)
    raise Parsed

argparse.ArgumentParser.parse_args = parse_args
faults = {}
for words in json.loads(sys.argv[1]):
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Parsed:
        continue
    except BaseException as error:
        faults[" ".join(words)] = repr(error)
print(json.dumps(faults))
"""


def test_every_benchmark_takes_its_arguments():
    """Each script is run up to where its arguments are parsed."""
    scripts = {tuple(w[1:]) for page in WRITTEN for w in commands(page) if w[0] == "python"}
    parsing = [s for s in sorted(scripts) if "__main__" in (ROOT / s[0]).read_text("utf-8")]
    assert len(parsing) > 10
    run = warm.run(["-c", PARSE_ONLY, json.dumps(parsing)], cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {}, run.stderr


# --- YAML ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_yaml_block_is_what_it_seems(page):
    """A campaign file or a part of one, which is checked for its form, or an lm-eval task."""
    if page.name == "extending.md":
        return  # its campaign is run, with what it adds: see below
    for text in blocks(page, "yaml"):
        data = yaml.safe_load(text)
        if "output_type" in data:
            assert {"task", "test_split", "doc_to_text", "metric_list"} <= set(data)
            continue
        assert set(data) <= set(CampaignPlan.model_fields), text
        whole = yaml.safe_load(CAMPAIGN) | data
        if "stages" in data:
            del whole["space"], whole["budget"]
        checked_plan(whole)


# --- examples that run -----------------------------------------------------------------------


OWN = {"evomerge": ["-m", "evomerge"], "python": []}


def run_anew(program, *arguments, env=None, **options):
    """Run a command with the interpreter that runs the tests; return what it printed."""
    beside = Path(sys.executable).with_name(program)
    start = [sys.executable, *OWN[program]] if program in OWN else [str(beside)]
    words, environment = [*start, *arguments], os.environ | (env or {})
    run = subprocess.run(words, env=environment, capture_output=True, text=True, **options)
    assert run.returncode == 0, f"{words}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def run_here(program, *arguments, env=None, **options):
    """The same, with the libraries imported already."""
    words, environment = [*OWN[program], *arguments], os.environ | (env or {})
    run = warm.run(words, env=environment, **options)
    assert run.returncode == 0, f"{words}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def models_here(folder, *labels):
    tiny_llama(folder / "models/base", 0, layers=4)
    for seed, label in enumerate(labels, start=1):
        tiny_llama(
            folder / "models" / label, seed, layers=4, near=folder / "models/base", spread=0.1
        )


def test_the_readme_leads_from_own_models_to_an_exported_merge(tmp_path):
    """Its task, its campaign file (a smaller budget, one thread), its commands, its Python."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = tmp_path / "section.md"
    section.write_text(readme[readme.index("## Your own models") : readme.index("## Commands")])
    task, campaign = blocks(section, "yaml")
    smaller = campaign.replace("items: 20000", "items: 120")
    smaller = smaller.replace("{pool: inline}", "{pool: inline, threads: 1}")
    assert len(smaller) == len(campaign) - 2 + len(", threads: 1")  # both were there
    (tmp_path / "questions.yaml").write_text(task)
    (tmp_path / "campaign.yaml").write_text(smaller)
    rows = [{"question": f"w{i} w{i + 1}", "answer": f"w{i + 2}"} for i in range(24)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    models_here(tmp_path, "maths", "code", "chat")
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    for block in blocks(section, "bash"):
        for words in simple_commands(block):
            typed = words[1] in ("check", "run")  # the libraries read the environment anew
            (run_anew if typed else run_here)(*words, cwd=tmp_path, env=cache)
    (python,) = blocks(section, "python")
    run_here("python", "-c", python, cwd=tmp_path)


@pytest.fixture(scope="module")
def folder_with_a_run(world, tmp_path_factory):
    """A folder with a small run under the name that docs/archive.md takes."""
    folder = tmp_path_factory.mktemp("archive")
    for entry in world.iterdir():
        (folder / entry.name).symlink_to(entry)
    plan = yaml.safe_load(CAMPAIGN) | {
        "name": "crosslingual-maths",
        "sources": {"base": "base", "models": {"a": "a", "b": "b"}},
        "fitness": [
            {"name": "likely", "function": "fit.py"},
            {"name": "echo", "task": "generation.yaml", "metric": "exact_match"},
        ],
        "budget": {"evaluations": 6},
    }
    (folder / "campaign.yaml").write_text(yaml.safe_dump(plan))
    run_here("evomerge", "run", "campaign.yaml", cwd=folder)
    return folder


def test_the_archives_columns_are_those_described():
    database = sqlite3.connect(":memory:")
    for migration in MIGRATIONS:
        database.executescript(migration)
    names = "SELECT name FROM sqlite_master WHERE type = 'table'"
    tables = {
        table: [column[1] for column in database.execute(f"PRAGMA table_info({table})")]
        for (table,) in database.execute(names)
    }
    page = (ROOT / "docs/archive.md").read_text(encoding="utf-8")
    parts = re.findall(r"^\*\*(\w+)\*\*:.*?\n\n\| column .*?\n((?:\|.*\n)+)", page, re.M)
    described = {table: re.findall(r"^\| `(\w+)`", rows, re.M) for table, rows in parts}
    assert described == tables


def test_the_archives_questions_have_answers(folder_with_a_run):
    page = ROOT / "docs/archive.md"
    database = sqlite3.connect(folder_with_a_run / "runs/crosslingual-maths/archive.db")
    empty = [sql for sql in blocks(page, "sql") if not database.execute(sql).fetchall()]
    assert len(empty) == 1 and "'failed'" in empty[0]  # nothing failed here
    for block in blocks(page, "bash"):
        for words in simple_commands(block):
            if words[0] == "sqlite-utils":
                assert run_anew(*words, cwd=folder_with_a_run)
    for code in blocks(page, "python"):
        if "pandas" in code:
            pytest.importorskip("pandas")
        run_here("python", "-c", code, cwd=folder_with_a_run)


def test_the_extensions_work_as_they_stand(tmp_path):
    """Each example is put where its first line says, into a copy of the package, and used."""
    page = ROOT / "docs/extending.md"
    shutil.copytree(
        ROOT / "evomerge", tmp_path / "evomerge", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "fitness").mkdir()
    *files, laws = blocks(page, "python")
    doctests = ["import doctest, importlib"]
    for text in files:
        path = re.match(r"# (\S+\.py)\n", text)[1]
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(text)
        if path.startswith("evomerge"):
            module = path.removesuffix(".py").replace("/", ".")
            module_test = f"doctest.testmod(importlib.import_module('{module}'))"
            doctests += [f"failed, tried = {module_test}", "assert tried and not failed"]
    models_here(tmp_path, "maths", "code")
    (campaign,) = blocks(page, "yaml")
    (tmp_path / "campaign.yaml").write_text(campaign)
    here = {"PYTHONPATH": str(tmp_path)}
    listed = run_here("evomerge", "list", cwd=tmp_path, env=here)
    assert all(name in listed for name in ("equal_norms", "hill_climb", "subset"))
    run_here("python", "-c", "\n".join([*doctests, laws]), cwd=tmp_path, env=here)
    words = ["evomerge", "run", "campaign.yaml", "--set", "workers.threads=1"]
    run_here(*words, cwd=tmp_path, env=here)


def test_the_fitness_guides_function_scores(tmp_path):
    (code,) = blocks(ROOT / "docs/fitness.md", "python")
    (tmp_path / "likely.py").write_text(code)
    models_here(tmp_path, "ja", "fr", "maths")
    plan = yaml.safe_load(CAMPAIGN) | {"fitness": [{"name": "likely", "function": "likely.py"}]}
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(plan | {"budget": {"evaluations": 3}}))
    run_here("evomerge", "run", "campaign.yaml", cwd=tmp_path)


def test_trouble_quotes_lines_that_are_said():
    """Its first column has the words of the code, `…` for what is filled in."""
    said = []
    for file in (ROOT / "evomerge").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    page = (ROOT / "docs/trouble.md").read_text(encoding="utf-8")
    lines = [line for row in re.findall(r"^\| (`.*?`) \|", page, re.M)
             for line in re.findall(r"`([^`]+)`", row)]  # fmt: skip
    assert len(lines) > 30
    strange = [
        part
        for line in lines
        for part in line.split("…")
        if part and not any(part in text for text in said)
    ]
    assert strange == []


STUBS = {
    "srun": 'echo srun "$@" >> calls',
    "ray": "exit 0",
    "python": "exit 0",
    "getent": "echo 192.0.2.7 STREAM node1",
    "scontrol": 'echo scontrol "$@" >> calls',
    "evomerge": 'echo "$RAY_ADDRESS" evomerge "$@" >> calls\n'
    'if [ -e short ]; then exit "$(cat short)"; fi\n'
    "trap 'sleep 0.2; exit 130' TERM\ntouch started\nwhile true; do sleep 0.05; done",
}


@pytest.mark.parametrize(("ends", "code"), [("", 130), ("0", 0), ("1", 1)])
def test_the_slurm_script_queues_a_job_again_that_was_interrupted(tmp_path, ends, code):
    """Programs in the place of SLURM's, Ray's and ours write down how they are called."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    if ends:
        (tmp_path / "short").write_text(ends)
    slurm = {"SLURMD_NODENAME": "node1", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "4711"}
    slurm |= {"SLURM_CPUS_PER_TASK": "16", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["bash", str(ROOT / "docs/two-nodes.sbatch"), "campaign.yaml"]
    job = subprocess.Popen(words, cwd=tmp_path, env=os.environ | slurm)
    if not ends:
        while not (tmp_path / "started").exists():
            assert job.poll() is None
            time.sleep(0.02)
        job.terminate()
    assert job.wait(timeout=60) == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "192.0.2.7:6379 evomerge run campaign.yaml" in calls
    first, second = sorted((call for call in calls if call.startswith("srun")), key=len)
    assert "--exclude=node1" in first and first.endswith("--block --address=192.0.2.7:6379")
    assert "--nodelist=node1" in second and "--head --port=6379" in second
    assert ("scontrol requeue 4711" in calls) == (code == 130)
