"""Every figure of a GPU: merges at the speed of its memory, the same bits, streams, candidates.

    python benchmarks/gpu.py                    # all of it, some minutes on a bare machine
    python benchmarks/gpu.py merges --size 1.5B --room 4

On a machine without a GPU the same code runs on the processor. Sources are Llamas of random weights
in bfloat16, a base and three experts. Methods that transform task vectors first are left out: what
they merge then is a weighted sum.

`bits`      every method, merged on the GPU and on the processor: how many tensors have the same
            bits.
`merges`    every method's time against that which its bytes would take in a copy, with all sources
            on the device, and with `--room` GB of them there and the rest streamed from the page
            cache; the most memory that merging takes, the live model not counted. `eager` is the
            same merge by torch's operations, one after the other.
`campaign`  a search in which models of 135M parameters answer the tiny models' prompts, in this
            process: candidates a minute, where their time goes (see overhead.py), whether the best
            one's exported weights carry the checksum that was archived when they were scored.
`learned`   merges of those models that are learned by gradient (docs/learned-starts.md), and
            fitness without labels: seconds here and on the processor, and how far coefficients and
            scores of the uniform merge lie apart.
`engines`   answers a second by transformers' `generate`, in batches, and by its continuous
            batching, to 200 prompts of mixed length; models of random weights never stop early.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
import yaml
from materialize import bandwidth
from models import live_tensors, make_expert, make_model, merger_of, seconds_of
from overhead import measure

from evomerge.archive.summary import open_run
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.export.candidates import export_candidate
from evomerge.kernels.eager import EagerKernels
from evomerge.merging.methods import METHODS
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of

SECTIONS = ("bits", "merges", "campaign", "learned", "engines")
LEARNERS = (  # and what bounds each
    ("adamerging", "steps"),
    ("expert_merging", "steps"),
    ("self_positioning", "steps"),
    ("fw_merging", "iterations"),
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXPERTS = 3
CAMPAIGN = Path("search_spaces/crosslingual-maths.yaml")


def family(size: str, folder: Path) -> list[str]:
    """Write a base and its experts; return their folders."""
    base = make_model(size, folder / "base", DEVICE)
    return [
        str(base),
        *(str(make_expert(base, folder / f"expert{i}", i, DEVICE)) for i in range(EXPERTS)),
    ]


def recipe(method: str, names: Sequence[str]) -> ParametersRecipe:
    """Return a recipe of a method for a base and its experts."""
    base, *experts = names
    models = experts[: METHODS.get(method).models or len(experts)]
    return replace(recipe_of(method, models, base, density=0.5), dtype="bfloat16")


def unprepared() -> list[str]:
    """Return the methods that merge the sources themselves, not what was made of them before."""
    known = METHODS.all().items()
    return sorted(name for name, method in known if method.of_weights and not method.prepare)


def bits(options: argparse.Namespace, folder: Path) -> None:
    """Compare digests of merges on the device and on the processor."""
    names = family(options.small, folder)
    rows = []
    for method in unprepared():
        found = []
        for device in (DEVICE, "cpu"):
            live = live_tensors(open_source(names[0]), device)
            found.append(merger_of(names, device).fill(recipe(method, names), live))
        ours, wanted = found
        same = sum(bool((ours[name] == wanted[name]).all()) for name in wanted)
        rows.append([method, same, len(wanted)])
    print(common.table(("method", "same bits", "tensors"), rows), flush=True)


def peak_gb() -> float | None:
    """Return the most memory that was in use since it was last asked, less what is now."""
    if DEVICE == "cpu":
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak / 1e9


def merges(options: argparse.Namespace, folder: Path) -> None:
    """Time merges, resident and streamed."""
    names = family(options.size, folder)
    live = live_tensors(open_source(names[0]), DEVICE)
    size, speed = sum(t.nbytes for t in live.values()), bandwidth(DEVICE)
    print(
        f"\n{options.size}: {len(names)} sources of {size / 1e9:.2f} GB,"
        f" copy {speed / 1e9:.0f} GB/s"
    )
    methods = unprepared()
    streamed = [name for name in ("linear", "ties", "dare_ties") if name in methods]
    rows = []
    for where, room, some in (
        ("resident", None, methods),
        ("eager", None, streamed),
        (f"{options.room} GB", int(options.room * 1e9), streamed),
    ):
        for method in some:
            merger = merger_of(names, DEVICE, room)
            if where == "eager":
                merger._kernels = EagerKernels()  # what the fused kernels are compared with
            merge = partial(merger.fill, recipe(method, names), live)
            peak_gb()
            first, seconds = seconds_of(merge), seconds_of(merge, options.times)
            peak = peak_gb()
            moved = (len(recipe(method, names).sources) + 1) * size
            rate = moved / seconds
            most = None if peak is None else peak - size / 1e9
            rows.append([method, where, seconds, rate / 1e9, rate / speed, first, most])
            del merger, merge
    headers = ("method", "sources", "merge (s)", "GB/s", "of copy's", "first (s)", "memory (GB)")
    print(common.table(headers, rows, ("", "", ".4f", ".0f", ".2f", ".2f", ".2f")), flush=True)


def campaign_file(options: argparse.Namespace, folder: Path) -> Path:
    """Write the demo's campaign over models of another size, with the tiny models' tokenizer."""
    plan = yaml.safe_load(CAMPAIGN.read_text())
    tokenizer = Path(plan["sources"]["base"])
    base, *experts = family(options.model, folder)
    for name in (base, *experts):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / file, Path(name) / file)
    plan["sources"] = {"base": base, "models": {f"e{i}": e for i, e in enumerate(experts)}}
    plan["workers"] = {"pool": "inline", "threads": options.threads}
    plan |= {"budget": {"evaluations": options.candidates}, "compute_dtype": "bfloat16"}
    plan["scoring"] = "full"
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump(plan))
    return file


def campaign(options: argparse.Namespace, folder: Path) -> None:
    """Run a search, export its best, and say where the time goes."""
    file = campaign_file(options, folder)
    fewer = common.fewer_items(file, 20) if options.short else []
    started = time.perf_counter()
    archive = common.run_silently(file, folder / "run", ["finals=0", *fewer])
    wall = time.perf_counter() - started
    scored, seconds = archive.counts()["ok"], archive.work_seconds()
    rate = 60 * scored / (seconds["merge"] + seconds["score"])
    print(
        f"\n{options.model}: {scored} candidates in {wall:.0f} s with start-up; {rate:.1f} a minute"
    )
    done = export_candidate(folder / "run", folder / "best", "best")
    print(f"candidate {done.candidate} exported, {done.compared}: weights {done.checksum}")
    print(measure(file, options.candidates, options.threads, fewer), flush=True)


class Clock(Silent):
    """Takes the time that each learner takes, by what a campaign says."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def say(self, line: str) -> None:
        """See `Observer.say`."""
        what, _, rest = line.partition(" ")
        now = time.perf_counter()
        if what == "learning":
            self._began = now
        elif what == "learned":
            self.seconds[rest.split()[0]] = now - self._began


