"""Packed signs give the bits that dense tensors of the same numbers give, everywhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import cache_with_kernels
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evomerge.campaign.build import checked_campaigns
from evomerge.campaign.estimate import estimate
from evomerge.config.validate import read_plan
from evomerge.errors import CandidateFailure
from evomerge.kernels import eager, fused, native
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.merge_plan import MergePlan, Operands, SegmentedSums, WeightedSums
from evomerge.kernels.signs import Signs
from evomerge.merging.direction_files import DirectionFile, read_directions
from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS
from evomerge.merging.source_weights import SourceWeights
from evomerge.sources.safetensors_file import read_header
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(), (0,), (1,), (7,), (8,), (15,), (16,), (17,), (63,), (64,), (65,), (33, 65), (3, 5, 7)]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
SIGNED = sorted(name for name, method in METHODS.all().items() if method.signs)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch, world):
    """Kernels are shared, prepared sources are not."""
    cache = cache_with_kernels(tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def some(shape, seed, share=1.0):
    """Return numbers of which about so many are not 0."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator)
    numbers = torch.where(numbers == 0, 1.0, numbers)
    return numbers * (torch.rand(shape, generator=generator) < share)


def by_hand(tensor, bits):
    """Pack signs by numpy's own packing of bits."""
    flat = tensor.reshape(-1).numpy()
    columns = [flat < 0] if bits == 1 else [flat != 0, flat < 0]
    raw = np.zeros((-(-len(flat) // 64) * 64, bits), np.uint8)
    for place, column in enumerate(columns):
        raw[: len(flat), place] = column
    return np.packbits(raw, bitorder="little")


@given(
    shape=st.sampled_from(SHAPES), share=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 9)
)
def test_they_are_packed_as_said(shape, share, seed):
    tensor = some(shape, seed, share)
    signs = Signs.of(tensor, 0.3)
    assert signs.bits == (1 if (tensor != 0).all() else 2)
    assert np.array_equal(signs.codes.numpy(), by_hand(tensor, signs.bits))
    assert torch.equal(signs.dense(), tensor.sign() * np.float32(0.3))


def test_a_code_of_nothing_is_nothing_whatever_its_sign():
    signs = Signs(torch.tensor([0b11100100] + [0] * 15, dtype=torch.uint8), 2, 1.0, (4,))
    assert signs.dense().tolist() == [0.0, 1.0, 0.0, -1.0]
    merged = {"w": torch.empty(4)}
    plan = plan_of([torch.ones(4), signs], [1.0, 1.0], torch.float32)
    native.NativeKernels().merge(plan, merged)
    assert merged["w"].tolist() == [1.0, 2.0, 1.0, 0.0]


@given(
    bounds=st.tuples(st.integers(0, 200), st.integers(0, 200)), share=st.sampled_from([0.3, 1.0])
)
def test_any_part_of_them_is_that_of_the_dense_tensor(bounds, share):
    start, stop = sorted(bounds)
    signs = Signs.of(some((200,), 3, share), 0.7)
    assert torch.equal(signs.part(start, stop), signs.dense()[start:stop])
    wide = signs.part(start, stop, torch.float64, 0.1)
    assert torch.equal(wide, signs.dense()[start:stop].double() * 0.1)


def plan_of(operands, weights, dtype):
    sums = WeightedSums(("w",), np.array(weights))
    return MergePlan(Operands({"w": tuple(operands)}), dtype, (sums,))


@given(
    shape=st.sampled_from([*SHAPES, (40_001,), (129, 513)]),
    kinds=st.lists(st.sampled_from(["dense", "one bit", "two bits"]), min_size=1, max_size=9),
    of=st.sampled_from(DTYPES),
    mixed=st.sampled_from(DTYPES),
    dtype=st.sampled_from(DTYPES),
    live=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.0, 0.013, 1e-38, 3e38]),
    weights=st.lists(st.sampled_from([-1.0, 0.0, 0.3, 1.0, 1e30]), min_size=9, max_size=9),
    seed=st.integers(0, 9),
)
def test_weighted_sums_have_the_bits_of_dense_ones(
    shape, kinds, of, mixed, dtype, live, scale, weights, seed
):
    """Of every dtype, in any order among dense tensors; where they are not finite, it is told."""
    packed = []
    for i, kind in enumerate(kinds):
        tensor = some(shape, 10 * seed + i, 0.3 if kind == "two bits" else 1.0)
        which = mixed if i % 3 == 2 else of
        is_dense = kind == "dense"
        packed.append(tensor.to(which) if is_dense else Signs.of(tensor, scale).rounded(which))
    dense = [operand.dense() if isinstance(operand, Signs) else operand for operand in packed]
    weights = np.array(weights[: len(kinds)])
    if not all(np.isfinite(t.float()).all() for t in dense):
        weights = np.where(weights == 0, 1.0, weights)  # eager torch leaves those terms out
    wanted = eager.weighted_sum(dense, weights, dtype)
    if not wanted.isnan().any():  # whose bits say nothing
        assert torch.equal(eager.weighted_sum(packed, weights, dtype), wanted)
    plan, targets = plan_of(packed, weights, dtype), {"w": torch.empty(shape, dtype=live)}
    for kernels in (native.NativeKernels(), eager.EagerKernels()):
        if wanted.isfinite().all():
            for _ in range(2):  # the tables are kept
                assert np.array_equal(kernels.merge(plan, targets)["w"], tile_digests(wanted))
                assert torch.equal(targets["w"], wanted.to(live))
        else:
            with pytest.raises(CandidateFailure, match="merged tensor w is not finite"):
                kernels.merge(plan, targets)
    assert native.NativeKernels().takes(plan, targets)


