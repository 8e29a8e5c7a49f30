"""The rules of the house: imports run one way, one library one room, nothing heavy in the core.

Floors, circles and rooms are computed from the imports; no list of modules is kept by hand.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import typing
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import evomerge
from evomerge.cli.main import main

PACKAGE = Path(evomerge.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Packages that make up one idea each; a library of these needs several files of one room.
ROOM_OF_LIBRARY = {
    "cma": "evomerge.search",
    "botorch": "evomerge.search",
    "optuna": "evomerge.search",
    "threadpoolctl": "evomerge.search",
    "moocore": "evomerge.search",
    "ray": "evomerge.workers",
    "vllm": "evomerge.engines",
    "torchao": "evomerge.merging",
    "diffusers": "evomerge.sources",
    "sentence_transformers": "evomerge.sources",
    "lm_eval": "evomerge.scoring",
    "evaluate": "evomerge.scoring",
    "sqlite3": "evomerge.archive",
    "sqlite_utils": "evomerge.archive",
    "click": "evomerge.cli",
    "rich": "evomerge.cli",
    "xxhash": "evomerge.kernels",
    "huggingface_hub": "evomerge.sources",
    "jinja2": "evomerge.report",
    "sklearn": "evomerge.report",
    "vl_convert": "evomerge.report",
    "mlflow": "evomerge.tracking",
    "tensorboard": "evomerge.tracking",
    "trackio": "evomerge.tracking",
    "wandb": "evomerge.tracking",
    "requests": "evomerge.scoring",
}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports_of(file: Path) -> set[str]:
    """Every module that a file imports, at its top or within."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


def room_of(module: str) -> str:
    """The package below evomerge that a module is in, or the module itself on the ground."""
    return ".".join(module.split(".")[:2])


ARROWS = {
    module: {other for other in imports_of(file) if other in MODULES and other != module}
    for module, file in MODULES.items()
}


