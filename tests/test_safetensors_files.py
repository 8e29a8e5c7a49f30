"""What the safetensors library and transformers refuse, evomerge refuses in a line; the rest it
reads as they do.
"""

import json
import os
import shutil
import struct
import tracemalloc

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.errors import BadInput
from evomerge.sources.safetensors_file import read_header, read_json
from evomerge.sources.source import open_source
from evomerge.sources.weight_files import Folder, shards
from evomerge.testing import tiny_llama

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


def entry(begin, end, shape=None, dtype="F32", **more):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def blob(header, size):
    """A file of a header, as text or as JSON-able data, and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

REFUSED = {
    "a hole": blob({"a": entry(0, 4), "b": entry(8, 12)}, 12),
    "a hole at first": blob({"a": entry(4, 8)}, 8),
    "an overlap": blob({"a": entry(0, 8), "b": entry(4, 12)}, 12),
    "an overlap within": blob({"a": entry(0, 12), "b": entry(4, 8)}, 12),
    "the same bytes twice": blob({"a": entry(0, 4), "b": entry(0, 4)}, 4),
    "bytes behind the last": blob({"a": entry(0, 4)}, 5),
    "bytes and no tensor": blob({}, 4),
    "too few bytes": blob({"a": entry(0, 4)}, 3),
    "an empty file": b"",
    "seven bytes": bytes(7),
    "a header of no length": blob(b"", 0),
    "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "a length of all bits": b"\xff" * 8 + b"{}",
    "a length that wraps around": struct.pack("<Q", 2**64 - 8) + b"{}",
    "a list": blob([entry(0, 4)], 4),
    "a list that is deep": blob(b"[" * 100_000, 0),
    "a mapping that is deep": blob(b'{"a":' * 100_000, 0),
    "an entry that is deep": blob(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", 0),
    "a text": blob(b'"abc"', 0),
    "null": blob(b"null", 0),
    "NUL behind the JSON": blob(b"{" + ONE + b"}\0\0", 4),
    "UTF-16": blob(json.dumps({"a": entry(0, 4)}).encode("utf-16"), 4),
    "a byte-order mark": blob(b"\xef\xbb\xbf{" + ONE + b"}", 4),
    "no UTF-8": blob(b"{" + ONE.replace(b"a", b"\xff", 1) + b"}", 4),
    "half of a surrogate pair": blob(b"{" + ONE.replace(b"a", b"\\ud800", 1) + b"}", 4),
    "a line break in a name": blob(b"{" + ONE.replace(b"a", b"a\n", 1) + b"}", 4),
    "the metadata twice": blob(b'{"__metadata__":{},"__metadata__":{},' + ONE + b"}", 4),
    "metadata of numbers": blob({"__metadata__": {"a": 1}, "a": entry(0, 4)}, 4),
    "metadata in a list": blob({"__metadata__": ["a"], "a": entry(0, 4)}, 4),
    "metadata in metadata": blob({"__metadata__": {"a": {}}, "a": entry(0, 4)}, 4),
    "a dtype twice": blob(b"{" + ONE.replace(b'"dtype"', b'"dtype":"F32","dtype"') + b"}", 4),
    "a dtype that is a list": blob({"a": entry(0, 4, dtype=["F32"])}, 4),
    "a dtype that is null": blob({"a": entry(0, 4, dtype=None)}, 4),
    "no shape": blob({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, 4),
    "no offsets": blob({"a": {"dtype": "F32", "shape": [1]}}, 4),
    "a shape of true": blob({"a": entry(0, 4, [True])}, 4),
    "a shape of a float": blob({"a": entry(0, 4, [1.0])}, 4),
    "a shape of a text": blob({"a": entry(0, 4, ["1"])}, 4),
    "a shape of lists": blob({"a": entry(0, 4, [[1]])}, 4),
    "a shape that is a number": blob({"a": entry(0, 4, 1)}, 4),
    "a shape that is a text": blob({"a": entry(0, 4, "1")}, 4),
    "a negative shape": blob({"a": entry(0, 4, [-1])}, 4),
    "two negative extents": blob({"a": entry(0, 4, [-1, -1])}, 4),
    "a negative zero": blob({"a": entry(0, 0, [0]), "b": entry(0, 4)}, 4).replace(b"[0]", b"[-0]"),
    "an extent of 65 bits": blob({"a": entry(0, 4, [2**64])}, 4),
    "an extent of 300 digits": blob({"a": entry(0, 4, [10**300])}, 4),
    "an extent of 10,000 digits": blob(b"{" + ONE.replace(b"[1]", b"[1%s]" % (b"0" * 9999)), 4),
    "a product that wraps around": blob({"a": entry(0, 4, [2**32, 2**32, 1])}, 4),
    "a product that wraps to its size": blob({"a": entry(0, 4, [2**62 + 1])}, 4),
    "a product too large before a zero": blob({"a": entry(0, 0, [2**63, 4, 0])}, 0),
    "one offset": blob({"a": entry(0, 4) | {"data_offsets": [0]}}, 4),
    "three offsets": blob({"a": entry(0, 4) | {"data_offsets": [0, 4, 4]}}, 4),
    "negative offsets": blob({"a": entry(-4, 0)}, 4),
    "offsets of false": blob({"a": entry(0, 4) | {"data_offsets": [False, 4]}}, 4),
    "offsets of floats": blob({"a": entry(0, 4) | {"data_offsets": [0.0, 4.0]}}, 4),
    "offsets that are swapped": blob({"a": entry(0, 4) | {"data_offsets": [4, 0]}}, 4),
    "offsets of 65 bits": blob({"a": entry(2**64, 2**64 + 4)}, 4),
    "offsets far behind": blob({"a": entry(2**40, 2**40 + 4)}, 4),
    "infinity": blob(b"{" + ONE.replace(b"[1]", b"[Infinity]") + b"}", 4),
}
# What the library takes, though no writer writes it, and evomerge does not.
AMBIGUOUS = {
    "a tensor twice": blob(b"{" + ONE + b"," + ONE + b"}", 4),
    "an entry in a list": blob({"a": ["F32", [1], [0, 4]]}, 4),
    "an entry of more": blob({"a": entry(0, 4, more=1)}, 4),
}
TAKEN = {
    "nothing": blob({}, 0),
    "one": blob({"a": entry(0, 4)}, 4),
    "no metadata": blob({"__metadata__": None, "a": entry(0, 4)}, 4),
    "metadata": blob({"__metadata__": {"format": "pt"}, "a": entry(0, 4)}, 4),
    "another order": blob({"b": entry(4, 8), "a": entry(0, 4)}, 8),
    "tensors of no bytes": blob({"a": entry(0, 0), "b": entry(0, 4), "c": entry(4, 4)}, 4),
    "a scalar": blob({"a": entry(0, 4, [])}, 4),
    "a zero before what is too large": blob({"a": entry(0, 0, [0, 2**63, 4])}, 0),
    "spaces": blob(b" \n{" + ONE + b"}  ", 4),
    "a name of many letters": blob({"ä\0\U0001f600" * 100: entry(0, 4)}, 4),
    "a dtype that is not merged": blob({"a": entry(0, 4, [4], "I8")}, 4),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_library_refuses_is_refused(tmp_path, what):
    file = tmp_path / MODEL
    file.write_bytes(REFUSED[what])
    with pytest.raises((SafetensorError, OSError)):
        safe_open(file, framework="pt")
    with pytest.raises(ValueError, match=MODEL) as caught:
        read_header(file)
    assert len(str(caught.value)) < 300 and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_what_nobody_writes_is_refused(tmp_path, what):
    file = tmp_path / MODEL
    file.write_bytes(AMBIGUOUS[what])
    with pytest.raises(ValueError, match=MODEL):
        read_header(file)


@pytest.mark.parametrize("what", TAKEN)
def test_what_the_library_takes_is_read_as_it_reads_it(tmp_path, what):
    file = tmp_path / MODEL
    file.write_bytes(TAKEN[what])
    with safe_open(file, framework="pt") as opened:
        theirs = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        wanted = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in theirs.items()}
    assert {name: (t.dtype, t.shape) for name, t in read_header(file).items()} == wanted


def test_a_header_of_a_gigabyte_is_refused_unread(tmp_path):
    file = tmp_path / MODEL
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", 1 << 30) + b"{")
        stream.truncate(2 << 30)  # a hole: it takes no room
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# --- which files there are ---------------------------------------------------------------


def sharded(folder, new=None):
    """Cut a model's file in two shards with an index; return its tensors by shard."""
    tensors = load_file(folder / MODEL) if new is None else new
    names = sorted(tensors)
    parts = {
        f"model-{i + 1:05d}-of-00002.safetensors": {n: tensors[n] for n in names[i::2]}
        for i in range(2)
    }
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    write_index(folder, {name: file for file, part in parts.items() for name in part})
    return parts


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def resave(file, tensors):
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def model(tmp_path):
    """A tiny model's directory, as one file."""
    return tiny_llama(tmp_path / "model", 1)


