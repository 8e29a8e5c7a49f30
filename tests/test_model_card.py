"""The model card: a head that the hub takes, no folder of this machine, no text that acts."""

import html.parser
import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from evomerge.archive.archive import Archive
from evomerge.export.card_head import card_head
from evomerge.export.hub_ids import hub_ids
from evomerge.export.model_card import model_card, short_card
from evomerge.recipes.parameters import single, uniform
from evomerge.sources.own_cards import GENERATION, Inherited, inherited
from evomerge.testing.archives import PLAN, PROVENANCE, example_archive

INHERITED = {"license", "license_name", "license_link", "language", "datasets", "pipeline_tag"}
INHERITED |= {"model-index"}
CACHED = "/home/me/.cache/huggingface/hub/models--org--ja/snapshots/0123abcd"


def head_of(card):
    """The metadata as the hub's own client reads it, and as YAML does."""
    head = yaml.safe_load(card.split("---\n")[1])
    assert ModelCard(card).data.to_dict() == head
    assert set(head) <= {"library_name", "base_model", "base_model_relation", "tags"} | INHERITED
    assert ("base_model" in head) == ("base_model_relation" in head)
    return head


def card_of(sources, name="example", objective="accuracy", platform="Linux"):
    """The card of a uniform merge of sources: label -> (name, path)."""
    archive = Archive(":memory:", write=True)
    records = {
        label: {"name": source, "path": path, "sha256": "9c1f"}
        for label, (source, path) in sources.items()
    }
    machine = PROVENANCE["machine"] | {"platform": platform}
    objectives = [{"name": objective, "direction": "maximize"}]
    provenance = PROVENANCE | {"sources": records, "objectives": objectives, "machine": machine}
    archive.begin(name, PLAN | {"name": name}, provenance, [(objective, "search", 0, "")])
    recipe = uniform(tuple(source for source, _ in sources.values()), "float32")
    for label, (source, _) in sources.items():
        archive.add_baseline(label, single(source, "float32"), label)
    return model_card(archive, 1, recipe)


def test_ids_of_the_hub_are_listed():
    sources = {
        "ja": ("org/ja@main", CACHED),
        "de": ("org/de+org/lora", CACHED.replace("ja", "de") + "+" + CACHED.replace("ja", "lora")),
        "fr": (CACHED.replace("ja", "fr"), CACHED.replace("ja", "fr")),
        "mine": ("models/mine", "/home/me/models/mine"),
    }
    card = card_of(sources)
    head = head_of(card)
    assert head["base_model"] == ["org/ja", "org/de", "org/lora", "org/fr"]
    assert head["base_model_relation"] == "merge"
    assert "/home/me" not in card and "models/mine" not in card
    assert "- de: `org/de`, `org/lora`, sha256 of its content 9c1f" in card
    assert "- mine: sha256 of its content 9c1f" in card


def test_without_an_id_there_is_no_base_model():
    head = head_of(card_of({"ja": ("models/ja", "/data/models/ja")}))
    assert head == {"library_name": "transformers", "tags": ["mergekit", "merge", "evomerge"]}


@pytest.mark.parametrize(
    "name, ids",
    [
        ("org/name", ["org/name"]),
        ("org/name@v1.0", ["org/name"]),
        ("org/name+other/lora@x", ["org/name", "other/lora"]),
        ("there/too", []),
        ("there/too+org/lora", ["org/lora"]),
        ("name", []),
        ("org/--name", []),
        ("org/na..me", []),
        ("org/name.git", []),
        ("-org/name", []),
        ("org/name\n- evil/one", []),
        ("org/name: x", []),
        (f"org/{'n' * 100}", []),
        ("/org/name", []),
        ("~/name", []),
        ("../name", []),
        ("a/b/c", []),
        ("runs/x#3", []),
        ("factory.py:build", []),
    ],
)
def test_what_is_an_id(tmp_path, monkeypatch, name, ids):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "too").mkdir(parents=True)
    assert hub_ids(name) == ids
    head = head_of(short_card(uniform((name, "models/of/mine"), "float32")))
    assert head.get("base_model", []) == ids


