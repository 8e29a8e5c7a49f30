"""Routing: the fold against the stream scaled step by step, the live path against both."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.errors import BadInput
from evomerge.export.model_directory import merge_to
from evomerge.mergekit.reader import from_mergekit
from evomerge.merging.live_model import LiveModel
from evomerge.merging.live_routing import Router
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import single
from evomerge.recipes.parse import parse_recipe
from evomerge.recipes.routing import Hop, RoutingRecipe, whole
from evomerge.search.spaces import SPACES, SourceShapes, make_space, quantize
from evomerge.sections import parse
from evomerge.sources.architectures import FAMILIES, family_of
from evomerge.sources.compatibility import stream_mismatches
from evomerge.sources.source import open_source
from evomerge.testing.decoders import (
    DECODERS,
    HOPS,
    in_float64,
    match_eps,
    scaled_reference,
    tiny_decoder,
)

IDS = torch.randint(3, 32, (2, 9), generator=torch.Generator().manual_seed(0))
GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Return a function from a family to the directories of two of its decoders."""
    root, made = tmp_path_factory.mktemp("decoders"), {}

    def pair(name, dtype="float64"):
        if (name, dtype) not in made:
            folders = [root / f"{name} {dtype} {seed}".replace(",", "") for seed in (0, 1)]
            made[name, dtype] = [
                str(tiny_decoder(f, name, i, dtype)) for i, f in enumerate(folders)
            ]
        return tuple(made[name, dtype])

    return pair


def load(folder):
    return in_float64(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))


def routed(folders, frame=None):
    """Return a live model of `frame`, its router over all `folders`, and its own logits."""
    opened = {f: open_source(f) for f in folders}
    merger = Merger(opened, {f: f for f in folders})

    def live(folder):
        model = LiveModel(opened[folder], "float64")
        model.load(merger.stream(single(folder, "float64")))
        in_float64(model.model)
        return model

    model = live(frame or folders[0])
    return model.model, Router(model, opened, {f: live(f).model for f in folders})


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", DECODERS)
def test_a_routed_model_is_the_paper_s_whether_it_runs_live_or_exported(name, pairs, tmp_path):
    folders = pairs(name)
    recipe = RoutingRecipe(folders, HOPS, 0, "float64")
    assert parse_recipe(json.loads(json.dumps(recipe.to_json()))) == recipe
    merge_to(recipe, tmp_path / "out")
    exported = load(tmp_path / "out")
    reference = scaled_reference(recipe, [load(f) for f in folders])
    live, router = routed(folders)
    own = logits(live)
    router.route(recipe)
    assert apart(logits(exported), logits(live)) < 1e-12
    assert apart(logits(reference), own) > 1e-3  # another model than the frame
    said = live.generate(IDS, use_cache=True, **GREEDY)
    assert torch.equal(said, live.generate(IDS, use_cache=False, **GREEDY))
    assert torch.equal(said, exported.generate(IDS, **GREEDY))
    router.restore()
    assert torch.equal(logits(live), own)
    assert apart(logits(match_eps(exported, recipe)), logits(reference)) < 1e-12


def test_every_family_has_a_decoder_that_is_tested():
    assert set(FAMILIES) == {kind for kind, _ in DECODERS.values()}


def test_another_frame_and_another_path_after_it(pairs):
    folders = pairs("llama, tied")
    live, router = routed(folders)
    for frame, path in ((1, HOPS), (0, HOPS[::-1]), (1, HOPS[:1])):
        recipe = RoutingRecipe(folders, path, frame, "float64")
        router.route(recipe)
        reference = scaled_reference(recipe, [load(f) for f in folders])
        assert apart(logits(live), logits(reference)) < 1e-3  # the norms' epsilon
    router.route(whole(folders[1], 4, "float64"))
    assert torch.equal(logits(live), logits(load(folders[1])))


def test_no_weight_is_copied(pairs):
    folders = pairs("llama")
    live, router = routed(folders)
    path = tuple(Hop(m, layer) for m in (0, 1) for layer in range(4)) * 2
    router.route(RoutingRecipe(folders, path, 0, "float64"))
    seen = {p.data_ptr() for p in live.parameters()}
    router.route(RoutingRecipe(folders, path * 3, 0, "float64"))
    assert {p.data_ptr() for p in live.parameters()} == seen
    assert len(live.model.layers) == live.config.num_hidden_layers == 48