def test_the_last_elements_alone_are_told_if_they_are_not_finite():
    for size in (16, 17, 70_003):
        sparse = torch.zeros(size)
        sparse[-1] = -1.0
        plan = plan_of([torch.zeros(size), Signs.of(sparse, 3e38)], [1.0, 2.0], torch.float32)
        for kernels in (native.NativeKernels(), eager.EagerKernels()):
            with pytest.raises(CandidateFailure):
                kernels.merge(plan, {"w": torch.empty(size)})


def test_the_kernels_take_sixty_four_operands():
    base = some((1000,), 0).bfloat16()
    experts = [Signs.of(some((1000,), i), 0.01).rounded(torch.bfloat16) for i in range(1, 65)]
    for count in (63, 64):
        operands = [base, *experts[:count]]
        plan = plan_of(operands, np.linspace(-1, 1, count + 1), torch.bfloat16)
        targets = {"w": torch.empty(1000, dtype=torch.bfloat16)}
        assert native.NativeKernels().takes(plan, targets) == (count == 63)
    wanted = eager.weighted_sum([base, *[e.dense() for e in experts[:63]]], np.linspace(-1, 1, 64))
    plan = plan_of([base, *experts[:63]], np.linspace(-1, 1, 64), torch.float32)
    targets = {"w": torch.empty(1000)}
    native.NativeKernels().merge(plan, targets)
    assert torch.equal(targets["w"], wanted)


