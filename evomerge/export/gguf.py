"""Exported models as GGUF files, for what runs them by llama.cpp: by its own programs alone.

What knows every architecture's tensors, and every tokenizer, is `convert_hf_to_gguf.py` of
llama.cpp's repository; types of fewer bits are made of its file by `llama-quantize`. Neither is a
package of Python's, so both are looked for: in the folder that EVOMERGE_LLAMA_CPP names, and on the
PATH.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evomerge.errors import EvomergeError, Fault, Faults, nearest
from evomerge.sources.libraries import library_of
from evomerge.sources.safetensors_file import read_json
from evomerge.whole_files import written_beside

FOLDER = "EVOMERGE_LLAMA_CPP"  # the environment's variable for llama.cpp's folder

# What the converter writes itself (its --outtype), and what llama-quantize makes of its file.
CONVERTED = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")
QUANTIZED = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s",
    "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq3_xs", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs",
)  # fmt: skip

_MAGIC = b"GGUF"

# From which file llama-quantize starts: the one that loses nothing of the weights.
_WHOLE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}

_BUILT = ("", "build/bin", "bin")  # where llama-quantize is below llama.cpp's folder


class Programs(NamedTuple):
    """llama.cpp's programs, as the begins of command lines.

    Attributes:
        convert: of the converter.
        quantize: of llama-quantize; empty where it is not needed.

    >>> Programs(["convert_hf_to_gguf.py"]).quantize
    ()
    """

    convert: Sequence[str]
    quantize: Sequence[str] = ()


def find_programs(types: Sequence[str], as_adapter: bool = False) -> Programs:
    """Return the programs that write some types, before anything is merged.

    Args:
        types: of GGUF files, in small letters.
        as_adapter: weights are not written, but an adapter.

    Raises:
        BadInput: a type is not known, or a program is not here.

    >>> find_programs(["q8_1"])
    Traceback (most recent call last):
    evomerge.errors.BadInput: --gguf: there is no type 'q8_1'; did you mean 'q8_0'?
    """
    if not types:
        return Programs(())
    faults = Faults()
    if as_adapter:
        wrong = "an adapter has no weights of its own to convert"
        faults.found.append(Fault("", wrong, "leave out --as-adapter", file="--gguf"))
    for kind in types:
        if kind not in (*CONVERTED, *QUANTIZED):
            mend = nearest(kind, (*CONVERTED, *QUANTIZED))
            faults.found.append(Fault("", f"there is no type '{kind}'", mend, file="--gguf"))
    faults.check()
    convert = _converter()
    if not convert:
        wrong = "llama.cpp's convert_hf_to_gguf.py is not here"
        mend = f"set {FOLDER} to a folder of llama.cpp's repository, or put it on the PATH"
        faults.found.append(Fault("", wrong, mend, file="--gguf"))
    quantize: list[str] = []
    if made := [kind for kind in types if kind not in CONVERTED]:
        quantize = _program("llama-quantize", _BUILT)
        if not quantize:
            wrong = f"llama.cpp's llama-quantize, which writes {', '.join(made)}, is not here"
            mend = f"build it in the folder that {FOLDER} names, or put it on the PATH; or take"
            mend += f" one of {', '.join(CONVERTED[:4])}, which need the converter alone"
            faults.found.append(Fault("", wrong, mend, file="--gguf"))
    faults.check()
    return Programs(convert, quantize)


def _converter() -> list[str]:
    # the second is the name of the console script that packages of it have
    return _program("convert_hf_to_gguf.py", ("",)) or _program("convert-hf-to-gguf", ())


def _program(name: str, below: Sequence[str]) -> list[str]:
    if folder := os.environ.get(FOLDER):
        for part in below:
            file = Path(folder, part, name)
            if file.is_file():  # a script needs torch and transformers, which this Python has
                return [sys.executable, str(file)] if name.endswith(".py") else [str(file)]
    found = shutil.which(name)  # which has its own Python in its first line
    return [] if found is None else [found]


def write_gguf(folder: Path, types: Sequence[str], programs: Programs) -> dict[str, Path]:
    """Write GGUF files of a model beside its weights, and return them by type.

    Args:
        folder: a model's directory.
        types: of the files, as `find_programs` takes them.
        programs: see `find_programs`.

    Raises:
        EvomergeError: a program refuses the model; the directory stays as it was.

    >>> write_gguf(Path("merged"), [], Programs([]))
    {}
    """
    if types and library_of(folder) != "transformers":
        raise EvomergeError(f"{folder}: no GGUF file is written: it is no model of transformers")
    files = {kind: folder / f"{folder.resolve().name}-{kind.upper()}.gguf" for kind in types}
    made = [kind for kind in types if kind not in CONVERTED]
    try:
        for kind, file in files.items():
            if kind not in made:
                with written_beside(file) as part:
                    _convert(programs, folder, kind, part)
        if made:
            config = read_json(folder / "config.json")
            dtype = config.get("dtype") if isinstance(config, dict) else None
            with tempfile.TemporaryDirectory(dir=folder, prefix=".gguf.") as scratch:
                whole = Path(scratch, "whole.gguf")
                _convert(programs, folder, _WHOLE.get(str(dtype), "f32"), whole)
                for kind in made:
                    with written_beside(files[kind]) as part:
                        words = [*programs.quantize, str(whole), str(part), kind.upper()]
                        _run("llama-quantize", words, part)
    except OSError as error:
        raise EvomergeError(f"{folder}: no GGUF file is written: {error}") from error
    return files


def _convert(programs: Programs, folder: Path, kind: str, out: Path) -> None:
    words = [*programs.convert, str(folder), "--outtype", kind, "--outfile", str(out)]
    _run("convert_hf_to_gguf.py", words, out)


def _run(name: str, words: Sequence[str], out: Path) -> None:
    """Run a program that writes a file.

    Raises:
        EvomergeError: it does not, with what it said last.
    """
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = said[-1][:300] if said else f"it ended with {done.returncode}"
        raise EvomergeError(f"llama.cpp's {name} refuses the model: {reason}")
    if not out.is_file() or _begin(out) != _MAGIC:
        raise EvomergeError(f"llama.cpp's {name} wrote no GGUF file")


def _begin(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(len(_MAGIC))
