"""How exact a routed model's export is, what routing costs, and how fast a routed model speaks.

    python benchmarks/routing.py exact            # tiny random decoders, family by family
    python benchmarks/routing.py speed            # Llamas of random weights, as materialize.py's

`exact`: logits of the exported model against the layers run one by one with a scaled stream: the
largest difference over the largest logit in float64 (with the norms' eps multiplied as the proof
has it, and as it is), in float32, and how many argmaxes agree in bfloat16. Prints a row a family.

`speed`: milliseconds to reroute a live model; then tokens a second of greedy generation with the
key-value cache, of the routed model and of the same one exported, under plain transformers, turn
by turn; the median of the ratios. Prints a row a size of model and length of path.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
import torch
from models import make_expert, make_model, merger_of, seconds_of
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from evomerge.export.model_directory import merge_to
from evomerge.merging.live_model import LiveModel
from evomerge.merging.live_routing import Router
from evomerge.recipes.parameters import single
from evomerge.recipes.routing import Hop, RoutingRecipe
from evomerge.testing.decoders import (
    DECODERS,
    HOPS,
    in_float64,
    match_eps,
    scaled_reference,
    tiny_decoder,
)

# size of the models; how often the row of their layers comes on the path, and the share of it that
# is taken; whether the routed model speaks (193 hops take minutes)
SPEEDS = (("135M", 1, 0.5, True), ("25M", 8, 1.0, False))
SHORT_SPEEDS = (("0.2M", 1, 0.5, True), ("0.2M", 8, 1.0, False))


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def farthest(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest logit."""
    return float((logits - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def exactness(name: str, folder: Path, ids: torch.Tensor) -> list[str | float]:
    """Return a table's row for one family: its exports in three dtypes against the layers."""
    sources = [tiny_decoder(folder / f"{seed}", name, seed) for seed in (0, 1)]
    row: list[str | float] = [name]
    for dtype in ("float64", "float32", "bfloat16"):
        recipe = RoutingRecipe(tuple(map(str, sources)), HOPS, 0, dtype)
        merge_to(recipe, folder / dtype)
        kind = getattr(torch, dtype)
        exported, models = load(folder / dtype, kind), [load(s, kind) for s in sources]
        if dtype == "float64":
            exported, models = in_float64(exported), [in_float64(m) for m in models]
        expected = scaled_reference(recipe, models)(ids).logits.double()
        logits = exported(ids).logits.double()
        if dtype == "float64":
            row.append(farthest(match_eps(exported, recipe)(ids).logits, expected))
        if dtype == "bfloat16":
            row.append(float((logits.argmax(-1) == expected.argmax(-1)).double().mean()))
        else:
            row.append(farthest(logits, expected))
    return row


def exactness_table(families: Sequence[str]) -> str:
    """Return the table of how exact exports are, a row a family of decoders."""
    ids = torch.randint(3, 32, (64, 32), generator=torch.Generator().manual_seed(0))
    rows = []
    for name in families:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(exactness(name, Path(folder), ids))
    headers = ["family", "eps matched", "eps as it is", "float32", "same argmax, bfloat16"]
    return common.table(headers, rows, ("", ".0e", ".0e", ".0e", ".3f"))


class Routed:
    """A live model that can take layers of two models in float32."""

    def __init__(self, folders: Sequence[Path]):
        self.names = tuple(map(str, folders))
        merger = merger_of(self.names)
        self.depth = merger.sources[self.names[0]].layers

        def live(name: str) -> LiveModel:
            model = LiveModel(merger.sources[name], "float32")
            model.load(merger.stream(single(name, "bfloat16")))
            return model

        first = live(self.names[0])
        self.model = first.model
        layers = {name: live(name).model for name in self.names}
        self.router = Router(first, merger.sources, layers)

    def path(self, repeats: int, share: float, seed: int) -> RoutingRecipe:
        """Return a random path through `share` of all layers, `repeats` times over."""
        rng = np.random.default_rng(seed)
        slots = [(m, x) for _ in range(repeats) for m in (0, 1) for x in range(self.depth)]
        kept = [slot for slot in slots if rng.random() < share]
        hops = [Hop(*slot, float(rng.uniform(0.8, 1.25))) for slot in kept]
        return RoutingRecipe(self.names, (Hop(0, 0), *hops), 0, "bfloat16")


def tokens_a_second(model: PreTrainedModel, ids: torch.Tensor, tokens: int) -> float:
    """Return the speed of greedy generation, after a (sequences, length) prompt."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    started = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, pad_token_id=0, **options)
    return tokens * len(ids) / (time.perf_counter() - started)


def speed(size: str, repeats: int, share: float, tokens: int, turns: int) -> list[str | float]:
    """Return a table's row for one size of model and one length of path.

    Args:
        size: of `models.SHAPES`.
        repeats, share: of the path's layers, see `Routed.path`.
        tokens: that are generated in a turn.
        turns: of the routed model and its export; 0, and only the rerouting is timed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_model(size, folder / "base")
        routed = Routed([base, make_expert(base, folder / "expert", 1)])
        paths = [routed.path(repeats, share, seed) for seed in (1, 2)]

        def reroute() -> None:
            for path in paths:
                routed.router.route(path)

        reroute()  # the first time makes the shells of their layers
        hops = len(paths[-1].path)
        row: list[str | float] = [size, hops, 1e3 * seconds_of(reroute, 5) / len(paths)]
        if not turns:
            return row
        merge_to(paths[-1], folder / "out")
        exported = load(folder / "out", torch.float32)
        assert exported.config.num_hidden_layers == routed.model.config.num_hidden_layers == hops
        vocabulary = exported.config.vocab_size
        ids = torch.randint(
            3, min(1000, vocabulary), (1, 32), generator=torch.Generator().manual_seed(0)
        )
        for model in (routed.model, exported):
            tokens_a_second(model, ids, 4)  # warm
        pairs = []
        for _ in range(turns):
            pair = [tokens_a_second(model, ids, tokens) for model in (routed.model, exported)]
            pairs.append([*pair, pair[0] / pair[1]])
        return [*row, *(statistics.median(column) for column in zip(*pairs, strict=True))]


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("what", nargs="+", choices=["exact", "speed"])
    parser.add_argument("--families", nargs="+", default=[*DECODERS], choices=DECODERS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    options = common.parsed(parser, families=["llama", "qwen3_moe"], threads=1, tokens=4, turns=1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    if "exact" in options.what:
        print(exactness_table(options.families))
    if "speed" in options.what:
        rows = []
        for size, repeats, share, speaks in SHORT_SPEEDS if options.short else SPEEDS:
            turns = options.turns if speaks else 0
            rows.append(speed(size, repeats, share, options.tokens, turns))
        headers = ["size", "hops", "reroute (ms)", "routed (tokens/s)", "exported", "ratio"]
        print(common.hardware())
        print(common.table(headers, rows, ("", "", ".2f", ".1f", ".1f", ".3f")))


if __name__ == "__main__":
    main()
