"""Encoders whose heads differ: the trunk is merged, and every model keeps its own head."""

import json

import numpy as np
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from evomerge.campaign.build import open_campaign
from evomerge.campaign.run import run_campaign
from evomerge.campaign.source_hashes import hash_sources
from evomerge.cli.main import main
from evomerge.config.validate import checked_plan
from evomerge.errors import BadInput
from evomerge.export.candidates import export_candidate
from evomerge.export.model_directory import merge_to
from evomerge.merging.live_heads import Heads
from evomerge.merging.live_model import LiveModel
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import Group, ParametersRecipe, single, uniform
from evomerge.sources.compatibility import differing_settings, mismatches
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing.encoders import tiny_bert

TWO_HEADS = '''
"""How surely two classifiers on one trunk tell apart what they were made to tell apart."""

import torch


def items():
    return [[4 + i % 20, 5 + (i * 3) % 20, 6 + (i * 7) % 20] for i in range(40)]


def score(model, tokenizer, items):
    ids = torch.tensor(items)
    one = model.heads["topic"](ids).logits.softmax(-1).amax(-1)
    two = model.heads["mood"](ids).logits.softmax(-1).amax(-1)
    return (one * two).tolist()
'''


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    """A masked language model, and fine-tunes of it of three and of five labels."""
    folder = tmp_path_factory.mktemp("berts")
    base = tiny_bert(folder / "base", 0)
    tiny_bert(folder / "topic", 1, 3, near=base)
    tiny_bert(folder / "mood", 2, 5, near=base)
    tiny_bert(folder / "words", 3, 4, near=base, class_name="BertForTokenClassification")
    (folder / "heads.py").write_text(TWO_HEADS)
    return folder


def plan_of(folder, **changes):
    mapping = {
        "name": "heads",
        "sources": {
            "base": str(folder / "base"),
            "models": {"topic": str(folder / "topic"), "mood": str(folder / "mood")},
            "heads": "keep",
        },
        "space": {
            "kind": "parameters",
            "method": "task_arithmetic",
            "layer_groups": 2,
            "axes": {"weight": {"low": 0.0, "high": 1.5}},
        },
        "controller": {"kind": "random"},
        "fitness": [{"name": "sure", "function": str(folder / "heads.py")}],
        "budget": {"evaluations": 3},
    }
    return mapping | changes


def run_of(mapping, run, silent):
    """Run a campaign in a directory, or go on with it."""
    file = run.parent / f"{run.name}.yaml"
    file.write_text(yaml.safe_dump(mapping))
    assert run_campaign(file, directory=run, observer=silent)


def trunk_names(state):
    return [n for n in state if n.startswith("bert.") and ".pooler." not in n]


def test_heads_that_differ_are_refused_with_what_to_write(berts):
    opened = [open_source(str(berts / name)) for name in ("topic", "mood")]
    (fault,) = mismatches(opened)
    assert "classifier.weight" in fault.wrong and "sources.heads: keep" in fault.mend
    llama = mismatches([open_source(str(berts / "base")), opened[0]])
    assert any("sources.heads: keep" in fault.mend for fault in llama)


def test_the_trunk_is_the_same_of_every_class(berts):
    """With or without a prefix, a pooler or a head: what all have is merged."""
    tiny_bert(berts / "plain", 4, near=berts / "base", class_name="BertModel")
    sources = [
        open_source(f"{berts / name}:trunk") for name in ("base", "topic", "mood", "words", "plain")
    ]
    assert mismatches(sources) == [] and differing_settings(sources) == []
    assert {len(source.tensors) for source in sources} == {4 + 1 + 2 * 16}
    assert [source.layers for source in sources] == [2] * 5
    assert "encoder.layer.0.attention.self.query.weight" in sources[0].tensors
    assert set(sources[1].carried) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    whole = open_source(str(berts / "topic"))
    assert sources[1].bytes == whole.bytes and sources[1].place == f"{whole.place}:trunk"
    assert digest(sources[1]).sha256 != digest(whole).sha256


