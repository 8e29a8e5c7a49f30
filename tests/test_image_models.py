"""Image models: diffusers' UNets and DiTs, whole pipelines, and files that are whole models."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_images import (
    DEEP,
    SHAPES,
    XL,
    denoised,
    tiny_denoiser,
    tiny_pipeline,
    tiny_single_file,
)

from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.export.candidates import export_candidate
from evomerge.export.model_directory import merge_to
from evomerge.merging.live_model import open_live_model
from evomerge.merging.merger import Merger
from evomerge.recipes.block_names import holds
from evomerge.recipes.parameters import Group, ParametersRecipe, single
from evomerge.sources.compatibility import mismatches
from evomerge.sources.digest import digest
from evomerge.sources.libraries import loading_call
from evomerge.sources.source import open_source

diffusers = pytest.importorskip("diffusers")
ROOT = Path(__file__).parents[1]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def weighted(names, weights, dtype="float32", modules=None):
    groups = [Group(None, modules, {"weight": tuple(weights)})]
    if modules is not None:
        groups.append(Group(None, None, {"weight": (1.0,) + (0.0,) * (len(names) - 1)}))
    return ParametersRecipe("linear", tuple(map(str, names)), tuple(groups), dtype=dtype)


def live_of(recipe, name, dtype):
    """A live model with a recipe's weights, as a worker fills it, and those it got in place."""
    sources = {name: open_source(name) for name in recipe.sources}
    live = open_live_model(sources[name], dtype)
    merger = Merger(sources, dict.fromkeys(sources, ""))
    digests = merger.fill(recipe, live.direct)
    live.load(merger.stream(recipe, [n for n in merger.shapes(recipe) if n not in digests]))
    return live


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("class_name", SHAPES)
def test_denoisers_merge_live_and_load(class_name, dtype, tmp_path):
    """The live model and the exported one are the same, and the weighted sum in float64."""
    kind = getattr(torch, dtype)
    for seed, name in enumerate("ab"):
        tiny_denoiser(class_name, seed, kind).save_pretrained(tmp_path / name)
    names = [str(tmp_path / name) for name in "ab"]
    recipe = weighted(names, (0.3, 0.7), dtype)
    merge_to(recipe, tmp_path / "out")
    model = getattr(diffusers, class_name).from_pretrained(tmp_path / "out", torch_dtype=kind)
    live = live_of(recipe, names[0], dtype)
    assert set(live.direct) == set(open_source(names[0]).tensors)
    assert torch.equal(denoised(live.model), denoised(model.eval()))
    assert live.model.state_dict().keys() == model.state_dict().keys()
    a, b = (load_file(tmp_path / name / WEIGHTS) for name in "ab")
    merged = load_file(tmp_path / "out" / WEIGHTS)
    for name, tensor in merged.items():
        assert tensor.dtype == a[name].dtype and torch.equal(tensor, model.state_dict()[name])
        by_hand = 0.3 * a[name].double() + 0.7 * b[name].double()
        close = {"rtol": 1e-6, "atol": 1e-6} if dtype == "float32" else {"rtol": 8e-3, "atol": 1e-3}
        torch.testing.assert_close(tensor.double(), by_hand, **close)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["_class_name"] == class_name and "dtype" not in config
    assert loading_call(tmp_path / "out") == f'{class_name}.from_pretrained("{tmp_path / "out"}")'


def test_shards_are_read_and_written(tmp_path):
    model = tiny_denoiser("UNet2DConditionModel", 0)
    model.save_pretrained(tmp_path / "a", max_shard_size="40KB")
    assert (tmp_path / "a" / f"{WEIGHTS}.index.json").is_file()
    name = str(tmp_path / "a")
    merge_to(single(name, "float32"), tmp_path / "out", shard_bytes=40_000)
    assert (tmp_path / "out" / f"{WEIGHTS}.index.json").is_file()
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out")
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    assert digest(open_source(name)).sha256 == digest(open_source(str(tmp_path / "out"))).sha256


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    first = tiny_pipeline(folder / "a", 1)
    tiny_pipeline(folder / "b", 2, near=first)
    return folder


def picture(pipeline):
    generator = torch.Generator().manual_seed(5)
    return pipeline(
        "a b", num_inference_steps=2, height=16, width=16, output_type="pt", generator=generator
    ).images


