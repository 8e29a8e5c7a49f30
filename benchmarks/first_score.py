"""Time from `evomerge run` to the first archived score, with either pool.

    python benchmarks/first_score.py search_spaces/crosslingual-maths.yaml

Starts the command in a process of its own, in a folder of its own, and reads the moment of
the first outcome from the archive. Sources are hashed beforehand (and cached) as in a rerun.

Prints seconds for each pool.
"""

import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import common

POOLS = {"inline": "pool: inline", "ray": "pool: ray, count: 2"}


def seconds_to_first_score(file: Path, settings: Sequence[str], run: Path) -> float:
    """Run a campaign of one candidate; return the seconds until its first outcome."""
    words = [sys.executable, "-m", "evomerge", "run", str(file), "--run", str(run)]
    for setting in (*settings, "budget.evaluations=1", "finals=0"):
        words += ["--set", setting]
    started = time.time()
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip() or f"{' '.join(words)} failed")
    with closing(sqlite3.connect(run / "archive.db")) as database:
        first = database.execute("SELECT MIN(at) FROM events WHERE kind = 'tell'")
        return float(first.fetchone()[0]) - started


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pools", nargs="+", default=[*POOLS], choices=POOLS)
    parser.add_argument("--items", type=int, help="of an objective, held-out ones included; all")
    options = common.parsed(parser, pools=["inline"], items=20)
    settings = common.fewer_items(options.file, options.items) if options.items else []
    threads = ", threads: 1" if options.short else ""
    print(common.hardware())
    with tempfile.TemporaryDirectory() as folder:
        for name in options.pools:
            workers = f"workers={{{POOLS[name]}{threads}}}"
            run = Path(folder) / name
            seconds = seconds_to_first_score(options.file, [*settings, workers], run)
            print(f"{name:8} {seconds:.1f} s")


if __name__ == "__main__":
    main()
