import pytest

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.errors import BadInput

NICHES = {
    "space": {"kind": "mixture", "task_vectors": True},
    "controller": {"kind": "niches", "population": 8, "warmup": 4},
}
TIES = {"kind": "parameters", "method": "ties", "axes": {"weight": {"low": 0.0, "high": 1.0}}}


def test_init(campaign_file, here, silent):
    assert run_campaign(campaign_file(name="boxes"), observer=silent)
    theirs = Archive(here / "runs/boxes/archive.db")
    best = theirs.candidates(origin="search")[-1].id
    file = campaign_file(**NICHES, name="sums", init=[f"runs/boxes#{best}"])
    assert run_campaign(file, observer=silent)
    ours = Archive(here / "runs/sums/archive.db")
    (start,) = ours.warm_starts()
    assert start.label == f"runs/boxes#{best}"
    a, b = theirs.outcome(best), ours.outcome(start.id)
    assert a["weights_checksum"] == b["weights_checksum"]
    assert any(start.id in c.parents for c in ours.candidates(origin="search"))
    # and again, from mixtures
    file = campaign_file(**NICHES, name="more", init=["runs/sums#20"])
    assert run_campaign(file, observer=silent)
    got = {c.label: c for c in Archive(here / "runs/more/archive.db").warm_starts()}
    assert "runs/sums#20" in got
    assert got["runs/sums#20"].recipe_id == ours.candidate(20).recipe_id
    assert run_campaign(campaign_file(name="tiesrun", space=TIES), observer=silent)
    with pytest.raises(BadInput, match="method: ties is no weighted"):
        run_campaign(campaign_file(**NICHES, name="no", init=["runs/tiesrun#9"]), observer=silent)