@pytest.mark.parametrize("parts", ["", ":unet,text_encoder"])
def test_a_pipeline_is_merged_and_loads(pipelines, tmp_path, parts):
    """The denoiser, or what is named; the rest is the first one's, to the last byte."""
    names = [f"{pipelines / name}{parts}" for name in "ab"]
    recipe = weighted(names, (0.4, 0.6))
    source = open_source(names[0])
    assert source.parts == ("unet", "text_encoder")[: 2 if parts else 1] and source.layers == 0
    assert [note for note in source.notes if "the first model's" in note]
    merge_to(recipe, tmp_path / "out")
    merged = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    merged.set_progress_bar_config(disable=True)
    live = live_of(recipe, names[0], "float32")
    assert torch.equal(picture(live.model), picture(merged))
    assert (tmp_path / "out" / "unet" / "config.json").read_bytes() == (
        pipelines / "a" / "unet" / "config.json"
    ).read_bytes()
    for place in ("vae", "text_encoder"):
        file = "model.safetensors" if place == "text_encoder" else WEIGHTS
        same = (tmp_path / "out" / place / file).read_bytes() == (
            pipelines / "a" / place / file
        ).read_bytes()
        assert same == (place == "vae" or not parts)
    a, b = (load_file(pipelines / name / "unet" / WEIGHTS) for name in "ab")
    for name, tensor in merged.unet.state_dict().items():
        by_hand = 0.4 * a[name].double() + 0.6 * b[name].double()
        torch.testing.assert_close(tensor.double(), by_hand, rtol=1e-6, atol=1e-6)
    assert "library_name: diffusers" in (tmp_path / "out" / "README.md").read_text()
    assert loading_call(tmp_path / "out").startswith("DiffusionPipeline.from_pretrained(")
    again = open_source(f"{tmp_path / 'out'}{parts}")
    assert again.merged_bytes < again.bytes == source.bytes
    assert mismatches([source, again]) == []


def test_a_pipelines_rest_is_part_of_what_it_is(pipelines, tmp_path):
    """A candidate's scores come of the frame's decoder of images too: another one is another."""
    other = tmp_path / "other"
    shutil.copytree(pipelines / "a", other)
    before = digest(open_source(str(other))).sha256
    assert before == digest(open_source(str(pipelines / "a"))).sha256
    settings = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    settings["beta_start"] = 0.002
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    assert digest(open_source(str(other))).sha256 != before


