"""Bad input that comes from elsewhere: adapters, runs' directories, recipes, texts that are bombs.

Every one is refused in lines that say what is wrong, at once; nothing is written, no code runs.
"""

import json
import os
import shutil
import signal
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_malformed import DIRECTORIES, WRONG, campaigns, damaged, paths, recipes

from evomerge.archive.archive import Archive
from evomerge.cli.main import main
from evomerge.recipes.mixture import Chromosome, MixtureRecipe
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.recipes.parameters import single, uniform
from evomerge.scoring.outcome import Outcome
from evomerge.search.controllers import Proposal
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing.archives import PLAN, PROVENANCE

SECONDS = 20  # for what takes a fraction of one

MODULE = "base_model.model.model.layers.0.mlp.down_proj"


def listing(folder):
    """Every path below a folder, and when the files among them were changed."""
    # SQLite keeps its own notes of who reads beside an archive
    kept = (".cache", "archive.db-shm", "archive.db-wal")
    found = [p for p in folder.rglob("*") if not any(part in str(p) for part in kept)]
    return sorted((str(p), p.stat().st_mtime_ns if p.is_file() else 0) for p in found)


def invoke(arguments):
    """Run a command, within the time that it may take."""

    def too_long(*_):
        raise AssertionError(f"{arguments} hangs")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        return CliRunner().invoke(main, arguments)
    finally:
        signal.alarm(0)


def refused(arguments, codes=(2,)):
    """Run a command that must refuse; return its lines."""
    before = listing(Path.cwd())
    done = invoke(arguments)
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in codes, done.output[:300]
    assert "Traceback" not in done.output
    lines = done.output.splitlines()
    assert lines and all(len(line.strip()) > 10 and ": " in line for line in lines), lines
    after = listing(Path.cwd())
    assert after == before, set(after) ^ set(before)
    return lines


# --- texts -------------------------------------------------------------------------------

TENFOLD = ",".join(["*a{0}"] * 10)
LEVELS = "".join(f"a{i}: &a{i} [{TENFOLD.format(i - 1)}]\n" for i in range(1, 12))
MERGES = "".join(f"a{i}: &a{i}\n  <<: [{TENFOLD.format(i - 1)}]\n" for i in range(1, 12))
YAMLS = {
    "nothing": "",
    "a comment": "# nothing",
    "a text": "hello",
    "a list": "- 1\n- 2",
    "a number": "3",
    "two documents": "a: 1\n---\nb: 2",
    "not closed": "{a: [1, 2",
    "a tab": "a:\n\t- 1",
    "NUL": "a: \0",
    "lists of lists of lists": "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + LEVELS,
    "mappings merged in mappings": "a0: &a0 {k: 1}\n" + MERGES,
    "a list within itself": "models: &a [*a]",
    "a mapping within itself": "space: &a {axes: *a}",
    "a key within itself": "a: &a {? *a : 1}",
    "an alias of nothing": "models: *nothing",
    "a list that is deep": "a: " + "[" * 20_000,
    "a mapping that is deep": "a: " + "{a: " * 20_000,
    "indents that are deep": "".join(f"{' ' * i}a:\n" for i in range(2_000)),
    "a number of 10,000 digits": "seed: " + "9" * 10_000,
    "hexadecimal digits": "seed: 0x" + "f" * 10_000,
    "binary digits": "seed: 0b" + "1" * 10_000,
    "minutes and seconds": "seed: 1" + ":59" * 2_000,
    "a command": "a: !!python/object/apply:os.system ['touch pwned']",
    "a module": "a: !!python/module:os",
    "a name": "a: !!python/name:os.system",
    "a new object": "a: !!python/object/new:subprocess.Popen [['touch', 'pwned']]",
    "a tag of one's own": "a: !include /etc/passwd",
    "a whole number of no text": "a: !!int ''",
    "a number of no text": "a: !!float ''",
    "a truth of some text": "a: !!bool maybe",
    "a time of some text": "a: !!timestamp soon",
    "a month of its own": "a: 2026-13-01",
    "a mapping of a list": "a: !!map [1]",
    "a mapping of a text": "a: !!map text",
    "a list of a mapping": "a: !!seq {b: 1}",
    "bytes of no base64": "a: !!binary abc",
    "half of a surrogate pair": 'name: "\\ud800"',
    "a key in a list": "? [a]\n: 1",
    "a key twice": "a: 1\na: 2",
    "a merge of a number": "<<: 3",
    "a set": "!!set {a, b}",
    "pairs": "!!pairs [a: 1, a: 2]",
}
JSONS = {
    "nothing": "",
    "a text": '"hello"',
    "a list": "[]",
    "null": "null",
    "not closed": '{"kind": "parameters"',
    "YAML": "kind: parameters",
    "a list that is deep": "[" * 100_000,
    "a mapping that is deep": '{"a":' * 100_000,
    "models that are deep": '{"models": [' * 300 + "]}" * 300,
    "a number of 10,000 digits": '{"version": %s}' % ("9" * 10_000),
    "a number of 400 digits": '{"version": %s}' % ("9" * 400),
    "NaN": '{"version": NaN}',
    "infinity": '{"version": -Infinity}',
    "half of a surrogate pair": '{"kind": "\\ud800"}',
    "NUL in a name": '{"kind": "a\\u0000b"}',
    "NUL": "\0" * 100,
    "a byte-order mark": '\ufeff{"kind": "soup"}',
    "an empty mapping": "{}",
    "version 99": '{"version": 99, "kind": "parameters"}',
    "a kind in a list": '{"version": 1, "kind": ["parameters"]}',
}


