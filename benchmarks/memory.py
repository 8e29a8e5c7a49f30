"""The memory that a merge into a directory takes beside the page cache.

    python benchmarks/memory.py --gigabytes 3 --methods linear ties

Four models of random bfloat16 weights in the shape of a Llama are written (and deleted at the
end), then merged by `evomerge merge` in a process of its own, whose anonymous resident memory
(RssAnon: what the page cache does not hold) is read every 20 ms.

Prints the peak of it for each method, and the seconds of the command.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import common
import torch
from models import Shape, in_layer
from safetensors.torch import save_file

from evomerge.testing import recipe_of

POLL = 0.02  # seconds between looks at the process


def make_model(folder: Path, hidden: int, gigabytes: float, seed: int) -> str:
    """Write a Llama of about so many gigabytes, a shard a layer; its layers share their noise."""
    shape = Shape(hidden, 0, 8, 2, 4 * hidden, 16 * hidden)
    generator = torch.Generator().manual_seed(seed)
    layer, outside = shape.layer(generator), shape.outside(generator)
    layer_bytes, rest = (sum(t.nbytes for t in part.values()) for part in (layer, outside))
    shape = shape._replace(layers=round((gigabytes * 1e9 - rest) / layer_bytes))
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number in range(shape.layers + 1):
        shard = in_layer(number, layer) if number < shape.layers else outside
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(shape.config()))
    return str(folder)


def peak_of(command: list[str]) -> tuple[float, float]:
    """Run a command; return its highest RssAnon in bytes, and its seconds."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # it has just ended
            continue
        for line in status.splitlines():
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return peak, time.perf_counter() - started


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of each model")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the residual stream")
    parser.add_argument("--methods", nargs="+", default=["linear", "ties"])
    options = common.parsed(parser, gigabytes=0.01, hidden=256, methods=["linear"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, *models = (
            make_model(folder / f"m{i}", options.hidden, options.gigabytes, i) for i in range(4)
        )
        size = sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))
        rows = []
        for method in options.methods:
            recipe = replace(recipe_of(method, models, base), dtype="bfloat16")
            file = folder / f"{method}.json"
            file.write_text(json.dumps(recipe.to_json()))
            command = [sys.executable, "-m", "evomerge", "merge", str(file)]
            peak, seconds = peak_of([*command, str(folder / f"{method}-out")])
            rows.append([method, len(recipe.sources), size / 1e9, peak / 1e9, seconds])
    headers = ["method", "models", "GB each", "peak anonymous GB", "seconds, hashing included"]
    print(common.table(headers, rows, ("", "", ".2f", ".2f", ".0f")))


if __name__ == "__main__":
    main()