@pytest.fixture
def parts(model):
    """The same in two shards, by shard."""
    parts = sharded(model)
    (model / MODEL).unlink()
    return parts


def loaded(folder):
    """The weights that transformers loads."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def assert_read_as_loaded(folder):
    state, source = loaded(folder), open_source(str(folder))
    assert source.tensors
    for name, tensor in source.tensors.items():
        with safe_open(tensor.file, framework="pt") as opened:
            assert torch.equal(opened.get_tensor(tensor.key), state[name]), name


def refused(folder):
    """The lines with which a model directory is refused."""
    with pytest.raises(BadInput) as caught:
        open_source(str(folder))
    for fault in caught.value.faults:
        assert str(folder) in str(fault) and fault.mend and len(str(fault).splitlines()) == 1
    return str(caught.value)


def test_the_single_file_counts_whatever_an_index_says(model):
    stale = {name: tensor + 1 for name, tensor in load_file(model / MODEL).items()}
    sharded(model, stale)
    assert shards(model, Folder(model)) == [model / MODEL]
    assert_read_as_loaded(model)
    (model / INDEX).write_text("{")
    assert_read_as_loaded(model)


def test_shards_are_read_as_transformers_reads_them(model, parts):
    assert shards(model, Folder(model)) == [model / name for name in sorted(parts)]
    assert_read_as_loaded(model)


def test_a_tensor_that_the_index_does_not_list_is_loaded_all_the_same(model, parts):
    unlisted = min(parts[max(parts)])
    weight_map = {n: f for f, part in parts.items() for n in part if n != unlisted}
    write_index(model, weight_map)
    assert unlisted in open_source(str(model)).tensors
    assert_read_as_loaded(model)


def test_a_shard_that_the_index_does_not_name_is_not_loaded(model, parts):
    tensors = parts[min(parts)]
    resave(model / "model-00009-of-00002.safetensors", {n: t + 1 for n, t in tensors.items()})
    assert_read_as_loaded(model)


def test_a_tensor_in_two_shards_counts_if_all_agree_on_one(model, parts):
    """transformers takes the last shard's; one who goes by the index takes the one listed."""
    first, second = sorted(parts)
    name = min(parts[second])
    resave(model / first, parts[first] | {name: parts[second][name] + 1})
    assert_read_as_loaded(model)
    weight_map = {n: f for f, part in parts.items() for n in part}
    write_index(model, weight_map | {name: first})
    assert f"{first} and {second} both hold {name}" in refused(model)