@pytest.mark.parametrize("what", YAMLS)
def test_damaged_yaml(here, what):
    for name in ("x.yaml", "x.yml"):
        Path(name).write_text(YAMLS[what])
    for arguments in (["check", "x.yaml"], ["run", "x.yaml"], ["merge", "x.yml", "out"]):
        for line in refused(arguments):
            assert line.startswith(f"{arguments[1]}: ") and len(line) < 500


@pytest.mark.parametrize("what", JSONS)
def test_damaged_json(here, what):
    Path("r.json").write_text(JSONS[what])
    for line in refused(["merge", "r.json", "out"]):
        assert line.startswith("r.json: ") and len(line) < 500


def test_damaged_settings(here):
    Path("good.yaml").write_text("name: x")
    for text in YAMLS.values():
        if text and len(text) < 120_000:  # what a command line takes
            for line in refused(["check", "good.yaml", "--set", f"space={text}"]):
                assert line.startswith(("good.yaml: ", "--set: "))


@pytest.mark.parametrize("name", ["x.yaml", "x.yml", "r.json"])
def test_files_without_end(here, name):
    """Of a device as many bytes are read as a file may have, and no more."""
    Path(name).symlink_to("/dev/zero")
    command = ["merge", name, "out"] if name != "x.yaml" else ["check", name]
    (line,) = refused(command)
    assert "larger than" in line


MERGEKIT = {
    "models": [
        {"model": "a", "parameters": {"weight": 0.3, "density": [1.0, 0.5]}},
        {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 0.9}, {"value": 0.1}]}},
    ],
    "merge_method": "ties",
    "base_model": "base",
    "parameters": {"density": 0.7, "normalize": True, "lambda": 1.1},
    "dtype": "float32",
    "out_dtype": "bfloat16",
    "tokenizer": {"source": "union"},
    "chat_template": "auto",
}
ROUTED = {
    "version": 1,
    "kind": "routing",
    "models": ["a", "b"],
    "dtype": "bfloat16",
    "frame": 0,
    "path": [[0, 0, 1.0], [1, 1, 0.5]],
}


def configurations():
    """(what was done, the damaged configuration) for every place and every wrong value."""
    for path in paths(MERGEKIT):
        dotted = ".".join(map(str, path))
        for name, wrong in (WRONG | {"gone": "gone"}).items():
            yield f"{dotted} {name}", damaged(MERGEKIT, path, wrong)


def routed():
    for path in paths(ROUTED):
        for name, wrong in (WRONG | {"gone": "gone"}).items():
            yield f"{'.'.join(map(str, path))} {name}", damaged(ROUTED, path, wrong)


