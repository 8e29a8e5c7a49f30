"""The memory that a merge into a directory takes beside the page cache.

    python benchmarks/memory.py --gigabytes 3 --methods linear ties

Four models of random bfloat16 weights in the shape of a Llama are written (and taken away at the
end), then merged by `evomerge merge` in a process of its own, whose anonymous resident memory
(RssAnon: what the page cache does not hold) is read every 20 ms.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tabulate import tabulate

from evomerge.testing import recipe_of

HIDDEN, WIDTH, VOCABULARY = 2048, 8192, 32768
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDTH, HIDDEN),
    "mlp.up_proj": (WIDTH, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDTH),
}


def make_model(folder: Path, layers: int, seed: int) -> str:
    """Write a model, a shard a layer; layers of one model share their noise."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)

    def noise(shape: tuple[int, ...]) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)

    layer = {name: noise(shape) for name, shape in LAYER.items()}
    shards = [{"model.embed_tokens.weight": noise((VOCABULARY, HIDDEN))}]
    for i in range(layers):
        shards.append({f"model.layers.{i}.{name}.weight": t for name, t in layer.items()})
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"model_type": "llama", "num_hidden_layers": layers, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def peak_of(command: list[str]) -> tuple[float, float]:
    """Run a command; return its highest RssAnon in bytes, and its seconds."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
        peak = max(peak, *(int(line.split()[1]) * 1024 for line in lines), 0)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return peak, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--methods", nargs="+", default=["linear", "ties"])
    options = parser.parse_args()
    layer_bytes = 2 * sum(a * b for a, b in LAYER.values())
    layers = round((options.gigabytes * 1e9 - 2 * VOCABULARY * HIDDEN) / layer_bytes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = [make_model(folder / f"m{i}", layers, i) for i in range(4)]
        size = sum(f.stat().st_size for f in Path(names[0]).glob("*.safetensors"))
        rows = []
        for method in options.methods:
            recipe = replace(recipe_of(method, names[1:], names[0]), dtype="bfloat16")
            file = folder / f"{method}.json"
            file.write_text(json.dumps(recipe.to_json()))
            command = [sys.executable, "-m", "evomerge", "merge", str(file)]
            peak, seconds = peak_of([*command, str(folder / f"{method}-out")])
            rows.append([method, len(recipe.sources), size / 1e9, peak / 1e9, seconds])
    headers = ["method", "models", "GB each", "peak anonymous GB", "seconds, hashing included"]
    print(tabulate(rows, headers=headers, floatfmt=("", "", ".2f", ".2f", ".0f")))


if __name__ == "__main__":
    main()
