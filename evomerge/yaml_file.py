"""YAML and JSON of unknown hands: no key twice, every number as the number it is, none too large.

A text of a few lines can ask for more memory than there is: aliases of aliases, and numbers of many
digits. So what would be made is counted before it is made.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import BadInput, Fault

MOST_JSON = 256 * 1024**2  # bytes; the tokenizers of the largest vocabularies take some 30 MB

_MOST_YAML = 16 * 1024**2  # bytes, which take PyYAML the better part of a minute

_MOST_NODES = 1_000_000  # with aliases written out; a file without them has about one in ten bytes

_MOST_BITS = 1023  # of a whole number that may become a float

_MERGE = "tag:yaml.org,2002:merge"  # `<<: *other`, which may stand several times


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, and reads 1e-3 as a number.

    >>> yaml.load("sigma: 1e-3", Loader=StrictLoader)
    {'sigma': 0.001}
    """

    def get_single_node(self) -> yaml.Node | None:
        """Return the document's node, once it is known to be of a size that can be constructed."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _expanded(node, {}) > _MOST_NODES:
            raise yaml.MarkedYAMLError(problem="its aliases stand for too much")
        return node


def _expanded(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return how many nodes there are below one and with it, aliases written out.

    Args:
        node: of a document, whose aliases are the very nodes that they stand for.
        known: what was returned for nodes by their id; None for those that are being counted.
    """
    key = id(node)
    if key in known:
        count = known[key]
        if count is None:
            problem = "an alias stands within what it stands for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return count
    known[key] = None
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    elif any("\ud800" <= letter <= "\udfff" for letter in node.value):
        problem = "a text has half of a surrogate pair"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    total = known[key] = 1 + sum(_expanded(part, known) for part in below)
    return total


def _mapping(loader: StrictLoader, node: yaml.Node) -> dict[Any, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.MarkedYAMLError(problem="this is no mapping", problem_mark=node.start_mark)
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


def _whole(loader: StrictLoader, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > _MOST_BITS:
        raise yaml.MarkedYAMLError(problem="a number is too large", problem_mark=node.start_mark)
    return value


StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)
StrictLoader.add_constructor("tag:yaml.org,2002:int", _whole)

# YAML 1.1, which PyYAML follows, asks for a dot and a sign in 1.0e-3; people write 1e-3
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_text(path: Path | str, most: int) -> str:
    """Return a file's text.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or no UTF-8.

    >>> read_text("/dev/zero", 1000)
    Traceback (most recent call last):
    ValueError: larger than 1000 bytes
    """
    with open(path, "rb") as stream:
        content = stream.read(most + 1)  # a device or a pipe may never end
    if len(content) > most:
        raise ValueError(f"larger than {most} bytes")
    return content.decode()


def parse_json(text: str) -> Any:
    """Return what a text in JSON holds.

    Raises:
        ValueError: it is not JSON, or nests too deeply, or has a number that is too large.

    >>> parse_json('{"sigma": 1e-3}')
    {'sigma': 0.001}
    """
    try:
        return json.loads(text, parse_int=_whole_of)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole_of(text: str) -> int:
    if len(text) > 300:  # digits, which are fewer than _MOST_BITS bits
        raise ValueError("a number is too large")
    return int(text)


def read_yaml(path: Path | str) -> Any:
    """Return a YAML file's content.

    Raises:
        BadInput: there is no such file, or it is not YAML; the fault names the line.

    >>> read_yaml("nowhere.yaml")
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere.yaml: cannot be read (No such file or directory); check the \
path
    """
    line, mend = "", "mend the YAML"
    try:
        return _load(read_text(path, _MOST_YAML))
    except OSError as error:
        wrong, mend = f"cannot be read ({error.strerror or error})", "check the path"
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}"
        wrong = error.problem or "this is not YAML"
        if "chomping or indentation" in wrong:
            mend = "quote a text that begins with > or |"
    except (UnicodeDecodeError, yaml.YAMLError):
        wrong = "this is not YAML"
    except ValueError as error:
        wrong = f"this is not YAML ({error})"
    raise BadInput(Fault(line, wrong, mend, str(path)))


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML holds.

    Raises:
        ValueError: it is not YAML.

    >>> parse_yaml("{sigma: 1e-3}")
    {'sigma': 0.001}
    """
    try:
        return _load(text)
    except yaml.YAMLError as error:
        raise ValueError("this is not YAML") from error


def _load(text: str) -> Any:
    """Return what a text holds.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # of PyYAML's constructors for what a tag says and its text is not, such as !!int ""
        raise yaml.YAMLError(str(error)) from error