def test_there_are_many():
    tables = (ADAPTERS, ARCHIVES, ROWS, YAMLS, JSONS, DIRECTORIES)
    generated = (configurations(), routed(), campaigns(), recipes())
    counts = [len(list(cases)) for cases in (*tables, *generated)]
    assert min(counts) >= 20 and sum(counts) >= 600, counts


def accepted(cases, arguments, file, write):
    """Which of damaged inputs a command takes; all others are refused in lines about the file."""
    taken = set()
    for what, data in cases:
        file.write_text(write(data))
        try:
            lines = refused(arguments)
        except AssertionError as error:
            taken.add(what)
            shutil.rmtree("out", ignore_errors=True)
            assert "Result okay" in str(error), (what, str(error)[:600])
            continue
        assert all(line.startswith(f"{file}: ") for line in lines), (what, lines)
    return taken


def test_damaged_configurations_of_mergekit(here):
    taken = accepted(configurations(), ["merge", "m.yml", "out"], Path("m.yml"), yaml.safe_dump)
    # what is left is a configuration all the same: other templates and filters than there are
    optional = (
        "chat_template",
        "dtype",
        "out_dtype",
        "tokenizer",
        "tokenizer.source",
        "parameters",
    )
    optional += ("models.0", "models.1", "models.0.parameters.density", "parameters.density")
    optional += ("models.0.parameters.density.0", "models.0.parameters.density.1")
    optional += ("parameters.lambda", "parameters.normalize")
    condition = "models.1.parameters.weight.0"
    harmless = {f"{key} gone" for key in (*optional, condition, f"{condition}.filter")}
    assert taken == harmless | {"chat_template looks", f"{condition}.filter looks"}


def test_damaged_recipes_of_routing(here):
    taken = accepted(routed(), ["merge", "r.json", "out"], Path("r.json"), json.dumps)
    assert taken == {"path.0 gone", "path.1 gone"}  # a path all the same


# --- adapters ----------------------------------------------------------------------------


