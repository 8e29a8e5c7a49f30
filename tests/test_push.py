"""What `evomerge push` sends: by the hub's real client, over HTTP, to a server that stands in."""

import json
import shutil
import threading

import huggingface_hub.constants
import pytest
import yaml
from click.testing import CliRunner
from hub_stand_in import Hub, save_adapter
from hub_uploads import TOKEN
from huggingface_hub import ModelCard, get_token
from transformers import AutoModelForCausalLM

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import EvomergeError
from evomerge.export.candidates import export_candidate
from evomerge.export.published_names import check_secrets, published_names, rename_models
from evomerge.testing.archives import PLAN, PROVENANCE

RUN = "runs/tiny"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where the run of the fixture below is kept."""
    return tmp_path_factory.mktemp("pushed") / "run"


@pytest.fixture
def run(finished, campaign_file, here, silent):
    """A finished campaign with held-out scores."""
    directory = here / RUN
    if not finished.exists():
        run_campaign(campaign_file(heldout=0.5, budget__evaluations=3, finals=1), observer=silent)
        shutil.copytree(directory, finished)
    elif not directory.exists():
        shutil.copytree(finished, directory)
    return directory


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that nobody has written to, of which the client is told, and a token for it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    settings = {"HF_TOKEN_PATH": str(tmp_path / "none"), "HF_HUB_OFFLINE": False}
    for name, value in (settings | {"HF_HUB_DISABLE_XET": True}).items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    # the client waits for seconds before it asks again
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with Hub(tmp_path / "repositories") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        yield server
        server.shutdown()


def push(*words):
    done = CliRunner().invoke(main, ["push", RUN, *words])
    assert TOKEN not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_what_arrives_is_what_was_exported(run, hub, here):
    export_candidate(run, here / "exported", "best")
    done = push("org/name", "--folder", "kept")
    assert done.exit_code == 0, done.output
    arrived = hub.pushed.files("org/name")
    kept = {path.name: path.read_bytes() for path in (here / "kept").iterdir()}
    assert {name: arrived[name] for name in kept} == kept
    assert set(arrived) - set(kept) == {".gitattributes"}
    # what tells where models lie is told otherwise, and nothing else is
    told = {"recipe.json", "mergekit_config.yml"}
    for path in (here / "exported").iterdir():
        assert path.name in told or path.read_bytes() == arrived[path.name]
    assert f"{hub.url}/org/name/commit/" in done.stdout and "as scored" in done.stdout
    AutoModelForCausalLM.from_pretrained(here / "kept")

    # a second push changes what differs, and takes away weights that would be read too
    repository = hub.pushed.repositories["org/name"]
    files = repository.branches["main"]
    files |= {"model-00002-of-00002.safetensors": b"", "adapter_config.json": b"{}", "a.png": b"a"}
    assert push("org/name").exit_code == 0
    assert set(hub.pushed.files("org/name")) == {*kept, ".gitattributes", "a.png"}
    assert len(repository.commits["main"]) == 2


def test_nothing_of_this_machine_is_sent(run, hub, here):
    assert push("org/name").exit_code == 0
    arrived = hub.pushed.files("org/name")
    for content in arrived.values():
        assert str(here).encode() not in content and TOKEN.encode() not in content
    recipe = json.loads(arrived["recipe.json"])
    labels = [source.label for source in Archive(run / "archive.db").sources]
    assert {*recipe["models"], recipe["base"]} <= {*labels, None}
    (part, *_) = yaml.safe_load(arrived["mergekit_config.yml"])["slices"]
    assert {source["model"] for source in part["sources"]} <= set(labels)
    allowed = (".json", ".safetensors", ".md", ".yml", ".gitattributes", ".jinja", ".txt")
    assert all(name.endswith(allowed) for name in arrived)


def test_the_card_has_the_results_of_held_out_items(run, hub):
    assert push("org/name").exit_code == 0
    (text,) = hub.pushed.cards
    card = ModelCard(text)  # by the hub's own client
    archive = Archive(run / "archive.db")
    scores = archive.scores(archive.best(), "heldout")
    assert scores and len(card.data.eval_results) == len(scores)
    for result in card.data.eval_results:
        score = scores[result.dataset_name]
        assert result.metric_value == score.mean and result.dataset_split == "heldout"
        assert result.dataset_args == {"items": score.items}
    assert card.data.pipeline_tag == "text-generation"


@pytest.mark.parametrize("options, token", [((), ""), (("--dry-run",), TOKEN)])
def test_a_dry_run_says_what_would_be_sent(run, hub, monkeypatch, options, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert bool(get_token()) == bool(token)
    done = push("org/name", "--private", *options)
    assert done.exit_code == 0, done.output
    assert hub.pushed.asked == [] and hub.served == {}
    assert f"would go to {hub.url}/org/name (private)" in done.stdout
    assert "model.safetensors " in done.stdout and "pipeline_tag: text-generation" in done.stdout
    assert "nothing was sent" in done.stdout
    assert ("hf auth login" in done.stdout) == (not token)


def test_without_a_token_nothing_is_pushed(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    done = push("org/name", "--no-dry-run")
    assert done.exit_code == 2 and "hf auth login" in done.stderr
    assert hub.pushed.asked == []


@pytest.mark.parametrize(
    "name", ["name", "org/na..me", "org/--", "a/b/c", "/org/x", "org/", "../x"]
)
def test_what_is_no_id(run, hub, name):
    done = push("--", name)
    assert done.exit_code == 2 and "is no repository's id; write ORG/NAME" in done.stderr
    assert hub.pushed.asked == []


def test_what_the_hub_refuses(run, hub, monkeypatch):
    """One line each, and no repository is made or changed."""
    done = push("theirs/name")
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert "nothing was pushed: this login may not write to 'theirs/name'" in done.stderr
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    done = push("org/name")
    assert done.exit_code == 1 and "the hub does not take the token" in done.stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.pushed.repositories == {}
    # nobody listens there
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    done = push("org/name")
    assert done.exit_code == 1
    assert "nothing was pushed: the hub at http://127.0.0.1:9 is out of reach" in done.stderr
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = push("org/name")
    assert done.exit_code == 1 and "HF_HUB_OFFLINE is set" in done.stderr


@pytest.mark.parametrize(
    "part, status, said",
    [
        ("repos/create", 500, "an error of its own (500)"),
        ("validate-yaml", 400, "the hub refuses it"),
        ("preupload", 403, "may not write to 'org/name'"),
        ("objects/batch", 401, "does not take the token"),
        ("lfs/", 403, "may not write to 'org/name'"),
        ("/commit/", 500, "an error of its own (500)"),
        ("/commit/", 409, "changed by somebody else"),
    ],
)
def test_a_push_that_failed_is_made_again(run, hub, part, status, said):
    hub.pushed.failures.append((part, status))
    done = push("org/name")
    assert done.exit_code == 1 and said in done.stderr, done.output
    assert len(done.stderr.splitlines()) == 1
    for repository in hub.pushed.repositories.values():  # it was made, and is empty
        assert set(repository.branches["main"]) == {".gitattributes"}
    again = push("org/name")
    assert again.exit_code == 0, again.output
    assert "model.safetensors" in hub.pushed.files("org/name")


def test_a_server_that_is_busy_is_asked_again(run, hub):
    hub.pushed.failures += [("preupload", 503), ("lfs/", 500), ("lfs/", 500)]
    assert push("org/name").exit_code == 0
    assert hub.pushed.failures == []


def test_a_repository_of_something_else_is_left_alone(run, hub):
    assert push("org/name").exit_code == 0
    files = hub.pushed.files("org/name")
    files.pop("recipe.json")
    before = dict(files)
    done = push("org/name")
    assert done.exit_code == 2 and "holds what evomerge did not push" in done.stderr
    assert hub.pushed.files("org/name") == before
    files["recipe.json"] = b"{}"
    done = push("org/name", "--private")
    assert done.exit_code == 2 and "is public" in done.stderr


def test_a_branch_is_made(run, hub):
    assert push("org/name", "--private").exit_code == 0
    assert hub.pushed.repositories["org/name"].private
    main_branch = dict(hub.pushed.files("org/name"))
    for _ in range(2):
        assert push("org/name", "--branch", "v2", "--pick", "2").exit_code == 0
    assert hub.pushed.files("org/name") == main_branch
    assert hub.pushed.files("org/name", "v2")["README.md"] != main_branch["README.md"]


def test_an_adapter_is_pushed_without_its_base_s_folder(hub, here, campaign_file, silent):
    """A folder in the hub's cache has an id and a revision, another folder has none."""
    cached = here / "hub" / "models--org--base" / "snapshots" / "9c1f"
    shutil.copytree(here / "base", cached)
    for label in "ab":
        save_adapter(here / f"lora_{label}", "model.layers.0.self_attn.q_proj", 16)
    for name, base in {"found": str(cached), "local": "base"}.items():
        models = {label: {"model": base, "adapter": f"lora_{label}"} for label in "ab"}
        plan = {"sources": {"models": models}, "space__method": "linear", "name": name}
        run_campaign(campaign_file(**plan, budget__evaluations=1, finals=0), observer=silent)
        words = ["push", f"runs/{name}", f"org/{name}", "--as-adapter", "--pick", "best"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        arrived = hub.pushed.files(f"org/{name}")
        assert "adapter_model.safetensors" in arrived and "model.safetensors" not in arrived
        settings = json.loads(arrived["adapter_config.json"])
        head = ModelCard(arrived["README.md"].decode()).data
        if base == "base":
            assert settings["base_model_name_or_path"] is None and head.base_model is None
        else:
            assert settings["base_model_name_or_path"] == head.base_model[0] == "org/base"
            assert head.base_model_relation == "adapter"


def test_names_of_the_hub_stay_and_folders_go(tmp_path):
    """Of an adapter's base, of recipes in recipes, of what transformers noted."""
    files = {
        "adapter_config.json": {"base_model_name_or_path": "/home/me/base", "r": 2},
        "tokenizer_config.json": {"name_or_path": "/home/me/base", "model_max_length": 64},
        "recipe.json": {
            "models": ["org/a@v2", {"models": ["/home/me/x"], "base": "runs/old#3"}],
            "base": "models/base",
            "first": "models/base",
            "dtype": "float32",
        },
    }
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    rename_models(tmp_path, {"org/a@v2": "org/a@v2", "models/base": "base"})
    read = {name: json.loads((tmp_path / name).read_text()) for name in files}
    assert read["adapter_config.json"] == {"base_model_name_or_path": None, "r": 2}
    assert read["tokenizer_config.json"] == {"model_max_length": 64}
    inner = {"models": ["a model"], "base": "a model"}
    expected = {"models": ["org/a@v2", inner], "base": "base", "first": "base", "dtype": "float32"}
    assert read["recipe.json"] == expected


def test_a_token_in_a_file_stops_the_push(tmp_path, hub):
    (tmp_path / "NOTICE.txt").write_text(f"made with {TOKEN}")
    with pytest.raises(EvomergeError, match="holds the hub's token"):
        check_secrets(tmp_path, ["NOTICE.txt"], [])


def test_labels_of_runs_within_runs_are_told_apart(run, here):
    """A source that is a candidate brings its own run's sources, one label for other models."""
    own = Archive(":memory:", write=True)
    sources = {
        "a": {"name": "models/other", "path": "/data/other", "sha256": "77ab"},
        "found": {"name": f"{RUN}#3", "path": "/cache/found", "sha256": "0f0f"},
    }
    own.begin("outer", PLAN, PROVENANCE | {"sources": sources}, [])
    assert published_names(own) == {
        "models/other": "a",
        f"{RUN}#3": "found",
        "base": "base",
        "a": "a-2",
        "b": "b",
        "c": "c",
    }
