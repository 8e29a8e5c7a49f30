"""GGUF files: which program of llama.cpp is asked for what, and what is said where it is not here.

Scripts stand in for the converter and for llama-quantize, and write down what they were asked: what
the real ones make depends on tokenizers that the models here have not.
"""

import json
import sys

import pytest
from click.testing import CliRunner

from evomerge.cli.main import main
from evomerge.errors import BadInput, EvomergeError
from evomerge.export.gguf import find_programs, write_gguf
from evomerge.testing import tiny_llama

# Takes the arguments that llama.cpp's converter takes, and no others.
CONVERTER = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"])
parser.add_argument("--outfile", type=pathlib.Path)
asked = parser.parse_args()
config = json.loads((asked.model / "config.json").read_text())
if config["model_type"] != "llama":
    sys.exit("ERROR:hf-to-gguf:Model Strange is not supported")
assert (asked.model / "model.safetensors").is_file()
asked.outfile.write_bytes(b"GGUF" + asked.outtype.encode())
"""
QUANTIZE = f"""#!{sys.executable}
import pathlib, sys
source, out, kind = sys.argv[1:]
pathlib.Path(out).write_bytes(pathlib.Path(source).read_bytes() + kind.encode())
"""


@pytest.fixture
def llama_cpp(tmp_path, monkeypatch):
    """A folder as llama.cpp's is once it is built."""
    folder = tmp_path / "llama.cpp"
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    (folder / "build" / "bin" / "llama-quantize").write_text(QUANTIZE)
    (folder / "build" / "bin" / "llama-quantize").chmod(0o700)
    monkeypatch.setenv("EVOMERGE_LLAMA_CPP", str(folder))
    return folder


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("EVOMERGE_LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_each_type_is_made_by_the_program_that_makes_it(llama_cpp, tmp_path):
    model = tiny_llama(tmp_path / "merged", 0)
    types = ["q8_0", "bf16", "q4_k_m"]
    before = {path.name for path in model.iterdir()}
    files = write_gguf(model, types, find_programs(types))
    assert {kind: file.name for kind, file in files.items()} == {
        "q8_0": "merged-Q8_0.gguf",
        "bf16": "merged-BF16.gguf",
        "q4_k_m": "merged-Q4_K_M.gguf",
    }
    # fewer bits are taken from a file that loses nothing of the weights
    whole = {"bfloat16": b"bf16", "float32": b"f32"}
    config = json.loads((model / "config.json").read_text())
    said = {kind: file.read_bytes().removeprefix(b"GGUF") for kind, file in files.items()}
    assert said == {
        "q8_0": b"q8_0",
        "bf16": b"bf16",
        "q4_k_m": whole[config["dtype"]] + b"Q4_K_M",
    }
    assert {path.name for path in model.iterdir()} == before | {f.name for f in files.values()}


def test_a_program_on_the_path(llama_cpp, tmp_path, monkeypatch):
    monkeypatch.delenv("EVOMERGE_LLAMA_CPP")
    script = llama_cpp / "convert-hf-to-gguf"
    script.write_text(f"#!{sys.executable}\n{CONVERTER}")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(llama_cpp))
    model = tiny_llama(tmp_path / "merged", 0)
    (file,) = write_gguf(model, ["f16"], find_programs(["f16"])).values()
    assert file.read_bytes() == b"GGUFf16"


def test_what_is_not_here_is_said_before_anything_is_read(nowhere, tmp_path):
    out = tmp_path / "out"
    for kind, missing in {"q8_0": 1, "Q4_K_M": 2}.items():
        done = CliRunner().invoke(main, ["export", "runs/absent", str(out), "--gguf", kind])
        lines = done.stderr.splitlines()
        assert done.exit_code == 2 and len(lines) == missing
        assert "convert_hf_to_gguf.py is not here; set EVOMERGE_LLAMA_CPP" in lines[0]
    assert "llama-quantize, which writes q4_k_m, is not here" in lines[1]
    with pytest.raises(BadInput, match="no type 'q8_1'; did you mean"):
        find_programs(["q8_1"])
    with pytest.raises(BadInput, match="an adapter has no weights of its own"):
        find_programs(["q8_0"], as_adapter=True)


def test_what_the_converter_refuses_is_its_last_word(llama_cpp, tmp_path):
    model = tiny_llama(tmp_path / "merged", 0)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "strange"}))
    before = {path.name for path in model.iterdir()}
    with pytest.raises(EvomergeError, match=r"refuses the model: .*Model Strange"):
        write_gguf(model, ["q8_0", "q4_0"], find_programs(["q8_0", "q4_0"]))
    (llama_cpp / "convert_hf_to_gguf.py").write_text("")
    with pytest.raises(EvomergeError, match="wrote no GGUF file"):
        write_gguf(model, ["q4_0"], find_programs(["q4_0"]))
    assert {path.name for path in model.iterdir()} == before
