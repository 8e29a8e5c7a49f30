"""Every notebook runs from top to bottom, and what it prints is what the archives hold.

They run in one kernel, which imports torch once; each begins without a name of another's. The first
search is made first: others look at it.
"""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient
from safetensors.torch import load_file
from sql import query

from evomerge.testing import controller_laws

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.xdist_group("notebooks")

BEGIN = """
%reset -f
import os
os.chdir({folder!r})
os.environ["EVOMERGE_RUN"] = "../runs/notebooks/first-search"
"""


class Desk:
    """A folder like the repository's, in which notebooks run."""

    def __init__(self, folder: Path):
        self.folder, self.said = folder, {}
        (folder / "notebooks").mkdir()
        for name in ("search_spaces", "fitness"):
            (folder / name).symlink_to(ROOT / name)
        self.kernel = KernelManager()

    def run(self, name: str) -> str:
        """Run a notebook, unless it has run; return what it printed."""
        if name not in self.said:
            (path,) = (path for path in NOTEBOOKS if path.stem.startswith(name))
            notebook = nbformat.read(path, as_version=4)
            begin = BEGIN.format(folder=str(self.folder / "notebooks"))
            notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
            NotebookClient(notebook, timeout=600, km=self.kernel).execute()
            outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
            self.said[name] = "".join(o.text for o in outputs if o.get("name") == "stdout")
        return self.said[name]

    def scores(self, run: str, candidate: int, objective: str, split="heldout") -> np.ndarray:
        """Return item scores of zeros and ones, as the archive packs them."""
        row = query(
            self.folder / "runs/notebooks" / run,
            f"SELECT i.scores, s.items FROM item_scores i JOIN scores s USING (candidate_id,"
            f" objective, split) WHERE candidate_id = {candidate} AND encoding = 'bits'"
            f" AND objective = '{objective}' AND split = '{split}'",
        )[0]
        bits = np.unpackbits(np.frombuffer(row["scores"], np.uint8))
        return bits[: row["items"]].astype(float)

    def best(self, run: str, condition: str) -> int:
        """Return the candidate of the highest value among those that a condition holds for."""
        sql = f"WHERE {condition} ORDER BY value DESC, candidate_id LIMIT 1"
        outcomes = "SELECT candidate_id FROM outcomes JOIN candidates ON id = candidate_id "
        return query(self.folder / "runs/notebooks" / run, outcomes + sql)[0]["candidate_id"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("MPLBACKEND", "agg")
        made = Desk(tmp_path_factory.mktemp("desk"))
        made.run("02")
    yield made
    made.kernel.shutdown_kernel(now=True)


def halves(differences: list[np.ndarray]) -> str:
    """Say the mean over objectives of paired differences, with its 95 % interval."""
    mean = np.mean([d.mean() for d in differences])
    error = np.sqrt(sum(d.var(ddof=1) / len(d) for d in differences)) / len(differences)
    return f"{mean:+.3f} ± {1.96 * error:.3f}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_small_and_listed(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert all(len(cell.source.splitlines()) < 80 for cell in notebook.cells)
    assert f"../notebooks/{path.name}" in (ROOT / "docs/index.md").read_text("utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_link_to_what_is_there(path):
    notebook = nbformat.read(path, as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    links = re.findall(r"\]\(([^)#\s]+)", "\n".join(texts))
    assert texts[0].startswith("# ")
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_an_archive_is_read(desk):
    said = desk.run("01")
    best = desk.best("first-search", "1")
    rival = desk.best("first-search", "origin = 'baseline'")
    for objective in ("maths_ja", "maths_fr"):
        one, other = (desk.scores("first-search", n, objective, "search") for n in (best, rival))
        gained, lost = int((one > other).sum()), int((one < other).sum())
        assert f"{objective}: better on {gained} items, worse on {lost}" in said
    weights = load_file(ROOT / "search_spaces/tiny_models/base/model.safetensors")
    millions = sum(tensor.numel() for tensor in weights.values()) / 1e6
    assert f"candidate {best}: parameters, {millions:.2f} M parameters, as scored" in said


def test_a_first_search(desk):
    said = desk.run("02")
    best = desk.best("first-search", "origin != 'baseline'")
    source = desk.best("first-search", "label IN ('base', 'ja', 'fr', 'maths')")
    chance = desk.best("first-search-random", "origin != 'baseline'")
    rivals = [("first-search", source, "best source"), ("first-search-random", chance, "search")]
    for run, rival, who in rivals:
        differences = [
            desk.scores("first-search", best, name) - desk.scores(run, rival, name)
            for name in ("maths_ja", "maths_fr")
        ]
        assert re.search(rf"candidate {best} minus .*{who}.*: (.*)", said)[1] == halves(differences)
    for run in ("first-search", "first-search-random"):
        (row,) = query(
            desk.folder / "runs/notebooks" / run, "SELECT SUM(items_scored) AS n FROM outcomes"
        )
        assert f"{run}: finished, {row['n']} items scored" in said and 5000 < row["n"] <= 6000


def test_a_controller_of_ones_own(desk):
    said = desk.run("03")
    assert said.count(": kept") == len(controller_laws) and said.count(": broken") == 2
    run = desk.folder / "runs/notebooks/first-search-plain-es"
    best = desk.best(run.name, "origin != 'baseline'")
    chance = desk.best("first-search-random", "origin != 'baseline'")
    pairs = [
        (desk.scores(run.name, best, name), desk.scores("first-search-random", chance, name))
        for name in ("maths_ja", "maths_fr")
    ]
    asked = query(run, "SELECT COUNT(*) AS n FROM candidates WHERE origin = 'search'")[0]["n"]
    found = [float(cell) for cell in re.search(r"plain_es +(.*)", said[-200:])[1].split()]
    mean = np.mean([ours.mean() for ours, _ in pairs])
    gain, half = map(float, halves([ours - theirs for ours, theirs in pairs]).split(" ± "))
    assert found == pytest.approx([asked, mean, gain, half], abs=6e-4)


def test_niches_on_digits(desk):
    said, run = desk.run("04"), desk.folder / "runs/notebooks/digits"
    best = desk.best("digits", "1")
    score = {n: desk.scores("digits", n, "accuracy") for n in (1, 2, 3, best)}
    searched = desk.scores("digits", best, "accuracy", "search").mean()
    assert f"{best}: {searched:.3f} search, {score[best].mean():.3f} held-out" in said
    for number, label in enumerate(("low", "high", "uniform"), start=1):
        assert f"best minus {label}: {halves([score[best] - score[number]])}" in said
    sql = (
        "WITH RECURSIVE family(id) AS (SELECT {} UNION SELECT j.value FROM family f JOIN"
        " candidates c ON c.id = f.id, json_each(c.parents) j) SELECT COUNT(*) AS n FROM family"
    )
    count = query(run, sql.format(best))[0]["n"]
    assert f"candidate {best} has {count - 1} ancestors" in said
    assert "1203 populations, the last of 20 individuals" in said
    # what one individual alone recognizes, nobody else of the last population does
    alone = re.findall(r"individual (\d+) alone recognizes: (\d+)", said)
    assert alone
    for number, images in alone:
        mine = desk.scores("digits", int(number), "accuracy", "search")
        assert 0 < int(images) <= mine.sum()


def test_a_front_item_by_item(desk):
    from scipy.stats import binomtest

    said, run = desk.run("05"), "first-search"
    best = desk.best(run, "origin != 'baseline'")
    counted = {}
    for name in ("maths_ja", "maths_fr"):
        merge = desk.scores(run, best, name) > 0
        sources = np.array([desk.scores(run, n, name) > 0 for n in (1, 2, 3, 4)])
        some = sources.any(axis=0)
        assert (
            f"{name}: of {len(merge)} questions, some source solves {some.sum()},"
            f" merge {best} solves {merge.sum()}: {(merge & some).sum()} of these"
            f" and {(merge & ~some).sum()} that no source solves"
        ) in said
        other = sources[desk.best(run, "label IN ('base', 'ja', 'fr', 'maths')") - 1]
        wins, loses = int((merge & ~other).sum()), int((other & ~merge).sum())
        assert f"{name}: wins {wins}, loses {loses}" in said
        assert f"{name}: {(~merge).sum()} wrong" in said
        ja = sources[1]  # of number 2
        wins, loses = int((merge & ~ja).sum()), int((ja & ~merge).sum())
        counted[name] = [wins, loses, binomtest(wins, wins + loses).pvalue]
    row = re.search(rf"merge {best} minus ja +(.*)", said)[1].split()
    expected = [*counted["maths_ja"], *counted["maths_fr"]]
    assert list(map(float, row[2:])) == pytest.approx(expected, abs=6e-4)
