"""Methods that merge by data, against least squares, exact expectations and a real training."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_images import tiny_pipeline
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from evomerge.campaign.build import checked
from evomerge.campaign.estimate import estimate
from evomerge.campaign.reading import reading
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, EvomergeError
from evomerge.export.candidates import export_candidate
from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS
from evomerge.merging.observations import Observations
from evomerge.merging.observed_curvature import fisher_of
from evomerge.merging.source_weights import SourceWeights
from evomerge.node.phases import Steps, heard
from evomerge.sources.alignment import all_aligned
from evomerge.sources.digest import digest
from evomerge.sources.evidence import Evidence, split_evidence
from evomerge.sources.source import open_source
from evomerge.sources.texts import read_texts
from evomerge.testing import merge_arrays, recipe_of, tiny_llama
from evomerge.testing.campaigns import example_campaign, example_campaign_file
from evomerge.testing.tiny import WORDS, tiny_tokenizer
from evomerge.text import byte_size

READS = sorted(name for name, method in METHODS.all().items() if method.reads)
AXES = {"weight": {"low": 0.0, "high": 1.5}}
LAYER = "model.layers.1"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    base = tiny_llama(folder / "base", 0, dtype="float32")
    rng, texts, models = np.random.default_rng(1), [], []
    for number, label in enumerate("ab"):
        models.append(
            tiny_llama(folder / label, number + 1, near=base, spread=0.1, dtype="float32")
        )
        words = rng.choice(WORDS[4:], (12, 9))
        lines = [" ".join(row[: rng.integers(3, 9)]) for row in words]
        texts.append(folder / f"{label}.jsonl")
        texts[-1].write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return base, models, texts


def merged(method, base, models, texts, **options):
    names = [f"{model}?texts={text}" for model, text in zip(models, texts, strict=True)]
    sources = {name: open_source(name) for name in (str(base), *names)}
    hashes = {name: digest(source).sha256 for name, source in sources.items()}
    recipe = recipe_of(method, names, str(base), options=options)
    return dict(Merger(sources, hashes).stream(recipe))


def observations(base, names):
    opened = {name: open_source(name) for name in (str(base), *names)}
    weights, hashes = SourceWeights(opened, torch.device("cpu")), dict.fromkeys(opened, "")
    sources = [opened[name] for name in names]
    return Observations(opened[str(base)], names, sources, hashes, weights.tensor)


def read_by(model, text, layer):
    """Return what a layer's module takes in over a file of texts, by transformers' own model."""
    tokenizer, rows = AutoTokenizer.from_pretrained(model.name_or_path), []
    module = model.get_submodule(layer)
    hook = module.register_forward_pre_hook(lambda _, given: rows.append(given[0][0].double()))
    for line in read_texts(text):
        with torch.no_grad():
            model(**tokenizer(line.prompt, return_tensors="pt"))
    hook.remove()
    return torch.cat(rows)


def least_squares(taken, weights):
    """Return the W that minimizes sum_i |X_i W^T - X_i W_i^T|^2 / n_i."""
    left = torch.cat([x / len(x) ** 0.5 for x in taken])
    right = torch.cat(
        [x @ w.double().T / len(x) ** 0.5 for x, w in zip(taken, weights, strict=True)]
    )
    return torch.linalg.lstsq(left, right).solution.T


@pytest.mark.parametrize("layer", ["self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"])
def test_regmean_is_least_squares(pool, layer):
    base, models, texts = pool
    got = merged("regmean", base, models, texts, correlation=1.0, ridge=0.0)
    loaded = [AutoModelForCausalLM.from_pretrained(model) for model in models]
    taken = [read_by(m, t, f"{LAYER}.{layer}") for m, t in zip(loaded, texts, strict=True)]
    weights = [m.state_dict()[f"{LAYER}.{layer}.weight"] for m in loaded]
    wanted = least_squares(taken, weights)
    assert torch.allclose(got[f"{LAYER}.{layer}.weight"].double(), wanted, atol=2e-3)
    norm = f"{LAYER}.input_layernorm.weight"
    mean = sum(m.state_dict()[norm] for m in loaded) / 2
    assert torch.allclose(got[norm], mean, atol=1e-6)


def test_regmean_plus_plus_reads_behind_merged_layers(pool):
    base, models, texts = pool
    got = merged("regmean_plus_plus", base, models, texts, correlation=1.0, ridge=0.0)
    loaded = [AutoModelForCausalLM.from_pretrained(model) for model in models]
    apart = merged("regmean", base, models, texts, correlation=1.0, ridge=0.0)
    for layer in ("self_attn.q_proj", "mlp.down_proj"):
        taken, name = [], f"{LAYER}.{layer}.weight"
        for model, text in zip(loaded, texts, strict=True):
            own = {key: value.clone() for key, value in model.state_dict().items()}
            own.pop("lm_head.weight")  # the embeddings by another name
            before = {k: got[k] for k in got if "layers.0." in k or "embed" in k}
            model.load_state_dict({**own, **before}, strict=False)
            taken.append(read_by(model, text, f"{LAYER}.{layer}"))
            model.load_state_dict(own, strict=False)
        weights = [m.state_dict()[name] for m in loaded]
        assert torch.allclose(got[name].double(), least_squares(taken, weights), atol=2e-3)
        assert not torch.allclose(got[name], apart[name], atol=1e-3)


@pytest.mark.parametrize("method", READS)
def test_equal_models_are_what_they_were(pool, method):
    base, models, texts = pool
    got = merged(method, base, [models[0], models[0]], texts)
    own = AutoModelForCausalLM.from_pretrained(models[0]).state_dict()
    for name, tensor in got.items():
        assert torch.allclose(tensor, own[name], atol=1e-5), name


def test_transposed_weights_are_least_squares_too(tmp_path):
    config = GPT2Config(vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    models, texts = [], []
    for number in range(3):
        torch.manual_seed(number)
        model = GPT2LMHeadModel(config)
        model.save_pretrained(tmp_path / str(number))
        tiny_tokenizer().save_pretrained(tmp_path / str(number))
        models.append(tmp_path / str(number))
        texts.append(tmp_path / f"{number}.txt")
        words = np.random.default_rng(number).choice(WORDS[4:], (12, 8))
        texts[-1].write_text("\n".join(map(" ".join, words)))
    got = merged("regmean", models[0], models[1:], texts[1:], correlation=1.0, ridge=0.0)
    loaded = [AutoModelForCausalLM.from_pretrained(model) for model in models[1:]]
    layer = "transformer.h.0.attn.c_proj"  # square, so that its shape does not tell
    taken = [read_by(m, t, layer) for m, t in zip(loaded, texts[1:], strict=True)]
    weights = [m.state_dict()[f"{layer}.weight"].T for m in loaded]
    wanted = least_squares(taken, weights).T
    assert torch.allclose(got[f"{layer}.weight"].double(), wanted, atol=2e-3)


@settings(max_examples=15)
@given(seed=st.integers(0, 40), correlation=st.sampled_from([0.0, 0.5, 1.0]))
def test_regmean_solves_its_normal_equations(seed, correlation):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(4, 6)).astype(np.float32)
    models = [base + rng.normal(size=(4, 6)).astype(np.float32) for _ in range(3)]
    grams = [(lambda x: x.T @ x / 9)(rng.normal(size=(9, 6))) for _ in range(3)]
    options = {"correlation": correlation, "ridge": 0.0}
    got = merge_arrays("regmean", base, models, inputs=grams, options=options).astype(float)
    reduced = [correlation * g + (1 - correlation) * np.diag(np.diag(g)) for g in grams]
    pulls = [(got - m) @ g for m, g in zip(models, reduced, strict=True)]
    assert np.abs(sum(pulls)).max() < 1e-4


@settings(max_examples=15)
@given(seed=st.integers(0, 40), power=st.sampled_from([0.25, 0.5, 1.0]))
def test_curvature_weighs_element_by_element(seed, power):
    rng = np.random.default_rng(seed)
    base, *models = rng.normal(size=(4, 5, 3)).astype(np.float32)
    moments = [rng.gamma(0.5, size=(5, 3)).astype(np.float32) for _ in models]
    weights = np.stack(moments).astype(float) ** power
    wanted = (weights * np.stack(models)).sum(0) / weights.sum(0)
    got = merge_arrays("ota", base, models, moments=moments, options={"power": power})
    assert np.allclose(got, wanted, atol=1e-4)
    if power == 1.0:
        assert np.array_equal(got, merge_arrays("fisher", base, models, moments=moments))


def test_grafting_keeps_what_the_loss_depends_on():
    rng = np.random.default_rng(3)
    base, model = rng.normal(size=(2, 40)).astype(np.float32)
    moment = rng.gamma(1.0, size=40).astype(np.float32)
    got = merge_arrays("ota", base, [model], moments=[moment], options={"keep": 0.25})
    kept = np.argsort(moment.astype(float) * (model - base).astype(float) ** 2)[-10:]
    wanted = base.copy()
    wanted[kept] = model[kept]
    assert np.allclose(got, wanted, atol=1e-6)


def test_fisher_is_the_expected_squared_gradient(pool):
    """By the sum over all labels, which one drawn label stands for on average."""
    base, models, texts = pool
    names = [f"{model}?texts={text}" for model, text in zip(models, texts, strict=True)]
    from evomerge.merging.observations import Observations
    from evomerge.merging.source_weights import SourceWeights

    opened = {name: open_source(name) for name in (str(base), *names)}
    weights = SourceWeights(opened, torch.device("cpu"))
    known = Observations(
        opened[str(base)],
        names,
        [opened[n] for n in names],
        dict.fromkeys(opened, ""),
        weights.tensor,
    )
    ids = torch.tensor([[7]])
    got, _ = fisher_of(known.fill(0), [ids] * 1500, Steps("", "texts", 1500))
    model = AutoModelForCausalLM.from_pretrained(models[0])
    chances = model(ids).logits[0, 0].softmax(-1)
    exact = {}
    for label, chance in enumerate(chances.tolist()):
        model.zero_grad()
        model(ids).logits[0, 0].log_softmax(-1)[label].backward()
        for name, parameter in model.named_parameters():
            exact[name] = exact.get(name, 0.0) + chance * parameter.grad.double() ** 2
    for name, wanted in exact.items():
        assert float(got[name].sum()) == pytest.approx(float(wanted.sum()), rel=0.15), name
    assert not any(p.requires_grad for p in known.live().model.parameters())


def test_adams_moments_are_found_by_their_numbers(pool, tmp_path):
    """In the file that a real training by the Trainer leaves."""
    from transformers import Trainer, TrainingArguments

    base = pool[0]
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = [{"input_ids": [4 + k, 5, 6, 7], "labels": [4 + k, 5, 6, 7]} for k in range(8)]
    arguments = TrainingArguments(
        tmp_path / "out", max_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    moments = trainer.optimizer.state
    (saved,) = (tmp_path / "out").glob("checkpoint-*/optimizer.pt")
    known = observations(base, [f"{base}?moments={saved}"])
    for name, parameter in model.named_parameters():
        wanted = next(v["exp_avg_sq"] for k, v in moments.items() if k is parameter)
        assert torch.equal(known.curvature(name)[0], wanted), name


def test_inputs_may_come_without_the_texts(pool, tmp_path):
    base, models, _ = pool
    rng = np.random.default_rng(5)
    wanted = "model.layers.0.mlp.down_proj.weight"
    names = []
    for number, model in enumerate(models):
        rows = torch.from_numpy(rng.normal(size=(50, 32)).astype(np.float32))
        file = tmp_path / f"{number}.safetensors"
        gram = rows.T @ rows / 50
        save_file({wanted: gram.diagonal().clone() if number else gram}, file)
        names.append(f"{model}?inputs={file}")
    sources = {name: open_source(name) for name in (str(base), *names)}
    hashes = {name: digest(source).sha256 for name, source in sources.items()}
    got = dict(Merger(sources, hashes).stream(recipe_of("regmean", names, str(base))))
    own = [AutoModelForCausalLM.from_pretrained(model).state_dict() for model in models]
    for name, tensor in got.items():
        is_mean = torch.allclose(tensor, (own[0][name] + own[1][name]) / 2, atol=1e-6)
        assert is_mean == (name != wanted), name


def test_observed_inputs_serve_as_the_texts_do(pool, tmp_path):
    base, models, texts = pool
    names = []
    for number, (model, text) in enumerate(zip(models, texts, strict=True)):
        out = str(tmp_path / f"{number}.safetensors")
        said = CliRunner().invoke(
            main, ["observe", str(model), str(text), out, "--base", str(base)]
        )
        assert said.exit_code == 0 and said.output.endswith("(9 matrices)\n")
        names.append(f"{model}?inputs={out}")
    sources = {name: open_source(name) for name in (str(base), *names)}
    hashes = {name: digest(source).sha256 for name, source in sources.items()}
    got = dict(Merger(sources, hashes).stream(recipe_of("regmean", names, str(base))))
    for name, tensor in merged("regmean", base, models, texts).items():
        assert torch.equal(tensor, got[name]), name
    again = CliRunner().invoke(main, ["observe", str(models[0]), str(texts[0]), out])
    assert again.exit_code == 2 and "is there already" in again.output


def test_experts_of_a_mixture_have_their_own_curvature(tmp_path):
    """Which transformers stacks; by the sum over all labels again."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1,
        initializer_range=0.4,
    )  # fmt: skip
    torch.manual_seed(4)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "t.txt").write_text("w1 w2")
    known = observations(tmp_path / "m", [f"{tmp_path / 'm'}?texts={tmp_path / 't.txt'}"])
    ids = torch.tensor([[7]])
    got, _ = fisher_of(known.fill(0), [ids] * 1500, Steps("", "texts", 1500))
    model = MixtralForCausalLM.from_pretrained(tmp_path / "m")
    chances = model(ids).logits[0, 0].softmax(-1)
    exact = 0.0
    for label, chance in enumerate(chances.tolist()):
        model.zero_grad()
        model(ids).logits[0, 0].log_softmax(-1)[label].backward()
        exact = exact + chance * model.model.layers[0].mlp.experts.down_proj.grad.double() ** 2
    for number in (0, 1):
        name = f"model.layers.0.block_sparse_moe.experts.{number}.w2.weight"
        wanted = float(exact[number].sum())
        assert float(got[name].sum()) == pytest.approx(wanted, rel=0.15, abs=1e-12)
    assert {n for n, t in known._frame.tensors.items() if t.shape} <= set(got) | {"lm_head.weight"}


