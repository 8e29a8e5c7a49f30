"""What is known of a model beside its weights, for methods that merge by data.

Such a source is written `MODEL?texts=FILE`, in a campaign file `{model: MODEL, texts: FILE}`:

- `texts`: unlabelled texts such as the model was trained on (see `sources.texts`). The model reads
  them, see `merging.observations`.
- `inputs`: what such a reading gave, of linear layers: a safetensors file that has X^T X / n of a
  layer's n inputs under its weight's name, or the diagonal of that alone. It tells less of the
  texts than they do, and so can be shared where they cannot.
- `moments`: the second moments of Adam at the training's end: the optimizer's state as
  transformers' Trainer saves it, or a safetensors file by the weights' names.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from evomerge.canonical import file_hash
from evomerge.errors import BadInput, Fault, one_line, placed
from evomerge.sources.safetensors_file import Tensor, read_header
from evomerge.sources.texts import read_texts

_SUFFIX = re.compile(r"\?((?:texts|inputs|moments)=.+)$")
_NEXT = re.compile(r"&(?=(?:texts|inputs|moments)=)")


class Evidence(NamedTuple):
    """Files that tell of a model; "" for none. See the module.

    >>> Evidence(texts="ja.jsonl").suffix
    '?texts=ja.jsonl'
    """

    texts: str = ""
    inputs: str = ""
    moments: str = ""

    @property
    def files(self) -> dict[str, Path]:
        """Those that there are, by kind."""
        return {kind: Path(file).expanduser() for kind, file in self._asdict().items() if file}

    @property
    def suffix(self) -> str:
        """What follows a model's name."""
        parts = [f"{kind}={file}" for kind, file in self._asdict().items() if file]
        return "?" + "&".join(parts) if parts else ""

    @property
    def resolved(self) -> "Evidence":
        """The same with paths from the root."""
        return Evidence(**{kind: str(file.resolve()) for kind, file in self.files.items()})

    @property
    def hash(self) -> str:
        """A hash of the files' contents; "" of none.

        Raises:
            OSError: one cannot be read.
        """
        return " ".join(f"{kind} {file_hash(file)}" for kind, file in self.files.items())


NOTHING = Evidence()


def split_evidence(name: str) -> tuple[str, Evidence]:
    """Split a source's name into the model's and what is known of it.

    >>> split_evidence("models/ja?texts=ja.jsonl&moments=ja/optimizer.pt")
    ('models/ja', Evidence(texts='ja.jsonl', inputs='', moments='ja/optimizer.pt'))
    >>> split_evidence("models/ja")[0]
    'models/ja'
    """
    match = _SUFFIX.search(name)
    if match is None:
        return name, NOTHING
    given = dict(part.split("=", 1) for part in _NEXT.split(match[1]))
    return name[: match.start()], Evidence(**given)


def moved_place(place: str, name: str) -> str:
    """Return where a source lies now, with what is known of it by its name.

    >>> moved_place("/new/ja", "models/ja?texts=ja.jsonl")
    '/new/ja?texts=ja.jsonl'
    """
    return place if split_evidence(place)[1].suffix else place + split_evidence(name)[1].suffix


def check_evidence(
    evidence: Evidence, tensors: Mapping[str, Tensor], *, is_part: bool = False
) -> None:
    """See that the files are there and are what they should be, by their headers.

    Args:
        evidence: of a model.
        tensors: the model's, by the names that the files may have for them.
        is_part: whether the files may tell of more, as of a head.

    Raises:
        BadInput: one is not.

    >>> check_evidence(Evidence(texts="nowhere.jsonl"), {})
    Traceback (most recent call last):
    evomerge.errors.BadInput: texts: there is no file 'nowhere.jsonl'; write a path to a file
    """
    for kind, file in evidence.files.items():
        if not file.is_file():
            wrong = f"there is no file '{file}'"
            raise BadInput(Fault(kind, wrong, "write a path to a file"))
        if kind == "texts":
            with placed("texts"):
                read_texts(file)
        elif kind == "inputs" or file.suffix == ".safetensors":
            _check_header(kind, file, tensors, is_part)
        elif file.suffix not in (".pt", ".bin") or not zipfile.is_zipfile(file):
            mend = "write the Trainer's optimizer.pt, or a .safetensors file by weights' names"
            raise BadInput(Fault(kind, f"'{file}' is no optimizer's state", mend))


def _check_header(kind: str, file: Path, tensors: Mapping[str, Tensor], is_part: bool) -> None:
    """Refuse a safetensors file whose tensors do not belong to the model's.

    Raises:
        BadInput: naming the first that does not.
    """
    mend = "make it of this very model"
    try:
        held = read_header(file)
    except (ValueError, OSError) as error:
        raise BadInput(Fault(kind, f"'{file}' cannot be read ({one_line(error)})", mend)) from None
    for name, tensor in held.items():
        if name not in tensors and is_part:
            continue
        if name not in tensors:
            raise BadInput(Fault(kind, f"'{file}' tells of {name}, which the model lacks", mend))
        shape = tensors[name].shape
        sides = {(side,) for side in shape} | {(side, side) for side in shape}
        if tensor.shape not in ({shape} if kind == "moments" else sides):
            wrong = f"'{file}': {name} is {tensor.shape} there, and {shape} in the model"
            raise BadInput(Fault(kind, wrong, mend))