def same_when_fused(operands, weights, dtype, block=128):
    """Merge by the program for a GPU (in Triton's interpreter without one) and by eager torch."""
    moved = []
    for one in operands:
        is_signs = isinstance(one, Signs)
        moved.append(replace(one, codes=one.codes.to(DEVICE)) if is_signs else one.to(DEVICE))
    plain = {"v": (moved[0],)}
    groups = (WeightedSums(("w",), np.array(weights)), WeightedSums(("v",), np.ones(1)))
    plan = MergePlan(Operands({"w": tuple(moved), **plain}), dtype, groups)
    targets, wanted = ({n: torch.empty_like(moved[0]) for n in "wv"} for _ in range(2))
    digests = eager.EagerKernels().merge(plan, wanted)
    kernels = fused.FusedKernels(block)
    for _ in range(2):  # the tables are kept
        made = kernels.merge(plan, targets)
        for name in "wv":
            assert torch.equal(targets[name], wanted[name])
            assert np.array_equal(made[name], digests[name])
    return fused.has_form(plan, groups[0], targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gpus_program_gives_the_same_bits(dtype):
    pytest.importorskip("triton")
    for size, block in ((1, 128), (64, 128), (300, 128), (17_001, 4096)):
        base = some((size,), 0).to(dtype)
        experts = []
        for i in range(1, 4):
            experts.append(
                Signs.of(some((size,), i, 0.5 if i % 2 else 1.0), 0.1 * i).rounded(dtype)
            )
        assert same_when_fused([base, *experts], [0.7, 0.3, -1.0, 0.0], dtype, block)
        # in another order they are left to eager torch
        assert not same_when_fused([base, experts[0], base], [0.7, 0.3, -1.0], dtype, block)


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's numpy
def test_a_gpus_program_takes_forty_experts_and_tells_what_is_not_finite():
    pytest.importorskip("triton")
    base = some((300,), 0)
    experts = [Signs.of(some((300,), i, 0.3), 0.01) for i in range(1, 42)]
    assert same_when_fused([base, *experts], np.linspace(-1, 1, 42), torch.float32)
    large = Signs.of(some((300,), 1), 3e38)
    moved = [base.to(DEVICE), replace(large, codes=large.codes.to(DEVICE))]
    plan = plan_of(moved, [1.0, 2.0], torch.float32)
    with pytest.raises(CandidateFailure, match="merged tensor w is not finite"):
        fused.FusedKernels(128).merge(plan, {"w": torch.empty(300, device=DEVICE)})


def test_only_weighted_sums_are_of_signs():
    sums = SegmentedSums(("w",), (np.array([0]),), (np.ones((1, 1)),))
    plan = MergePlan(Operands({"w": (Signs.of(torch.ones(3), 1.0),)}), torch.float32, (sums,))
    with pytest.raises(AssertionError, match="signs are of weighted sums alone"):
        eager.EagerKernels().merge(plan, {"w": torch.empty(3)})
    assert not native.NativeKernels().takes(plan, {"w": torch.empty(3)})


# --- files --------------------------------------------------------------------------------------


def test_a_file_of_directions_is_one_of_safetensors(world, tmp_path):
    like = open_source(str(world / "base")).tensors
    file, given = tmp_path / "0.safetensors", {}
    with DirectionFile(file, like) as out:
        for i, (name, tensor) in enumerate(like.items()):
            made = some(tensor.shape, i, 0.4 if i % 3 else 1.0)
            given[name] = made if i % 4 == 3 else Signs.of(made, 0.1 + i)
            out.add(name, given[name])
    held, loaded = read_directions(file, like), load_file(file)
    assert held.tensors.keys() | held.signs.keys() == like.keys()
    for name, direction in given.items():
        if isinstance(direction, Signs):
            stored, wanted = held.signs[name], direction.rounded(torch.bfloat16)
            assert (stored.bits, stored.scale) == (wanted.bits, wanted.scale)
            assert torch.equal(loaded[f"{name}:signs"], wanted.codes)
        else:
            assert torch.equal(loaded[name], direction.bfloat16())


@pytest.mark.parametrize("damage", ["missing", "codes", "scales", "shape"])
def test_a_file_of_other_directions_is_none(world, tmp_path, damage):
    like = dict(open_source(str(world / "base")).tensors)
    file, first = tmp_path / "0.safetensors", next(iter(like))
    shapes = {name: tensor.shape for name, tensor in like.items()}
    with DirectionFile(file, like) as out:
        for name, shape in shapes.items():
            out.add(name, torch.ones(shape) if name == first else Signs.of(torch.ones(shape), 1.0))
    assert read_directions(file, like)
    last = list(like)[-1]
    if damage == "missing":
        like["more"] = like[first]
    elif damage == "codes":
        like[last] = like[last]._replace(shape=(1000, 1000))
    elif damage == "shape":
        like[first] = like[first]._replace(shape=(1, 2))
    else:
        text = file.read_bytes().replace(b":scales", b":scalez")
        file.write_bytes(text)
    with pytest.raises(ValueError, match="holds no"):
        read_directions(file, like)


# --- methods ------------------------------------------------------------------------------------


def merger_of(world, base="base"):
    names = [str(world / name) for name in (base, "a", "b", "c")]
    opened = {name: open_source(name) for name in names}
    return names, Merger(opened, {name: f"hash of {name}" for name in names})


def directions_by_hand(method, merger, names):
    """Return name -> the models' dense directions, in bfloat16, by the papers' formulas."""
    weights, made = merger.weights, {}
    tensors = merger.sources[names[0]].tensors
    taus = {
        name: [
            weights.tensor(n, name).float() - weights.tensor(names[0], name).float()
            for n in names[1:]
        ]
        for name in tensors
    }
    for name in tensors:
        made[name] = []
        for i, tau in enumerate(taus[name]):
            tau = tau.bfloat16().float()
            if method == "bitdelta":
                direction = tau.abs().mean() * tau.sign() if tau.dim() == 2 else tau
            else:
                whole = torch.cat([taus[n][i].bfloat16().float().reshape(-1) for n in tensors])
                bound = whole.abs().sort(descending=True).values[int(0.2 * len(whole)) - 1]
                deviation = whole.double().std(correction=0).float()
                direction = deviation * (tau.abs() >= bound) * tau.sign()
            made[name].append(direction.bfloat16())
    return made


@pytest.mark.parametrize("method", SIGNED)
def test_merges_have_the_bits_of_dense_directions(world, method):
    names, merger = merger_of(world)
    weight = (0.7, -0.3, 1.1)
    recipe = replace(recipe_of(method, names[1:], names[0], weight=weight), dtype="bfloat16")
    wanted = {}
    for name, directions in directions_by_hand(method, merger, names).items():
        operands = [merger.weights.tensor(names[0], name), *directions]
        wanted[name] = eager.weighted_sum(operands, np.array([1.0, *weight]), torch.bfloat16)
    live = {name: torch.empty(tensor.shape) for name, tensor in wanted.items()}
    digests = merger.fill(recipe, live)
    for name, tensor in merger.stream(recipe):
        assert torch.equal(tensor, wanted[name]), name
        assert torch.equal(live[name], wanted[name].float())
        assert np.array_equal(digests[name], tile_digests(wanted[name]))


def test_what_is_kept_is_small(world, tmp_path_factory):
    """Two bits an element of matrices where there are zeros, and one where there are none."""
    names, merger = merger_of(world)
    base = merger.sources[names[0]]
    matrices = sum(t.elements for t in base.tensors.values() if len(t.shape) == 2)
    others = sum(t.elements for t in base.tensors.values() if len(t.shape) != 2)
    for method, most in (("bitdelta", 2 * others), ("compeft", others)):
        merger.prepare([recipe_of(method, names[1:], names[0])])
        own = [s for s in merger.weights._sources.values() if s.name.startswith(method)]
        assert len(own) == 3
        for source in own:
            assert source.bytes <= matrices / 4 + most + 16 * len(base.tensors)
            said = METHODS.get(method).direction_bytes(base.tensors.values())
            assert source.bytes <= said + 16 * len(base.tensors)
            assert said < 0.2 * base.bytes
            headers = read_header(source.path / "0.safetensors")
            assert any(name.endswith(":signs") for name in headers)


def test_no_dense_copy_is_made_for_the_kernels(world, monkeypatch):
    names, merger = merger_of(world)
    recipe = recipe_of("compeft", names[1:], names[0])
    merger.prepare([recipe])
    monkeypatch.setattr(Signs, "part", None)
    live = {n: torch.empty(t.shape) for n, t in merger.sources[names[0]].tensors.items()}
    assert merger.fill(recipe, live)


@pytest.mark.parametrize("method", SIGNED)
def test_they_are_added_to_a_base_with_an_adapter(world, tmp_path, method):
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    adapted = tmp_path / "adapter" / "adapter_config.json"
    adapted.write_text(
        json.dumps(json.loads(adapted.read_text()) | {"base_model_name_or_path": ""})
    )
    names, merger = merger_of(world, f"base+{tmp_path / 'adapter'}")
    recipe = replace(recipe_of(method, names[1:], names[0], weight=0.5), dtype="float32")
    directions = [s.name for s in _directions(merger, recipe)]
    for name, tensor in merger.stream(recipe):
        wanted = merger.weights.tensor(names[0], name).double()
        for direction in directions:
            operand = merger.weights.operand(direction, name)
            dense = operand.dense() if isinstance(operand, Signs) else operand
            wanted += 0.5 * dense.double()
        assert torch.allclose(tensor.double(), wanted, atol=1e-6), name


def _directions(merger, recipe):
    merger.prepare([recipe])
    return [s for s in merger.weights._sources.values() if s.name.startswith(recipe.method)]


def test_what_is_not_merged_takes_no_room(world):
    """On a device with room for the base and the signs, all stays, though the models would not."""
    names, merger = merger_of(world)
    recipe = recipe_of("compeft", names[1:], names[0])
    needed = merger.sources[names[0]].bytes + sum(s.bytes for s in _directions(merger, recipe))
    reads = [names[0], *[s.name for s in _directions(merger, recipe)]]
    for room, stays in ((needed, True), (needed - 1, False)):
        weights = SourceWeights(merger.weights._sources, torch.device("cpu"), room)
        assert weights.keeps(reads) == stays
        assert not weights.keeps(names)  # what was merged before is there still


def test_check_tells_their_memory(campaign_file):
    found = {}
    for method in ("compeft", "wudi"):
        space = {"kind": "parameters", "method": method, "axes": {"weight": {"low": 0, "high": 1}}}
        (campaign,) = checked_campaigns(read_plan(campaign_file(space=space)))
        found[method] = estimate(campaign)
        base = campaign.sources[campaign.worker.frame]
    assert found["wudi"]["memory_bytes"] - found["compeft"]["memory_bytes"] > 2.4 * base.bytes
    assert "of page cache for the prepared sources" in found["compeft"]["summary"]["memory"]