def learned(options: argparse.Namespace, folder: Path) -> None:
    """Learn merges and score without labels, on the device and on the processor."""
    file = campaign_file(options, folder)
    plan = yaml.safe_load(file.read_text())
    prompts = folder / "prompts.jsonl"
    asked = [json.dumps({"prompt": f"{n} + {n % 7} ="}) for n in range(2 * options.texts)]
    prompts.write_text("\n".join(asked))
    plan["learned"] = [
        {"kind": k, "count": options.texts, how_long: options.steps} for k, how_long in LEARNERS
    ]
    without = {"prompts": str(prompts), "max_tokens": 4}
    unlabelled = [
        {"name": "entropy", "entropy": "answer", **without},
        {"name": "agreement", "agreement": "e0", **without},
        {"name": "hidden", "agreement": "e1", "measure": "hidden", "layers": [3], **without},
    ]
    plan["fitness"] += unlabelled
    plan |= {"budget": {"evaluations": 1}, "compute_dtype": "float32"}
    file.write_text(yaml.safe_dump(plan))
    seconds, weights, means = [], [], []
    for device in (DEVICE, "cpu"):
        clock, run = Clock(), folder / f"run-{len(seconds)}"
        settings = [f"workers={{pool: inline, threads: {options.threads}, device: {device}}}"]
        settings += [f"fitness.{i}.items={options.texts}" for i in range(len(plan["fitness"]))]
        run_campaign(file, directory=run, settings=["finals=0", *settings], observer=clock)
        archive = open_run(run)
        baselines = {str(one.label): one for one in archive.baselines()}
        seconds.append(clock.seconds)
        weights.append({k: weights_of(baselines[k].recipe) for k, _ in LEARNERS})
        means.append(archive.means(baselines["uniform"].id))
    print(f"\n{options.model}, {options.texts} texts, {options.steps} steps each")
    rows = []
    for kind, _ in LEARNERS:
        apart = float(np.abs(weights[0][kind] - weights[1][kind]).max())
        rows.append([kind, seconds[0][kind], seconds[1][kind], apart])
    headers = ("learned", "seconds", "by the processor", "largest difference")
    print(common.table(headers, rows, ("", ".1f", ".1f", ".1e")))
    scores = [[e["name"], *(score[e["name"]] for score in means)] for e in unlabelled]
    print()
    print(
        common.table(("score", "here", "by the processor"), scores, ("", ".5f", ".5f")), flush=True
    )


