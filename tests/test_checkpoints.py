"""What transformers makes of a directory, and PEFT of an adapter, is what is merged.

The reference is always the library itself: what `from_pretrained` loads.
"""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from conftest import own_code
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.merging.live_model import open_live_model
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import single
from evomerge.sources.alignment import aligned, tokenizer_faults, tokenizer_notes
from evomerge.sources.compatibility import differing_settings, mismatches
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama, tiny_tokenizer

IDS = torch.randint(4, 30, (2, 9), generator=torch.Generator().manual_seed(3))
LAYER = "model.layers.0.self_attn"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def stored(folder):
    return load_file(folder / "model.safetensors")


def store(folder, tensors):
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def edit(folder, drop=(), **settings):
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in drop}
    (folder / "config.json").write_text(json.dumps(kept | settings))


def mixed(models, dtype="bfloat16"):
    weight = [1 / len(models)] * len(models)
    group = {"layers": None, "modules": None, "weight": weight}
    return {
        "version": 1, "kind": "parameters", "method": "linear", "models": models, "base": None,
        "dtype": dtype, "options": {}, "groups": [group],
    }  # fmt: skip


def ran(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def merged(tmp_path, models, dtype="bfloat16", name="out"):
    """Merge models into a directory by the command, and return it."""
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(mixed([str(model) for model in models], dtype)))
    result = ran("merge", recipe, tmp_path / name)
    assert result.exit_code == 0, result.output
    return tmp_path / name


@torch.no_grad()
def logits(model):
    if not isinstance(model, torch.nn.Module):
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return model.eval()(input_ids=IDS).logits.float()


@pytest.fixture
def three(tmp_path):
    """A base and two fine-tunes, bfloat16, tied."""
    base = tiny_llama(tmp_path / "base", 1)
    near = [tiny_llama(tmp_path / n, i, near=base, spread=0.1) for i, n in enumerate("ab", 2)]
    return [base, *near]


# Adapters.


@pytest.mark.parametrize("beginning", ["pissa", "pissa_niter_4", "olora"])
def test_adapters_that_began_out_of_the_base_are_refused(tmp_path, beginning):
    base = tiny_llama(tmp_path / "base", 1, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": beginning}
    get_peft_model(model, LoraConfig(**options)).save_pretrained(tmp_path / "lora")
    with pytest.raises(BadInput, match=r"init_lora_weights = '(pissa|olora)") as caught:
        open_source(f"{base}+{tmp_path / 'lora'}")
    assert "path_initial_model_for_weight_conversion" in str(caught.value)


@pytest.mark.parametrize("beginning", [True, "gaussian", "orthogonal", "eva"])
def test_adapters_that_leave_the_base_are_what_peft_makes(tmp_path, beginning):
    base = tiny_llama(tmp_path / "base", 1, dtype="float32")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": beginning}
    peft = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    peft.save_pretrained(tmp_path / "lora")
    again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(again, tmp_path / "lora"))
    out = merged(tmp_path, [f"{base}+{tmp_path / 'lora'}"], "float32")
    torch.testing.assert_close(logits(out), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(base), wanted, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_adapters_of_tied_embeddings_that_leave_the_head_are_refused(tmp_path, options):
    base = tiny_llama(tmp_path / "base", 1, dtype="float32")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, **options))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    peft.save_pretrained(tmp_path / "lora")
    with pytest.raises(BadInput, match="which the model has as its head too"):
        open_source(f"{base}+{tmp_path / 'lora'}")


def test_an_adapter_that_holds_tied_embeddings_under_both_names_is_taken(tmp_path):
    base = tiny_llama(tmp_path / "base", 1, dtype="float32")
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(r=2, ensure_weight_tying=True, **options))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    peft.save_pretrained(tmp_path / "lora")
    again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(again, tmp_path / "lora"))
    out = merged(tmp_path, [f"{base}+{tmp_path / 'lora'}"], "float32")
    torch.testing.assert_close(logits(out), wanted, rtol=1e-4, atol=1e-5)


