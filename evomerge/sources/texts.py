"""Files of texts that models read or learn on: JSONL, or a text a line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from evomerge.errors import BadInput, Fault, one_line

LONGEST = 1024  # tokens of a text that are read; the rest tells no more of what layers take in
_MEND = 'write lines such as {"text": "3 + 4 =", "answer": "7"}, the answer only if it is known'


class Passage(NamedTuple):
    """A text, or a prompt, and what is right; "" where that is not known.

    >>> Passage("3 + 4 =", "7").answer
    '7'
    """

    prompt: str
    answer: str = ""


def read_texts(file: Path | str) -> list[Passage]:
    """Return the texts of a file, in its order.

    A `.txt` file has one a line. Any other has a JSON object a line, with `text` (or `prompt`), and
    perhaps `answer` (or `target`).

    Raises:
        BadInput: it is no file that can be read, has no text, or a line of it is none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "ja.jsonl")
    ...     _ = file.write_text('{"text": "One."}\\n{"prompt": "1 + 1 =", "answer": 2}\\n')
    ...     read_texts(file)
    [Passage(prompt='One.', answer=''), Passage(prompt='1 + 1 =', answer='2')]
    """
    file = Path(file)
    if not file.is_file():  # a pipe may never end
        raise BadInput(Fault("", f"there is no file '{file}'", "write a path to a file of texts"))
    try:
        # by line feeds alone: texts of the web hold other separators, which JSON leaves as they are
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        wrong = f"'{file}' cannot be read ({one_line(error)})"
        raise BadInput(Fault("", wrong, "check the file")) from None
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        line = line.rstrip("\r")
        text = Passage(line) if file.suffix == ".txt" else _of_json(line)
        if text is None:
            raise BadInput(Fault("", f"{file}, line {number} is no text", _MEND))
        texts.append(text)
    if not texts:
        raise BadInput(Fault("", f"'{file}' holds no text", _MEND))
    return texts


def _of_json(line: str) -> Passage | None:
    """Return the text of a line of JSON, None if it has none."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    if not isinstance(data, Mapping):
        return None
    prompt = data.get("text", data.get("prompt"))
    answer = data.get("answer", data.get("target", ""))
    is_text = isinstance(prompt, str) and prompt.strip() and isinstance(answer, str | int | float)
    return Passage(prompt, str(answer)) if is_text else None
