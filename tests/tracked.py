"""What the tests of trackers share: a campaign that is killed while a tracker follows it."""

import json
import signal
from pathlib import Path

import warm

from evomerge.archive.archive import Archive
from evomerge.archive.records import Told

KILLED = """
import os, signal, sys, time
from pathlib import Path
from evomerge.campaign import run, tracked
from evomerge.tracking import follower

follower._POLL = 0.05
made = []

class Kept(tracked.Tracked):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        made.append(self)

class Killer:
    "Ends the process once the tracker has logged some of what is archived."
    def say(self, text): pass
    def finished(self, directory): pass
    def update(self, archive, workers):
        if archive.counts()["ok"] < 8:
            return
        one = made[0]._followers[0]
        while one.logged < archive.told()[6].seq:
            if one.failure:
                sys.exit(one.failure)
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

run.Tracked = Kept
run.run_campaign(Path(sys.argv[1]), observer=Killer())
"""


def run_killed(file: Path) -> list[Told]:
    """Run a campaign until its tracker has logged a part, then kill it; return its outcomes."""
    done = warm.run(["-c", KILLED, file], cwd=file.parent)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    return outcomes(file)


def outcomes(file: Path) -> list[Told]:
    """Return the outcomes in the archive of the campaign of conftest's PLAN."""
    return Archive(file.parent / "runs" / "tiny" / "archive.db").told()


def best_so_far(told: list[Told]) -> list[float]:
    """Return the best value after each outcome, of what was scored in full."""
    values, best = [], float("-inf")
    for one in told:
        if not one.is_part and one.status == "ok":
            best = max(best, one.value)
        values.append(best)
    return values


def without_secrets(text: str, here: Path) -> None:
    """Check that a tracker's text tells no path of this machine."""
    assert str(here) not in text and json.dumps(str(here))[1:-1] not in text