def test_an_adapter_on_another_base_is_told(three, tmp_path):
    base, a, _ = three
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(a), LoraConfig(target_modules=["q_proj"])
    )
    peft.save_pretrained(tmp_path / "lora")
    (note,) = open_source(f"{base}+{tmp_path / 'lora'}").notes
    assert "was trained on" in note and str(a) in note
    assert not open_source(f"{a}+{tmp_path / 'lora'}").notes


# Names, ties and what is left out.


@pytest.mark.parametrize("both", [False, True])
def test_a_tied_model_under_its_heads_name(three, tmp_path, both):
    base, a, _ = three
    wanted = logits(a)
    tensors = stored(a)
    tensors[HEAD] = tensors[EMBEDDINGS].clone() if both else tensors.pop(EMBEDDINGS)
    store(a, tensors)
    assert torch.equal(logits(a), wanted)
    source = open_source(str(a))
    assert EMBEDDINGS in source.tensors and HEAD not in source.tensors
    assert mismatches([open_source(str(base)), source]) == []
    assert torch.equal(logits(merged(tmp_path, [a])), wanted)


def test_a_head_that_differs_from_the_embeddings_is_not_tied(three, tmp_path):
    """As transformers has it, whatever config.json says of ties."""
    _, a, _ = three
    tensors = stored(a)
    store(a, tensors | {HEAD: tensors[EMBEDDINGS] * 2})
    wanted = logits(a)
    source = open_source(str(a))
    assert source.config["tie_word_embeddings"] is False and HEAD in source.tensors
    out = merged(tmp_path, [a])
    assert torch.equal(logits(out), wanted)
    live = open_live_model(source, "float32")
    live.load(Merger({"a": source}, {"a": ""}).stream(single("a", "bfloat16")))
    assert torch.equal(logits(live.model), wanted)


def test_untied_and_without_a_head_is_refused_everywhere(three, tmp_path):
    _, a, _ = three
    edit(a, tie_word_embeddings=False)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(mixed([str(a)])))
    result = ran("merge", recipe, tmp_path / "out")
    assert result.exit_code == 2 and "lm_head.weight is missing" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more",
    [
        {f"{LAYER}.rotary_emb.inv_freq": torch.rand(4)},
        {f"{LAYER}.bias_mask": torch.ones(8, 8).tril().bool()},
        {"model.embeddings.position_ids": torch.arange(64)[None]},
        {f"{LAYER}.masked_bias": torch.tensor(-1e9).half()},
        {"v_head.summary.weight": torch.zeros(1, 16)},
    ],
    ids=["inv_freq", "mask", "position_ids", "masked_bias", "value head"],
)
def test_what_the_class_has_no_use_for_is_left_out_and_told(three, tmp_path, more):
    base, a, _ = three
    wanted = logits(a)
    store(a, stored(a) | more)
    assert torch.equal(logits(a), wanted)
    source = open_source(str(a))
    assert mismatches([open_source(str(base)), source]) == []
    assert digest(source).not_finite == ()
    (note,) = source.notes
    assert next(iter(more)) in note and "LlamaForCausalLM has no use for 1 tensor" in note
    out = merged(tmp_path, [a])
    assert torch.equal(logits(out), wanted) and not more.keys() & stored(out).keys()


