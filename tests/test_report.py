"""What a report says: its numbers against numpy, every kind of search, and names of strangers."""

import base64
import hashlib
import json
import re
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

from evomerge.archive.archive import Archive
from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.report.answers import answers
from evomerge.report.charts import Palette
from evomerge.report.convergence import convergence
from evomerge.report.figures import Cases, Picture, Table
from evomerge.report.front_choice import MOST, chosen
from evomerge.report.movement import matrix
from evomerge.report.page import compiled
from evomerge.report.paired import Pairing
from evomerge.report.report import report, sections, watch
from evomerge.report.run import Run, read_run
from evomerge.report.state import state
from evomerge.report.verdict import verdict
from evomerge.report.weights import weights
from evomerge.testing.archives import PLAN, PROVENANCE, example_archive
from evomerge.testing.searches import searched_archive

pytest.importorskip("vl_convert", reason='needs pip install ".[report]"')

KEYS = ["verdict", "state", "front", "convergence", "weights", "genes", "answers", "lineage"]
KEYS += ["failures", "time", "provenance"]


@pytest.fixture
def make(tmp_path):
    """Write the archive of a search into a directory of its own; return that directory."""

    def written(folder="run", **options):
        directory = tmp_path / folder
        directory.mkdir()
        searched_archive(directory / "archive.db", **options)
        return directory

    return written


class Usual(NamedTuple):
    """A search of 60 candidates by two objectives, its report's sections made once."""

    directory: Path
    run: Run
    sections: dict

    @property
    def pictures(self):
        return [p for s in self.sections.values() for p in s.parts if isinstance(p, Picture)]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    directory = tmp_path_factory.mktemp("usual")
    searched_archive(directory / "archive.db")
    run = read_run(directory)
    return Usual(directory, run, {s.key: s for s in sections(run)})


def texts(found):
    return [part.text for part in found.parts if hasattr(part, "text")]