def test_an_export_has_the_merged_trunk_and_the_head_that_is_asked_for(berts, tmp_path):
    """Against a weighted sum in float64 by hand, and the heads' own files."""
    names = {label: f"{berts / label}:trunk" for label in ("base", "topic", "mood")}
    group = Group(None, None, {"weight": (0.3, 0.9)})
    recipe = ParametersRecipe(
        "task_arithmetic",
        (names["topic"], names["mood"]),
        (group,),
        base=names["base"],
        dtype="float32",
    )
    files = {label: load_file(berts / label / "model.safetensors") for label in names}
    first = merge_to(recipe, tmp_path / "base")
    for label in ("topic", "mood"):
        assert merge_to(recipe, tmp_path / label, head=names[label]) == first
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / label)
        state = model.state_dict()
        assert set(load_file(tmp_path / label / "model.safetensors")) == set(files[label])
        for name in trunk_names(state):
            base, topic, mood = (
                files[source][name].double() for source in ("base", "topic", "mood")
            )
            by_hand = base + 0.3 * (topic - base) + 0.9 * (mood - base)
            torch.testing.assert_close(state[name].double(), by_hand, rtol=1e-6, atol=1e-6)
        for name in set(state) - set(trunk_names(state)):
            assert torch.equal(state[name], files[label][name]), name
    masked = transformers.BertForMaskedLM.from_pretrained(tmp_path / "base")
    assert torch.equal(
        masked.cls.predictions.transform.dense.weight,
        files["base"]["cls.predictions.transform.dense.weight"],
    )
    assert json.loads((tmp_path / "mood" / "recipe.json").read_text())["base"] == names["base"]


@pytest.mark.parametrize("frame", ["base", "topic", "words", "plain"])
def test_a_live_trunk_has_every_head(berts, tmp_path, frame):
    """Whichever class lives: the same logits as those of an export with that head."""
    tiny_bert(berts / "plain", 4, near=berts / "base", class_name="BertModel")
    sources = {name: open_source(f"{berts / name}:trunk") for name in ("topic", "mood", "words")}
    sources.setdefault(frame, open_source(f"{berts / frame}:trunk"))
    names = {label: source.name for label, source in sources.items()}
    live = LiveModel(sources[frame], "float32")
    heads = Heads(live.model, sources)
    merger = Merger({source.name: source for source in sources.values()}, dict.fromkeys(names, ""))
    ids = torch.tensor([[4, 5, 6, 7], [9, 8, 7, 6]])
    for weights in ((1.0, 0.0), (0.2, 0.8)):
        group = Group(None, None, {"weight": weights})
        models = (names["topic"], names["mood"])
        recipe = ParametersRecipe("linear", models, (group,), dtype="float32")
        merger.fill(recipe, live.direct)
        assert set(live.direct) == set(sources[frame].tensors)
        for label in ("topic", "mood", "words"):
            out = tmp_path / f"{label}{weights[0]}"
            merge_to(recipe, out, head=names[label])
            auto = transformers.AutoModelForSequenceClassification
            if label == "words":
                auto = transformers.AutoModelForTokenClassification
            with torch.no_grad():
                wanted = auto.from_pretrained(out)(ids).logits
                assert torch.equal(heads[label](ids).logits, wanted)
    shared = heads["topic"].bert.encoder.layer[0].attention.self.query.weight
    assert shared is live.direct["encoder.layer.0.attention.self.query.weight"]