def tiny(kind, folder, seed=0, **more):
    torch.manual_seed(seed)
    sizes = {"gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}}.get(kind, {})
    config = AutoConfig.for_model(
        kind, vocab_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes, **more
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_one_model_with_and_without_the_base_models_prefix(tmp_path):
    a, b = tiny("gpt2", tmp_path / "a"), tiny("gpt2", tmp_path / "b", 1)
    wanted = logits(merged(tmp_path, [a, b], "float32", "before"))
    store(a, {name.removeprefix("transformer."): t for name, t in stored(a).items()})
    for models in ([a, b], [b, a]):
        out = merged(tmp_path, models, "float32", models[0].name + " first")
        torch.testing.assert_close(logits(out), wanted)


def test_peft_names_the_model_in_memory(tmp_path):
    base = tiny("gpt2", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 2, "target_modules": ["c_attn"], "init_lora_weights": False}
    get_peft_model(model, LoraConfig(fan_in_fan_out=True, **options)).save_pretrained(
        tmp_path / "l"
    )
    wanted = logits(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "l")
    )
    store(base, {name.removeprefix("transformer."): t for name, t in stored(base).items()})
    out = merged(tmp_path, [f"{base}+{tmp_path / 'l'}"], "float32")
    torch.testing.assert_close(logits(out), wanted, rtol=1e-4, atol=1e-5)


def test_tensors_that_are_kept_in_float32_stay_there(tmp_path):
    config = AutoConfig.for_model(
        "deepseek_v3", vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=16, n_shared_experts=1, first_k_dense_replace=0, kv_lora_rank=8,
        q_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, n_group=1,
        topk_group=1, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    bias = "model.layers.0.mlp.gate.e_score_correction_bias"
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path / name)
        tensors = stored(tmp_path / name)
        for key in tensors:
            if key.endswith("correction_bias"):
                tensors[key] = 5.0 + seed + torch.arange(8) * 0.003  # float32, as published
        store(tmp_path / name, tensors)
    out = merged(tmp_path, [tmp_path / "a", tmp_path / "b"])
    ours = stored(out)
    wanted = (stored(tmp_path / "a")[bias] + stored(tmp_path / "b")[bias]) / 2
    assert ours[bias].dtype == torch.float32 and torch.equal(ours[bias], wanted)
    assert {t.dtype for n, t in ours.items() if "correction" not in n} == {torch.bfloat16}
    # what is scored is what transformers makes of what is exported
    sources = {n: open_source(str(tmp_path / n)) for n in "ab"}
    recipe = single("a", "bfloat16")
    live = open_live_model(sources["a"], "bfloat16")
    merger = Merger(sources, dict.fromkeys(sources, ""))
    merger.fill(recipe, live.direct)
    live.load((n, t) for n, t in merger.stream(recipe) if n not in live.direct)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype="auto")
    assert torch.equal(logits(live.model), logits(plain))


# Configs, tokenizers and vocabularies.


def test_configs_that_say_the_same_otherwise(three):
    base, a, _ = three
    for folder in (base, a):
        double = {n: torch.cat([t, t]) for n, t in stored(folder).items() if "_proj" in n}
        double = {n: t for n, t in double.items() if "k_proj" in n or "v_proj" in n}
        store(folder, stored(folder) | double)
        edit(folder, num_key_value_heads=2)
    wanted = logits(base)
    rope = {"rope_theta": 10000.0, "torch_dtype": "bfloat16"}
    edit(base, ("num_key_value_heads", "head_dim", "rope_parameters", "dtype"), **rope)
    assert torch.equal(logits(base), wanted)
    pair = [open_source(str(base)), open_source(str(a))]
    assert mismatches(pair) == [] and differing_settings(pair) == []
    edit(a, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    (line,) = differing_settings([pair[0], open_source(str(a))])
    assert "rope_parameters" in line


def padded(folder, rows, value=0.0):
    tensors = stored(folder)
    known = tensors[EMBEDDINGS]
    more = torch.full((rows - len(known), known.shape[1]), value, dtype=known.dtype)
    store(folder, tensors | {EMBEDDINGS: torch.cat([known, more])})
    edit(folder, vocab_size=rows)


@pytest.mark.parametrize("longer", [0, 1])
def test_embeddings_of_different_padding(three, tmp_path, longer):
    pair = three[:2]
    plain = logits(merged(tmp_path, pair, name="plain"))
    padded(pair[longer], 40, 0.5)
    first, other = (open_source(str(folder)) for folder in pair)
    assert mismatches([first, other]) == []
    assert "rows of embeddings" in tokenizer_notes([first, aligned(first, other)])[0]
    assert digest(aligned(first, other)) == digest(other)
    out = merged(tmp_path, pair)
    rows = stored(out)[EMBEDDINGS]
    assert len(rows) == (32 if longer else 40)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(rows)
    assert torch.equal(logits(out)[..., :32], plain)
    if not longer:  # rows that the other has not are the first's own
        assert (rows[32:] == 0.5).all()


def test_a_spare_row_with_a_name_is_merged_and_told(three):
    base, a, _ = three
    padded(base, 40)
    padded(a, 40)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(a)
    pair = [open_source(str(base)), open_source(str(a))]
    assert mismatches(pair) == []
    assert "'[PAD]' is 32 and absent" in tokenizer_notes(pair)[0]
    edit(base, vocab_size=32)
    store(base, stored(base) | {EMBEDDINGS: stored(base)[EMBEDDINGS][:32]})
    faults = map(str, mismatches([open_source(str(base)), pair[1]]))
    assert any("do not both have a row for the token '[PAD]', 32" in fault for fault in faults)


def test_one_tokenizer_in_other_files(tmp_path):
    words = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "</s>": 4}
    for name in ("one", "two"):
        tiny_llama(tmp_path / name, 0)
        for file in (tmp_path / name).glob("*token*"):
            file.unlink()
        (tmp_path / name / "vocab.json").write_text(json.dumps(words))
        (tmp_path / name / "merges.txt").write_text("#version: 0.2\na b\n")
        settings = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>", "eos_token": "</s>"}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(tmp_path / "two").save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "tokenizer.json").exists()
    assert not (tmp_path / "one" / "tokenizer.json").exists()
    pair = [open_source(str(tmp_path / name)) for name in ("one", "two")]
    assert pair[0].vocabulary["ab"] == 3 and tokenizer_faults(*pair) == []


