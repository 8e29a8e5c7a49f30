"""YAML, read strictly: no key twice, and every number as the number it is."""

import re
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import BadInput, Fault

_MERGE = "tag:yaml.org,2002:merge"  # `<<: *other`, which may stand several times


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, and reads 1e-3 as a number.

    >>> yaml.load("sigma: 1e-3", Loader=StrictLoader)
    {'sigma': 0.001}
    """


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool):
            continue
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)

# YAML 1.1, which PyYAML follows, asks for a dot and a sign in 1.0e-3; people write 1e-3
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path | str) -> Any:
    """Return a YAML file's content.

    Raises:
        BadInput: there is no such file, or it is not YAML; the fault names the line.

    >>> read_yaml("nowhere.yaml")
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere.yaml: cannot be read (No such file or directory); check the \
path
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=StrictLoader)
    except OSError as error:
        wrong = f"cannot be read ({error.strerror or error})"
        raise BadInput(Fault("", wrong, "check the path", str(path))) from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}"
        wrong = error.problem or "this is not YAML"
        folded = "chomping or indentation" in wrong
        mend = "quote a text that begins with > or |" if folded else "mend the YAML"
        raise BadInput(Fault(line, wrong, mend, str(path))) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        raise BadInput(Fault("", "this is not YAML", "mend the YAML", str(path))) from None


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML holds.

    Raises:
        ValueError: it is not YAML.

    >>> parse_yaml("{sigma: 1e-3}")
    {'sigma': 0.001}
    """
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError("this is not YAML") from error
