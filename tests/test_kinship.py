"""Models trained apart are told from fine-tunes of one model."""

import numpy as np
import pytest
from safetensors.torch import load_file

from evomerge.campaign.build import checked
from evomerge.sources.kinship import likeness, strangers
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kin")
    for dtype in ("bfloat16", "float16", "float32"):
        tiny_llama(folder / dtype, 0, dtype=dtype)
        tiny_llama(folder / f"{dtype}-near", 1, near=folder / dtype, spread=0.2, dtype=dtype)
        tiny_llama(folder / f"{dtype}-apart", 2, dtype=dtype)
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_likeness_is_the_median_cosine_of_matrices(folder, dtype):
    for other in (f"{dtype}-near", f"{dtype}-apart"):
        one, two = (load_file(folder / n / "model.safetensors") for n in (dtype, other))
        names = [n for n, t in one.items() if ".layers." in n and t.dim() == 2]
        cosines = {}
        for name in names:  # 14 of them: fewer rows than are looked at, so each is whole
            a, b = one[name].double().flatten(), two[name].double().flatten()
            cosines[name] = float(a @ b / (a.norm() * b.norm()))
        source = open_source(str(folder / dtype))
        matrices = [n for n in source.tensors if n in cosines]
        chosen = [matrices[i * len(matrices) // 8] for i in range(8)]
        found = likeness(source, open_source(str(folder / other)))
        assert found == pytest.approx(np.median([cosines[n] for n in chosen]), abs=1e-12)
        assert (found > 0.8) is ("near" in other) and (abs(found) < 0.2) is ("apart" in other)


def test_only_those_trained_apart_are_named(folder):
    names = ["bfloat16", "bfloat16-near", "bfloat16-apart"]
    opened = [open_source(str(folder / name)) for name in names]
    (line,) = strangers(opened)
    assert line.startswith(f"'{folder / 'bfloat16-apart'}' and '{folder / 'bfloat16'}' seem")
    assert strangers(opened[:1]) == [] and strangers(opened[:2]) == []


def test_what_cannot_be_read_says_nothing(folder, tmp_path):
    source = open_source(str(folder / "float32"))
    tiny_llama(tmp_path / "gone", 3)
    gone = open_source(str(tmp_path / "gone"))
    (tmp_path / "gone" / "model.safetensors").unlink()
    assert likeness(source, gone) is None and strangers([source, gone]) == []


def test_check_warns_where_weights_are_mixed(campaign_file, here):
    tiny_llama(here / "apart", 9)
    models = {"a": "a", "apart": "apart"}
    (campaign,) = checked(campaign_file(sources__models=models))
    (line,) = campaign.warnings
    assert "'apart' and 'base' seem to be trained apart" in line
    routing = {"kind": "routing", "frame": "a"}
    (campaign,) = checked(campaign_file(sources__models=models, space=routing))
    assert campaign.warnings == ()  # whole layers follow one another: nothing is averaged
    (campaign,) = checked(campaign_file())
    assert campaign.warnings == ()