def test_a_campaign_with_heads_runs_resumes_and_exports(berts, tmp_path, silent):
    run = tmp_path / "run"
    run_of(plan_of(berts), run, silent)
    run_of(plan_of(berts, budget={"evaluations": 5}), run, silent)  # goes on from the archive
    done = export_candidate(run, tmp_path / "mood", "best", head="mood")
    assert done.compared.startswith("as scored")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "mood")
    assert model.config.num_labels == 5
    with pytest.raises(BadInput, match=r"--head: moood: is no source .*did you mean 'mood'"):
        export_candidate(run, tmp_path / "none", "best", head="moood")
    # the score of the best is that of the exported models
    export_candidate(run, tmp_path / "topic", "best", head="topic")
    one = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "topic")
    ids = torch.tensor([[4 + i % 20, 5 + (i * 3) % 20, 6 + (i * 7) % 20] for i in range(40)])
    with torch.no_grad():
        sure = one(ids).logits.softmax(-1).amax(-1) * model(ids).logits.softmax(-1).amax(-1)
    shown = CliRunner().invoke(main, ["show", str(run), str(done.candidate), "--json"])
    scores = json.loads(shown.output)["scores"]["sure"]
    both = [scores["search"]["mean"], scores["heldout"]["mean"]]
    assert np.mean(both) == pytest.approx(sure.mean().item(), abs=1e-5)


def test_a_candidate_with_heads_is_a_source_of_another_campaign(berts, tmp_path, silent):
    run = tmp_path / "run"
    run_of(plan_of(berts), run, silent)
    sources = {"models": {"topic": f"{run}#best", "mood": str(berts / "mood")}, "heads": "keep"}
    space = {"kind": "parameters", "method": "linear"}
    space["axes"] = {"weight": {"low": 0.0, "high": 1.0}}
    again = plan_of(berts, sources=sources, space=space, name="again")
    run_of(again, tmp_path / "again", silent)
    done = export_candidate(tmp_path / "again", tmp_path / "out", "best", head="mood")
    assert done.compared.startswith("as scored")


def test_the_file_and_the_command_line_say_it(berts, tmp_path):
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(plan_of(berts)))
    done = CliRunner().invoke(main, ["check", str(file)])
    assert done.exit_code == 0, done.output
    assert "id2label" not in done.output
    whole = plan_of(berts)
    del whole["sources"]["heads"]
    file.write_text(yaml.safe_dump(whole))
    done = CliRunner().invoke(main, ["check", str(file)])
    assert done.exit_code == 2 and "write sources.heads: keep" in done.output
    with pytest.raises(BadInput, match="leave out one of heads and parts"):
        sources = plan_of(berts)["sources"] | {"parts": ["unet"]}
        checked_plan(plan_of(berts, sources=sources))
    with pytest.raises(BadInput, match="is made by a function, and has neither a head nor parts"):
        sources = {"models": {"a": "fitness/digits.py:network@1"}, "heads": "keep"}
        checked_plan(plan_of(berts, sources=sources))
    plan = checked_plan(plan_of(berts))
    assert plan.sources.models["mood"].endswith("mood:trunk")
    assert checked_plan(json.loads(plan.model_dump_json())) == plan
    group = open_campaign(plan, moved={"mood": str(berts / "mood")})
    assert group.sources[plan.sources.models["mood"]].parts == ("trunk",)
    assert len(hash_sources(group).worker.hashes) == 3


def test_what_has_no_trunk_is_told(berts, tmp_path):
    with pytest.raises(BadInput, match="has no parts but trunk"):
        open_source(f"{berts / 'mood'}:unet")
    with pytest.raises(BadInput, match=r"--head: is for models whose trunks alone are merged"):
        merge_to(single(str(berts / "mood"), "float32"), tmp_path / "x", head=str(berts / "topic"))
    with pytest.raises(BadInput, match=r"classifier\.weight"):
        merge_to(uniform((str(berts / "mood"), str(berts / "topic")), "float32"), tmp_path / "x")


VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 32,
    "max_position_embeddings": 40,
    "relative_attention": True,
    "position_buckets": 4,
    "pos_att_type": ["p2c", "c2p"],
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 32}
TEXTS = {
    "roberta": ("Roberta", TEXT),
    "deberta": ("DebertaV2", TEXT),
    "distilbert": ("DistilBert", DISTIL),
    "electra": ("Electra", TEXT | {"embedding_size": 16}),
}
VISIONS = {
    "vit": (transformers.ViTConfig, transformers.ViTForImageClassification),
    "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModelWithProjection),
    "dinov2": (transformers.Dinov2Config, transformers.Dinov2ForImageClassification),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_trunks_of_other_encoders_are_merged(kind, tmp_path):
    """Of three and six labels: the heads on the live trunk are the models that are exported."""
    family, shape = TEXTS[kind]
    made_by = getattr(transformers, f"{family}ForSequenceClassification")
    for seed, labels in enumerate((3, 6)):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{family}Config").from_dict(shape | {"num_labels": labels})
        made_by(config).save_pretrained(tmp_path / str(labels))
    names = [f"{tmp_path / labels}:trunk" for labels in ("3", "6")]
    group = Group(None, None, {"weight": (0.25, 0.75)})
    recipe = ParametersRecipe("linear", tuple(names), (group,), dtype="float32")
    sources = {name: open_source(name) for name in names}
    assert mismatches(list(sources.values())) == []
    assert not any("classifier" in name or "pooler" in name for name in sources[names[0]].tensors)
    live = LiveModel(sources[names[1]], "float32")
    live.load(Merger(sources, dict.fromkeys(names, "")).stream(recipe))
    heads = Heads(live.model, sources)
    ids = torch.tensor([[4, 5, 6, 7], [9, 8, 7, 6]])
    for name, labels in zip(names, (3, 6), strict=True):
        merge_to(recipe, tmp_path / f"out{labels}", head=name)
        with torch.no_grad():
            wanted = made_by.from_pretrained(tmp_path / f"out{labels}").eval()(ids).logits
            assert wanted.shape == (2, labels)
            assert torch.equal(heads[name](ids).logits, wanted)


@pytest.mark.parametrize("kind", VISIONS)
def test_vision_trunks_are_merged(kind, tmp_path):
    """ViT, CLIP's vision model and DINOv2 with heads of different sizes, against float64."""
    config, made_by = VISIONS[kind]
    for seed, size in enumerate((3, 6)):
        torch.manual_seed(seed)
        own = {"projection_dim": size} if kind == "clip" else {"num_labels": size}
        model = made_by(config(**VISION, **own)).eval()
        model.save_pretrained(tmp_path / str(size))
    names = [f"{tmp_path / size}:trunk" for size in ("3", "6")]
    recipe = ParametersRecipe(
        "linear", tuple(names), (Group(None, None, {"weight": (0.25, 0.75)}),), dtype="float32"
    )
    sources = {name: open_source(name) for name in names}
    live = LiveModel(sources[names[0]], "float32")
    merger = Merger(sources, dict.fromkeys(names, ""))
    live.load(merger.stream(recipe))
    heads = Heads(live.model, dict(zip(("three", "six"), sources.values(), strict=True)))
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    for label, name, size in (("three", names[0], "3"), ("six", names[1], "6")):
        merge_to(recipe, tmp_path / label, head=name)
        model = made_by.from_pretrained(tmp_path / label)
        with torch.no_grad():
            assert torch.equal(heads[label](pixels)[0], model(pixels)[0])
        assert model(pixels)[0].shape == (2, int(size))
    a, b = (load_file(tmp_path / size / "model.safetensors") for size in ("3", "6"))
    merged = load_file(tmp_path / "six" / "model.safetensors")
    shared = [name for name in merged if "classifier" not in name and "projection.w" not in name]
    for name in shared:
        by_hand = 0.25 * a[name].double() + 0.75 * b[name].double()
        torch.testing.assert_close(merged[name].double(), by_hand, rtol=1e-6, atol=1e-6)
    assert len(shared) > 30
