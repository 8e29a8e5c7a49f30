"""The Triton program gives the eager kernels' bits.

On a GPU where there is one; elsewhere in Triton's interpreter, which runs the program's text on a
processor (its bfloat16 is not rounded to the nearest, so only a GPU is asked for that).
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateFailure
from evomerge.kernels import backends, eager, fused, native
from evomerge.kernels.chances import rank_levels
from evomerge.kernels.magnitude_histogram import MagnitudeHistogram
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import (
    Kept,
    MaskedSums,
    MergePlan,
    Operands,
    SegmentedSums,
    WeightedSums,
)
from evomerge.kernels.task_vector import task_vector, variance

HAS_GPU = torch.cuda.is_available()
pytest.importorskip("triton")

DEVICE = "cuda" if HAS_GPU else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * HAS_GPU
SHAPES = [(), (1,), (33, 65), (17_001,)]  # the last is of two tiles
MODELS = 3
EACH = np.array([0.7, -0.4, 0.3])


def tensors(count, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    some = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    return tuple(tensor.to(DEVICE, dtype) for tensor in some)


def bits(tensor):
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()


def targets_of(plan, dtype):
    return {
        name: torch.full(some[0].shape, 9.0, dtype=dtype, device=DEVICE)
        for name, some in plan.operands.tensors.items()
    }


def assert_same(plan, dtype, times=1, block=4096):
    """Merge with both back ends, so many times: tables are kept."""
    wanted = targets_of(plan, dtype)
    digests = eager.EagerKernels().merge(plan, wanted)
    got, kernels = targets_of(plan, dtype), fused.FusedKernels(block)
    for _ in range(times):
        made = kernels.merge(plan, got)
        assert made.keys() == digests.keys()
        for name in digests:
            assert np.array_equal(bits(got[name]), bits(wanted[name])), name
            assert np.array_equal(made[name], digests[name]), name
            got[name].fill_(7.0)


def magnitudes(operands, share):
    base, *models = operands
    taus = [task_vector(base, model) for model in models]
    return tuple(
        Kept(MagnitudeHistogram(tau).largest(tau, int(share * tau.numel()))) for tau in taus
    )


def draws(operands, levels=False):
    base, *models = operands
    return tuple(
        Kept(key=(5, i), levels=rank_levels(task_vector(base, model)) if levels else None)
        for i, model in enumerate(models)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 4])
def test_weighted_sums_have_the_same_bits(dtype, count):
    rng = np.random.default_rng(0)
    some = {str(shape): tensors(count, shape, dtype, i) for i, shape in enumerate(SHAPES)}
    rows = rng.normal(size=(len(SHAPES), count))
    rows[1:3] = np.eye(count)[0], np.full(count, 1 / count)
    plan = MergePlan(Operands(some), dtype, (WeightedSums(tuple(some), rows),))
    for out in (dtype, torch.float32):
        assert_same(plan, out, times=2)


@pytest.mark.parametrize("dtype", DTYPES if HAS_GPU else [torch.float32])
@pytest.mark.parametrize(
    "thin, join, normalize",
    [
        ("magnitude", "elect", True),
        ("magnitude", "sum", False),
        ("magnitude", "largest", False),
        ("band", "sum", True),
        ("random", "elect", False),
        ("ranked", "elect", True),
        ("votes", "elect", True),
    ],
)
def test_masked_sums_have_the_same_bits(dtype, thin, join, normalize):
    some = {str(shape): tensors(MODELS + 1, shape, dtype, i) for i, shape in enumerate(SHAPES)}
    masked = Masked(
        EACH,
        np.array([0.3, 0.9, 1.0]),
        thin,
        join,
        normalize=normalize,
        rescale=True,
        scale=1.3,
        epsilon=0.08,
        threshold=np.array([0.3, 0.4, 0.2]),
    )
    kept = []
    for operands in some.values():
        if thin in ("random", "ranked"):
            kept.append(draws(operands, thin == "ranked"))
        elif thin == "votes":
            kept.append(())
        else:
            lows = magnitudes(operands, 0.5)
            kept.append(tuple(k._replace(high=1.0 if thin == "band" else k.high) for k in lows))
    plan = MergePlan(Operands(some), dtype, (MaskedSums(tuple(some), masked, tuple(kept)),))
    assert_same(plan, dtype)
    if HAS_GPU:  # slow in the interpreter
        assert_same(plan, torch.float32, times=2, block=256)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_plan_of_every_kind_of_sum(dtype):
    """Also those that eager torch merges, and models of another dtype than their base."""
    shapes = {"sum": (33, 65), "mixture": (401,), "mixed": (300,), "sce": (9, 40), "trimmed": (17,)}
    some = {name: tensors(3, shape, dtype, i) for i, (name, shape) in enumerate(shapes.items())}
    some["mixed"] = (some["mixed"][0], some["mixed"][1].float(), some["mixed"][2])
    base, *models = some["sce"]
    spread = variance([task_vector(base, model).float() for model in models])
    two = EACH[:2]
    plan = MergePlan(
        Operands(some),
        dtype,
        (
            WeightedSums(("sum",), np.array([[0.5, 0.2, 0.3]])),
            SegmentedSums(("mixture",), (np.array([0, 130, 131]),), (np.eye(3),)),
            WeightedSums(("mixed",), np.array([0.5, 0.2, 0.3])),
            MaskedSums(
                ("sce",),
                Masked(two, two, "variance", "elect", normalize=True, energy=True),
                ((Kept(place=MagnitudeHistogram(spread).place(100)),),),
            ),
            MaskedSums(
                ("trimmed",), Masked(two, two, "magnitude"), (magnitudes(some["trimmed"], 0.5),)
            ),
        ),
    )
    assert_same(plan, dtype)
    assert_same(plan, torch.float32)


def test_a_source_without_a_share_is_not_read():
    broken = torch.full((9,), float("nan"), device=DEVICE)
    some = {"w": (broken, torch.ones(9, device=DEVICE))}
    plan = MergePlan(Operands(some), torch.float32, (WeightedSums(("w",), np.array([0.0, 1.0])),))
    target = targets_of(plan, torch.float32)
    fused.FusedKernels().merge(plan, target)
    assert torch.equal(target["w"], some["w"][1])


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's numpy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("masks", [False, True])
def test_what_is_not_finite_fails_by_its_name_whatever_is_masked(value, masks):
    """The last element of the second tensor's second tile; a mask of zero does not hide it."""
    wrong = tensors(2, (20_001,), torch.float32, 1)
    wrong[1][-1] = value
    some = {"a.weight": tensors(2, (5,), torch.float32, 0), "b.weight": wrong}
    sums = WeightedSums(tuple(some), np.array([0.5, 0.5]))
    if masks:
        masked = Masked(np.ones(1), np.ones(1), "magnitude")
        sums = MaskedSums(tuple(some), masked, ((Kept(1e9),),) * 2)
    plan = MergePlan(Operands(some), torch.float32, (sums,))
    with pytest.raises(CandidateFailure, match=r"merged tensor b.weight is not finite"):
        fused.FusedKernels().merge(plan, targets_of(plan, torch.float32))