def test_settings_of_a_quantization_that_is_none_are_left_out(three, tmp_path):
    base, a, _ = three
    wanted = logits(a)
    for folder in (base, a):
        edit(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "quantization_config is left out" in open_source(str(a)).notes[0]
    out = merged(tmp_path, [a])
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert torch.equal(logits(out), wanted)
    packed = stored(a)[f"{LAYER}.q_proj.weight"].to(torch.int8)
    store(a, stored(a) | {f"{LAYER}.q_proj.weight": packed})
    with pytest.raises(BadInput, match=r"dtype I8.*dequantize"):
        open_source(str(a))


# Files that come along, and those that must not.


def test_all_files_of_the_frame_come_along(three, tmp_path):
    _, a, b = three
    (a / "own.py").write_text(
        "import transformers\n\n\nclass Own(transformers.PreTrainedTokenizerFast):\n    pass\n"
    )
    settings = json.loads((a / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
    (a / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "TOOLS {{ messages }}"}
    tokenizer.save_pretrained(a)
    (a / "tokenizer_config.json").write_text(
        json.dumps(json.loads((a / "tokenizer_config.json").read_text()) | settings)
    )
    kept = ["processor_config.json", "spiece.model", "tekken.json", "qwen.tiktoken", "LICENSE"]
    dropped = ["README.md", "optimizer.pt", "pytorch_model.bin", "trainer_state.json", ".secret"]
    for name in kept + dropped:
        (a / name).write_text("{}")
    out = merged(tmp_path, [a, b])
    assert all((out / name).exists() for name in kept)
    assert not any((out / name).exists() for name in dropped[1:])
    assert (out / "README.md").read_text() != "{}"
    made = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert type(made).__name__ == "Own" and made.chat_template["tool_use"] == "TOOLS {{ messages }}"


def test_code_that_nothing_names_stays_where_it_is(three, tmp_path):
    _, a, b = three
    (a / "train.py").write_text("raise SystemExit\n")
    assert not (merged(tmp_path, [a, b]) / "train.py").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "notes.txt", "config.json"])
def test_links_out_of_a_models_directory_are_refused(three, tmp_path, name):
    _, a, _ = three
    secret = tmp_path / "secret"
    secret.write_text((a / name).read_text() if (a / name).exists() else "{}")
    (a / name).unlink(missing_ok=True)
    (a / name).symlink_to(secret)
    with pytest.raises(BadInput, match=f"{name} is a link to .*secret, out of"):
        open_source(str(a))


def test_links_of_the_hubs_cache_are_its_own(three, tmp_path):
    _, a, _ = three
    home = tmp_path / "models--org--a"
    snapshot = home / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for file in a.iterdir():
        shutil.copy(file, home / "blobs" / f"blob of {file.name}")
        (snapshot / file.name).symlink_to(home / "blobs" / f"blob of {file.name}")
    out = merged(tmp_path, [snapshot])
    assert (out / "tokenizer.json").is_file() and not (out / "tokenizer.json").is_symlink()
    with pytest.raises(BadInput, match=r"repository in the hub's cache; write .*0123"):
        open_source(str(home))


@pytest.mark.parametrize("place", ["snapshots/stranger", "snapshots/org/stranger"])
def test_a_folder_that_is_only_called_as_the_hubs_cache_is_none(three, tmp_path, place):
    _, a, _ = three
    stranger = shutil.copytree(a, tmp_path / place)
    (tmp_path / "secret").write_text((a / "tokenizer.json").read_text())
    (stranger / "tokenizer.json").unlink()
    (stranger / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match=r"tokenizer.json is a link to .*secret, out of"):
        open_source(str(stranger))


# No code of strangers.


MODULE = """
import pathlib

import torch

pathlib.Path("was run").touch()


def make():
    return torch.nn.Linear(2, 2)
"""


@pytest.mark.parametrize("name", ["evil.py:make@0", "os:getpid@0"])
def test_recipes_run_no_function_unless_trusted(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(MODULE)
    group = {"layers": None, "modules": None, "weight": [1.0]}
    recipe = mixed([name], "float32") | {"groups": [group]}
    nested = mixed([recipe], "float32") | {"groups": [group]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "nested.json").write_text(json.dumps(nested))
    yaml = f"models: [{{model: '{name}', parameters: {{weight: 1}}}}]\nmerge_method: linear\n"
    (tmp_path / "merge.yml").write_text(yaml)
    for file in ("recipe.json", "nested.json", "merge.yml"):
        result = ran("merge", file, "out")
        assert result.exit_code == 2 and "would run a Python function" in result.output
        assert "--trust-code" in result.output and result.output.count("\n") == 1
        assert not (tmp_path / "was run").exists() and not (tmp_path / "out").exists()
    result = ran("merge", "recipe.json", "out", "--trust-code")
    if name.startswith("evil"):
        assert result.exit_code == 0 and (tmp_path / "was run").exists()
    else:
        assert result.exit_code == 2 and "'os:getpid@0'" in result.output


def test_recipes_run_no_code_of_models_unless_trusted(three, tmp_path):
    _, a, _ = three
    own_code(a)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(mixed([str(a)])))
    result = ran("merge", recipe, tmp_path / "out")
    assert result.exit_code == 2 and "--trust-code" in result.output
    assert not (a / "was run").exists()
    assert ran("merge", recipe, tmp_path / "out", "--trust-code").exit_code == 0
    assert (a / "was run").exists()


# What check and run say of models that give no text.


FIT = """
def items():
    return list(range(24))


def score(model, tokenizer, items):
    return [0.5] * len(items)
"""


def sized(**more):
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    } | more


