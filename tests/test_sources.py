"""Model directories by their headers: what is refused, and what a content hash means."""

import json
import os
import shutil
import struct

import pytest
import torch
from conftest import own_code
from safetensors.torch import load_file, save_file

from evomerge.errors import BadInput
from evomerge.sources.compatibility import differing_settings, mismatches
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.sources.trust import Trust
from evomerge.testing import tiny_llama, tiny_tokenizer


def faults(*arguments, **options):
    with pytest.raises(BadInput) as error:
        open_source(*arguments, **options)
    return str(error.value)


@pytest.fixture
def model(world, tmp_path):
    """A copy of a tiny model that a test may damage."""
    return shutil.copytree(world / "a", tmp_path / "model")


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_headers_only(world):
    source = open_source(str(world / "a"))
    assert source.layers == 2 and source.dtype == "bfloat16"
    stored = load_file(world / "a" / "model.safetensors")
    assert {n: t.shape for n, t in source.tensors.items()} == {
        n: tuple(t.shape) for n, t in stored.items()
    }
    names = list(source.tensors)
    assert names[0] == "model.embed_tokens.weight" and names[-1] == "model.norm.weight"


def test_missing_directory_says_where_paths_start():
    assert "there is no directory './nowhere'" in faults("./nowhere")


def test_unreachable_hub_id_is_one_line(monkeypatch):
    said = faults("nobody/nothing@main")
    assert said.startswith("'nobody/nothing@main' is no directory")
    assert "\n" not in said


def test_hub_ids_come_out_of_the_hubs_cache(world, tmp_path, monkeypatch):
    """The layout that huggingface_hub keeps: refs/REVISION names a folder of snapshots/."""
    import huggingface_hub.constants as constants

    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(world / "a", repo / "snapshots" / "c0ffee")
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text("c0ffee")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = open_source("someone/tiny@v1")
    assert digest(source).sha256 == digest(open_source(str(world / "a"))).sha256


def test_pickled_weights_are_refused(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"x")
    assert "holds pickled weights only (pytorch_model.bin)" in faults(str(model))


def test_no_weights_and_no_config_are_told_together(model):
    (model / "model.safetensors").unlink()
    (model / "config.json").write_text("{")
    said = faults(str(model))
    assert "config.json is missing or not JSON" in said and "holds no weights" in said


def test_missing_shards_are_named(model):
    index = {"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}
    (model / "model.safetensors").unlink()  # beside which transformers reads no index
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "2 of 2 shards are missing: model-1.safetensors" in faults(str(model))


def test_truncated_files_are_refused(model):
    path = model / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "is cut off within tensor" in faults(str(model))
    for cut in (whole[:4], b"", struct.pack("<Q", 1 << 50) + b"{}"):
        path.write_bytes(cut)
        assert "is not a whole safetensors file" in faults(str(model))
    path.write_bytes(struct.pack("<Q", 5) + b"hello")
    assert "is not a safetensors file" in faults(str(model))


def test_dtypes_that_are_not_merged_are_named(model):
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(16, dtype=torch.int8)
    save_file(tensors, model / "model.safetensors")
    assert "tensor model.norm.weight has dtype I8" in faults(str(model))


def test_code_of_its_own_is_refused_unless_trusted(model):
    own_code(model)
    said = faults(str(model))
    assert "asks to run code of its own" in said and "sources.trust_remote_code: true" in said
    assert "--trust-code" in said and not (model / "was run").exists()
    source = open_source(str(model), Trust(remote_code=True))
    assert (model / "was run").exists()
    assert source.layers == 2 and source.class_name == "OwnForCausalLM"


def test_code_is_not_run_where_transformers_knows_the_model(model):
    """As published models have it whose types transformers took up since."""
    own_code(model, model_type="llama")
    for trust in (Trust(), Trust(remote_code=True)):
        source = open_source(str(model), trust)
        assert source.class_name == "LlamaForCausalLM" and "auto_map" not in source.config
    assert not (model / "was run").exists()


def test_equal_models_have_no_mismatch(world):
    assert mismatches([open_source(str(world / n)) for n in ("base", "a", "b")]) == []


def test_different_shapes_name_the_first_tensors(world, tmp_path):
    other = tiny_llama(tmp_path / "wide", 1, hidden=24, layers=3)
    pair = [open_source(str(world / "base")), open_source(str(other))]
    said = "\n".join(map(str, mismatches(pair)))
    assert "differ in num_hidden_layers: 3 and 2" in said
    assert "model.embed_tokens.weight ((32, 24) and (32, 16))" in said


def test_different_tokenizers_name_the_first_tokens(world, model):
    words = list(tiny_tokenizer().get_vocab())
    words = sorted(words, key=lambda w: tiny_tokenizer().get_vocab()[w])
    words[10], words[11] = words[11], words[10]
    tiny_tokenizer(words).save_pretrained(model)
    (fault,) = mismatches([open_source(str(world / "a")), open_source(str(model))])
    assert "different tokenizers: 2 tokens, first 'w6' is 11 and 10" in str(fault)


def test_not_finite_weights_are_found_in_every_dtype(world, model):
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for bad in (float("nan"), float("inf"), float("-inf")):
            tensors = {
                n: t.to(dtype) for n, t in load_file(world / "a" / "model.safetensors").items()
            }
            tensors["model.norm.weight"][3] = bad
            save_file(tensors, model / "model.safetensors")
            assert digest(open_source(str(model))).not_finite == ("model.norm.weight",)
    assert digest(open_source(str(world / "a"))).not_finite == ()


def test_digest_is_of_the_content_not_of_the_files(world, model):
    """Sharding and the config's own history do not count; weights, config and tokens do."""
    before = digest(open_source(str(model))).sha256
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    (model / "model.safetensors").unlink()
    save_file({n: tensors[n] for n in names[:3]}, model / "model-1.safetensors")
    save_file({n: tensors[n] for n in names[3:]}, model / "model-2.safetensors")
    shards = {n: f"model-{1 if i < 3 else 2}.safetensors" for i, n in enumerate(names)}
    index = {"metadata": {}, "weight_map": shards}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    edit_config(model, transformers_version="9.9")
    assert digest(open_source(str(model))).sha256 == before
    edit_config(model, rms_norm_eps=0.5)
    assert digest(open_source(str(model))).sha256 != before


def test_digest_is_cached_by_path_size_and_time(world, model, monkeypatch):
    from evomerge.sources import digest as sources

    first = digest(open_source(str(model)))
    monkeypatch.setattr(sources, "_digest", lambda source: pytest.fail("hashed again"))
    assert digest(open_source(str(model))) == first
    os.utime(model / "model.safetensors", ns=(1, 1))
    monkeypatch.setattr(sources, "_digest", lambda source: sources.Digest("new", ()))
    assert digest(open_source(str(model))).sha256 == "new"


def test_settings_that_differ_are_told(world, model):
    edit_config(model, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    first, other = open_source(str(world / "base")), open_source(str(model))
    assert mismatches([first, other]) == []
    (line,) = differing_settings([first, other])
    assert line.startswith(f"'{model}' and '{world / 'base'}' differ in rope_parameters: ")
    assert differing_settings([first]) == differing_settings([]) == []
