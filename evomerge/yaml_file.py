"""A campaign file's text: YAML read strictly, and `--set` overrides put in."""

import re
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import BadInput, Fault


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, and reads 1e-3 as the number it is."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, str | int | float | bool) and key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark
            )
        seen.add(key if isinstance(key, str | int | float | bool) else id(key_node))
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path | str) -> Any:
    """Return a YAML file's content.

    Raises:
        BadInput: there is no such file, or it is not YAML; the fault names the line.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        wrong = f"cannot be read ({error.strerror or error})"
        raise BadInput(Fault(str(path), "", wrong, "check the path")) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else ""
        wrong = getattr(error, "problem", None) or "this is not YAML"
        folded = "chomping or indentation" in wrong
        mend = "quote a text that begins with > or |" if folded else "mend the YAML"
        raise BadInput(Fault(str(path), where, wrong, mend)) from None
