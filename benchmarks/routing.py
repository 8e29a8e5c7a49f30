"""How exact a routed model's export is, what routing costs, and how fast a routed model speaks.

    python benchmarks/routing.py exact            # tiny random decoders, family by family
    python benchmarks/routing.py speed            # Llamas of random weights, as materialize.py's

`exact`: logits of the exported model against the layers run one by one with a scaled stream: the
largest difference over the largest logit in float64 (with the norms' eps multiplied as the proof
has it, and as it is), in float32, and how many argmaxes agree in bfloat16.

`speed`: seconds to reroute a live model; then tokens a second of greedy generation with the
key-value cache, of the routed model and of the same one exported, under plain transformers, turn
by turn; the median of the ratios.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from materialize import best_of, make_expert, make_model
from tabulate import tabulate
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from evomerge.export.model_directory import merge_to
from evomerge.merging.live_model import ResidentModel
from evomerge.merging.live_routing import Router
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import single
from evomerge.recipes.routing import Hop, Routing
from evomerge.sources.source import open_source
from evomerge.testing.decoders import (
    DECODERS,
    HOPS,
    in_float64,
    match_eps,
    scaled_reference,
    tiny_decoder,
)


def load(folder: Path, dtype: torch.dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@torch.no_grad()
def exactness(name: str, folder: Path, ids: torch.Tensor) -> list:
    """Return a table's row for one family."""
    sources = [tiny_decoder(folder / f"{seed}", name, seed) for seed in (0, 1)]
    row = [name]
    for dtype in ("float64", "float32", "bfloat16"):
        kind = getattr(torch, dtype)
        recipe = Routing(tuple(map(str, sources)), HOPS, 0, dtype)
        merge_to(recipe, folder / dtype)
        exported, models = load(folder / dtype, kind), [load(s, kind) for s in sources]
        if dtype == "float64":
            exported, models = in_float64(exported), [in_float64(m) for m in models]
        expected = scaled_reference(recipe, models)(ids).logits.double()
        found = [exported(ids).logits.double()]
        if dtype == "float64":
            found.insert(0, match_eps(exported, recipe)(ids).logits)
        if dtype == "bfloat16":
            row.append(float((found[0].argmax(-1) == expected.argmax(-1)).double().mean()))
        else:
            row += [float((f - expected).abs().max() / expected.abs().max()) for f in found]
    return row


def families() -> str:
    ids = torch.randint(3, 32, (64, 32), generator=torch.Generator().manual_seed(0))
    rows = []
    for name in DECODERS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(exactness(name, Path(folder), ids))
    headers = ["family", "eps matched", "eps as it is", "float32", "same argmax, bfloat16"]
    return tabulate(rows, headers=headers, floatfmt=("", ".0e", ".0e", ".0e", ".3f"))


class Routed:
    """A live model that can take layers of `folders`, in float32."""

    def __init__(self, folders: list[Path]):
        opened = {str(f): open_source(str(f)) for f in folders}
        merger = Merger(opened, {name: name for name in opened})

        def live(name: str) -> ResidentModel:
            model = ResidentModel(opened[name], "float32")
            model.load(merger.stream(single(name, "bfloat16")))
            return model

        self.names, self.depth = list(opened), next(iter(opened.values())).layers
        first = live(self.names[0])
        self.model = first.model
        self.router = Router(first, opened, {name: live(name).model for name in opened})

    def path(self, repeats: int, share: float, seed: int) -> Routing:
        """Return a random path through `share` of all layers, `repeats` times over."""
        rng = np.random.default_rng(seed)
        slots = [(m, x) for _ in range(repeats) for m in (0, 1) for x in range(self.depth)]
        kept = [slot for slot in slots if rng.random() < share]
        hops = [Hop(*slot, float(rng.uniform(0.8, 1.25))) for slot in kept]
        return Routing(tuple(self.names), (Hop(0, 0), *hops), 0, "bfloat16")


def spoken(model, ids: torch.Tensor, tokens: int) -> tuple[float, torch.Tensor]:
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    started = time.perf_counter()
    with torch.inference_mode():
        said = model.generate(ids, pad_token_id=0, **options)
    return tokens * len(ids) / (time.perf_counter() - started), said


def speed(size: str, repeats: int, share: float, tokens: int, turns: int) -> list:
    """Return a table's row for one size of model and one length of path."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_model(size, folder / "base")
        routed = Routed([base, make_expert(base, folder / "expert", 1)])
        paths = [routed.path(repeats, share, seed) for seed in (1, 2)]
        for recipe in paths:
            routed.router.route(recipe)  # the shells of their layers
        seconds = best_of(5, lambda: [routed.router.route(p) for p in paths]) / len(paths)
        row = [size, len(paths[-1].path), 1e3 * seconds]
        if not turns:
            return row
        merge_to(paths[-1], folder / "out")
        exported = load(folder / "out", torch.float32)
        hops = len(json.loads((folder / "out" / "recipe.json").read_text())["path"])
        assert exported.config.num_hidden_layers == routed.model.config.num_hidden_layers == hops
        ids = torch.randint(3, 1000, (1, 32), generator=torch.Generator().manual_seed(0))
        for model in (routed.model, exported):
            spoken(model, ids, 4)
        ratios, ours, theirs = [], [], []
        for _ in range(turns):
            ours.append(spoken(routed.model, ids, tokens)[0])
            theirs.append(spoken(exported, ids, tokens)[0])
            ratios.append(ours[-1] / theirs[-1])
        return [*row, *map(statistics.median, (ours, theirs, ratios))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=["exact", "speed"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    if "exact" in options.what:
        print(families())
    if "speed" in options.what:
        rows = [
            speed("135M", 1, 0.5, options.tokens, options.turns),
            speed("25M", 8, 1.0, options.tokens, 0),  # 192 slots, all of them on the path
        ]
        headers = ["size", "hops", "reroute (ms)", "routed (tokens/s)", "exported", "ratio"]
        print(f"{os.cpu_count()} cores, {options.threads} threads")
        print(tabulate(rows, headers=headers, floatfmt=("", "", ".2f", ".1f", ".1f", ".3f")))


if __name__ == "__main__":
    main()