def test_a_damaged_reading_is_made_anew(pool):
    base, models, texts = pool
    before = merged("regmean", base, models, texts)
    for file in cache_folder("observed").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    after = merged("regmean", base, models, texts, ridge=1e-3)  # prepared anew
    again = merged("regmean", base, models, texts)
    assert all(torch.equal(before[name], again[name]) for name in before)
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_a_reading_that_cannot_be_kept_is_told(pool):
    base, models, texts = pool
    cache_folder("observed").parent.mkdir(parents=True, exist_ok=True)
    cache_folder("observed").write_text("in the way")
    with pytest.raises(EvomergeError, match="observed"):
        merged("regmean", base, models, texts)


def test_inputs_that_somebody_made_know_how_a_weight_lies(tmp_path):
    """GPT-2's weights are (in, out), which a square one does not tell."""
    config = GPT2Config(vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    name, grams, weights, names = "transformer.h.0.attn.c_proj.weight", [], [], []
    for number in range(3):
        torch.manual_seed(number)
        model = GPT2LMHeadModel(config)
        model.save_pretrained(tmp_path / str(number))
        tiny_tokenizer().save_pretrained(tmp_path / str(number))
        rows = torch.randn(40, 16)
        grams.append((rows.T @ rows / 40).double())
        weights.append(model.state_dict()[name].double())
        save_file({name: grams[-1].float()}, tmp_path / f"{number}.safetensors")
        names.append(f"{tmp_path / str(number)}?inputs={tmp_path / f'{number}.safetensors'}")
    sources = {key: open_source(key) for key in (str(tmp_path / "0"), *names[1:])}
    hashes = {key: digest(source).sha256 for key, source in sources.items()}
    recipe = recipe_of(
        "regmean", names[1:], str(tmp_path / "0"), options={"correlation": 1.0, "ridge": 0.0}
    )
    got = dict(Merger(sources, hashes).stream(recipe))[name].double()
    # (sum G_i)^-1 sum G_i W_i, as inputs stand before the weights
    wanted = torch.linalg.solve(grams[1] + grams[2], grams[1] @ weights[1] + grams[2] @ weights[2])
    assert torch.allclose(got, wanted, atol=1e-4)


def test_moments_of_a_padded_vocabulary_fit(tmp_path):
    base = tiny_llama(tmp_path / "base", 0, dtype="float32")
    padded = tiny_llama(tmp_path / "more", 1, dtype="float32", words=(*WORDS, "x1", "x2"))
    tiny_tokenizer().save_pretrained(padded)
    own = open_source(str(padded)).tensors
    save_file({n: torch.full(t.shape, 4.0) for n, t in own.items()}, tmp_path / "v.safetensors")
    names = [f"{padded}?moments={tmp_path / 'v.safetensors'}"]
    sources = all_aligned({n: open_source(n) for n in (str(base), *names)})
    hashes = {n: digest(source).sha256 for n, source in sources.items()}
    got = dict(Merger(sources, hashes).stream(recipe_of("ota", names, str(base))))
    assert got["model.embed_tokens.weight"].shape == (len(WORDS), 16)


@pytest.mark.parametrize("content", [b"no zip", b""])
def test_no_optimizer_state_is_told_by_check(pool, tmp_path, content):
    (tmp_path / "optimizer.pt").write_bytes(content)
    with pytest.raises(BadInput, match=r"moments: '.*' is no optimizer's state"):
        open_source(f"{pool[0]}?moments={tmp_path / 'optimizer.pt'}")


def test_what_a_state_would_run_is_not_run(pool, tmp_path):
    class Bad:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    torch.save({"state": Bad(), "param_groups": []}, tmp_path / "optimizer.pt")
    known = observations(pool[0], [f"{pool[0]}?moments={tmp_path / 'optimizer.pt'}"])
    with pytest.raises(BadInput, match="holds more than tensors and plain values") as caught:
        known.curvature("model.norm.weight")
    assert "weights_only" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_texts_that_give_no_token_are_refused(pool, tmp_path):
    base = pool[0]
    (tmp_path / "odd.jsonl").write_text('{"text": "   "}\n')
    with pytest.raises(BadInput, match="line 1 is no text"):
        open_source(f"{base}?texts={tmp_path / 'odd.jsonl'}")


def test_texts_may_hold_other_separators_of_lines(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "w1\u2028w2"}\r\n{"text": "w3\x85"}\n')
    found = [text.prompt for text in read_texts(tmp_path / "t.jsonl")]
    assert found == ["w1\u2028w2", "w3\x85"]


def sources_of(pool, texts=True):
    base, models, files = pool
    listed = {}
    for label, model, file in zip("ab", models, files, strict=True):
        listed[label] = {"model": str(model), "texts": str(file)} if texts else str(model)
    return {"base": str(base), "models": listed}


def test_a_campaign_reads_once_and_exports(pool, tmp_path):
    space = {"kind": "parameters", "method": "regmean", "axes": AXES}
    file = example_campaign_file(sources=sources_of(pool), space=space)
    with heard() as phases:
        assert run_campaign(file, directory=tmp_path / "run")
    assert sum("reading the texts" in phase for phase in phases) == 2
    export_candidate(tmp_path / "run", tmp_path / "best", "best")  # which compares the weights
    recipe = json.loads((tmp_path / "best" / "recipe.json").read_text())
    assert all(split_evidence(model)[1].texts for model in recipe["models"])


def test_other_texts_are_another_source(pool, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2")
    name = f"{pool[0]}?texts={texts}"
    before = digest(open_source(name)).sha256
    assert before != digest(open_source(str(pool[0]))).sha256
    texts.write_text("w1 w2 w3")
    assert before != digest(open_source(name)).sha256


def test_check_tells_what_is_read(pool):
    space = {"kind": "parameters", "method": "regmean", "axes": AXES}
    campaign = example_campaign(sources=sources_of(pool), space=space)
    said = estimate(campaign)
    told = byte_size(reading(campaign).memory_bytes)
    assert said["summary"]["texts"] == f"24 are read once, which takes {told} of memory or more"
    assert "of what the models read" in said["summary"]["disk"]


def test_check_counts_the_states_that_are_replayed(pool):
    """Of every text one state a token, of some four bytes; beside one model in float32."""
    space = {"kind": "parameters", "axes": AXES}
    told = {
        name: reading(example_campaign(sources=sources_of(pool), space=space | {"method": name}))
        for name in ("fisher", "regmean_plus_plus")
    }
    base, _, files = pool
    frame = open_source(str(base))
    weights = 4 * sum(tensor.elements for tensor in frame.tensors.values())
    assert told["fisher"].memory_bytes == 2 * weights  # the model, and its sums
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    tokens = sum(len(line["text"]) // 4 for line in lines)
    assert tokens > len(lines)
    states = tokens * frame.config["hidden_size"] * 4
    assert told["regmean_plus_plus"].memory_bytes == weights + states


def test_what_transformers_does_not_know_is_told_too(tmp_path):
    """A UNet has no model type, and no states of texts to count."""
    pytest.importorskip("diffusers")
    drawn = tiny_pipeline(tmp_path / "drawn", 1)
    photo = tiny_pipeline(tmp_path / "photo", 2, near=drawn)
    (tmp_path / "texts.txt").write_text("a cat\n")
    models = {"photo": {"model": str(photo), "texts": str(tmp_path / "texts.txt")}}
    campaign = example_campaign(
        sources={"base": str(drawn), "models": models},
        space={"kind": "parameters", "method": "regmean_plus_plus", "axes": AXES},
    )
    told = reading(campaign)
    tensors = campaign.sources[campaign.worker.frame].tensors.values()
    assert (told.texts, told.memory_bytes) == (1, 4 * sum(t.elements for t in tensors))


def test_what_a_method_reads_must_be_there(pool):
    space = {"kind": "parameters", "method": "regmean", "axes": AXES}
    with pytest.raises(BadInput) as caught:
        checked(example_campaign_file(sources=sources_of(pool, texts=False), space=space))
    first = str(caught.value).splitlines()[0]
    assert "sources.models.a: regmean reads texts or inputs of" in first
    assert first.endswith("texts: FILE}")


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("t.jsonl", '{"text": "w1"}\n{"x": 1}\n', "line 2 is no text"),
        ("t.jsonl", "\n", "holds no text"),
        ("t.txt", None, "there is no file"),
    ],
)
def test_bad_texts_are_told_before_anything_is_loaded(pool, tmp_path, name, text, wrong):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=wrong):
        open_source(f"{pool[0]}?texts={tmp_path / name}")


def test_inputs_of_another_model_are_refused(pool, tmp_path):
    save_file({"model.norm.weight": torch.zeros(3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=r"is \(3, 3\) there"):
        open_source(f"{pool[0]}?inputs={tmp_path / 'x.safetensors'}")


@given(st.lists(st.sampled_from(["texts", "inputs", "moments"]), unique=True, min_size=1))
def test_names_are_split_as_they_were_put_together(kinds):
    evidence = Evidence(**{kind: f"/R&D where/{kind}#.file" for kind in kinds})
    assert split_evidence(f"org/m@main+lora{evidence.suffix}") == ("org/m@main+lora", evidence)
