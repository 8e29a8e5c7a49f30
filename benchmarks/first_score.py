"""Time from `evomerge run` to the first archived score, with either pool.

    python benchmarks/first_score.py search_spaces/crosslingual-maths.yaml

Starts the command in a process of its own, in a folder of its own, and reads the moment of
the first outcome from the archive. Sources are hashed beforehand (and cached) as in a rerun.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from evomerge.archive.archive import Archive

POOLS = {"inline": "{pool: inline}", "ray": "{pool: ray, count: 2}"}


def seconds_to_first_score(file: Path, workers: str, run: Path) -> float:
    settings = [f"workers={workers}", "budget.evaluations=1", "finals=0"]
    words = [sys.executable, "-m", "evomerge", "run", str(file), "--run", str(run)]
    words += [word for setting in settings for word in ("--set", setting)]
    started = time.time()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with closing(Archive(run / "archive.db")) as archive:
        sql = "SELECT MIN(at) AS at FROM events WHERE kind = 'tell'"
        return next(iter(archive.db.query(sql)))["at"] - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        for name, workers in POOLS.items():
            seconds = seconds_to_first_score(options.file, workers, Path(folder) / name)
            print(f"{name:8} {seconds:.1f} s")


if __name__ == "__main__":
    main()