def test_bfloat16_is_rounded_once(pairs, tmp_path):
    folders = pairs("llama", "bfloat16")
    recipe = RoutingRecipe(folders, HOPS, 0, "bfloat16")
    merge_to(recipe, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    share = recipe.shares()[4]
    source = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.bfloat16)
    exact = source.model.layers[3].self_attn.o_proj.weight.float() * share
    assert torch.equal(found.model.layers[4].self_attn.o_proj.weight, exact.bfloat16())


def test_mergekit_stacks_the_same_layers(pairs, tmp_path):
    import yaml

    folders = pairs("llama, tied")
    path = (Hop(0, 0, 2.0), Hop(1, 1, 0.5, (0.5, 3.0)), Hop(1, 2, 1.0, (0.5, 3.0)), Hop(0, 3))
    merge_to(RoutingRecipe(folders, path, 0, "float32"), tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    ranges = [s["sources"][0]["layer_range"] for s in config["slices"]]
    assert ranges == [[0, 1], [1, 3], [3, 4]]
    first, middle, last = (s["sources"][0]["parameters"]["scale"] for s in config["slices"])
    assert {"filter": "model.embed_tokens.weight", "value": 2.0} in first
    assert {"filter": "model.norm.weight", "value": 0.5} in last
    assert {"filter": "mlp.down_proj.weight", "value": 6.0} in middle
    read = from_mergekit(config)
    merge_to(read, tmp_path / "again")
    ours, again = (load_file(tmp_path / f / "model.safetensors") for f in ("out", "again"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items())
    merge_to(RoutingRecipe(folders, path, 1, "float32"), tmp_path / "other")
    assert not (tmp_path / "other" / "mergekit_config.yml").exists()  # no such frame there


def stacked(*slices):
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": m, "layer_range": [a, b], **more}]} for m, a, b, more in slices
        ],
        "dtype": "float32",
    }


def test_a_stack_of_layers_by_mergekit_s_rules_is_a_path(pairs):
    a, b = pairs("llama")
    scale = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.5}]
    scaled = {"parameters": {"scale": [*scale, {"value": 1.0}]}}
    found = from_mergekit(stacked((a, 0, 3, {}), (b, 1, 3, scaled), (a, 2, 4, {})))
    assert found.models == (a, b) and found.frame == 0
    assert [h[:2] for h in found.path] == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (0, 2), (0, 3)]
    assert [h.gains for h in found.path[2:6]] == [(1.0, 1.0), (0.0, 0.5), (0.0, 0.5), (1.0, 1.0)]


def test_a_scale_is_that_of_the_innermost_scope_that_has_one_for_the_tensor(pairs):
    a, _ = pairs("llama")
    source = {"parameters": {"scale": [{"filter": "o_proj", "value": 0.25}]}}
    top = [{"filter": "down_proj", "value": 0.5}, {"value": 1.0}]
    config = stacked((a, 0, 3, source), (a, 3, 4, {})) | {"parameters": {"scale": top}}
    gains = [hop.gains for hop in from_mergekit(config).path]
    assert gains == [(0.25, 0.5)] * 3 + [(1.0, 0.5)]
    module = [{"filter": "down_proj", "value": 2.0}]
    inner = {"slices": config.pop("slices"), "parameters": {"scale": module}}
    gains = [h.gains for h in from_mergekit(config | {"modules": {"default": inner}}).path]
    assert gains == [(0.25, 2.0)] * 3 + [(1.0, 2.0)]


