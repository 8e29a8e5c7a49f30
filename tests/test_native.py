"""The kernels in C++ give the eager kernels' bits; without a compiler, eager torch goes on."""

import itertools
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.cache.private import is_private
from evomerge.errors import CandidateFailure
from evomerge.kernels import eager, native, native_library
from evomerge.kernels.chances import rank_levels
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.magnitude_histogram import MagnitudeHistogram, in_bin, ranked
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import Kept, MaskedSums, MergePlan, Operands, WeightedSums
from evomerge.kernels.task_vector import task_vector, variance
from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of

BYTES = [0, 1, 2, 3, 4, 7, 65_535, 65_536, 65_537, 200_003]
SHAPES = [(), (1,), (0,), (17,), (33, 65), (3, 5, 7), (129, 1), (40_001,)]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


def tensors(count, shape, dtypes, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    made = [base] + [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    return [t.to(dtypes[i % len(dtypes)]) for i, t in enumerate(made)]


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def plan_of(operands, sums, dtype):
    return MergePlan(Operands({"w": tuple(operands)}), dtype, (sums,))


def assert_same(plan, out, wanted):
    """The merge overwrites `out` with the wanted bits, and says so where they are not finite."""
    kernels, targets = native.NativeKernels(), {"w": out}
    assert kernels.takes(plan, targets)
    if wanted.isfinite().all():
        assert np.array_equal(kernels.merge(plan, targets)["w"], tile_digests(wanted))
    else:
        with pytest.raises(CandidateFailure, match="merged tensor w is not finite"):
            kernels.merge(plan, targets)
    assert np.array_equal(bits(out), bits(wanted.to(out.dtype)))


@pytest.mark.parametrize("size", BYTES)
def test_what_lies_in_memory_is_digested_alike(size):
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    assert np.array_equal(native._digested(data), tile_digests(data))


@given(
    count=st.integers(1, 8),
    shape=st.sampled_from(SHAPES),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    live=st.sampled_from(DTYPES),
    weights=st.lists(st.sampled_from([-1.0, 0.0, 0.3, 1.0, 1e30]), min_size=8, max_size=8),
    seed=st.integers(0, 9),
)
def test_weighted_sums(count, shape, dtypes, dtype, live, weights, seed):
    some, weights = tensors(count, shape, dtypes, seed)[1:], np.array(weights[:count])
    wanted = eager.weighted_sum(some, weights, dtype)
    plan = plan_of(some, WeightedSums(("w",), weights), dtype)
    assert_same(plan, torch.empty(shape, dtype=live), wanted)


@pytest.mark.parametrize("thin", ["magnitude", "band", "random", "ranked", "votes", "variance"])
@given(
    count=st.integers(1, 8),
    shape=st.sampled_from(SHAPES),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=2),
    dtype=st.sampled_from(DTYPES),
    join=st.sampled_from(["sum", "elect", "largest"]),
    rescale=st.booleans(),
    normalize=st.booleans(),
    energy=st.booleans(),
    densities=st.lists(st.sampled_from([0.0, 0.2, 0.77, 1.0]), min_size=8, max_size=8),
    weights=st.lists(st.sampled_from([-0.5, 0.0, 0.3, 1.0]), min_size=8, max_size=8),
    seed=st.integers(0, 9),
)
def test_masked_sums(
    thin, count, shape, dtypes, dtype, join, rescale, normalize, energy, densities, weights, seed
):
    base, *models = tensors(count, shape, dtypes, seed)
    how = Masked(
        np.array(weights[:count]),
        np.array(densities[:count]),
        thin,
        join,
        rescale=rescale,
        normalize=normalize,
        energy=energy and thin == "variance",
        scale=1.3,
        epsilon=0.2,
        threshold=np.linspace(0.1, 2.0, count),
    )
    kept = []
    taus = [task_vector(base, model) for model in models]
    for i, tau in enumerate(taus):
        if thin in ("random", "ranked"):
            kept.append(Kept(key=(seed, 7 + i), levels=rank_levels(tau)))
        elif thin in ("magnitude", "band"):
            low = MagnitudeHistogram(tau).largest(tau, int(densities[i] * tau.numel()))
            kept.append(Kept(low, 0.15 if thin == "band" else float("inf")))
    if thin == "variance":
        spread = variance([tau.float() for tau in taus])
        histogram, k = MagnitudeHistogram(spread), int(densities[0] * int((spread > 0).sum()))
        kept = [Kept(low=float("inf"))]
        if k > 0:
            place = histogram.place(k)
            kept = [Kept(place=place)]
            wanted = spread.reshape(-1).sort(descending=True).values[k - 1]
            assert ranked(in_bin(spread, place.bin), place.rank) == wanted
    plan = plan_of([base, *models], MaskedSums(("w",), how, (tuple(kept),)), dtype)
    wanted = eager.masked_sum(base, models, how, kept, dtype)
    assert_same(plan, torch.empty(shape, dtype=dtype), wanted)


@pytest.mark.parametrize(
    "dtype, largest", [(torch.bfloat16, 3.3895314e38), (torch.float16, 65504.0)]
)
def test_what_rounds_to_infinity_is_told(dtype, largest):
    """Also in the last lanes of a tensor, and beside those that are not there."""
    for size, at in itertools.product((1, 9, 70_000), (0, -1)):
        for factor, fine in ((1.0, True), (1.01, False), (float("nan"), False)):
            some = torch.zeros(size)
            some[at] = largest
            plan = plan_of([some], WeightedSums(("w",), np.array([factor])), dtype)
            targets = {"w": torch.empty(size, dtype=dtype)}
            if fine:
                native.NativeKernels().merge(plan, targets)
                assert targets["w"].isfinite().all()
                continue
            with pytest.raises(CandidateFailure, match="merged tensor w is not finite"):
                native.NativeKernels().merge(plan, targets)


def test_one_tile_that_changes_is_the_one_whose_digest_does():
    some = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    before = tile_digests(some)
    some[50_000] += 1e-6
    changed = np.flatnonzero(tile_digests(some) != before)
    assert len(before) == 7 and changed.tolist() == [50_000 * 4 // 65_536]
    assert np.array_equal(tile_digests(some[1:]), tile_digests(some[1:].clone()))


WHOLE = [name for name, method in METHODS.all().items() if method.of_weights]


@pytest.mark.parametrize("method", WHOLE)  # the others: tests/test_lora_pools.py, test_observed.py
def test_a_live_model_gets_what_the_stream_gives(method, world, monkeypatch):
    """With threads and without a compiler; again with other numbers in the same tables.

    Two groups, the second's densities from everything to nothing.
    """
    names = [str(world / name) for name in ("base", "a", "b", "c")]
    opened = {n: open_source(n) for n in names}
    count = METHODS.get(method).models or len(names) - 1
    merger = Merger(opened, {n: n for n in names})
    live = {n: torch.empty(t.shape) for n, t in opened[names[0]].tensors.items()}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for densities in ((0.3, 0.8), (0.8, 1.0), (1.0, 0.3), (0.5, 0.0)):
        made = [recipe_of(method, names[1 : count + 1], names[0], density=d) for d in densities]
        groups = (replace(made[0].groups[0], modules="mlp"), made[1].groups[0])
        recipe = replace(made[0], groups=groups)
        digests = merger.fill(recipe, live)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            plain = dict(Merger(opened, {n: n for n in names}).stream(recipe))
        for name, tensor in merger.stream(recipe):
            assert torch.equal(tensor, plain[name])
            assert torch.equal(live[name], tensor.float())
            assert np.array_equal(digests[name], tile_digests(tensor))


def test_tables_are_kept_for_the_same_operands_and_targets_alone():
    """Other numbers, another kind of sum, another target; gone with the operands."""
    generator = torch.Generator().manual_seed(3)
    base, a, b = (torch.randn(50, generator=generator) for _ in range(3))
    operands, kernels = Operands({"w": (base, a, b)}), native.NativeKernels()
    trimmed = Masked(np.array([0.5, 1.0]), np.ones(2), "magnitude", "elect")
    kept = (Kept(0.3), Kept(0.9))
    masked = MaskedSums(("w",), trimmed, (kept,))
    targets = {"w": torch.empty(50)}
    for _ in range(2):
        for weights in (np.array([0.2, 0.3, 0.5]), np.array([1.0, -1.0, 0.0])):
            sums = WeightedSums(("w",), weights)
            kernels.merge(MergePlan(operands, torch.float32, (sums,)), targets)
            assert torch.equal(targets["w"], eager.weighted_sum([base, a, b], weights))
        kernels.merge(MergePlan(operands, torch.float32, (masked,)), targets)
        assert torch.equal(targets["w"], eager.masked_sum(base, [a, b], trimmed, kept))
    size = kernels.nbytes
    assert size > 0
    other = {"w": torch.empty(50)}
    kernels.merge(MergePlan(operands, torch.float32, (masked,)), other)
    assert torch.equal(other["w"], targets["w"]) and kernels.nbytes == size
    del operands
    assert kernels.nbytes == 0


def test_without_a_compiler_it_is_said_once(monkeypatch, tmp_path):
    said = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    log = native_library.log
    monkeypatch.setattr(log, "warning", lambda text, *words: said.append(text % words))
    plan = plan_of([torch.ones(3)], WeightedSums(("w",), np.ones(1)), torch.float32)
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CXX", compiler)
        native.library.cache_clear()
        assert native.library() is None and native.library() is None
        assert not native.NativeKernels().takes(plan, {"w": torch.empty(3)})
    native.library.cache_clear()
    monkeypatch.undo()
    assert native.library() is not None
    assert len(said) == 2 and all("eager torch, which is slower" in line for line in said)
    assert "no-such-compiler" in said[0]


PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void leave_a_trace() {{ fclose(fopen("{trace}", "w")); }}
"""


# the kernels themselves take ten seconds to compile
QUICK = native_library.FLAGS.replace("-O3", "-O0")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache into which the kernels were compiled."""
    folder, said = tmp_path_factory.mktemp("compiled"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(native_library, "FLAGS", QUICK)
        patch.setattr(native_library.log, "warning", lambda text, *words: said.append(text))
        native.library.cache_clear()
        assert native.library() is not None and said == []
        native.library.cache_clear()
    return folder


@pytest.fixture
def cache(compiled, monkeypatch, tmp_path):
    """A cache of compiled kernels that holds them, and what is said while it is used."""
    # the loader gives what it has loaded from a path again, whatever lies there now
    shutil.copytree(compiled, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native_library, "FLAGS", QUICK)
    monkeypatch.setattr(native_library.tempfile, "tempdir", str(tmp_path))
    said = []
    monkeypatch.setattr(
        native_library.log, "warning", lambda text, *words: said.append(text % words)
    )
    native.library.cache_clear()
    yield tmp_path / "cache" / "evomerge" / "native", said
    native.library.cache_clear()


def plant(file, tmp_path):
    """Put a library in the place of the compiled one that leaves a trace when it is loaded."""
    trace = tmp_path / "trace"
    source = tmp_path / "planted.c"
    source.write_text(PLANTED.format(trace=trace))
    file.unlink()
    command = ["g++", "-shared", "-fPIC", str(source), "-o", str(file)]
    subprocess.run(command, check=True)
    return trace


def test_the_folder_of_compiled_kernels_is_the_users_alone(cache):
    folder, _ = cache
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o022 == 0


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.mark.parametrize(
    "open_to",
    ["all", pytest.param("a group", marks=needs_root), "all, around it", "all, behind a link"],
)
def test_kernels_in_a_folder_that_others_can_write_to_are_not_loaded(cache, tmp_path, open_to):
    folder, said = cache
    (file,) = folder.iterdir()
    trace = plant(file, tmp_path)
    if open_to == "all":
        folder.chmod(0o777)
    elif open_to == "a group":
        os.chown(folder, -1, os.getuid() + 4321)
        folder.chmod(0o770)
    elif open_to == "all, around it":
        folder.parent.chmod(0o777)
    else:
        elsewhere = tmp_path / "elsewhere"
        folder.rename(elsewhere)
        folder.symlink_to(elsewhere)
        elsewhere.chmod(0o777)
    before = sorted(tmp_path.iterdir())
    assert native.library() is not None
    assert not trace.exists()
    (line,) = said
    assert "for this process alone" in line and "can write to" in line
    assert sorted(tmp_path.iterdir()) == before  # its own folder is gone


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("a file of another", marks=needs_root),
        "a file that others can write",
        "a link",
    ],
)
def test_kernels_that_others_may_have_written_are_compiled_anew(cache, tmp_path, how):
    folder, said = cache
    (file,) = folder.iterdir()
    trace = plant(file, tmp_path)
    if how == "a file of another":
        os.chown(file, os.getuid() + 4321, -1)
    elif how == "a file that others can write":
        file.chmod(0o777)
    else:
        file.rename(tmp_path / "planted.so")
        file.symlink_to(tmp_path / "planted.so")
    assert native.library() is not None
    assert not trace.exists() and said == []
    assert is_private(file.lstat())


def test_a_planted_library_would_leave_its_trace(cache, tmp_path):
    """What the tests above wait for does happen where a folder is taken to be private."""
    (file,) = cache[0].iterdir()
    trace = plant(file, tmp_path)
    file.chmod(0o700)
    with pytest.raises(AttributeError):  # it has none of the functions
        native.library()
    assert trace.exists()
