"""A run as a study of Optuna's, read back by Optuna."""

from datetime import datetime

import numpy as np
import optuna
import pytest
from click.testing import CliRunner

from evomerge.archive.archive import Archive
from evomerge.archive.records import PartScores
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.recipes.parameters import single
from evomerge.scoring.outcome import Outcome, Score
from evomerge.search import optuna_study
from evomerge.search.axes import GeneRange
from evomerge.search.controllers import Proposal
from evomerge.search.objectives import Objective
from evomerge.search.optuna_study import Study, Trial, write_studies

LENGTH = '''
"""The squared norm of a few weights: another objective, cheap."""


def items():
    return list(range(40))


def score(model, tokenizer, items):
    weight = next(model.parameters()).float()
    return [float((weight[i % len(weight)] ** 2).sum()) for i in items]
'''


def study_of(run, name="tiny"):
    done = CliRunner().invoke(main, ["optuna", str(run)])
    assert done.exit_code == 0, done.output
    assert f"optuna-dashboard sqlite:///{run}/optuna.db" in done.output
    return optuna.load_study(study_name=name, storage=f"sqlite:///{run}/optuna.db")


def test_a_front_is_what_optuna_finds(campaign_file, here):
    (here / "size.py").write_text(LENGTH)
    space = {
        "kind": "parameters",
        "method": "ties",
        "axes": {
            "weight": {"low": 0.5, "high": 2.0, "log": True, "tied": ["layers", "outside"]},
            "density": {"low": 0.2, "high": 0.8, "tied": ["layers", "models", "outside"]},
        },
    }
    file = campaign_file(
        space=space,
        controller={"kind": "nsga2", "population": 8},
        fitness=[
            {"name": "likely", "function": "fit.py"},
            {"name": "size", "function": "size.py", "direction": "minimize"},
        ],
    )
    run_campaign(file, observer=Silent())
    run = here / "runs/tiny"
    study, archive = study_of(run), Archive(run / "archive.db")
    assert study.metric_names == ["likely", "size"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    proposed = archive.candidates("search")
    assert [trial.user_attrs["candidate"] for trial in study.trials] == [c.id for c in proposed]
    names = [f"weight {model}" for model in "abc"] + ["density"]
    told = {one.candidate: one for one in archive.told()}
    for trial, candidate in zip(study.trials, proposed, strict=True):
        means = archive.means(candidate.id)
        assert trial.values == pytest.approx([means["likely"], means["size"]])
        groups = candidate.recipe_json["groups"]
        found = [value for name, value in trial.params.items()]
        assert found == pytest.approx([*groups[0]["weight"], groups[0]["density"][0]], rel=1e-6)
        assert [n.split(" all")[0] for n in trial.params] == names, trial.params
        ended = datetime.fromtimestamp(told[candidate.id].at)
        assert trial.datetime_complete == ended and trial.datetime_start <= ended
    ranges = {repr(d) for d in study.trials[0].distributions.values()}
    assert ranges == {
        "FloatDistribution(high=2.0, log=True, low=0.5, step=None)",
        "FloatDistribution(high=0.8, log=False, low=0.2, step=None)",
    }
    # which of them no other proposal dominates, by hand
    points = np.array([[-t.values[0], t.values[1]] for t in study.trials])
    best = [
        trial.number
        for trial, point in zip(study.trials, points, strict=True)
        if not ((points <= point).all(1) & (points < point).any(1)).any()
    ]
    assert sorted(trial.number for trial in study.best_trials) == best
    baselines = {candidate.id for candidate in archive.baselines()}
    found = {trial.user_attrs["candidate"] for trial in study.best_trials}
    assert set(archive.front()) - baselines <= found
    heldout = {t.user_attrs["candidate"] for t in study.trials if "heldout size" in t.user_attrs}
    assert heldout == archive.finals_done() - baselines
    assert study.user_attrs["baselines"]["uniform"]["size"] == archive.means(5)["size"]
    importance = optuna.importance.get_param_importances(study, target=lambda t: t.values[0])
    assert set(importance) == set(study.trials[0].params)


def test_estimates_and_failures_are_never_the_best(tmp_path):
    """Of one objective: two estimates above all, one that misses a constraint, one in full."""
    archive = Archive(tmp_path / "archive.db", write=True)
    plan = {"name": "tiny", "seed": 1, "stages": [], "budget": {"evaluations": 9}}
    genes = {"genes": ["way"], "ranges": [["", "", "choice", ["ties", "slerp"]]]}
    archive.begin("tiny", plan, {"objectives": [{"name": "maths"}], "sources": {}, **genes}, [])
    recipe = single("a", "float32")

    def scored(number, value, violation=0.0, *, in_part=False):
        proposal = Proposal(np.array([0.25 if number % 2 else 0.75]), (), 0)
        (candidate,) = archive.propose(1, [proposal], [(str(number), recipe)], in_parts=in_part)
        if value is None:
            return archive.record(candidate.id, Outcome("failed", "not finite"), None)
        scores = {"maths": np.full(4, value, np.float32)}
        part = None
        if in_part:
            which = {"maths": np.arange(4)}
            part = PartScores(which, scores, {"maths": Score(value, 0.1, 4)})
        archive.record(candidate.id, Outcome("ok", scores=scores), value, violation, part=part)

    scored(1, 0.9, in_part=True)
    scored(2, 0.5)
    scored(3, None)
    scored(4, 0.8, violation=0.1)
    scored(5, 0.95, in_part=True)
    archive.close()
    study = study_of(tmp_path)
    assert [trial.state.name for trial in study.trials] == [
        *("COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"),
    ]
    assert study.best_trial.number == 1 and study.best_value == 0.5
    assert [trial.params["way"] for trial in study.trials[:2]] == ["ties", "slerp"]
    how = [trial.user_attrs["scored"] for trial in study.trials]
    assert how == ["in part: an estimate", "in full", "failed", "in full", "in part: an estimate"]


def test_rows_at_once_are_what_optuna_writes_itself(tmp_path, monkeypatch):
    """Two studies, every kind of gene, more trials than are in memory together."""
    random = np.random.default_rng(2)
    names = ["weight", "log", "count", "way"]
    ranges = [
        GeneRange(-0.5, 1.5),
        GeneRange(0.01, 10.0, "log"),
        GeneRange(1.0, 7.0, "whole"),
        GeneRange(kind="choice", labels=("ties", "slerp", "linear")),
    ]
    objectives = (Objective("maths"), Objective("length", direction="minimize"))
    trials = []
    for number in range(25):
        values = None if number % 7 == 3 else tuple(random.random(2).tolist())
        begun = 1.7e9 + number + 0.25
        attributes = {"candidate": number, "parents": [1, 2], "label": "ä"}
        trials.append(Trial(random.random(4), values, (0.5, 0.0), begun, begun + 3, attributes))
    first = Study("first", objectives, names, ranges, {"baselines": {"ja": 0.25}}, trials)
    studies = [first, first._replace(name="second", trials=trials[:5])]
    monkeypatch.setattr(optuna_study, "_AT_ONCE", 10)
    write_studies(studies, tmp_path / "ours.db")
    monkeypatch.setattr(optuna_study, "_SCHEMA", "v9")  # so that Optuna adds them one by one
    write_studies(studies, tmp_path / "theirs.db")
    for name in ("first", "second"):
        ours, theirs = (
            optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/{file}.db")
            for file in ("ours", "theirs")
        )
        assert ours.trials == theirs.trials and len(ours.trials) in (25, 5)
        assert ours.user_attrs == theirs.user_attrs
        ours.add_trial(ours.trials[0])  # and it goes on
        assert len(ours.trials) in (26, 6)


def test_what_is_no_run_or_cannot_be_written_is_one_line(tmp_path):
    done = CliRunner().invoke(main, ["optuna", str(tmp_path)])
    assert done.exit_code == 2 and "is no run's directory" in done.output
    Archive(tmp_path / "archive.db", write=True).begin(
        "tiny",
        {"name": "tiny", "seed": 1, "stages": [], "budget": {"evaluations": 9}},
        {"objectives": [{"name": "maths"}], "sources": {}},
        [],
    )
    done = CliRunner().invoke(main, ["optuna", str(tmp_path), "--out", "/proc/none/optuna.db"])
    assert done.exit_code == 1 and done.output.count("\n") == 1, done.output
    assert study_of(tmp_path).user_attrs["state"] == "running"