def test_a_folder_of_the_hub_s_cache_has_an_id(tmp_path):
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "link").symlink_to(snapshot)
    (tmp_path / "models--org--other").mkdir()
    for name in (str(snapshot), f"{snapshot}/", str(tmp_path / "link")):
        assert hub_ids(name) == ["org/name"]
    assert hub_ids(str(tmp_path / "models--org--other")) == []


def test_names_of_candidates_are_no_ids():
    card = card_of({"ja": ("org/ja", CACHED), "de": ("models/de", "/data/de")})
    assert head_of(card)["base_model"] == ["org/ja"]
    found = uniform(("org/ja", "runs/x#3"), "float32")
    assert head_of(short_card(found))["base_model"] == ["org/ja"]


def heads(tmp_path, *cards):
    """What a merge inherits of models a, b, ... with some cards, and the head it gets."""
    places = {}
    for label, text in zip("abc", cards, strict=False):
        places[label] = [tmp_path / label]
        places[label][0].mkdir(exist_ok=True)
        if text is not None:
            (places[label][0] / "README.md").write_text(text)
    found = inherited(places)
    return found, head_of(card_head(uniform(tuple(places), "float32"), found))


def test_a_licence_that_all_sources_have(tmp_path):
    mit = "---\nlicense: mit\nlanguage: [ja, en]\ndatasets: [org/data]\n---\n# A\n"
    found, head = heads(tmp_path, mit, mit.replace("ja", "fr"))
    assert not found.doubt
    assert head["license"] == "mit" and head["language"] == ["ja", "en", "fr"]
    assert head["datasets"] == ["org/data"]
    other = "---\nlicense: other\nlicense_name: llama3\nlicense_link: https://x.example/l\n---\n"
    found, head = heads(tmp_path, other, other)
    assert head["license_name"] == "llama3" and head["license_link"] == "https://x.example/l"
    data = ModelCard(card_head(uniform(("a",), "float32"), found)).data
    assert isinstance(data, ModelCardData) and data.license == "other"


@pytest.mark.parametrize(
    "cards, doubt",
    [
        ((None, None), "no licence is known of any source"),
        (("---\nlicense: mit\n---\n", None), "no licence is known of b"),
        (("---\nlicense: mit\n---\n", "# No head"), "no licence is known of b"),
        (
            ("---\nlicense: mit\n---\n", "---\nlicense: cc-by-nc-4.0\n---\n"),
            "the sources have different licences (a mit, b cc-by-nc-4.0)",
        ),
        # two that call theirs `other` and say no more need not have the same
        (("---\nlicense: other\n---\n",) * 2, "no licence is known of any source"),
        (
            (
                "---\nlicense: other\nlicense_name: one\n---\n",
                "---\nlicense: other\nlicense_name: two\n---\n",
            ),
            "the sources have different licences (a other one, b other two)",
        ),
        (("---\nlicense: [mit, gpl]\n---\n",), "no licence is known of any source"),
        (("---\nlicense: {a: b}\n---\n",), "no licence is known of any source"),
        (("---\nlicense: 'mit\n\n  evil: x'\n---\n",), "no licence is known of any source"),
        (
            ("---\nlicense: !!python/object:os.system x\n---\n",),
            "no licence is known of any source",
        ),
        (("---\n- a list\n---\n",), "no licence is known of any source"),
        (("---\n: [\n---\n",), "no licence is known of any source"),
    ],
)
def test_a_licence_that_is_not_known_or_not_agreed_on(tmp_path, cards, doubt):
    found, head = heads(tmp_path, *cards)
    assert found.doubt == doubt and "license" not in head
    sentence = doubt.replace("<", r"\<")
    assert sentence in short_card(uniform(("a",), "float32"), inherited=found)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=40), key=st.sampled_from(["license", "language", "datasets"]))