def make_adapter(folder):
    """A LoRA adapter of one module, as PEFT writes it."""
    import torch

    folder.mkdir()
    shape = load_file("a/model.safetensors")[f"{MODULE[17:]}.weight"].shape
    tensors = {
        f"{MODULE}.lora_A.weight": torch.full((2, shape[1]), 0.1),
        f"{MODULE}.lora_B.weight": torch.full((shape[0], 2), 0.1),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def said(**changes):
    """Change adapter_config.json; a value of ... takes a key out."""

    def change(folder):
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return change


def config_text(text):
    return lambda folder: (folder / "adapter_config.json").write_bytes(text)


def factors(change):
    """Rewrite the adapter's tensors through a function of them."""

    def rewrite(folder):
        file = folder / "adapter_model.safetensors"
        tensors = change(load_file(file))
        save_file({k: v.contiguous() for k, v in tensors.items()}, file)

    return rewrite


def blob(change):
    """Rewrite the bytes of the adapter's weights."""

    def rewrite(folder):
        file = folder / "adapter_model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return rewrite


def instead(name, make):
    """Put something else in the place of a file."""

    def put(folder):
        (folder / name).unlink()
        make(folder / name)

    return put


def renamed(old, new):
    return factors(lambda t: {k.replace(old, new): v for k, v in t.items()})


def cast(dtype):
    import torch

    return factors(lambda t: {k: v.to(getattr(torch, dtype)) for k, v in t.items()})


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTERS = {
    "no config": lambda f: (f / CONFIG).unlink(),
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "an empty folder": lambda f: [p.unlink() for p in f.iterdir()],
    "a config of nothing": config_text(b""),
    "a config of a list": config_text(b"[]"),
    "a config of a number": config_text(b"3"),
    "a config that is cut": config_text(b'{"peft_type": "LORA"'),
    "a config that is deep": config_text(b"[" * 100_000),
    "a config of digits": config_text(b'{"lora_alpha": %s}' % (b"9" * 10_000)),
    "a config of no UTF-8": config_text(b'{"\xff": 1}'),
    "a config of NUL": config_text(b"\0" * 100),
    "a config that is a pipe": instead(CONFIG, os.mkfifo),
    "a config that is a folder": instead(CONFIG, Path.mkdir),
    "a config that is a device": instead(CONFIG, lambda p: p.symlink_to("/dev/zero")),
    "weights that are a pipe": instead(WEIGHTS, os.mkfifo),
    "weights that are a folder": instead(WEIGHTS, Path.mkdir),
    "weights that are a device": instead(WEIGHTS, lambda p: p.symlink_to("/dev/zero")),
    "a link to nothing": instead(WEIGHTS, lambda p: p.symlink_to("nowhere")),
    "a link to itself": instead(WEIGHTS, lambda p: p.symlink_to(p.name)),
    "no type": said(peft_type=...),
    "another type": said(peft_type="IA3"),
    "a type in a list": said(peft_type=["LORA"]),
    "no alpha": said(lora_alpha=...),
    "an alpha of text": said(lora_alpha="4"),
    "an alpha of true": said(lora_alpha=True),
    "an alpha of infinity": said(lora_alpha=float("inf")),
    "an alpha of NaN": said(lora_alpha=float("nan")),
    "an alpha of a list": said(lora_alpha=[4]),
    "an alpha of 200 digits": said(lora_alpha=10**309),
    "patterns in a list": said(alpha_pattern=["down_proj"]),
    "a pattern that is none": said(alpha_pattern={"(": 4}),
    "a pattern of text": said(alpha_pattern={"down_proj": "4"}),
    "DoRA": said(use_dora=True),
    "DoRA in a list": said(use_dora=[True]),
    "a bias": said(bias="all"),
    "a bias of a mapping": said(bias={"a": 1}),
    "layers that are repeated": said(layer_replication=[[0, 1]]),
    "a foreign shape": factors(lambda t: {k: v[:, :1] for k, v in t.items()}),
    "one factor": factors(lambda t: dict(list(t.items())[:1])),
    "no factor": factors(lambda t: {}),
    "factors of one dimension": factors(lambda t: {k: v.reshape(-1) for k, v in t.items()}),
    "factors of no rank": factors(
        lambda t: {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in t.items()}
    ),
    "factors of two ranks": factors(lambda t: {k: v[:1] for k, v in t.items()}),
    "another module": renamed("down_proj", "sideways_proj"),
    "no prefix": renamed("base_model.model.", ""),
    "another kind of factor": renamed("lora_A", "lora_C"),
    "whole numbers": cast("int32"),
    "bytes": cast("uint8"),
    "numbers of 8 bits": cast("float8_e4m3fn"),
    "cut to nothing": blob(lambda b: b""),
    "cut in the header": blob(lambda b: b[:50]),
    "cut in the data": blob(lambda b: b[:-1]),
    "bytes behind": blob(lambda b: b + b"\0"),
    "text": blob(lambda b: b"hello " * 100),
    "a pickle": blob(lambda b: b"cos\nsystem\n(S'touch pwned'\ntR."),
}


@pytest.mark.parametrize("what", ADAPTERS)
def test_damaged_adapters(here, what):
    folder = make_adapter(here / "lora")
    ADAPTERS[what](folder)
    recipe = uniform(("a+lora", "b"), "bfloat16").to_json()
    Path("r.json").write_text(json.dumps(recipe))
    (line,) = refused(["merge", "r.json", "out"])
    assert line.startswith("r.json: models.0: lora: ")


def test_the_undamaged_adapter_is_merged(here):
    make_adapter(here / "lora")
    Path("r.json").write_text(json.dumps(uniform(("a+lora", "b"), "bfloat16").to_json()))
    done = invoke(["merge", "r.json", "out"])
    assert done.exit_code == 0, done.output


# --- runs' directories -------------------------------------------------------------------


def make_run(folder):
    """A finished run over the models a and b: two baselines, a mixture, one that failed."""
    folder.mkdir()
    opened = {name: open_source(name) for name in "ab"}
    sources = {
        n: {"name": n, "path": str(s.path.resolve()), "sha256": digest(s).sha256}
        for n, s in opened.items()
    }
    with closing(Archive(folder / "archive.db", write=True)) as archive:
        items = [(name, "search", n, "") for name in ("accuracy", "length") for n in range(4)]
        plan = PLAN | {"sources": {"base": None, "models": {}, "trust_remote_code": False}}
        archive.begin("example", plan, PROVENANCE | {"sources": sources}, items)
        for name in "ab":
            archive.add_baseline(f"recipe {name}", single(name, "bfloat16"), name)
        index = ParameterIndex({n: t.elements for n, t in opened["a"].tensors.items()})
        edges, rows = np.array([0, 9, index.total]), np.array([[0.3, 0.7], [0.5, 0.5]])
        mixture = MixtureRecipe(
            ("a", "b"), (Chromosome(None, edges, rows),), "bfloat16", index.hash
        )
        for number, recipe in enumerate((mixture, uniform(("a", "b"), "bfloat16"))):
            genome = Proposal(np.array([0.25 * number]))
            archive.propose(1, [genome], [(f"recipe {number}", recipe)])
        for number, mean in enumerate((0.25, 0.5, 0.75), start=1):
            spread = np.array([-0.25, 0.25, -0.25, 0.25], np.float32)
            scores = {"accuracy": mean + spread, "length": 10 * mean + spread}
            outcome = Outcome("ok", "", scores, 0.1, 2.0, "", "node/1/cpu")
            archive.record(number, outcome, mean)
        archive.record(4, Outcome("failed", "a merged tensor is not finite"), None)
        archive.set_state("finished")


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """Such a run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        make_run(folder / "run")
    return folder / "run"


def sql(*statements):
    """Change an archive behind its back."""

    def change(file):
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            for statement in statements:
                statement = (statement,) if isinstance(statement, str) else statement
                connection.execute(*statement)

    return change


def in_json(column, change):
    """Change what a column of `campaign` has in JSON."""

    def rewrite(file):
        with closing(sqlite3.connect(file)) as connection, connection:
            ((text,),) = connection.execute(f"SELECT {column} FROM campaign")
            data = json.loads(text)
            change(data)
            connection.execute(f"UPDATE campaign SET {column} = ?", (json.dumps(data),))

    return rewrite


def put(*path, value):
    """Put a value at a path of nested data; ... takes the place out."""

    def change(data):
        for key in path[:-1]:
            data = data[key]
        if value is ...:
            del data[path[-1]]
        else:
            data[path[-1]] = value

    return change


def bytes_of(change):
    return lambda file: file.write_bytes(change(file.read_bytes()))


def replaced(make):
    def change(file):
        file.unlink()
        make(file)

    return change


def other_database(file):
    file.unlink()
    sql("CREATE TABLE notes (text)", "PRAGMA user_version = 1")(file)


def view_for_table(table, query):
    """Put a view that gives rows for ever in the place of a table."""
    forever = f"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) {query}"
    return sql(f"ALTER TABLE {table} RENAME TO hidden", f"CREATE VIEW {table} AS {forever}")


FOREVER = (
    "CREATE VIEW pareto_front AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
    " SELECT x AS id, '' AS recipe_id, '' AS origin, NULL AS label, 'accuracy' AS objective,"
    " 1.0 AS mean, 0.0 AS stderr, 1 AS items FROM n"
)

# What no command gets past: the file, its tables, or the campaign's own row.
ARCHIVES = {
    "empty": bytes_of(lambda b: b""),
    "cut to a page": bytes_of(lambda b: b[:4096]),
    "cut to half": bytes_of(lambda b: b[: len(b) // 2]),
    "no database": bytes_of(lambda b: b"hello " * 1000),
    "NUL": bytes_of(lambda b: bytes(len(b))),
    "another header": bytes_of(lambda b: b"SQLite format 4\0" + b[16:]),
    "another database": other_database,
    "a folder": replaced(Path.mkdir),
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda p: p.symlink_to("/dev/zero")),
    "not there": lambda file: file.unlink(),
    "a later version": sql("PRAGMA user_version = 99"),
    "a version below zero": sql("PRAGMA user_version = -1"),
    "an earlier version": sql("PRAGMA user_version = 0"),
    "not begun": sql("DELETE FROM campaign"),
    "a trigger": sql("CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM outcomes; END"),
    "a view of all numbers": sql("DROP VIEW pareto_front", FOREVER),
    "candidates for ever": view_for_table("candidates", "SELECT h.* FROM hidden h, n"),
    "outcomes for ever": view_for_table("outcomes", "SELECT h.* FROM hidden h, n"),
    "a campaign for ever": view_for_table("campaign", "SELECT h.* FROM hidden h, n"),
    "a column more": sql("ALTER TABLE outcomes ADD COLUMN more"),
    "a column gone": sql("DROP VIEW pareto_front", "ALTER TABLE candidates DROP COLUMN label"),
    "a table as a virtual one": sql(
        "DROP VIEW pareto_front", "DROP TABLE scores", "CREATE VIRTUAL TABLE scores USING fts5(x)"
    ),
    "a computed column": sql(
        "DROP TABLE starts",
        "CREATE TABLE starts (id INTEGER PRIMARY KEY, at REAL, machine TEXT,"
        " seconds REAL AS (length(hex(zeroblob(400000000)))))",
    ),
}
for table in (
    *("campaign", "starts", "candidates", "events", "outcomes", "scores", "finals", "items"),
    *("item_scores", "answers"),
):
    ARCHIVES[f"no {table}"] = sql("DROP VIEW pareto_front", f"DROP TABLE {table}")
for text in ("", "{", "[]", "3", "null", '"x"', "[" * 100_000, "9" * 10_000):
    for column in ("plan", "provenance"):
        ARCHIVES[f"{column}: {text[:12]}"] = sql((f"UPDATE campaign SET {column} = ?", (text,)))
ARCHIVES |= {
    "a plan of bytes": sql("UPDATE campaign SET plan = x'ff00'"),
    "a provenance of bytes": sql("UPDATE campaign SET provenance = x'80'"),
    "no sources": in_json("provenance", put("sources", value=...)),
    "sources of a list": in_json("provenance", put("sources", value=[])),
    "a source of text": in_json("provenance", put("sources", "a", value="a")),
    "a source of no path": in_json("provenance", put("sources", "a", "path", value=...)),
    "a source of more": in_json("provenance", put("sources", "a", "more", value=1)),
    "a name of numbers": in_json("provenance", put("sources", "a", "name", value=3)),
    "a path in a list": in_json("provenance", put("sources", "a", "path", value=["a"])),
    "a hash of nothing": in_json("provenance", put("sources", "a", "sha256", value=None)),
    "no objectives": in_json("provenance", put("objectives", value=...)),
    "objectives of text": in_json("provenance", put("objectives", value="accuracy")),
    "an objective of text": in_json("provenance", put("objectives", 0, value="accuracy")),
    "an objective of more": in_json("provenance", put("objectives", 0, "more", value=1)),
    "an objective of no name": in_json("provenance", put("objectives", 0, "name", value=...)),
    "an objective called 3": in_json("provenance", put("objectives", 0, "name", value=3)),
    "a direction of 3": in_json("provenance", put("objectives", 0, "direction", value=3)),
    "a weight of text": in_json("provenance", put("objectives", 0, "weight", value="1")),
}
# What a command gets past that does not need it: (where, the commands that are to refuse).
READ = ["status", "front", "show", "export"]
ROWS = {
    "a plan of NaN": (sql("UPDATE campaign SET plan = '{\"a\": NaN}'"), ["status"]),
    "no budget": (in_json("plan", put("budget", value=...)), ["status"]),
    "a budget of text": (in_json("plan", put("budget", value="all")), ["status"]),
    "evaluations of text": (in_json("plan", put("budget", "evaluations", value="8")), ["status"]),
    "evaluations of a list": (in_json("plan", put("budget", "evaluations", value=[])), ["status"]),
    "hours of text": (in_json("plan", put("budget", "hours", value="1")), ["status"]),
    "stages of numbers": (in_json("plan", put("stages", value=[3])), ["status"]),
    "a stage of no budget": (in_json("plan", put("stages", value=[{"name": "x"}])), ["status"]),
    "a state of bytes": (sql("UPDATE campaign SET state = x'00'"), ["status"]),
    "a name of bytes": (sql("UPDATE campaign SET name = x'ff'"), ["status"]),
    "seconds without end": (sql("INSERT INTO starts VALUES (9, 0, 9e999, '{}')"), []),
    "a mean of text": (sql("UPDATE scores SET mean = 'much'"), ["status", "front", "show"]),
    "a mean of bytes": (sql("UPDATE scores SET mean = x'00'"), ["status", "front", "show"]),
    "an error of text": (sql("UPDATE scores SET stderr = 'much'"), ["status", "front", "show"]),
    "items of text": (sql("UPDATE scores SET items = 'many'"), ["status", "front", "show"]),
    "a value of text": (sql("UPDATE outcomes SET value = 'much'"), ["status", "front", "show"]),
    "a value of bytes": (sql("UPDATE outcomes SET value = x'00'"), ["status", "front", "show"]),
    "a status of bytes": (
        sql("UPDATE outcomes SET status = x'00' WHERE candidate_id = 4"),
        ["status"],
    ),
    "another objective": (
        sql("UPDATE scores SET objective = 'other' WHERE objective = 'length'"),
        [],
    ),
    "a worker of bytes": (sql("UPDATE outcomes SET worker = x'ff'"), ["show"]),
    "a violation of text": (sql("UPDATE outcomes SET violation = 'some'"), ["show"]),
    "parents of text": (sql("UPDATE candidates SET parents = 'x'"), READ),
    "parents of a number": (sql("UPDATE candidates SET parents = '3'"), READ),
    "parents that are deep": (
        sql(("UPDATE candidates SET parents = ?", ("[" * 100_000,))),
        READ,
    ),
    "parents of texts": (sql("UPDATE candidates SET parents = '[\"x\"]'"), ["show"]),
    "a genome of 3 bytes": (sql("UPDATE candidates SET genome = x'000000'"), READ),
    "a genome of text": (sql("UPDATE candidates SET genome = 'x'"), READ),
    "an ordinal of text": (sql("UPDATE candidates SET ordinal = 'x' WHERE id = 3"), ["status"]),
    "a stage of text": (sql("UPDATE candidates SET stage = 'x' WHERE id = 3"), []),
    "a stage without end": (sql(f"UPDATE candidates SET stage = {2**62} WHERE id = 3"), []),
    "a label of bytes": (sql("UPDATE candidates SET label = x'ff' WHERE id < 3"), ["front"]),
    "a final of bytes": (sql("INSERT INTO finals VALUES (3, 'x', x'00', 0, '')"), ["show"]),
    "an answer of bytes": (
        sql("INSERT INTO answers VALUES (3, 'accuracy', 'heldout', 0, x'ff')"),
        ["show"],
    ),
    "recipes of nothing": (sql("UPDATE candidates SET recipe = ''"), ["show", "export"]),
    "recipes of a list": (sql("UPDATE candidates SET recipe = '[]'"), ["show", "export"]),
    "recipes of bytes": (sql("UPDATE candidates SET recipe = x'ff'"), ["show", "export"]),
    "recipes of a soup": (
        sql('UPDATE candidates SET recipe = \'{"kind": "soup"}\''),
        ["show", "export"],
    ),
    "recipes that are deep": (
        sql(("UPDATE candidates SET recipe = ?", ("[" * 100_000,))),
        ["show", "export"],
    ),
    "segments of nothing": (sql("UPDATE candidates SET segments = x''"), ["show", "export"]),
    "segments of text": (sql("UPDATE candidates SET segments = 'x'"), ["show", "export"]),
    "segments of no zlib": (sql("UPDATE candidates SET segments = x'000102'"), ["show", "export"]),
    "segments of too few": (
        sql(("UPDATE candidates SET segments = ?", (zlib.compress(bytes(55)),))),
        ["show", "export"],
    ),
    "segments of too many": (
        sql(("UPDATE candidates SET segments = ?", (zlib.compress(bytes(57)),))),
        ["show", "export"],
    ),
    "segments that go back": (
        sql(("UPDATE candidates SET segments = ?", (zlib.compress(bytes(56)),))),
        ["show", "export"],
    ),
    "segments that are a bomb": (
        sql(("UPDATE candidates SET segments = ?", (zlib.compress(bytes(1 << 28), 9),))),
        ["show", "export"],
    ),
    "a bomb that is announced": (
        sql(
            ("UPDATE candidates SET segments = ?", (zlib.compress(bytes(1 << 28), 9),)),
            f"UPDATE candidates SET recipe = replace(recipe, '\"segments\": 2', {2**40})",
        ),
        ["show", "export"],
    ),
    "segments fewer than none": (
        sql(
            "UPDATE candidates SET recipe = replace(recipe, '\"segments\": 2', '\"segments\": -2')"
        ),
        ["show", "export"],
    ),
    "segments of a list": (
        sql(
            "UPDATE candidates SET recipe = replace(recipe, '\"segments\": 2', '\"segments\": []')"
        ),
        ["show", "export"],
    ),
}

COMMANDS = {
    "status": ["status", "run"],
    "front": ["front", "run"],
    "show": ["show", "run", "3"],
    "export": ["export", "run", "out", "--pick", "3"],
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_damaged_archives(here, finished, what):
    shutil.copytree(finished, "run")
    ARCHIVES[what](Path("run/archive.db"))
    for arguments in COMMANDS.values():
        refused(arguments, codes=(1, 2))


@pytest.mark.parametrize("what", ROWS)
def test_damaged_rows_of_archives(here, finished, what):
    shutil.copytree(finished, "run")
    change, refuse = ROWS[what]
    change(Path("run/archive.db"))
    for name, arguments in COMMANDS.items():
        if name in refuse:
            refused(arguments, codes=(1, 2))
        elif name != "export":
            done = invoke(arguments)
            assert done.exit_code == 0 or isinstance(done.exception, SystemExit), done.exception
            assert "Traceback" not in done.output


@pytest.mark.parametrize("what", ROWS)
def test_damaged_rows_are_reported_or_refused_in_a_line(here, finished, monkeypatch, what):
    monkeypatch.setattr("evomerge.report.report.page", lambda *of: "")
    shutil.copytree(finished, "run")
    ROWS[what][0](Path("run/archive.db"))
    done = invoke(["report", "run"])
    assert done.exit_code in (0, 1, 2), done.exception
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.output.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_undamaged_archive_is_read(here, finished, command):
    shutil.copytree(finished, "run")
    done = invoke(COMMANDS[command])
    assert done.exit_code == 0, (done.output, done.exception)
    more = [["--json"]] if command != "export" else []
    for options in more:
        done = invoke(COMMANDS[command] + options)
        assert done.exit_code == 0 and json.loads(done.output)


# --- names that would be paths -----------------------------------------------------------

ESCAPES = ["../x", "../../x", "/tmp/evomerge-escaped", "a/b", "..", ".", "~", ".hidden", "a\\b"]


@pytest.mark.parametrize("name", [*ESCAPES, "", "a\nb", "x" * 5000])
def test_a_campaign_s_name_is_no_path(here, name):
    """It names the folder under runs/."""
    Path("x.yaml").write_text(yaml.safe_dump({"name": name}))
    lines = refused(["run", "x.yaml"])
    if len(name) < 5000:
        assert any(line.startswith("x.yaml: name: ") for line in lines)


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_in_an_archive_is_a_path_to_write_to(here, finished, monkeypatch, name):
    """Whatever it calls itself, its candidates, its objectives: an export writes OUT alone."""
    (here / "work").mkdir()
    monkeypatch.chdir(here / "work")
    shutil.copytree(finished, "run")
    file = Path("run/archive.db")
    in_json("provenance", put("objectives", 1, "name", value=name))(file)
    in_json("plan", put("name", value=name))(file)
    sql(
        ("UPDATE campaign SET name = ?", (name,)),
        ("UPDATE candidates SET recipe_id = ?, label = ?", (name, name)),
        ("UPDATE scores SET objective = ? WHERE objective = 'length'", (name,)),
        ("UPDATE outcomes SET worker = ?, reason = ?", (name, name)),
    )(file)
    before = {path for path, _ in listing(here)}
    for arguments in COMMANDS.values():
        done = invoke(arguments)
        assert done.exit_code == 0, (done.output, done.exception)
    new = {path for path, _ in listing(here)} - before
    assert new and all(path.startswith(f"{here}/work/out") for path in new)
    assert not Path("/tmp/evomerge-escaped").exists()
