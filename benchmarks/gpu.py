"""A campaign on the device there is, in this process: throughput, overhead, and the export's proof.

    python benchmarks/gpu.py benchmarks/smollm2/campaign.yaml --candidates 12

Runs without Ray (the inline pool). Prints the device, candidates a minute, the share of a
candidate's time that is not forward passes, and whether the best candidate's exported weights
carry the checksum that was archived when they were scored.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from evomerge.archive import summary
from evomerge.campaign.run import run_campaign
from evomerge.export.candidates import export_candidate


class Said:
    """Keeps what a campaign says to itself."""

    def say(self, text: str) -> None:
        self.last = text

    def __call__(self, archive) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--candidates", type=int, default=12)
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    print(torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads")
    settings = [f"budget={{evaluations: {options.candidates}}}", "workers={pool: inline}"]
    settings += ["compute_dtype=bfloat16"] if cuda else []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        started = time.perf_counter()
        run_campaign(options.file, directory=run, settings=[*settings, "finals=0"], progress=Said())
        wall = time.perf_counter() - started
        status = summary.status(run)
        scored = status["candidates"]["ok"]
        worked = status["seconds"]["merge"] + status["seconds"]["score"]
        rate = 60 * scored / worked
        print(f"{scored} candidates in {wall:.0f} s with start-up; {rate:.1f} a minute")
        number, checksum, how = export_candidate(run, Path(folder) / "best", "best")
        print(f"candidate {number} exported, {how}: weights {checksum}")
    overhead = [sys.executable, str(Path(__file__).with_name("overhead.py")), str(options.file)]
    subprocess.run([*overhead, "--candidates", str(options.candidates)], check=True)


if __name__ == "__main__":
    main()