def test_layers_are_named_as_the_frame_names_them(pairs, tmp_path):
    folders = list(pairs("gpt2"))
    bare = tmp_path / "bare"
    shutil.copytree(folders[1], bare)
    tensors = load_file(bare / "model.safetensors")
    named = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    assert named.keys() != tensors.keys()
    save_file(named, bare / "model.safetensors", metadata={"format": "pt"})
    for name, second in (("one", folders[1]), ("two", str(bare))):
        merge_to(RoutingRecipe((folders[0], second), HOPS, 0, "float64"), tmp_path / name)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize(
    ("slices", "said"),
    [
        ([("a", 0, 4, {}), ("b", 2, 4, {})], "embeddings and head have to be of one model"),
        ([("a", 0, 5, {})], "layer_range: \[0, 5\] will not do; write a range within 0 to 4"),
        ([("a", 0, 4, {"parameters": {"scale": 2.0}})], "scaled elsewhere"),
        ([("a", 0, 4, {"parameters": {"scale": "x"}})], "'x' is no number"),
        ([("a", 0, 4, {"parameters": {"scale": [{"filter": 3}]}})], "is not {filter, value}"),
        ([("a", 0, 4, {"parameters": [2.0]})], "slices.0.sources.0.parameters: is not a mapping"),
        (
            [("a", 0, 4, {"parameters": {"scale": [{"filter": "embed", "value": 2.0}]}})],
            "the final norm or the head",
        ),
    ],
)
def test_stacks_that_are_no_path_are_told(pairs, slices, said):
    names = dict(zip("ab", pairs("llama, tied"), strict=True))
    config = stacked(*((names[m], *rest) for m, *rest in slices))
    with pytest.raises(BadInput, match=said):
        from_mergekit(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "olmo2"}, "norms are on what the branches put out"),
        ({"model_type": "bert"}, "residual stream itself"),
        ({"model_type": "gemma3n"}, "several residual streams"),
        ({"model_type": "gemma3"}, "one part of a model"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "layer's number"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "only some of its layers"),
    ],
)
def test_where_the_fold_is_not_exact_it_is_refused(config, said):
    with pytest.raises(ValueError, match=said):
        family_of(config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": []}, "path: is empty; write e.g. path: "),
        ({"path": [[2, 0, 1.0]]}, "path.0: there is no model 2"),
        ({"path": [[0, 0, 0]]}, "path.0: the scale 0 leaves nothing of the stream"),
        ({"path": [[0, 0, 1.0, [1.0]]]}, "is not .*, perhaps with .attention gain, MLP gain"),
        ({"path": [[0, 0, 1e-30]] * 30}, "leaves the range"),
        ({"frame": True}, "frame: True is not a whole number"),
        ({"frame": 2}, "frame: there is no model 2; write 0 to 1"),
        ({"gain": 1}, "unknown key 'gain'"),
    ],
)
def test_malformed_routings_are_told(change, said):
    data = RoutingRecipe(("a", "b"), HOPS, 0, "bfloat16").to_json() | change
    with pytest.raises(BadInput, match=said):
        parse_recipe(data)