OTHERS = {
    "reward model": lambda: LlamaForSequenceClassification(
        LlamaConfig(**sized(vocab_size=40, num_labels=1, pad_token_id=0))
    ),
    "encoder": lambda: BertModel(BertConfig(**sized(vocab_size=40))),
    "encoder-decoder": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                 decoder_start_token_id=0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_other_classes_are_searched_by_functions(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = OTHERS[kind]()
    for name in ("base", "a"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.02)
        model.save_pretrained(name)
        tiny_tokenizer().save_pretrained(name)
    (tmp_path / "fit.py").write_text(FIT)
    (tmp_path / "t.jsonl").write_text('{"q": "w1", "a": "w2"}\n' * 24)
    (tmp_path / "t.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: t.jsonl}}\n"
        "test_split: test\noutput_type: loglikelihood\ndoc_to_text: '{{q}}'\n"
        "doc_to_target: '{{a}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    plan = {
        "name": "c",
        "sources": {"base": "base", "models": {"a": "a"}},
        "space": {
            "kind": "parameters", "method": "task_arithmetic",
            "axes": {"weight": {"low": 0.0, "high": 1.0}},
        },
        "controller": {"kind": "random"},
        "fitness": [{"name": "f", "function": "fit.py"}],
        "budget": {"evaluations": 1},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(json.dumps(plan))
    for command in ("check", "run"):
        result = ran(command, "c.yaml")
        assert result.exit_code == 0, result.output
    assert ran("export", "runs/c", "out", "--pick", "3").exit_code == 0
    assert type(model).from_pretrained(tmp_path / "out")
    plan["fitness"] = [{"name": "t", "task": "t.yaml", "metric": "acc"}]
    (tmp_path / "c.yaml").write_text(json.dumps(plan | {"name": "d"}))
    checked, began = ran("check", "c.yaml"), ran("run", "c.yaml")
    if kind == "encoder-decoder":
        assert (checked.exit_code, began.exit_code) == (0, 0), checked.output + began.output
    else:
        assert (checked.exit_code, began.exit_code) == (2, 2)
        said = f"a task needs a model that gives text, and 'base' is a {type(model).__name__}"
        assert said in checked.output and said in began.output


def test_what_strangers_write_commands_no_terminal(three, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(mixed(["no\x1b[2Jsuch/folder/\x07"])))
    result = ran("merge", recipe, tmp_path / "out")
    assert result.exit_code == 2 and "no\ufffd[2Jsuch" in result.output
    assert "\x1b" not in result.output and "\x07" not in result.output


def trained(model, folder, **options):
    """Write a LoRA adapter with random factors; return what PEFT makes of it on loading."""
    torch.manual_seed(0)
    peft = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **options))
    peft.save_pretrained(folder)
    return peft.merge_and_unload()


def same_state(out, wanted):
    """Compare a directory, loaded by the class of a model, with the model."""
    ours = type(wanted).from_pretrained(out, dtype=torch.float32).state_dict()
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_patterns_of_adapters_are_of_names_in_memory(tmp_path):
    """As PEFT matches them; a Gemma 3 is saved under other names than it has."""
    text = sized(vocab_size=40, num_key_value_heads=1, head_dim=8, sliding_window=8)
    see = sized(image_size=28, patch_size=14, model_type="siglip_vision_model")
    config = Gemma3Config(
        text_config=text, vision_config=see, mm_tokens_per_image=4, image_token_index=35,
        boi_token_index=36, eoi_token_index=37,
    )  # fmt: skip
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "base")
    key = r"^model\.language_model\.layers\.0\.self_attn\.q_proj"
    where = r".*language_model.*q_proj"
    wanted = trained(model, tmp_path / "lora", target_modules=where, alpha_pattern={key: 64})
    same_state(merged(tmp_path, [f"{tmp_path / 'base'}+{tmp_path / 'lora'}"], "float32"), wanted)