COMPILE = """
import re, triton
from triton.backends.compiler import GPUTarget
from evomerge.kernels import triton_programs

names = triton_programs.merge.arg_names
pointers = {"numbers": "*fp32", "keys": "*u32", "WIDTH": "i32"}
for thin, join, normalize in ((0, 0, False), (1, 1, True), (2, 0, False), (5, 0, False)):
    fixed = {"COUNT": 4, "DTYPES": 0, "PLAN": 0, "OUT": 0, "THIN": thin, "JOIN": join}
    fixed |= {"NORMALIZE": normalize, "ALIGNED": True, "TILE": 32768, "BLOCK": 2048}
    signature = {n: "constexpr" if n in fixed else pointers.get(n, "*i64") for n in names}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    source = triton.compiler.ASTSource(triton_programs.merge, signature, constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    print(len(re.findall(r"\\bfma\\.", ptx)), len(re.findall(r"\\bmul\\.(?:rn\\.)?f32", ptx)),
          len(re.findall(r"ld\\.global\\.v4", ptx)), len(re.findall(r"\\bmad\\.f", ptx)),
          len(re.findall(r"mul\\.(?:rn\\.)?f32[^;]*0f00000000;", ptx)), ptx.count("setp.neu.f32"))
"""


def test_what_is_compiled_for_a_gpu_contracts_nothing_and_reads_sixteen_bytes_at_once(tmp_path):
    """Triton compiles for a GPU without one; a product and a sum are two instructions."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    *dense, signs = lines
    assert all(wide_loads >= 8 for _, _, wide_loads, *_ in dense) and signs[2] >= 2  # the base's
    for contracted, products, _, mads, by_zero, is_not_zero in lines:
        assert contracted == mads == 0 and products > 0
        # what is not finite is found by its product with 0, which no compiler may leave out
        assert by_zero > 0 and is_not_zero > 0


def test_without_triton_a_gpu_merges_in_eager_torch_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with caplog.at_level("WARNING", logger="evomerge"):
        kernels = backends.Kernels("cuda")
    assert isinstance(kernels._torch, eager.EagerKernels)
    assert "eager torch, which is slower: Triton is not installed" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_and_a_processor_merge_to_the_same_bits(dtype):
    """So that what was scored on a GPU can be exported where there is none."""
    some = {str(shape): tensors(MODELS + 1, shape, dtype, i) for i, shape in enumerate(SHAPES)}
    masked = Masked(EACH, np.array([0.3, 0.9, 0.5]), "random", "elect", rescale=True, scale=1.3)
    kept = tuple(draws(operands) for operands in some.values())
    here = {name: tuple(t.cpu() for t in operands) for name, operands in some.items()}
    sums = (
        WeightedSums(tuple(some), np.array([0.3, 0.1, -0.7, 1.1])),
        MaskedSums(tuple(some), masked, kept),
    )
    for one in sums:
        there = MergePlan(Operands(some), dtype, (one,))
        digests = fused.FusedKernels().merge(there, targets_of(there, dtype))
        own = {name: torch.empty(operands[0].shape, dtype=dtype) for name, operands in here.items()}
        for kernels in (eager.EagerKernels(), native.NativeKernels()):
            wanted = kernels.merge(MergePlan(Operands(here), dtype, (one,)), own)
            for name in some:
                assert np.array_equal(digests[name], wanted[name]), (name, type(kernels))


def test_forty_operands_of_float32_are_merged_by_eager_torch():
    """Their dtypes, as one number to the base of three, do not fit 64 bits."""
    some = tensors(41, (300,), torch.float32, 5)
    plan = MergePlan(Operands({"w": some}), torch.float32, (WeightedSums(("w",), np.ones(41)),))
    assert_same(plan, torch.float32, block=128)