def changed(folder, out, **config):
    """Copy a model with changes of its config."""
    shutil.copytree(folder, out)
    data = json.loads((out / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(data))
    return str(out)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rms_norm_eps": 1e-3}),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"sliding_window": 8}),
        ("granite", {"residual_multiplier": 0.7}),
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("mistral", {"rope_parameters": None, "rope_theta": 5e5}),  # as older configs say it
    ],
)
def test_models_whose_layers_compute_otherwise_are_refused(name, change, pairs, tmp_path):
    a, b = pairs(name)
    other = changed(b, tmp_path / "other", **change)
    with pytest.raises(BadInput, match=f"differ in {next(iter(change))}:"):
        merge_to(RoutingRecipe((a, other), (Hop(0, 0), Hop(1, 1)), 0, "float32"), tmp_path / "out")
    silent = {"attention_dropout": 0.3, "bos_token_id": 5, "initializer_range": 0.5}
    silent |= {"max_position_embeddings": 4096, "unsloth_version": "2026.1"}
    same = changed(b, tmp_path / "same", **silent)
    assert stream_mismatches([open_source(a), open_source(same)]) == []


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_that_are_stored_as_one_tensor_are_scaled_too(name, pairs, tmp_path):
    folders = []
    for seed, folder in enumerate(pairs(name)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        model.save_pretrained(tmp_path / str(seed), save_original_format=False)
        folders.append(str(tmp_path / str(seed)))
    assert any(n.endswith("experts.down_proj") for n in open_source(folders[0]).tensors)
    recipe = RoutingRecipe(tuple(folders), HOPS, 0, "float64")
    merge_to(recipe, tmp_path / "out")
    live, router = routed(folders)
    router.route(recipe)
    assert apart(logits(load(tmp_path / "out")), logits(live)) < 1e-12


def test_a_model_that_is_listed_twice_runs_as_it_is_exported(pairs, tmp_path):
    folder, _ = pairs("llama")
    hops = (Hop(0, 0), Hop(0, 1, 1.0, (2.0, 0.5)), Hop(1, 1, 1.0, (0.5, 2.0)), Hop(1, 3))
    recipe = RoutingRecipe((folder, folder), hops, 0, "float64")
    merge_to(recipe, tmp_path / "out")
    live, router = routed([folder])
    router.route(recipe)
    exported = load(tmp_path / "out")
    assert apart(logits(live), logits(exported)) < 1e-12
    said = [
        model.generate(IDS, **GREEDY, use_cache=cached)
        for model in (live, exported)
        for cached in (True, False)
    ]
    assert all(torch.equal(said[0], other) for other in said[1:])


def test_strangers_that_differ_are_refused_by_their_kind(pairs, tmp_path):
    folders = [
        changed(folder, tmp_path / str(i), model_type="ernie4_5", rms_norm_eps=10.0**-i)
        for i, folder in enumerate(pairs("llama"))
    ]
    faults = stream_mismatches([open_source(f) for f in folders])
    assert len(faults) == 2 and "'ernie4_5' is no family" in str(faults[0])


def test_a_layer_whose_writing_is_unknown_is_refused(pairs, tmp_path):
    source = open_source(pairs("llama")[0])
    odd = {n.replace("o_proj", "out_projection"): t for n, t in source.tensors.items()}
    faults = stream_mismatches([replace(source, tensors=odd)])
    assert "layer 0 has no tensor known to write" in str(faults[0])


def test_no_configuration_where_mergekit_would_leave_the_layers_types(pairs, tmp_path):
    folders = pairs("smollm3")
    own = json.loads((Path(folders[0]) / "config.json").read_text())["no_rope_layers"]
    assert own == [1, 1, 1, 0]
    for index, (path, there) in enumerate(
        [
            ([0, 1, 2, 3], True),
            ([2, 0, 1, 3], True),
            ([0, 1, 3, 3], False),
            ([0, 2, 1, 2, 3], False),
        ]
    ):
        recipe = RoutingRecipe(folders, tuple(Hop(0, layer) for layer in path), 0, "float32")
        merge_to(recipe, tmp_path / str(index))
        types = json.loads((tmp_path / str(index) / "config.json").read_text())["no_rope_layers"]
        assert len(types) == len(path)
        assert (tmp_path / str(index) / "mergekit_config.yml").exists() == there


def test_a_layer_that_is_not_there_is_told(pairs, tmp_path):
    folders = pairs("llama")
    with pytest.raises(BadInput, match=r"path.1: '.*' has no layer 4; write 0 to 3"):
        merge_to(RoutingRecipe(folders, (Hop(0, 0), Hop(1, 4)), 0, "float32"), tmp_path / "out")


# --- the space ---------------------------------------------------------------------------


def section(**spec):
    return parse(SPACES.get("routing").section, {"kind": "routing", **spec})


def make(labels="ab", depths=(4, 4), **spec):
    options = section(**spec)
    assert list(options.faults(list(labels), False)) == []
    depth = dict(zip(labels, depths, strict=True))
    names = tuple(labels)
    return make_space(options, SourceShapes(None, names, names, 4, "bfloat16", 7, depths=depth))


specs = st.fixed_dictionaries(
    {"gains": st.sampled_from(["none", "shared", "separate"])},
    optional={
        "longest": st.integers(2, 9),
        "frame": st.sampled_from("ab"),
        "prior": st.sampled_from(["a", "b", None]),
        "gain": st.just({"low": 0.25, "high": 3.0}),
    },
)
kinds = st.one_of(
    st.fixed_dictionaries(
        {
            "repeats": st.integers(1, 3),
            "order": st.sampled_from(["models", "depth", "permuted"]),
        }
    ),
    st.fixed_dictionaries({"blocks": st.integers(1, 4)}),
    st.just({"order": "exchange"}),
)


@given(spec=specs, kind=kinds, depths=st.tuples(*[st.integers(2, 5)] * 2), seed=st.integers(0, 99))
def test_every_genome_is_a_path_from_the_frame_s_first_layer_to_its_last(spec, kind, depths, seed):
    space = make(depths=depths, **spec, **kind)
    genome = quantize(np.random.default_rng(seed).random(space.dimension))
    recipe = space.decode(genome)
    assert parse_recipe(recipe.to_json()) == recipe
    frame = "ab".index(spec.get("frame", "a"))
    assert recipe.frame == frame
    assert recipe.path[0][:2] == (frame, 0)
    assert recipe.path[-1][:2] == (frame, depths[frame] - 1)
    assert 2 <= len(recipe.path) <= spec.get("longest", 2 * max(depths))
    assert all(hop.layer < depths[hop.model] for hop in recipe.path)
    low, high = spec.get("gain", {"low": 0.5, "high": 2.0}).values()
    for attention, mlp, sign in recipe.fold().hops:
        assert sign == 1.0
        assert all(low - 1e-9 <= gain <= high + 1e-9 for gain in (attention, mlp))
    settled = space.settled(genome)
    assert space.decode(settled).path == recipe.path
    assert np.array_equal(space.settled(settled), settled)
    assert len(space.names) == len(set(space.names)) == len(space.levels) == space.dimension


@given(
    spec=specs,
    repeats=st.integers(1, 2),
    order=st.sampled_from(["models", "depth", "permuted"]),
    seed=st.integers(0, 99),
)
def test_a_path_of_the_space_is_encoded_as_it_is(spec, repeats, order, seed):
    space = make(repeats=repeats, order=order, **spec)
    recipe = space.decode(np.random.default_rng(seed).random(space.dimension))
    again = space.decode(space.encode(recipe))
    assert [h[:2] for h in again.path] == [h[:2] for h in recipe.path]
    assert np.allclose(again.fold().hops, recipe.fold().hops, rtol=1e-6)


@given(spec=specs, depths=st.tuples(*[st.integers(2, 6)] * 2), seed=st.integers(0, 99))
def test_an_exchange_has_one_layer_of_each_depth_at_most(spec, depths, seed):
    space = make(order="exchange", depths=depths, **spec)
    recipe = space.decode(np.random.default_rng(seed).random(space.dimension))
    layers = [hop.layer for hop in recipe.path]
    assert layers == sorted(set(layers))
    again = space.decode(space.encode(recipe))
    assert [h[:2] for h in again.path] == [h[:2] for h in recipe.path]
    assert np.allclose(again.fold().hops, recipe.fold().hops, rtol=1e-6)


def test_an_exchange_changes_one_layer_with_one_gene():
    space = make(order="exchange", gains="none")
    genome = space.start
    assert [h[:2] for h in space.decode(genome).path] == [(0, layer) for layer in range(4)]
    genome[space.names.index("model layer 2")] = 0.75
    assert [h[:2] for h in space.decode(genome).path] == [(0, 0), (0, 1), (1, 2), (0, 3)]
    genome[space.names.index("use layer 1")] = 0.2
    assert [h[:2] for h in space.decode(genome).path] == [(0, 0), (1, 2), (0, 3)]


def test_slots_stand_in_the_paper_s_order():
    space = make(repeats=2, gains="none", longest=16)
    everything = space.decode(np.ones(space.dimension))
    row = [(m, layer) for _ in range(2) for m in (0, 1) for layer in range(4)]
    assert space.dimension == 14  # the frame's first and last layer are no choice
    ends = row.index((0, 0)), len(row) - 1 - row[::-1].index((0, 3))
    assert [h[:2] for h in everything.path] == [
        (0, 0),
        *(slot for i, slot in enumerate(row) if i not in ends),
        (0, 3),
    ]


def test_the_search_begins_with_the_prior_s_own_path():
    space = make(order="depth", repeats=2)
    assert space.first.path == whole("a", 4, "bfloat16").path
    assert space.single("b") == whole("b", 4, "bfloat16")


def test_of_a_path_that_is_too_long_the_likeliest_layers_stay():
    space = make(gains="none", longest=4)
    genome = np.linspace(0.55, 0.95, space.dimension)
    assert [h[:2] for h in space.decode(genome).path] == [(0, 0), (1, 2), (1, 3), (0, 3)]


@given(spec=specs, blocks=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_path_of_blocks_is_encoded_as_it_is(spec, blocks, seed):
    space = make(blocks=blocks, **spec | {"gains": "none", "longest": 40})
    recipe = space.decode(np.random.default_rng(seed).random(space.dimension))
    again = space.decode(space.encode(recipe))
    if len(runs_of(recipe.path)) <= blocks:
        assert [h[:2] for h in again.path] == [h[:2] for h in recipe.path]
    else:  # the ends came without a block, and one of them may have to go on doing so
        assert {h[:2] for h in again.path} <= {h[:2] for h in recipe.path}


def runs_of(path):
    return [
        i for i, h in enumerate(path) if i == 0 or h[:2] != (path[i - 1][0], path[i - 1][1] + 1)
    ]


def test_a_whole_model_in_blocks_is_itself():
    space = make(blocks=3, gains="none")
    path = [(1, layer) for layer in range(4)]
    genes, places = space.path.encoded([(0, 0), *path[1:3], (0, 3)])
    assert places == [0, 1, 1, 2]
    assert [h[:2] for h in space.path.hops(genes)] == [(0, 0), *path[1:3], (0, 3)]


def test_another_model_s_path_is_between_the_frame_s_ends():
    space = make(prior="b", order="depth")
    assert [h[:2] for h in space.first.path] == [(0, 0), (1, 1), (1, 2), (0, 3)]
    deep = make(prior="b", depths=(2, 8))
    assert len(deep.first.path) == 8
    for blocks in (1, 2, 9):
        space = make(prior="b", blocks=blocks, gains="none")
        assert [h[:2] for h in space.first.path] == [(0, 0), (1, 1), (1, 2), (0, 3)]
    shallow = make(prior="b", blocks=2, depths=(4, 2))
    assert {h[:2] for h in shallow.first.path} == {(0, 0), (1, 0), (1, 1), (0, 3)}


def test_a_frame_of_one_layer_is_a_path():
    for kind in ({"order": "exchange"}, {"order": "models"}, {"blocks": 1}):
        space = make(depths=(1, 4), longest=9, **kind)
        genome = quantize(np.random.default_rng(0).random(space.dimension))
        recipe = space.decode(genome)
        assert recipe.path[0][:2] == recipe.path[-1][:2] == (0, 0)
        assert space.decode(space.settled(genome)) == recipe
        space.encode(recipe)


def test_a_single_block_has_a_gain_too():
    space = make(blocks=1)
    genome = space.start
    genome[space.names.index("gain block 1")] = 1.0
    gains = [attention for attention, _, _ in space.decode(genome).fold().hops]
    assert gains == pytest.approx([1.0, 2.0, 2.0, 2.0])
    assert np.allclose(space.encode(space.decode(genome)), quantize(genome), atol=1e-6)


def test_blocks_are_runs_of_layers():
    space = make(blocks=3, gains="none", depths=(6, 6), longest=20)
    encoded, _ = space.path.encoded([(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (0, 4), (0, 5)])
    path = [h[:2] for h in space.decode(encoded).path]
    assert path == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (0, 4), (0, 5)]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"frame": "c"}, "frame: 'c' will not do"),
        ({"prior": "c"}, "prior: 'c' will not do"),
        ({"order": "deep"}, "order: "),
        ({"gains": True}, "gains: "),
        ({"gain": {"low": 2.0, "high": 3.0}}, "gain.low: "),
        ({"repeats": 0}, "repeats: "),
        ({"longest": 1}, "longest: "),
        ({"blocks": 2, "order": "depth"}, "order: says how single layers are searched"),
        ({"repeats": 2, "order": "exchange"}, "order: gives every depth one layer"),
        ({"methods": 1}, "methods: unknown key"),
    ],
)
def test_a_space_s_faults_are_told(spec, said):
    with pytest.raises(BadInput) as error:
        raise BadInput(*section(**spec).faults(["a", "b"], False))
    assert any(str(fault).startswith(said) for fault in error.value.faults)
