"""Streams of merged tensors, and the live model that they are poured into."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import BadInput, CandidateFailure
from evomerge.kernels.checksum import Checksum
from evomerge.merging.live_model import LiveModel
from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS
from evomerge.merging.validation import method_of
from evomerge.recipes.parameters import Group, ParametersRecipe, single, uniform
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of, tiny_llama


@pytest.fixture
def merger(world):
    opened = {n: open_source(str(world / n)) for n in ("base", "a", "b", "c")}
    return Merger(opened, {n: digest(s).sha256 for n, s in opened.items()})


def test_a_single_source_comes_out_bit_for_bit(world, merger):
    stored = load_file(world / "a" / "model.safetensors")
    merged = dict(merger.stream(single("a", "bfloat16")))
    assert merged.keys() == stored.keys()
    assert all(torch.equal(merged[n], stored[n]) for n in stored)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "della", "sce", "slerp"])
def test_sources_that_are_streamed_are_merged_as_those_that_stay(
    merger, method, device, monkeypatch
):
    """With room for a half of them, and for none; a few tensors at a time."""
    from evomerge.merging import merger as module

    monkeypatch.setattr(module, "_REMADE", 1000)
    models = ["a", "b", "c"][: METHODS.get(method).models or 3]
    recipe = replace(recipe_of(method, models, "base", density=0.4), dtype="bfloat16")
    names = merger.shapes(recipe)
    size = sum(merger.sources[source].bytes for source in recipe.sources)
    made = []
    for room in (None, size // 2, 0):
        own = Merger(merger.sources, merger.hashes, device, room)
        assert own._planned(recipe).remade == (room is not None)
        for _ in range(2):
            live = {
                n: torch.zeros(s, dtype=torch.bfloat16, device=device) for n, s in names.items()
            }
            digests = own.fill(recipe, live)
            made.append((digests, live))
        assert list(dict(own.stream(recipe))) == list(names)
    (digests, live), *others = made
    for other_digests, other in others:
        for name in names:
            assert torch.equal(live[name], other[name]), name
            assert np.array_equal(digests[name], other_digests[name]), name


def test_groups_apply_where_they_say(world, merger):
    """Layer 0 from a, layer 1's mlp from b, the embeddings from c, the rest from the base."""

    def group(layers, modules, *weight):
        return Group(layers, modules, {"weight": tuple(map(float, weight))})

    recipe = ParametersRecipe(
        "task_arithmetic",
        ("a", "b", "c"),
        (
            group((0, 1), None, 1, 0, 0),
            group((1, 2), "mlp", 0, 1, 0),
            group((1, 2), None, 0, 0, 0),
            group("embed", None, 0, 0, 1),
            group("norm", None, 0, 0, 0),
        ),
        base="base",
    )
    stored = {n: load_file(world / n / "model.safetensors") for n in ("base", "a", "b", "c")}
    for name, tensor in merger.stream(recipe):
        owner = "base"
        if "layers.0." in name:
            owner = "a"
        elif "mlp" in name:
            owner = "b"
        elif "embed" in name:
            owner = "c"
        assert torch.equal(tensor, stored[owner][name]), name


def test_each_group_is_merged_by_its_own_method(merger):
    """Tensor by tensor what a recipe of that method alone gives, streamed and in place."""
    sparse = {"weight": (0.7, 0.5), "density": (0.5, 0.8)}
    groups = (
        Group((0, 1), "mlp", sparse, "ties"),
        Group((0, 1), None, {"weight": (0.3, 0.9)}),
        Group((1, 2), None, sparse, "dare_linear"),
        Group(None, None, {"weight": (0.3, 0.9)}),
    )
    common = {"base": "base", "seed": 5}
    recipe = ParametersRecipe("linear", ("a", "b"), groups, options={"normalize": False}, **common)
    alone = {}
    for method in recipe.methods:
        values = groups[1].values if method == "linear" else sparse
        own = ParametersRecipe(method, ("a", "b"), (Group(None, None, values),), **common)
        own = replace(own, options={} if method == "dare_linear" else recipe.options)
        alone[method] = dict(merger.stream(own))
    wanted = {}
    for name in alone["linear"]:
        method = "dare_linear" if "layers.1." in name else "linear"
        method = "ties" if "layers.0." in name and "mlp" in name else method
        wanted[name] = alone[method][name]
    streamed = dict(merger.stream(recipe))
    live = {name: torch.empty_like(tensor) for name, tensor in wanted.items()}
    merger.fill(recipe, live)
    for name, tensor in wanted.items():
        assert torch.equal(streamed[name], tensor), name
        assert torch.equal(live[name], tensor), name


def test_a_tensor_that_no_group_holds_fails_the_candidate(merger):
    recipe = ParametersRecipe("linear", ("a",), (Group((0, 1), None, {"weight": (1.0,)}),))
    with pytest.raises(CandidateFailure, match=r"no group .* holds tensor model.embed_tokens"):
        list(merger.stream(recipe))


def test_overflow_fails_the_candidate_by_tensor_name(merger):
    recipe = ParametersRecipe(
        "linear",
        ("a",),
        (Group(None, None, {"weight": (1e38,)}),),
        options={"normalize": False},
        dtype="float16",
    )
    with pytest.raises(CandidateFailure, match=r"merged tensor model.embed_tokens.weight is not"):
        list(merger.stream(recipe))