def test_a_strangers_pipeline_runs_no_code(pipelines, tmp_path):
    def stranger(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(pipelines / "a", folder)
        change(folder)
        with pytest.raises(BadInput) as caught:
            open_source(str(folder))
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    def index(**changes):
        def change(folder):
            file = folder / "model_index.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))

        return change

    assert "has no DiffusionPipeline" in stranger(index(_class_name="MyPipeline"))
    assert "has no DiffusionPipeline" in stranger(index(_class_name="UNet2DConditionModel"))
    assert "whose code is not run" in stranger(index(unet=["my_unet", "MyUNet"]))
    assert "is no folder" in stranger(index(vae_2=["diffusers", "AutoencoderKL"]))
    leak = {"../a": ["diffusers", "AutoencoderKL"]}
    assert "is no folder" in stranger(index(**leak))

    def pickled(folder):
        (folder / "vae" / WEIGHTS).rename(folder / "vae" / "diffusion_pytorch_model.bin")

    assert "only pickles" in stranger(pickled)

    def variant(folder):
        half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
        (folder / "unet" / WEIGHTS).rename(half)

    assert "only a variant of its weights" in stranger(variant)

    def link(folder):
        secret = folder.parent / "secret.json"
        secret.write_text("{}")
        (folder / "vae" / "extra.json").symlink_to(secret)

    assert "is a link to" in stranger(link)

    def cut(folder):
        file = folder / "unet" / WEIGHTS
        file.write_bytes(file.read_bytes()[:-4])

    assert "cut off" in stranger(cut)


def test_models_that_do_not_fill_their_class_are_told(tmp_path):
    model = tiny_denoiser("UNet2DConditionModel", 0)
    model.save_pretrained(tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    settings = json.loads(config.read_text())
    for change, wrong in (
        ({"in_channels": 9}, "conv_in.weight is"),
        ({"_class_name": "MyUNet"}, "has no ModelMixin 'MyUNet'"),
        ({"norm_num_groups": 3}, "makes no UNet2DConditionModel"),
        ({"layers_per_block": 10**9}, "layers_per_block = 1000000000"),
        ({"quantization_config": {}}, "quantized"),
    ):
        config.write_text(json.dumps(settings | change))
        with pytest.raises(BadInput, match=wrong):
            open_source(str(tmp_path / "a"))
    config.write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="has no parts"):
        open_source(f"{tmp_path / 'a'}:unet")
    tiny_denoiser("FluxTransformer2DModel", 0).save_pretrained(tmp_path / "flux")
    faults = mismatches([open_source(str(tmp_path / n)) for n in ("a", "flux")])
    assert any("different classes" in fault.wrong for fault in faults)


def test_a_single_file_is_merged_name_by_name(tmp_path):
    """The denoiser's tensors, in half precision; all else is the first file's."""
    names = [str(tiny_single_file(tmp_path / f"{seed}.safetensors", seed)) for seed in (1, 2)]
    recipe = weighted(names, (0.5, 0.5), "float16")
    merge_to(recipe, tmp_path / "out", shard_bytes=100)  # one file remains one, however large
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert (
        loading_call(tmp_path / "out") == f'load_file("{tmp_path / "out" / "model.safetensors"}")'
    )
    assert "library_name" not in (tmp_path / "out" / "README.md").read_text()
    a, b = map(load_file, names)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "model.safetensors",
        "recipe.json",
    ]
    assert merged.keys() == a.keys()
    for name, tensor in merged.items():
        if name.startswith("model.diffusion_model."):
            wanted = (0.5 * a[name].float() + 0.5 * b[name].float()).half()
        else:
            wanted = a[name]
        assert tensor.dtype == a[name].dtype and torch.equal(tensor, wanted), name
    live = live_of(recipe, names[0], "float16")
    state = live.model.state_dict()
    assert state.keys() == merged.keys()
    assert all(torch.equal(state[name], merged[name]) for name in merged)
    encoder = open_source(f"{names[0]}:model.diffusion_model,conditioner")
    assert encoder.layers == 0 and len(encoder.tensors) == 7
    assert any("position_ids" in name for name in encoder.carried)
    with pytest.raises(BadInput, match=r"no tensor's name begins with 'unet\.'"):
        open_source(f"{names[0]}:unet")
    narrow = {"model.diffusion_model.x": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    with pytest.raises(BadInput, match="has dtype F8_E4M3, which is not merged"):
        open_source(str(tiny_single_file(tmp_path / "8.safetensors", 8, narrow)))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "1.safetensors").read_bytes()[:-2])
    with pytest.raises(BadInput, match="cut off"):
        open_source(str(tmp_path / "cut.safetensors"))


