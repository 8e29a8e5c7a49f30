"""The rules of the house: imports run one way, one library one room, nothing heavy in the core."""

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from click.testing import CliRunner

import evomerge
from evomerge.cli.main import main

PACKAGE = Path(evomerge.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A module may import modules of its own floor and of those below it.
FLOORS = [
    {
        "adapters",
        "campaign_file",
        "checkpoints",
        "errors",
        "factories",
        "families",
        "layout",
        "lock",
    }
    | {"machine", "magnitudes", "philox", "registry", "schema", "scores"},
    {"recipe", "lineage", "mixture", "pareto", "checksum", "routing"},
    {"axes", "operators", "paths", "spaces", "controllers", "sources", "soups"},
    {"form", "mergeable", "stages"},
    {"folding", "kernels", "items", "methods", "weights"},
    {"fast", "native", "precomputed", "prepare"},
    {"mixing"},
    {"merge", "lm_eval"},
    {"costs", "fitness", "rerouted", "resident", "testing"},
    {"archive", "reading", "worker"},
    {"picking"},
    {"pool"},
    {"campaign"},
    {"telling"},
    {"replay"},
    {"runner"},
    {"catalogue", "config", "mergekit", "mergekit_in", "passthrough", "tables", "views"},
    {"card", "estimate", "export", "progress"},
    {"candidates"},
    {"adoption", "earlier", "hashing", "nesting"},
    {"check"},
    {"session"},
    {"cli"},
]
ROOMS = {
    "cma": {"controllers"},
    "ray": {"pool"},
    "lm_eval": {"lm_eval"},
    "sqlite_utils": {"reading"},
    "sqlite3": {"reading"},
    "moocore": {"pareto"},
    "optuna": {"controllers"},
    "pydantic": {"config", "form"},
    "click": {"cli"},
    "tabulate": {"tables"},
    "xxhash": {"checksum"},
    "huggingface_hub": {"sources"},
    "threadpoolctl": {"controllers"},
}


def module_of(file):
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(file, top_level_only=False):
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names if node.module == "evomerge")


def floor(module):
    return next(i for i, names in enumerate(FLOORS) if module in names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    module = module_of(file)
    if module == "__init__":
        assert list(imports(file)) == []
        return
    for name in imports(file):
        if name.startswith("evomerge."):
            other = name.split(".")[1]
            if other in ("__version__", module):
                continue
            assert floor(other) <= floor(module), f"{module} imports {other}"
        library = name.split(".")[0]
        assert module in ROOMS.get(library, {module}), f"{library} is imported in {module}"


def test_every_module_has_its_floor():
    assert {module_of(f) for f in FILES} - {"__init__"} == set().union(*FLOORS)


def test_no_file_is_longer_than_one_idea():
    long = {f.name: len(f.read_text().splitlines()) for f in FILES}
    allowed = {"parameters.py": 350, "reading.py": 360}
    assert {n: c for n, c in long.items() if c > allowed.get(n, 340)} == {}


def test_the_core_imports_without_what_it_does_not_need():
    """No ray, lm-eval, plotting, or pandas for a recipe, a merge, an archive or a controller."""
    code = (
        "import sys\n"
        "import evomerge.archive, evomerge.campaign, evomerge.config, evomerge.merge\n"
        "from evomerge.controllers import CONTROLLERS; CONTROLLERS.all()\n"
        "from evomerge.operators import OPERATORS; OPERATORS.all()\n"
        "heavy = {'ray', 'lm_eval', 'matplotlib', 'pandas', 'transformers', 'datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from click.testing import CliRunner; from evomerge.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'numpy', 'ray', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_and_stands_in_the_readme(name):
    command = main.commands[name]
    assert command.help and CliRunner().invoke(main, [name, "--help"]).exit_code == 0
    assert f"evomerge {name}" in (ROOT / "README.md").read_text()


def test_list_names_what_there_is():
    done = CliRunner().invoke(main, ["list"])
    assert done.exit_code == 0
    for name in ("ties", "slerp", "mixture", "routing", "cmaes", "random", "function"):
        assert re.search(rf"^  {name}: \S", done.output, re.M)
    assert '"name": "ties"' in CliRunner().invoke(main, ["list", "methods", "--json"]).output


def test_every_public_function_says_what_it_does():
    silent = []
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{file.name}: {node.name}")
    assert silent == []


def test_the_package_carries_what_it_compiles():
    """native.cpp is no module, so an install would leave it out unseen."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    carried = project["tool"]["setuptools"]["package-data"]["evomerge"]
    others = [f for f in PACKAGE.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")]
    assert others and all(any(fnmatch(f.name, p) for p in carried) for f in others)
