"""A campaign on the device there is, in this process: throughput, overhead, and the export's proof.

    python benchmarks/gpu.py benchmarks/smollm2/campaign.yaml --candidates 12

Runs without Ray (the inline pool). Prints the device, candidates a minute, whether the best
candidate's exported weights carry the checksum that was archived when they were scored, and where a
candidate's time goes (see overhead.py).
"""

import os
import tempfile
import time
from pathlib import Path

import common
import torch
from overhead import measure

from evomerge.export.candidates import export_candidate


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = common.parsed(parser, candidates=2, threads=1)
    fewer = common.fewer_items(options.file, 20) if options.short else []
    cuda = torch.cuda.is_available()
    print(torch.cuda.get_device_name() if cuda else f"no GPU; {common.hardware()}")
    settings = [
        f"budget={{evaluations: {options.candidates}}}",
        f"workers={{pool: inline, threads: {options.threads}}}",
    ]
    settings += ["finals=0", *fewer]
    if cuda:
        settings.append("compute_dtype=bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        started = time.perf_counter()
        archive = common.run_silently(options.file, run, settings)
        wall = time.perf_counter() - started
        scored, seconds = archive.counts()["ok"], archive.work_seconds()
        rate = 60 * scored / (seconds["merge"] + seconds["score"])
        print(f"{scored} candidates in {wall:.0f} s with start-up; {rate:.1f} a minute")
        number, checksum, verdict = export_candidate(run, Path(folder) / "best", "best")
        print(f"candidate {number} exported, {verdict}: weights {checksum}")
    print(measure(options.file, options.candidates, options.threads, fewer))


if __name__ == "__main__":
    main()