def test_blocks_are_those_of_diffusers_own_conversion():
    """IN, MID and OUT of Stable Diffusion's names and of what diffusers converts them to."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    shape = {
        "block_out_channels": (32, 64, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "layers_per_block": 2,
    }
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**shape)
    names = {}
    kinds = {"input_blocks": "IN", "output_blocks": "OUT"}
    original = _original_names(12)
    marked = {name: torch.tensor(float(n)) for n, name in enumerate(original)}
    settings = dict(unet.config) | {"class_embed_type": None, "addition_embed_type": None}
    converted = convert_ldm_unet_checkpoint(dict(marked), config=settings)
    by_mark = {float(value): name for name, value in converted.items()}
    for name, mark in marked.items():
        if float(mark) in by_mark:
            names[name] = by_mark[float(mark)]
    assert len(names) > 60 and set(names.values()) <= unet.state_dict().keys()
    for name, other in names.items():
        block, number = name.split(".")[2:4]
        if block in ("time_embed", "out"):  # of no block, as people there count them apart
            wanted = []
        else:
            wanted = ["MID" if block == "middle_block" else f"{kinds[block]}{int(number):02}"]
        groups = ["MID", *(f"{kind}{n:02}" for kind in ("IN", "OUT") for n in range(12))]
        for place in (name, other, f"unet.{other}"):
            assert [g for g in groups if holds(g, place)] == wanted, (name, other)
        assert not any(holds(g, f"vae.encoder.{other}") for g in groups)


def _original_names(blocks):
    """Names of Stable Diffusion 1's denoiser, one or two of each part of each block."""
    root = "model.diffusion_model."
    names = [f"{root}time_embed.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    names += [f"{root}input_blocks.0.0.{kind}" for kind in ("weight", "bias")]
    names += [f"{root}out.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    for n in range(1, blocks):
        if n % 3 == 0:
            names.append(f"{root}input_blocks.{n}.0.op.weight")
            names.append(f"{root}input_blocks.{n}.0.op.bias")
            continue
        names.append(f"{root}input_blocks.{n}.0.in_layers.2.weight")
        if n < 9:
            names.append(f"{root}input_blocks.{n}.1.proj_in.weight")
            attention = "1.transformer_blocks.0.attn2.to_k.weight"
            names.append(f"{root}input_blocks.{n}.{attention}")
    for n, part in enumerate(("in_layers.2.weight", "proj_in.weight", "in_layers.2.weight")):
        names.append(f"{root}middle_block.{n}.{part}")
    for n in range(blocks):
        names.append(f"{root}output_blocks.{n}.0.in_layers.2.weight")
        if n >= 3:
            names.append(f"{root}output_blocks.{n}.1.proj_in.weight")
        if n in (2, 5, 8):
            names.append(f"{root}output_blocks.{n}.{1 if n == 2 else 2}.conv.weight")
            names.append(f"{root}output_blocks.{n}.{1 if n == 2 else 2}.conv.bias")
    return names


def test_blocks_of_transformers():
    for name in ("double_blocks.3.img_attn.qkv.weight", "transformer.transformer_blocks.3.x"):
        assert holds("DOUBLE03", name) and holds("DOUBLE01-DOUBLE03", name)
        assert not holds("SINGLE03", name) and not holds("DOUBLE04-DOUBLE09", name)
    for name in ("model.diffusion_model.single_blocks.12.x", "single_transformer_blocks.12.x"):
        assert holds("SINGLE12", name) and not holds("DOUBLE12", name)
    for name in ("transformer_blocks.7.x", "model.diffusion_model.joint_blocks.7.x", "blocks.7.x"):
        assert holds("BLOCK07", name) and not holds("BLOCK08", name)
    inner = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert not holds("DOUBLE00", inner) and not holds("BLOCK00", inner) and holds("IN04", inner)
    assert not holds("IN00-OUT03", "input_blocks.2.0.weight")
    for name in SHAPES:
        with torch.device("meta"):
            state = getattr(diffusers, name)(**SHAPES[name]).state_dict()
        kind = {"FluxTransformer2DModel": "DOUBLE", "UNet2DConditionModel": "IN"}.get(name, "BLOCK")
        assert any(holds(f"{kind}01", key) for key in state)


def test_a_group_of_blocks_is_merged_alone(tmp_path):
    for seed, name in enumerate("ab"):
        tiny_denoiser("UNet2DConditionModel", seed).save_pretrained(tmp_path / name)
    names = [tmp_path / name for name in "ab"]
    merge_to(weighted(names, (0.0, 1.0), modules="IN01-IN02"), tmp_path / "out")
    a, b = (load_file(name / WEIGHTS) for name in names)
    for name, tensor in load_file(tmp_path / "out" / WEIGHTS).items():
        is_in = name.startswith(("down_blocks.0.resnets", "down_blocks.0.attentions"))
        assert torch.equal(tensor, (b if is_in else a)[name]), name
    assert not (tmp_path / "out" / "mergekit_config.yml").exists()


BRIGHTNESS = '''
"""How bright what a UNet denoises is."""

import torch


def items():
    return list(range(24))


@torch.no_grad()
def score(model, tokenizer, items):
    found = []
    for seed in items:
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        text = torch.zeros(1, 3, 16)
        sample = model(noise.to(model.dtype), 10, text.to(model.dtype)).sample
        found.append(sample.float().mean().item())
    return found
'''


def campaign(folder, models, scorer, **changes):
    mapping = {
        "name": "images",
        "sources": {"models": {name: str(place) for name, place in models.items()}},
        "space": {
            "kind": "parameters",
            "method": "linear",
            "module_groups": ["IN00-IN03", "MID", "OUT00", "up_blocks.1"],
            "axes": {"weight": {"low": 0.0, "high": 1.0}},
            "groups": {"b MID": {"weight": 0.25}},
        },
        "controller": {"kind": "random"},
        "fitness": [{"name": "bright", "function": str(scorer)}],
        "budget": {"evaluations": 3},
    } | changes
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump(mapping))
    return file


def test_a_campaign_over_unets_runs_and_exports(tmp_path, silent):
    for seed, name in enumerate("ab"):
        tiny_denoiser("UNet2DConditionModel", seed).save_pretrained(tmp_path / name)
    (tmp_path / "bright.py").write_text(BRIGHTNESS)
    models = {name: tmp_path / name for name in "ab"}
    file = campaign(tmp_path, models, tmp_path / "bright.py")
    done = CliRunner().invoke(main, ["check", str(file)])
    assert done.exit_code == 0, done.output
    run = tmp_path / "run"
    assert run_campaign(file, directory=run, observer=silent)
    shown = CliRunner().invoke(main, ["show", str(run), "best", "--json"])
    groups = json.loads(shown.output)["recipe"]["groups"]
    if len(groups) > 1:  # not a baseline
        assert [g["modules"] for g in groups] == ["IN00-IN03", "MID", "OUT00", "up_blocks.1", None]
        assert groups[1]["weight"][1] == 0.25 and groups[0]["layers"] is None
    exported = export_candidate(run, tmp_path / "out", "best")
    assert exported.compared == "as scored"
    model = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out")
    namespace = {}
    exec(BRIGHTNESS, namespace)
    scores = json.loads(shown.output)["scores"]["bright"]
    both = (scores["search"]["mean"] + scores["heldout"]["mean"]) / 2
    mean = sum(namespace["score"](model, None, range(24))) / 24
    assert mean == pytest.approx(both, abs=1e-5)
    # a candidate is a source of another campaign
    other = tmp_path / "other"
    other.mkdir()
    models = {"first": f"{run}#best", "b": tmp_path / "b"}
    space = {"kind": "mixture", "chromosomes": ["IN00-IN03"]}
    file = campaign(
        other, models, tmp_path / "bright.py", space=space, controller={"kind": "niches"}
    )
    assert run_campaign(file, directory=other / "run", observer=silent)
    assert export_candidate(other / "run", other / "out", "best").compared == "as scored"


def test_a_campaign_over_files_runs_and_exports(tmp_path, silent):
    models = {
        name: tiny_single_file(tmp_path / f"{name}.safetensors", n) for n, name in enumerate("ab")
    }
    (tmp_path / "small.py").write_text(
        "def items(): return list(range(24))\n"
        "def score(model, tokenizer, items):\n"
        "    out = model.state_dict()['model.diffusion_model.out.2.bias'].float()\n"
        "    return [out.sum().item() + n for n in items]\n"
    )
    space = {"kind": "parameters", "method": "linear", "module_groups": ["IN00", "IN01", "MID"]}
    space["axes"] = {"weight": {"low": 0.0, "high": 1.0}}
    file = campaign(tmp_path, models, tmp_path / "small.py", space=space)
    assert run_campaign(file, directory=tmp_path / "run", observer=silent)
    assert export_candidate(tmp_path / "run", tmp_path / "out", "best").compared == "as scored"
    again = {"first": f"{tmp_path / 'run'}#best", "b": models["b"]}
    other = tmp_path / "other"
    other.mkdir()
    file = campaign(other, again, tmp_path / "small.py", space=space)
    assert run_campaign(file, directory=other / "run", observer=silent)
    assert export_candidate(other / "run", other / "out", "best").compared == "as scored"


def test_what_image_models_do_not_have_is_refused(tmp_path):
    for seed, name in enumerate("ab"):
        tiny_denoiser("UNet2DConditionModel", seed).save_pretrained(tmp_path / name)
    (tmp_path / "bright.py").write_text(BRIGHTNESS)
    models = {name: tmp_path / name for name in "ab"}

    def refused(**changes):
        file = campaign(tmp_path, models, tmp_path / "bright.py", **changes)
        done = CliRunner().invoke(main, ["check", str(file)])
        assert done.exit_code == 2
        return done.output

    space = {"kind": "parameters", "method": "linear", "layer_groups": 2}
    space["axes"] = {"weight": {"low": 0.0, "high": 1.0}}
    assert "name parts in module_groups" in refused(space=space)
    del space["layer_groups"]
    blocks = refused(space=space | {"module_groups": ["IN00", "IN30"]})
    assert "no tensor is in 'IN30'" in blocks and "IN00'" not in blocks
    task = [{"name": "t", "cost": "parameters"}]
    assert "a source is a module of its own" in refused(fitness=task)
    assert "are scored as they are merged" in refused(workers={"quantize": "int8"})
    save_file({"x": torch.zeros(1)}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="fuse the adapter into its model"):
        open_source(f"{tmp_path / 'a'}+{tmp_path / 'a'}")


def as_flux(folder, seed):
    """A folder as that of Flux's pipeline, with all that is looked at before a model is loaded."""
    tiny_denoiser("FluxTransformer2DModel", seed, **DEEP).save_pretrained(folder / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["sdxl-blocks", "flux-blocks"])
def test_the_examples_are_right(name, tmp_path, monkeypatch):
    """With stand-ins of as many blocks in the places of the models."""
    file = ROOT / "search_spaces" / f"{name}.yaml"
    data = yaml.safe_load(file.read_text())
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "fitness", "fitness", ignore=shutil.ignore_patterns("__pycache__"))
    folders = [data["sources"]["base"], *data["sources"]["models"].values()]
    for seed, folder in enumerate(map(Path, folders)):
        if name == "sdxl-blocks":
            tiny_pipeline(folder, seed, **XL)
        else:
            as_flux(folder, seed)
    done = CliRunner().invoke(main, ["check", str(file), "--set", "workers.gpus_each=0"])
    assert done.exit_code == 0, done.output
    data["space"]["module_groups"] = [*data["space"]["module_groups"], "OUT09", "SINGLE38"]
    Path("wrong.yaml").write_text(yaml.safe_dump(data))
    done = CliRunner().invoke(main, ["check", "wrong.yaml", "--set", "workers.gpus_each=0"])
    assert done.exit_code == 2
    assert "no tensor is in 'OUT09'" in done.output and "no tensor is in 'SINGLE38'" in done.output


