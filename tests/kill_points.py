"""Run by test_resume.py: a real campaign, killed with SIGKILL at chosen ledger writes.

    python kill_points.py CAMPAIGN FOLDER POINT...

POINT is method:before|after:count, or "none"; with ":rollback" after it, the archive lies where
WAL fails. This process imports everything once and forks one
campaign for each point; each child kills itself there. A second child then continues the
campaign to its end. What the children print is one JSON line per point.
"""

import gc
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

# Imported before the forks, so that a child starts in no time; no tensor is made here.
import cma  # noqa: F401
import moocore  # noqa: F401
from transformers import AutoTokenizer  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.llama import modeling_llama  # noqa: F401

from evomerge.archive import database
from evomerge.archive.archive import Archive
from evomerge.archive.verdicts import Verdicts
from evomerge.campaign import run as session
from evomerge.merging import live_model, merger  # noqa: F401
from evomerge.workers.pool import InlinePool

get_checkpoint_conversion_mapping("llama")

CONNECT = database.connect

PLACES = {
    "propose": (Archive, "propose"),
    "record": (Archive, "record"),
    "record_copy": (Archive, "record_copy"),
    "record_final": (Archive, "record_final"),
    "recommend": (Archive, "recommend"),
    "record_race_part": (Archive, "record_race_part"),
    "record_race_ends": (Archive, "record_race_ends"),
    "add_baseline": (Archive, "add_baseline"),
    "begin": (Archive, "begin"),
    "submit": (InlinePool, "submit"),
    "score": (InlinePool, "next_finished"),
    "verdicts": (Verdicts, "add"),
}


class Quiet:
    def say(self, text):
        pass

    def update(self, archive, workers):
        pass

    def finished(self, directory):
        pass


def no_shared_memory(path, write):
    """Connect through a VFS of SQLite's that, like a network disk, shares no memory."""
    address = f"file:{path}?vfs=unix-none"
    return sqlite3.connect(address, uri=True, timeout=30.0, isolation_level=None)


def arm(point):
    """Make the count-th call of a method end in SIGKILL, before or after its work."""
    name, when, count = point.split(":")
    cls, method = PLACES[name]
    plain, calls = getattr(cls, method), [0]

    def armed(self, *arguments, **options):
        calls[0] += 1
        if calls[0] == int(count) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(self, *arguments, **options)
        if calls[0] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(cls, method, armed)


def in_child(work):
    """Run `work` in a forked process; return how it ended (negative: a signal)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(file, folder, points):
    gc.freeze()  # what was imported: each campaign begins with a collection
    for index, point in enumerate(points):
        directory = Path(folder) / str(index)
        name = point.removesuffix(":rollback")
        database.connect = no_shared_memory if name != point else CONNECT  # in both children

        def campaign(directory=directory):
            return session.run_campaign(Path(file), directory=directory, observer=Quiet())

        def killed(name=name, campaign=campaign):
            if name != "none":
                arm(name)
            return campaign()

        ends = [in_child(killed)]
        while ends[-1] != 0 and len(ends) < 3:
            ends.append(in_child(campaign))
        print(json.dumps({"point": point, "directory": str(directory), "ends": ends}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