def test_layers_that_are_stored_the_other_way_round_are_known_by_their_class(tmp_path):
    """PEFT writes fan_in_fan_out: false where an adapter has layers of both kinds."""
    base = tiny("gpt2", tmp_path / "base", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    wanted = trained(model, tmp_path / "lora", target_modules=["attn.c_proj", "lm_head"])
    settings = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert settings["fan_in_fan_out"] is False
    same_state(merged(tmp_path, [f"{base}+{tmp_path / 'lora'}"], "float32"), wanted)


def test_a_class_without_a_head_over_files_with_one_is_refused(three):
    _, a, _ = three
    edit(a, architectures=["LlamaModel"], tie_word_embeddings=False)
    store(a, stored(a) | {HEAD: stored(a)[EMBEDDINGS] * 2})
    with pytest.raises(BadInput, match=r"a LlamaModel.* has no use for lm_head\.weight"):
        open_source(str(a))


def test_an_exported_baseline_is_made_again_from_its_recipe(three, tmp_path, monkeypatch):
    """It followed the vocabulary of the run's base, which its own recipe does not read."""
    monkeypatch.chdir(tmp_path)
    padded(three[0], 40, 0.5)
    (tmp_path / "fit.py").write_text(FIT)
    axes = {"weight": {"low": 0.0, "high": 1.0}}
    plan = {
        "name": "c",
        "sources": {"base": "base", "models": {"a": "a", "b": "b"}},
        "space": {"kind": "parameters", "method": "task_arithmetic", "axes": axes},
        "controller": {"kind": "random"},
        "fitness": [{"name": "f", "function": "fit.py"}],
        "budget": {"evaluations": 1},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(plan))
    result = ran("run", "c.yaml")
    assert result.exit_code == 0, result.output
    for number in ("2", "4"):  # `a`, and the uniform average of `a` and `b`
        result = ran("export", "runs/c", number, "--pick", number)
        assert result.exit_code == 0 and "as scored" in result.output, result.output
        assert json.loads((tmp_path / number / "recipe.json").read_text())["first"] == "base"
        again = ran("merge", f"{number}/recipe.json", f"{number} again")
        assert again.exit_code == 0, again.output
        one, two = (stored(tmp_path / name) for name in (number, f"{number} again"))
        assert len(one[EMBEDDINGS]) == 40 and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("written", ["[", '{"max_new_tokens": -1}', "[]"])
def test_settings_of_generation_are_checked(three, tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.py").write_text(FIT)
    for folder in three:
        (folder / "generation_config.json").write_text(written)
    plan = {
        "name": "c",
        "sources": {"models": {"a": "a", "b": "b"}},
        "space": {
            "kind": "parameters",
            "method": "linear",
            "axes": {"weight": {"low": 0, "high": 1}},
        },
        "controller": {"kind": "random"},
        "fitness": [{"name": "f", "function": "fit.py"}],
        "budget": {"evaluations": 1},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(plan))
    results = [ran(command, "c.yaml") for command in ("check", "run")]
    assert [result.exit_code for result in results] == [2, 2]
    assert all("generation_config.json of 'a' cannot be read" in r.output for r in results)


def test_odd_settings_of_code_and_kernels(three):
    base, a, _ = three
    edit(a, auto_map=["evil.Model"])
    with pytest.raises(BadInput, match=r"auto_map in config\.json is no mapping"):
        open_source(str(a))
    edit(base, attn_implementation="someone/kernels", text={"_attn_implementation": "x/y"})
    source = open_source(str(base))
    assert "attn_implementation" not in source.config and source.config["text"] == {}


def test_embeddings_of_an_encoder_decoder_are_aligned(tmp_path):
    folders = []
    for seed, rows in enumerate((32, 40)):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=rows, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        folders.append(tmp_path / str(rows))
        T5ForConditionalGeneration(config).save_pretrained(folders[-1])
        tiny_tokenizer().save_pretrained(folders[-1])
    out = stored(merged(tmp_path, folders, "float32"))
    one, two = (stored(folder) for folder in folders)
    wanted = (one["shared.weight"] + two["shared.weight"][:32]) / 2
    torch.testing.assert_close(out["shared.weight"], wanted)


def test_a_name_of_several_lines_is_one_line(three, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(mixed(["no\nevomerge: done/x"])))
    result = ran("merge", recipe, tmp_path / "out")
    assert result.exit_code == 2 and result.output.count("\n") == 1


@pytest.mark.parametrize("first", [["x"], 3, "nowhere/such"])
def test_a_first_source_that_is_none_is_told(three, tmp_path, first):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(mixed([str(three[1])]) | {"first": first}))
    result = ran("merge", recipe, tmp_path / "out")
    assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
    assert "first: " in result.output and not (tmp_path / "out").exists()