def test_a_tensor_that_its_shard_does_not_hold(model, parts):
    first, second = parts
    weight_map = {n: f for f, part in parts.items() for n in part}
    name = min(parts[first])
    for wrong in ({name: second}, {"surprise": first}):
        write_index(model, weight_map | wrong)
        assert f"lists {min(wrong)} in" in refused(model)


@pytest.mark.parametrize(
    "name",
    [
        "../model/x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\0b",
        "x" * 5000, None, 3, ["x"], {"x": 1},
    ],
)  # fmt: skip
def test_a_shard_is_a_file_beside_the_index(model, parts, name):
    write_index(model, {"x": name})
    assert "model.safetensors.index.json names" in refused(model) or "missing" in refused(model)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "["])
def test_an_index_that_is_none(model, parts, text):
    (model / INDEX).write_text(text)
    line = refused(model)
    assert "is not an index of shards" in line or "holds no tensors" in line


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, folder, device])
@pytest.mark.parametrize(
    "name", [MODEL, INDEX, "shard", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_what_is_no_plain_file_is_refused_at_once(model, make, name):
    """A pipe would be waited on for ever, and a device never ends."""
    if name == INDEX:
        (model / MODEL).unlink()
    if name == "shard":
        name = min(sharded(model))
        (model / MODEL).unlink()
    make(model / name)
    if name == "tokenizer_config.json":  # nothing of it is needed here
        assert read_json(model / name) is None
    else:
        assert refused(model)


def test_of_a_single_file_that_is_none_the_index_is_taken(model):
    sharded(model)
    folder(model / MODEL)
    assert_read_as_loaded(model)


def test_links_to_files_are_files(model, tmp_path):
    shutil.move(model / MODEL, tmp_path / "elsewhere")
    (model / MODEL).symlink_to(tmp_path / "elsewhere")  # as the hub's cache has it
    assert_read_as_loaded(model)