def test_dare_is_the_same_in_any_order_and_differs_by_seed(merger):
    values = {"weight": (1.0, 1.0), "density": (0.5, 0.5)}
    recipe = ParametersRecipe("dare_ties", ("a", "b"), (Group(None, None, values),), "base", seed=3)
    first = dict(merger.stream(recipe))
    again = dict(Merger(merger.sources, merger.hashes).stream(recipe))
    assert all(torch.equal(first[n], again[n]) for n in first)
    other = dict(merger.stream(ParametersRecipe(*_fields(recipe, seed=4))))
    assert any(not torch.equal(first[n], other[n]) for n in first)


def _fields(recipe, seed):
    return recipe.method, recipe.models, recipe.groups, recipe.base, recipe.dtype, seed


@pytest.mark.parametrize(
    "recipe, message",
    [
        (
            ParametersRecipe("tise", ("a",), ()),
            "there is no merge method 'tise'; did you mean 'ties'?",
        ),
        (
            ParametersRecipe("ties", ("a",), (Group(None, None, {"weight": (1.0,)}),)),
            "ties needs a base",
        ),
        (
            ParametersRecipe("slerp", ("a",), (Group(None, None, {"t": 0.5}),)),
            "slerp merges 2 models, not 1",
        ),
        (
            ParametersRecipe("linear", ("a",), (Group(None, None, {"wieght": (1.0,)}),)),
            "linear has no 'wieght'; did you mean 'weight'?",
        ),
        (
            ParametersRecipe("linear", ("a",), (Group(None, None, {}),)),
            "groups.0.weight: is missing",
        ),
        (
            ParametersRecipe("linear", ("a", "b"), (Group(None, None, {"weight": (1.0,)}),)),
            "is not a list of 2 numbers",
        ),
        (
            ParametersRecipe("slerp", ("a", "b"), (Group(None, None, {"t": 1.5}),)),
            "1.5 is out of range; stay within 0 to 1",
        ),
        (
            ParametersRecipe("dare_ties", ("a",), (Group(None, None, {"weight": (1.0,)}),), "base"),
            "dare_ties draws random masks",
        ),
        (
            ParametersRecipe(
                "linear",
                ("a",),
                (Group(None, None, {"weight": (1.0,)}),),
                options={"normalise": True},
            ),
            "linear has no option 'normalise'; did you mean 'normalize'?",
        ),
    ],
)
def test_recipes_that_do_not_fit_their_method(recipe, message):
    with pytest.raises(BadInput) as error:
        method_of(recipe)
    assert message in str(error.value)


def test_checksum_sees_every_bit_name_and_shape():
    def of(name, tensor):
        checksum = Checksum()
        checksum.update(name, tensor)
        return checksum.hexdigest()

    tensor = torch.arange(6, dtype=torch.float32)
    flipped = tensor.clone()
    flipped.view(torch.int32)[5] ^= 1
    sums = {of("x", tensor), of("y", tensor), of("x", flipped), of("x", tensor.view(2, 3))}
    assert len(sums) == 4 and of("x", tensor.clone()) in sums


def logits(model):
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    with torch.no_grad():
        return model(ids).logits.float()


@pytest.mark.parametrize("tie", [True, False])
def test_a_live_model_is_the_model_that_transformers_loads(tmp_path, tie):
    from transformers import AutoModelForCausalLM

    paths = [str(tiny_llama(tmp_path / str(i), i, tie=tie)) for i in range(2)]
    opened = {p: open_source(p) for p in paths}
    merger = Merger(opened, dict.fromkeys(paths, "x"))
    live = LiveModel(opened[paths[0]], "bfloat16")
    for path in (*paths, paths[0]):  # overwritten in place, back and forth
        live.load(merger.stream(single(path, "bfloat16")))
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        assert torch.equal(logits(live.model), logits(plain))


def test_a_second_copy_of_tied_embeddings_is_ignored(world, tmp_path):
    import shutil

    other = shutil.copytree(world / "a", tmp_path / "copy")
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, other / "model.safetensors")
    assert "lm_head.weight" not in open_source(str(other)).tensors


def test_stacked_experts_are_filled_as_transformers_does(tmp_path):
    """Mixtral's checkpoint names one tensor per expert; the live model stacks them."""
    from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

    from evomerge.testing import tiny_tokenizer

    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=12,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        path = tmp_path / str(seed)
        MixtralForCausalLM(config).to(torch.float32).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        paths.append(str(path))
    opened = {p: open_source(p) for p in paths}
    assert any("experts.11." in n for n in opened[paths[0]].tensors)
    merger = Merger(opened, dict.fromkeys(paths, "x"))
    live = LiveModel(opened[paths[0]], "float32")
    plain = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in paths]
    live.load(merger.stream(single(paths[1], "float32")))
    assert torch.equal(logits(live.model), logits(plain[1]))
    live.load(merger.stream(uniform(tuple(paths), "float32")))
    states = [p.state_dict() for p in plain]
    for name, value in live.model.state_dict().items():
        mean = (states[0][name].double() + states[1][name].double()) / 2
        assert np.allclose(value.double(), mean, atol=1e-7), name


def test_a_checkpoint_that_does_not_fill_the_model_is_refused(world, tmp_path):
    import shutil

    other = shutil.copytree(world / "a", tmp_path / "less")
    tensors = load_file(other / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(BadInput, match=r"does not fill a LlamaForCausalLM: model.norm.weight"):
        LiveModel(open_source(str(other)), "bfloat16")