def test_what_a_source_s_card_says_is_taken_in_the_hub_s_form_alone(tmp_path, text, key):
    """Whatever a stranger's card says, the head is one that the hub reads, of plain words."""
    card = f"---\n{yaml.safe_dump({key: text, 'license_name': text, 'license_link': text})}---\n"
    found, head = heads(tmp_path, card)
    for word in (*found.license.values(), *found.languages, *found.datasets):
        assert re.fullmatch(r"[A-Za-z0-9][^\s<>\"'\\]*( [^\s<>\"'\\]+)*", word)
    assert set(head) <= {"library_name", "tags", key, "license_name", "license_link"}


@settings(max_examples=60, deadline=None)
@given(name=st.text(min_size=1, max_size=60), folder=st.text(max_size=30))
def test_whatever_a_source_is_called_no_folder_is_named(name, folder):
    """A name that is no hub id, and where it lies, are in no head; ids are those the hub takes."""
    path = f"/home/me/{folder}".replace("\0", "")
    ids = hub_ids(name, path)
    head = head_of(card_of({"ja": (name, path)}))
    assert head.get("base_model", []) == ids
    for found in ids:
        validate_repo_id(found)
    assert "/home/me" not in card_of({"ja": (name, path)})


def test_results_are_those_of_held_out_items():
    archive = example_archive()
    recipe = archive.candidate(3).recipe
    card = ModelCard(model_card(archive, 3, recipe, inherited=Inherited(pipeline=GENERATION)))
    scores = archive.scores(3, "heldout")
    results = {result.dataset_name: result for result in card.data.eval_results}
    assert {name: r.metric_value for name, r in results.items()} == {
        name: score.mean for name, score in scores.items()
    }
    assert all(r.dataset_args == {"items": 4} for r in results.values())
    # one that was scored on search items alone has none
    card = ModelCard(model_card(archive, 1, recipe, inherited=Inherited(pipeline=GENERATION)))
    assert card.data.eval_results is None


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![](https://evil.example/x.png)",
    "a | b |\n|---|---|\n| c | d",
    "a\n\n# A heading\n\n---\nbase_model: evil/one\n---",
    "---",
    "``` \n code",
    "`x` `` y",
    "a\u2028b\u2029c\u0085d",
    "\u202eright to left\u0000",
    "**bold** _it_ ~~no~~ $x$ &lt;b&gt; &#60;b&#62;",
    "1. one",
    "12) twelve",
    "- item",
    "> quote",
    "# heading",
    "https://evil.example www.evil.example",
    "[ref]: https://evil.example",
    "\\<b\\>",
]


class Tags(html.parser.HTMLParser):
    """Gathers the elements of HTML, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_text_and_nothing_else(text):
    """Rendered, the card has the elements of a tame one, and the text as it was, in one line."""
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    places = {"name": {"name": text}, "objective": {"objective": text}, "label": {}}
    places["platform"] = {"platform": text}
    for place, said in places.items():
        label = text if place == "label" else "ja"
        wild = card_of({label: ("models/ja", "/data/ja")}, **said)
        tame = card_of({"ja": ("models/ja", "/data/ja")})
        assert head_of(wild) == head_of(tame)
        ours, plain = (Tags(markdown.render(c.split("---\n", 2)[2])) for c in (wild, tame))
        assert ours.elements == plain.elements, place
        shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        assert shown in "".join(ours.text), place


def test_a_recipe_of_an_archive_that_was_tampered_with():
    archive = Archive(":memory:", write=True)
    plan = json.loads(json.dumps(PLAN))
    plan["controller"]["kind"] = "x`\n\n<script>"
    archive.begin("example", plan, PROVENANCE, [("accuracy", "search", 0, "")])
    recipe = single("org/ja", "float32")
    archive.add_baseline("ja", recipe, "ja")
    card = model_card(archive, 1, replace(recipe, models=("org/ja\n- evil/one",)))
    assert "evil" not in card
    assert "- search: `x' <script>`, seed 7" in card