class Page(HTMLParser):
    """What a browser would find in a page: its elements, scripts and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words = [], [], [], []
        self._in, self._type = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._in = tag
        if tag == "script":
            self.scripts.append([dict(attrs).get("type", ""), ""])

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1][1] += data
        elif self._in != "style":
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


# --- the verdict -----------------------------------------------------------------------------


def bits(directory, candidate, split="heldout"):
    """Item scores by objective, read from the file without evomerge."""
    database = sqlite3.connect(directory / "archive.db")
    sql = (
        "SELECT i.objective, i.encoding, i.scores, s.items FROM item_scores i JOIN scores s"
        " USING (candidate_id, objective, split) WHERE candidate_id = ? AND split = ?"
    )
    found = {}
    for objective, encoding, blob, count in database.execute(sql, (candidate, split)):
        assert encoding == "bits"
        found[objective] = np.unpackbits(np.frombuffer(blob, np.uint8))[:count].astype(float)
    return found


def paired(best, other):
    """Mean difference over two objectives of different items, and 1.96 standard errors."""
    differences = [best[name] - other[name] for name in best]
    variance = sum(d.var(ddof=1) / len(d) for d in differences) / len(differences) ** 2
    return np.mean([d.mean() for d in differences]), 1.96 * np.sqrt(variance)


def test_the_verdict_is_the_paired_difference_on_held_out_items(usual, make):
    directory, run = usual.directory, usual.run
    random = make(controller="random", candidates=30)
    beside, best = read_run(random), run.best_found
    lead = texts(verdict(run, beside))[0]
    values = {row.id: row.value for row in run.source_baselines}
    source = max(values, key=values.get)
    uniform = next(row.id for row in run.baselines if row.label == "uniform")
    rivals = {
        f"the best source, {run.name_of(source)}": bits(directory, source),
        "the uniform average": bits(directory, uniform),
        "the best of random search": bits(random, beside.best_found),
    }
    ours = bits(directory, best)
    assert f"candidate {best}" in lead and "On 80 held-out items" in lead
    for who, theirs in rivals.items():
        mean, half = paired(ours, theirs)
        if abs(mean) > half:
            way = "more" if mean > 0 else "less"
            assert f"{abs(mean):.3f} ± {half:.3f} {way} than {who}" in lead
        else:
            signed = f"{mean:+.3f}".replace("-", "\N{MINUS SIGN}")
            assert f"told ({signed} ± {half:.3f}) from {who}" in lead


def test_objectives_of_the_same_items_are_paired_item_by_item(make):
    directory = make(candidates=10)
    run = read_run(directory)
    best, other = run.best_found, run.baselines[0].id
    one = {name: dict.fromkeys(sides["heldout"], "h") for name, sides in run.hashes.items()}
    for name, sides in run.hashes.items():
        sides["heldout"].update(one[name])
    ours, theirs = bits(directory, best), bits(directory, other)
    together = np.mean([ours[name] - theirs[name] for name in ours], axis=0)
    found = Pairing(run).of(best, other)
    assert found.mean == pytest.approx(together.mean())
    error = together.std(ddof=1) / np.sqrt(len(together))
    assert found.half == pytest.approx(1.96 * error)


def test_a_best_that_a_baseline_surpasses_is_said_to_be_so(make):
    directory = make(candidates=2, seed=3)
    archive = Archive(directory / "archive.db", write=True)
    archive.set_values({1: (9.0, 0.0)})
    archive.close()
    found = " ".join(texts(verdict(read_run(directory))))
    assert "no candidate reached ja" in found


def test_nothing_is_said_before_held_out_items_are_scored(make):
    lead = texts(verdict(read_run(make(finals=-1))))[0]
    assert lead.startswith("Nothing can be said yet") and "before the search ends" in lead


def test_another_search_on_other_items_is_not_compared(usual, make):
    found = " ".join(texts(verdict(usual.run, read_run(make(items=30)))))
    assert "other objectives or items" in found


# --- every kind ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        ("parameters", 1, "is merged by ties"),
        ("mixture", 5, "is a mixture"),
        ("routing", 3, "passes 4 layers"),
        ("explicit", 2, "no coefficients by layer"),
    ],
)
def test_every_kind_of_search_has_every_section(make, kind, count, said):
    names = [f"o{number}" for number in range(count)]
    run = read_run(make(kind=kind, objectives=names, candidates=44))
    found = {section.key: section for section in sections(run)}
    assert list(found) == KEYS
    for section in found.values():
        for picture in section.parts:
            if isinstance(picture, Picture):
                assert picture.title and picture.reading and len(picture.alt) > 20
                assert all(compiled(panel.spec)["marks"] for panel in picture.panels)
    assert said in " ".join(texts(found["weights"]))
    bred = "Nothing was bred" not in " ".join(texts(found["lineage"]))
    assert bred == (kind in ("mixture", "explicit"))


def test_estimates_look_otherwise_than_scores_of_all_items(make):
    run = read_run(make(in_parts=True))
    (value,) = convergence(run, Palette(run)).parts
    kinds = [row["how"] for row in value.panels[0].spec["layer"][0]["data"]["values"]]
    assert kinds.count("all items") == 6 and kinds.count("a part of the items") == 57


def test_the_best_line_is_the_running_maximum(usual):
    run = usual.run
    values = [row.value for row in run.rows if row.origin == "search" and row.value is not None]
    running = np.maximum.accumulate(values)
    (value,) = [p for p in usual.pictures if p.title == "Value"]
    points = value.panels[0].spec["layer"][-1]["data"]["values"]
    assert [p["value"] for p in points] == pytest.approx(sorted(set(running)), rel=1e-5)


def test_the_heat_map_has_the_coefficients_of_the_best(usual):
    run = usual.run
    groups = run.recipes[run.best_found].to_json()["groups"]
    wanted = sorted(w for g in groups if g["modules"] == "mlp" for w in g["weight"])
    (picture,) = [p for p in usual.pictures if p.title.startswith("weight in")]
    mlp = next(panel for panel in picture.panels if panel.title == "mlp")
    cells = mlp.spec["data"]["values"]
    assert sorted(cell["value"] for cell in cells) == pytest.approx(wanted, rel=1e-5)
    assert {cell["model"] for cell in cells} == {"ja", "fr"}


def test_the_movement_is_median_and_quartiles(usual):
    run = usual.run
    picture = next(p for p in usual.pictures if p.title.startswith("How the"))
    first = picture.panels[0].spec["data"]["values"]
    rows = [row for row in run.scored if row.origin == "search"]
    weights = [run.recipes[row.id].to_json()["groups"][0]["weight"][0] for row in rows]
    periods = np.array_split(np.array(weights), len(first))
    wanted = [np.quantile(p, [0.25, 0.5, 0.75]) for p in periods]
    found = [[cell[k] for k in ("low", "middle", "high")] for cell in first]
    assert np.allclose(found, wanted, rtol=1e-5)


def test_columns_that_never_vary_or_are_another_s_are_left_out():
    keys = [("w", str(number), "", "m") for number in range(3)]
    found = [dict(zip(keys, row, strict=True)) for row in ([1.0, 2.0, 1.0], [2.0, 2.0, 2.0])]
    kept, table = matrix(found)
    assert kept == keys[:1] and table.tolist() == [[1.0], [2.0]]


def test_a_large_front_is_thinned_to_its_ends_and_what_lies_far_apart(tmp_path):
    run = read_run_of_a_line(tmp_path, 40)
    picked = chosen(run)
    assert len(run.front) == 40 and len(picked) == MOST
    firsts = [c for c, why in picked.items() if why.startswith("best ") or "the best" in why]
    assert {run.front[0], run.front[-1]} <= set(firsts)
    gaps = np.diff(sorted(picked))
    assert gaps.max() <= 2 * 40 / MOST + 1


def read_run_of_a_line(folder, count):
    """A run whose candidates lie on a line from good in one objective to good in the other."""
    from evomerge.recipes.parameters import single
    from evomerge.scoring.outcome import Outcome
    from evomerge.search.controllers import Proposal

    archive = Archive(folder / "archive.db", write=True)
    archive.begin("line", PLAN, PROVENANCE, [])
    for number in range(count):
        scores = {"accuracy": np.full(2, number / count), "length": np.full(2, number / count)}
        scores = {name: values.astype(np.float32) for name, values in scores.items()}
        proposal = Proposal(np.array([0.5]))
        recipe = (f"recipe {number}", single("models/ja", "float32"))
        (candidate,) = archive.propose(1, [proposal], [recipe])
        archive.record(candidate.id, Outcome("ok", "", scores), number / count)
    archive.close()
    return read_run(folder)


# --- items -----------------------------------------------------------------------------------


def test_who_solves_what_is_counted(usual):
    directory, run = usual.directory, usual.run
    table = next(
        p for p in usual.sections["answers"].parts if isinstance(p, Table) and len(p.rows) < 12
    )
    joined = {}
    for row in run.baselines:
        joined[run.name_of(row.id)] = np.concatenate([*bits(directory, row.id).values()])
    best = np.concatenate([*bits(directory, run.best_found).values()])
    cells = {row[0]: row for row in table.rows}
    for name, own in joined.items():
        others = [s for n, s in joined.items() if n not in (name, "uniform average")]
        alone = (own == 1) & (np.sum(others, axis=0) == 0)
        assert cells[name][1:] == [
            f"{own.sum():.0f} ({own.mean():.1%})",
            f"{alone.sum()}",
            f"{((best == 1) & (own == 0)).sum()}",
            f"{((own == 1) & (best == 0)).sum()}",
        ]


def test_agreement_is_the_share_of_equal_items(usual):
    directory, run = usual.directory, usual.run
    (picture,) = [p for p in usual.pictures if p.title.startswith("How alike")]
    cells = {row["pair"]: row["value"] for row in picture.panels[0].spec["data"]["values"]}
    ids = {run.name_of(c): c for c in run.items}
    for pair, value in cells.items():
        one, other = (
            np.concatenate([*bits(directory, ids[n]).values()]) for n in pair.split(" and ")
        )
        assert value == pytest.approx((one == other).mean(), rel=1e-5)


def test_items_that_the_merge_wins_come_with_texts_and_answers(usual):
    directory, run = usual.directory, usual.run
    cases = [p for p in usual.sections["answers"].parts if isinstance(p, Cases)]
    won = cases[0]
    assert won.title.startswith("Where the merge wins")
    for case in won.cases:
        objective, ordinal = re.fullmatch(r"(\w+), item (\d+)", case.title).groups()
        position = (int(ordinal) - 1) // 2
        assert bits(directory, run.best_found)[objective][position] == 1
        for row in run.source_baselines:
            assert bits(directory, row.id)[objective][position] == 0
        assert case.text == case.target == f"{objective}: {ordinal}"
        assert {said for _, said, _, _ in case.answers} == {case.text}


def test_an_archive_without_texts_shows_the_answers_alone(make):
    run = read_run(make(texts=False))
    found = answers(run, Palette(run))
    assert any("has not kept what the items ask" in text for text in texts(found))
    cases = [case for part in found.parts if isinstance(part, Cases) for case in part.cases]
    assert cases and all(case.text == "" and case.answers[0][1] for case in cases)


# --- runs with little in them ----------------------------------------------------------------


def test_a_run_with_no_outcome_says_so_in_every_section(tmp_path):
    archive = Archive(tmp_path / "archive.db", write=True)
    archive.begin("empty", PLAN, PROVENANCE, [])
    archive.close()
    text, now = report(tmp_path)
    page = Page(text)
    assert now == "interrupted" and "no candidate has been scored" in page.text
    assert [f'id="{key}"' in text for key in KEYS] == [True] * len(KEYS)


def test_a_run_that_has_not_begun_says_so(tmp_path):
    Archive(tmp_path / "archive.db", write=True).close()
    text, now = report(tmp_path)
    assert now == "not begun" and "has not begun" in Page(text).text


def test_continuous_scores_and_less_that_is_better(tmp_path):
    example_archive(tmp_path / "archive.db").close()
    text, _ = report(tmp_path)
    assert "length (mean over items, less is better)" in text
    assert "OutOfMemoryError" in Page(text).text


def test_stages_have_their_own_rows_and_pictures(make):
    directory = make()
    database = sqlite3.connect(directory / "archive.db")
    (plan,) = database.execute("SELECT plan FROM campaign").fetchone()
    plan = json.loads(plan)
    part = {"controller": plan["controller"], "budget": plan["budget"]}
    plan["stages"] = [{"name": "merged", **part}, {"name": "routed", **part}]
    database.execute("UPDATE campaign SET plan = ?", (json.dumps(plan),))
    database.execute("UPDATE candidates SET stage = 1, ordinal = ordinal - 30 WHERE ordinal >= 30")
    database.commit()
    run = read_run(directory)
    stages = next(p for p in state(run).parts if getattr(p, "caption", "") == "Stages")
    assert [row[0] for row in stages.rows] == ["merged", "routed"]
    found = weights(run, Palette(run)).parts
    titles = " ".join(p.title for p in found if isinstance(p, Picture))
    assert "(stage merged)" in titles and "(stage routed)" in titles


# --- names of strangers ----------------------------------------------------------------------

HOSTILE = (
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(2)">',
    "a\u2028b\u202ec\x01d",
    "{{ 7 * 7 }} ${7 * 7} `x` 'y' \"z\" \\",
)


def test_names_and_answers_of_strangers_are_text_and_no_more(make):
    directory = make(
        labels=HOSTILE[:3],
        objectives=[HOSTILE[1], HOSTILE[3]],
        name=HOSTILE[0],
        say=lambda objective, ordinal: f"{HOSTILE[ordinal // 2 % 2]} {ordinal}",
    )
    database = sqlite3.connect(directory / "archive.db")  # half of a letter, which JSON can hold
    database.execute("UPDATE campaign SET provenance = replace(provenance, 'Linux', '\\ud800')")
    database.commit()
    text, _ = report(directory)
    page = Page(text)
    assert "img" not in page.tags and "onerror" not in page.attributes
    kinds = [kind for kind, _ in page.scripts]
    assert kinds.count("") == 2 and set(kinds) == {"", "application/json"}
    for kind, script in page.scripts:
        if kind:
            assert not set("<>&\u2028\u2029") & set(script)
            json.loads(script)
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text and HOSTILE[3] in page.text
    assert "\u202e" not in text and "\x01" not in text
    text.encode("utf-8")


def test_the_policy_lets_nothing_run_but_the_page_s_own_scripts(make):
    text, _ = report(make(candidates=4))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    allowed = policy.replace("&#39;", "'").split(";")
    assert allowed[0] == "default-src 'none'" and "unsafe-eval" not in policy
    hashes = set(re.findall(r"sha256-[\w+/=]+", policy))
    own = {
        "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for kind, script in Page(text).scripts
        if not kind
    }
    assert hashes == own and len(own) == 2
    assert not {"link", "img", "iframe", "object", "embed", "form"} & set(Page(text).tags)
    assert "src" not in Page(text).attributes


# --- the command -----------------------------------------------------------------------------


def command(*words):
    done = CliRunner().invoke(main, ["report", *map(str, words)])
    return done.exit_code, done.output


def test_the_command_writes_beside_the_archive_or_where_it_is_told(make, tmp_path):
    directory = make(candidates=4)
    assert command(directory) == (0, f"{directory}/report.html ({size_of(directory)}, finished)\n")
    out = tmp_path / "pages" / "one.html"
    code, said = command(directory, "--out", out, "--beside", directory)
    assert code == 0 and str(out) in said and out.read_text("utf-8").startswith("<!DOCTYPE html>")


def size_of(directory):
    from evomerge.text import byte_size

    return byte_size((directory / "report.html").stat().st_size)


def test_what_is_no_run_or_cannot_be_written_is_one_line(make, tmp_path):
    directory = make(candidates=4)
    code, said = command(tmp_path / "absent")
    assert code == 2 and said.startswith(f"{tmp_path}/absent: is no run's directory")
    code, said = command(directory, "--beside", tmp_path / "absent")
    assert code == 2 and said.startswith(f"{tmp_path}/absent: ")
    code, said = command(directory, "--out", directory / "archive.db" / "page.html")
    assert code == 1 and "cannot be written" in said and said.count("\n") == 1


def test_what_draws_is_named_where_it_is_not_installed(make, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(BadInput, match=r'pip install "evomerge\[report\]"'):
        report(make(candidates=4))


def test_watching_ends_with_the_search_and_reads_alone(make, monkeypatch):
    directory = make(finals=-1, candidates=4)
    monkeypatch.setattr("evomerge.report.run.RunLock.held", lambda directory: True)
    out, states = directory / "report.html", []

    def sleep(seconds):
        assert seconds == 7 and 'data-refresh="7"' in out.read_text("utf-8")
        archive = Archive(directory / "archive.db", write=True)  # the search, which goes on
        archive.set_state("finished")
        archive.close()

    assert watch(directory, out, None, 7, states.append, sleep) == "finished"
    assert states == ["running", "finished"]
    assert 'data-refresh="0"' in out.read_text("utf-8")


def test_colours_are_the_models_own_throughout(usual):
    palette = Palette(usual.run)
    colours = [palette.colour(label) for label in ("ja", "fr")]
    front = next(p for p in usual.pictures if p.title == "Search and held-out scores")
    assert [key.colour for key in front.legend[:2]] == colours
    scale = front.panels[0].spec["layer"][-2]["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True))["fr"] == colours[1]