def test_the_scorer_of_pictures_ranks_pipelines_and_bare_unets(pipelines, tmp_path, silent):
    """A campaign over whole pipelines, whose scores are those of the exported one."""
    scorer = tmp_path / "pictures.py"
    text = (ROOT / "fitness" / "pictures.py").read_text()
    scorer.write_text(text.replace("SIZE = 64", "SIZE = 16").replace("STEPS = 4", "STEPS = 2"))
    models = {name: pipelines / name for name in "ab"}
    budget = {"evaluations": 2}
    file = campaign(tmp_path, models, scorer, budget=budget)
    run = tmp_path / "run"
    assert run_campaign(file, directory=run, observer=silent)
    assert export_candidate(run, tmp_path / "out", "best").compared == "as scored"
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    spec = importlib.util.spec_from_file_location("pictures_to_score", scorer)
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    shown = CliRunner().invoke(main, ["show", str(run), "best", "--json"])
    scores = json.loads(shown.output)["scores"]["bright"]
    both = (scores["search"]["mean"] + scores["heldout"]["mean"]) / 2
    items = pictures.items()
    with torch.no_grad():
        again = pictures.score(loaded, None, items)
        assert sum(again) / len(items) == pytest.approx(both, abs=1e-3)
        assert all(0.0 <= score <= 1.0 for score in again) and len(set(again)) > 20
        bare = pictures.score(loaded.unet, None, items[:9])
        assert bare == pictures.score(loaded.unet, None, items[:9])
        assert len(set(bare)) == 9


def test_a_network_of_ones_own_lives_on_a_files_tensors(tmp_path):
    """As docs/other-architectures.md has it: given the tensors once, it is every candidate."""
    for seed in (1, 2):
        save_file(
            tiny_denoiser("UNet2DConditionModel", seed).state_dict(),
            tmp_path / f"{seed}.safetensors",
        )
    names = [str(tmp_path / f"{seed}.safetensors") for seed in (1, 2)]
    sources = {name: open_source(name) for name in names}
    live = open_live_model(sources[names[0]], "float32")
    merger = Merger(sources, dict.fromkeys(names, ""))
    config = dict(tiny_denoiser("UNet2DConditionModel", 0).config)
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel.from_config(config).eval()
    network.load_state_dict(live.model.state_dict(), assign=True)
    for weights in ((1.0, 0.0), (0.5, 0.5)):
        recipe = weighted(names, weights)
        merger.fill(recipe, live.direct)
        merge_to(recipe, tmp_path / f"out{weights[0]}")
        again = tiny_denoiser("UNet2DConditionModel", 0)
        again.load_state_dict(load_file(tmp_path / f"out{weights[0]}" / "model.safetensors"))
        assert torch.equal(denoised(network), denoised(again))
