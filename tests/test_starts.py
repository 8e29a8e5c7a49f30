"""What a worker does before its first candidate: once for a machine, told, and all of it."""

import itertools
import os
import shutil
import threading
from collections import Counter

import numpy as np
import pytest

from evomerge.campaign.build import checked
from evomerge.campaign.run import run_campaign
from evomerge.campaign.source_hashes import hash_sources
from evomerge.canonical import canonical_json
from evomerge.merging import method_merge, statistics
from evomerge.merging.methods import METHODS
from evomerge.merging.validation import by_method
from evomerge.node import once, phases
from evomerge.search.spaces import SourceShapes, make_space
from evomerge.search.spaces.choice import ChoiceSection
from evomerge.sources import digest as digest_module
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama
from evomerge.workers import starts
from evomerge.workers.protocol import Job
from evomerge.workers.worker import Worker

WEIGHT = {"weight": {"low": 0.0, "high": 1.0, "tied": ["layers", "models", "modules"]}}
METHODS_CHOSEN = {
    "pcb": {"options": {"ratio": 0.3}},
    "widen": {},
    "tsv_m": {},
    "ties": {"axes": {"density": {"low": 0.2, "high": 0.9}}},
}


def choice(each):
    spaces = []
    for method, own in METHODS_CHOSEN.items():
        axes = {
            name: axis
            for name, axis in {**WEIGHT, **own.get("axes", {})}.items()
            if name in METHODS.get(method).parameter
        }
        for parameter in METHODS.get(method).parameters:
            if parameter.default is None:
                axes.setdefault(parameter.name, {"low": 0.1, "high": 0.9})
        options = own.get("options", {})
        spaces.append({"kind": "parameters", "method": method, "axes": axes, "options": options})
    return {"kind": "choice", "each": each, "spaces": spaces}


def preparations(recipe):
    """What decides which prepared sources a recipe needs."""
    found = set()
    for name, part in by_method(recipe).items():
        if METHODS.get(name).prepare:
            found.add(canonical_json([name, dict(part.options), part.base, list(part.models)]))
    return found


@pytest.mark.parametrize("each", ["model", "group"])
def test_every_preparation_that_a_choice_may_need_is_among_the_representatives(each):
    shapes = SourceShapes("base", ("a", "b"), ("a", "b"), layers=2, dtype="float32", seed=0)
    space = make_space(ChoiceSection(**choice(each)), shapes)
    ready = set().union(*map(preparations, space.representatives))
    places = sum(name.startswith("choice") for name in space.names)
    needed = set()
    for chosen in itertools.product(range(4), repeat=places):
        genome = space.start.copy()
        genome[:places] = (np.array(chosen) + 0.5) / 4
        needed |= preparations(space.decode(genome))
    assert needed == ready
    assert len(ready) == (4 if each == "group" else 3)  # widen with pcb's ratio, and its own


def test_a_started_worker_prepares_nothing_within_a_candidate(here, campaign_file, monkeypatch):
    (campaign,) = checked(campaign_file(space=choice("model")))
    worker = Worker(hash_sources(campaign).worker)
    late = Counter()

    def counted(module, name):
        plain = getattr(module, name)

        def counting(*given, **more):
            late[name] += 1
            return plain(*given, **more)

        monkeypatch.setattr(module, name, counting)

    counted(method_merge, "prepared")
    counted(statistics, "gram_matrix")
    counted(statistics, "MagnitudeHistogram")
    for index in range(4):
        genome = campaign.space.start.copy()
        genome[0] = (index + 0.5) / 4
        recipe = campaign.space.decode(genome)
        assert worker.evaluate(Job(index, recipe, "search")).status == "ok"
    assert not late


def test_of_several_that_hash_a_source_one_does_and_the_others_wait(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(once, "AGAIN", 0.05)
    folder, plain, began = tiny_llama(tmp_path / "model", seed=0), digest_module._digest, []
    entered, go_on, found = threading.Event(), threading.Event(), []

    def slow(source):
        began.append(source.place)
        entered.set()
        assert go_on.wait(60)
        return plain(source)

    monkeypatch.setattr(digest_module, "_digest", slow)

    def hash_it():
        found.append(digest(open_source(str(folder))).sha256)

    with phases.heard() as heard:
        threads = [threading.Thread(target=hash_it) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert entered.wait(60)
        waiting = f"waiting for another process of this machine: hashing {folder}"
        while waiting not in heard:
            threads[0].join(0.01)
        go_on.set()
        for thread in threads:
            thread.join(60)
    assert len(began) == 1 and len(found) == 3 and len(set(found)) == 1
    assert heard.count(f"hashing {folder}") == 1


def test_a_file_put_in_anothers_place_is_hashed_again(tmp_path, monkeypatch):
    """Of the same size and time: what tells them apart is their inode."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, other = tiny_llama(tmp_path / "model", seed=0), tiny_llama(tmp_path / "other", seed=1)
    before = digest(open_source(str(folder))).sha256
    weights, status = folder / "model.safetensors", os.stat(folder / "model.safetensors")
    shutil.copy(other / "model.safetensors", tmp_path / "beside")
    os.utime(tmp_path / "beside", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(tmp_path / "beside", weights)
    assert os.stat(weights).st_mtime_ns == status.st_mtime_ns
    assert digest(open_source(str(folder))).sha256 != before


def test_a_long_start_in_this_process_is_told(monkeypatch, caplog):
    monkeypatch.setattr(starts, "_FIRST_LINE", 0.01)
    told = "waiting for 1 of 1 workers: worker 1 preparing merges by wudi (0 s)"
    caplog.set_level("INFO")
    with starts.start_told("worker 1"):
        phases.phase("preparing merges by wudi")
        waiter = threading.Event()
        for _ in range(2000):
            if told in caplog.messages:
                break
            waiter.wait(0.01)
    assert told in caplog.messages


def test_a_worker_in_this_process_warns_on_the_terminal_once(here, campaign_file, silent):
    text, warns = (here / "fit.py").read_text(), 'logging.getLogger("evomerge").warning("slow")'
    text = text.replace("    ids =", f"    import logging\n    {warns}\n    ids =")
    (here / "warns.py").write_text(text)
    entry = [{"name": "likely", "function": "warns.py"}]
    assert run_campaign(campaign_file(fitness=entry, budget__evaluations=3), observer=silent)
    log = (here / "runs" / "tiny" / "log.txt").read_text()
    assert log.count("WARNING slow") >= 8
    assert silent.said.count("warning: slow") == 1
    assert "INFO opening the live model" in log and "opening the live model" not in silent.said