def rooms() -> dict[str, set[str]]:
    found = defaultdict(set)
    for module, others in ARROWS.items():
        found[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
    return dict(found)


def floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """How many steps below each lies the ground; CycleError where arrows go round."""
    found: dict[str, int] = {}
    for node in TopologicalSorter(arrows).static_order():
        found[node] = max((found[other] + 1 for other in arrows.get(node, ())), default=0)
    return found


def test_imports_make_no_circle_among_files():
    try:
        heights = floors(ARROWS)
    except CycleError as error:
        pytest.fail(f"files import one another in a circle: {' -> '.join(error.args[1])}")
    assert len(heights) == len(FILES)


def test_imports_run_one_way_between_packages():
    try:
        heights = floors(rooms())
    except CycleError as error:
        pytest.fail(f"packages import one another in a circle: {' -> '.join(error.args[1])}")
    assert heights["evomerge.errors"] == 0 and heights["evomerge.cli"] == max(
        height for room, height in heights.items() if room not in _OUTSIDE
    )


_OUTSIDE = ("evomerge.testing", "evomerge.__main__", "evomerge")  # which nothing of ours needs


def test_nothing_but_tests_needs_what_is_for_tests():
    users = {m for m, others in ARROWS.items() if any("evomerge.testing" in o for o in others)}
    assert {room_of(module) for module in users} <= {"evomerge.testing"}


def test_at_most_a_dozen_modules_lie_on_the_ground():
    ground = [f.name for f in PACKAGE.glob("*.py") if f.name not in ("__init__.py", "__main__.py")]
    assert len(ground) <= 12, ground


def test_each_library_has_one_room():
    astray = [
        f"{library} in {module}"
        for module, file in MODULES.items()
        for library in {name.split(".")[0] for name in imports_of(file)}
        if library in ROOM_OF_LIBRARY and room_of(module) != ROOM_OF_LIBRARY[library]
    ]
    assert astray == []


def test_every_dependency_is_imported_and_every_import_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    extras = {
        name: extras[name] for name in extras if name not in ("dev", "notebooks", "dashboards")
    }
    needed = [*project["dependencies"], *(entry for extra in extras.values() for entry in extra)]
    names = {re.split(r"[\[<>=]", entry)[0].lower() for entry in needed}
    by_module = metadata.packages_distributions()
    imported = {name.split(".")[0] for file in FILES for name in imports_of(file)}
    used = {
        distribution.lower().replace("_", "-")
        for module in imported - set(sys.stdlib_module_names) - {"evomerge"}
        for distribution in by_module.get(module, [module])
    }
    names = {name.replace("_", "-") for name in names}
    assert names - used == set()
    # what our dependencies promise to bring along: pydantic its core and its annotations,
    # transformers its tokenizers, torch for CUDA its Triton, lm-eval what its metrics come from,
    # MLflow its parts
    brought = {"pydantic-core", "annotated-types", "tokenizers", "triton", "evaluate"}
    assert used - names <= brought | {"mlflow-skinny", "mlflow-tracing"}


def test_no_file_is_longer_than_one_idea():
    long = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in FILES}
    assert {name: count for name, count in long.items() if count > 380} == {}


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh process has imported after some code."""
    heavy = [
        "torch",
        "ray",
        "lm_eval",
        "matplotlib",
        "pandas",
        "transformers",
        "datasets",
        "pydantic",
        "numpy",
        "rich",
    ]
    lines = f"{code}\nimport sys\nprint(*({heavy!r} & sys.modules.keys()))".replace(
        f"{heavy!r} &", f"set({heavy!r}) &"
    )
    run = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split()) if run.stdout.strip() else set()


def test_the_core_imports_without_what_it_does_not_need():
    """No ray, lm-eval, plotting, or pandas for a recipe, a merge, an archive or a controller."""
    code = (
        "import evomerge.archive.archive, evomerge.campaign.runner, evomerge.config.validate\n"
        "import evomerge.merging.merger, evomerge.workers.pool\n"
        "from evomerge.search.controllers import CONTROLLERS; CONTROLLERS.all()\n"
        "from evomerge.merging.methods import METHODS; METHODS.all()"
    )
    heavy = {"ray", "lm_eval", "matplotlib", "pandas", "transformers", "datasets"}
    assert loaded_by(code) & heavy == set()


def test_what_reads_an_archive_or_a_campaign_file_loads_no_torch():
    rooms_without = ("archive", "config", "search", "scoring", "sources", "recipes")
    modules = [m for m in MODULES if m.split(".")[1:2] and m.split(".")[1] in rooms_without]
    modules += [m for m in MODULES if m.count(".") == 1 and not m.endswith("__main__")]
    ground = [m for m in modules if MODULES[m].name != "__init__.py" or m.count(".") > 1]
    code = "\n".join(f"import {module}" for module in ground)
    assert "torch" not in loaded_by(code)


def test_help_imports_nothing_heavy():
    code = (
        "from click.testing import CliRunner; from evomerge.cli.main import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
    )
    assert loaded_by(code) == set()


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name):
    command = main.commands[name]
    assert command.help and f"evomerge {name}" in command.help
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_list_names_what_there_is():
    done = CliRunner().invoke(main, ["list"])
    assert done.exit_code == 0
    for name in ("ties", "slerp", "mixture", "routing", "cmaes", "random", "function"):
        assert re.search(rf"^  {name}: \S", done.output, re.M)
    assert '"name": "ties"' in CliRunner().invoke(main, ["list", "methods", "--json"]).output


def public_definitions():
    for file in FILES:
        if file.name == "__main__.py":
            continue
        for node in ast.parse(file.read_text()).body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_"):
                yield file, node


def test_every_public_function_and_class_says_what_it_does():
    silent = [f"{f.name}: {n.name}" for f, n in public_definitions() if not ast.get_docstring(n)]
    assert silent == []


def is_exempt(file: Path, node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Protocols and typed dictionaries have no body to run; commands have examples of their own.

    Nor can a Triton program be called.
    """
    thing = getattr(importlib.import_module(module_of(file)), node.name, None)
    is_law = node.name.startswith("law_")  # run for every controller and method by test_laws.py
    is_command = isinstance(thing, click.Command)
    is_program = type(thing).__module__.startswith("triton")
    return (
        is_law
        or is_command
        or is_program
        or typing.is_typeddict(thing)
        or getattr(thing, "_is_protocol", False)
    )


def test_every_public_docstring_has_an_example():
    """They are run as doctests, see tests/test_examples.py."""
    without = [
        f"{file.relative_to(PACKAGE)}: {node.name}"
        for file, node in public_definitions()
        if not is_exempt(file, node) and ">>>" not in (ast.get_docstring(node) or "")
    ]
    assert without == []


def test_no_signature_carries_the_file_or_the_key_of_a_fault():
    carrying = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
                if {"file", "key"} <= names:
                    carrying.append(f"{file.name}: {node.name}")
    assert carrying == []


def test_sql_is_written_in_the_archive_alone():
    pattern = re.compile(r"\b(SELECT|INSERT INTO|UPDATE \w+ SET|DELETE FROM)\b")
    outside = [
        str(file.relative_to(PACKAGE))
        for file in FILES
        if file.parent.name != "archive" and pattern.search(file.read_text())
    ]
    assert outside == []


def test_the_package_carries_what_it_compiles_and_its_types(tmp_path):
    """native.cpp, py.typed and a report's parts are no modules: an install might leave them out."""
    command = "setup(script_args=['-q', 'build', '--build-base', sys.argv[1]])"
    code = f"import sys; from setuptools import setup; {command}"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    built = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    others = {f.name for f in PACKAGE.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    page = {"page.html", "style.css", "draw.js"}
    assert others == {"native.cpp", "py.typed"} | page and others <= built


def test_commands_are_a_thin_skin():
    """No command is longer than a screen."""
    long = {
        name: len(inspect.getsource(command.callback).splitlines())
        for name, command in main.commands.items()
        if isinstance(command, click.Command) and command.callback
    }
    assert {name: count for name, count in long.items() if count > 50} == {}