def weights_of(recipe: Recipe) -> np.ndarray:
    """Return a recipe's weights: (groups, models) float64."""
    assert isinstance(recipe, ParametersRecipe)
    return np.array([group.values["weight"] for group in recipe.groups])


def engines(options: argparse.Namespace, folder: Path) -> None:
    """Time batches and continuous batching on one live model."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    base = make_model(options.model, folder / "base", DEVICE)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 90, (options.prompts,), generator=generator).tolist()
    prompts = [torch.randint(5, 400, (n,), generator=generator).tolist() for n in lengths]
    rows = []
    for dtype in ("bfloat16", "float32"):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(DEVICE).eval()
        model.generation_config.pad_token_id = 0
        for batch in (64, options.prompts):
            work = partial(in_batches, model, prompts, batch, options.tokens)
            with torch.inference_mode():
                work()
                rows.append(
                    [dtype, f"generate, batches of {batch}", len(prompts) / seconds_of(work)]
                )
        if DEVICE == "cuda":  # on a processor it was slower wherever it was tried
            config = GenerationConfig(
                max_new_tokens=options.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
            )
            model.set_attn_implementation("sdpa")
            work = partial(
                model.generate_batch, inputs=prompts, generation_config=config, progress_bar=False
            )
            work()
            rows.append([dtype, "continuous batching", len(prompts) / seconds_of(work)])
        del model
    print(f"\n{options.model}: {len(prompts)} prompts, {options.tokens} tokens each")
    print(common.table(("dtype", "engine", "answers a second"), rows, ("", "", ".1f")))


def in_batches(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], batch: int, tokens: int
) -> None:
    """Generate, the longest prompts first, padded on the left."""
    ordered = sorted(prompts, key=len, reverse=True)
    for first in range(0, len(ordered), batch):
        some = ordered[first : first + batch]
        width = len(some[0])
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in some], device=DEVICE)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some], device=DEVICE)
        model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--size", default="1.5B", help="of the models that are merged")
    parser.add_argument("--small", default="25M", help="of those whose bits are compared")
    parser.add_argument("--model", default="135M", help="of those that are searched and answer")
    parser.add_argument("--room", type=float, default=4.0, help="GB of sources on the device")
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="of each learner")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    tiny = {"size": "0.2M", "small": "0.2M", "model": "0.2M", "room": 0.001}
    tiny |= {"candidates": 2, "times": 1, "threads": 1, "texts": 8, "steps": 1}
    options = common.parsed(parser, **tiny, prompts=4, tokens=2)
    print(torch.cuda.get_device_name() if DEVICE == "cuda" else f"no GPU; {common.hardware()}")
    sections = {
        "bits": bits,
        "merges": merges,
        "campaign": campaign,
        "learned": learned,
        "engines": engines,
    }
    for section in options.sections or SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            sections[section](options, Path(folder))


if __name__ == "__main__":
    main()
