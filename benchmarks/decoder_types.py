"""Every model type of transformers that gives text, tiny and random: merged, filled, scored.

    python benchmarks/decoder_types.py            # all of them; writes decoder_types.csv
    python benchmarks/decoder_types.py llama t5   # some types; prints their rows

Of each type, a base and two fine-tunes are saved in bfloat16 (in float32 what the class keeps so),
by transformers alone. Then evomerge merges them, and each column has what became of that:

`linear`, `ties`: tensors of the exported directory against plain torch, to one rounding.
`reload`: transformers loads the directory, and misses and leaves over no more than in the base's.
`live`: the live model filled by the recipe against transformers' of the directory: every parameter
and buffer, and its dtype, in bfloat16 and float32, and the same logits (or `weights`, where the
class does not run on text alone).
`scored`: a task of lm-eval on both, or, where the class does not speak, a function.
`routed`: a path that repeats a layer, live and exported, where the family is known.

A type that evomerge refuses is refused in a line with exit code 2, by `evomerge check`.
"""

import collections
import contextlib
import csv
import functools
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch
import transformers
from click.testing import CliRunner
from models import merger_of
from safetensors.torch import load_file
from tiny_types import model_classes, tiny_model
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from evomerge.cli.main import main as evomerge
from evomerge.errors import BadInput, one_line
from evomerge.export.model_directory import merge_to
from evomerge.merging.live_model import LiveModel
from evomerge.merging.live_routing import Router
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import Group, ParametersRecipe, single
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import Hop, RoutingRecipe
from evomerge.scoring.fitness import FunctionSection
from evomerge.scoring.function import FunctionFitness
from evomerge.scoring.lm_eval_model import LoadedModel
from evomerge.scoring.lm_eval_task import TaskFitness
from evomerge.sources.architectures import family_of
from evomerge.sources.model_class import speaks
from evomerge.sources.source import open_source
from evomerge.testing.lm_eval_tasks import example_section
from evomerge.testing.tiny import tiny_tokenizer

KEPT = Path("benchmarks/decoder_types.csv")

MOST_SECONDS = 120  # of a type
MOST_BYTES = 6 << 30

WEIGHTS, DENSITY = (0.3, 0.8), 0.4
LINEAR_WEIGHTS = (0.5, 0.2, 0.3)

AXIS = {"low": 0.0, "high": 1.0}

FITNESS = """
import torch

def items():
    return [[5, 6, 7, 9], [8, 4, 11, 3]]

def score(model, tokenizer, items):
    scores = []
    for item in items:
        ids = torch.tensor([item])
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        logits = model(input_ids=ids, **more).logits.float()
        scores.append(float(torch.log_softmax(logits, -1).mean()))
    return scores
"""


class Row(NamedTuple):
    """What became of one type: in each column "ok", "FAILED", "-" or what it was compared by.

    Attributes:
        type: the model type.
        class_name: of its model.
        result: "ok", "FAILED", "refused" or "not made".
        tensors: that the base stores.
        linear, ties, reload, live, scored, routed: see the script's docstring.
        reason: why a column is not "ok".
    """

    type: str
    class_name: str
    result: str
    tensors: int = 0
    linear: str = "-"
    ties: str = "-"
    reload: str = "-"
    live: str = "-"
    scored: str = "-"
    routed: str = "-"
    reason: str = ""


# --- the models --------------------------------------------------------------------------------


def save_models(kind: str, name: str, folder: Path) -> list[Path]:
    """Save a tiny base and two fine-tunes of it, as transformers saves them in bfloat16."""
    tiny_model(kind, name, 0).save_pretrained(folder / "wide")
    model, said = loaded(name, folder / "wide", "bfloat16")
    if missing := said["missing_keys"]:
        raise ValueError(f"transformers misses {missing[0]} in what it saved itself")
    saved = []
    for number, part in enumerate(("base", "a", "b")):
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if number and parameter.is_floating_point():
                    parameter.add_(torch.randn(parameter.shape) * 0.02)
        model.save_pretrained(folder / part)
        tiny_tokenizer().save_pretrained(folder / part)
        saved.append(folder / part)
    return saved


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a saved model."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


# --- the merges, in plain torch ------------------------------------------------------------------


def linear_merge(models: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return sum w_i W_i / sum w_i."""
    total = sum(w * m.double() for w, m in zip(LINEAR_WEIGHTS, models, strict=True))
    assert isinstance(total, torch.Tensor)
    return total / sum(LINEAR_WEIGHTS)


def ties_merge(models: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the base plus the task vectors trimmed, elected and averaged (arXiv:2306.01708).

    Those magnitudes stay that are as large as the k-th largest.
    """
    base = models[0].float()
    kept = []
    for model in models[1:]:
        tau = (model.float() - base).to(models[0].dtype).float()
        count = int(DENSITY * tau.numel())
        least = tau.abs().flatten().sort(descending=True).values[count - 1] if count else torch.inf
        kept.append(torch.where(tau.abs() >= least, tau, 0.0))
    weighted = torch.stack([w * tau for w, tau in zip(WEIGHTS, kept, strict=True)])
    agree = (weighted.sign() == weighted.sum(0).sign()) & (weighted != 0)
    shares = torch.tensor(WEIGHTS).view(-1, *[1] * base.ndim) * agree
    divisor = shares.sum(0)
    return base + (weighted * agree).sum(0) / divisor.where(divisor > 0, 1.0)


def is_one_rounding_off(merged: torch.Tensor, expected: torch.Tensor) -> bool:
    """Tell whether a tensor is another one of more digits, rounded to its dtype."""
    step = 2.0**-8 if merged.dtype == torch.bfloat16 else 2.0**-22
    apart = (merged.double() - expected.double()).abs()
    return bool((apart <= 1.001 * step * expected.double().abs() + 1e-7).all())


def own_dtypes(base: dict[str, torch.Tensor]) -> dict[str, torch.dtype]:
    """Return the dtypes of a merge in bfloat16: the base's, unless most of that is in float32."""
    sizes: dict[torch.dtype, int] = collections.Counter()
    for tensor in base.values():
        sizes[tensor.dtype] += tensor.nbytes
    usual = max(sizes, key=lambda dtype: sizes[dtype])
    return {n: torch.bfloat16 if t.dtype == usual else t.dtype for n, t in base.items()}


def differing(
    out: Path, folders: Sequence[Path], merge: Callable[[list[torch.Tensor]], torch.Tensor]
) -> str:
    """Return how an exported directory differs from a merge in plain torch; "" if it does not."""
    merged, models = stored(out), [stored(folder) for folder in folders]
    dtypes = own_dtypes(models[0])
    if merged.keys() != models[0].keys():
        odd = sorted(merged.keys() ^ models[0].keys())
        return f"{len(odd)} names are not in both, first {odd[0]}"
    for name, tensor in merged.items():
        if tensor.dtype != dtypes[name]:
            return f"{name} is {tensor.dtype}, and is to be {dtypes[name]}"
        if not tensor.is_floating_point():
            if not tensor.equal(models[0][name]):
                return f"{name} is not the base's"
        elif not is_one_rounding_off(tensor, merge([model[name] for model in models])):
            return f"{name} has other numbers"
    return ""


# --- live models ---------------------------------------------------------------------------------


def filled(merger: Merger, recipe: Recipe, dtype: str) -> LiveModel:
    """Return a live model with a recipe's weights, put there as a worker does."""
    live = LiveModel(merger.sources[recipe.sources[0]], dtype)
    merger.fill(recipe, live.direct)
    others = [name for name in merger.shapes(recipe) if name not in live.direct]
    live.load(merger.stream(recipe, others))
    return live


def loaded(name: str, folder: Path, dtype: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return what transformers makes of a directory, and what it says of the loading."""
    class_, config = getattr(transformers, name), AutoConfig.from_pretrained(folder)
    made = class_.from_pretrained(
        folder, config=config, dtype=getattr(torch, dtype), output_loading_info=True
    )
    model = made[0].eval().requires_grad_(False)  # with gradients, mambas take another kernel
    return model, {key: sorted(map(str, value)) for key, value in made[1].items()}


def unlike(live: torch.nn.Module, other: torch.nn.Module) -> str:
    """Return which parameter or buffer two models do not share; "" if they are one another's."""
    states = []
    for model in (live, other):
        buffers = dict(model.named_buffers(remove_duplicate=False))
        states.append(buffers | dict(model.named_parameters(remove_duplicate=False)))
    ours, theirs = states
    for key in ours.keys() | theirs.keys():
        if key not in ours or key not in theirs:
            return f"{key} is in one of the two"
        if ours[key].dtype != theirs[key].dtype:
            return f"{key} is {ours[key].dtype}, and {theirs[key].dtype} in transformers"
        if not torch.equal(ours[key], theirs[key]):
            return f"{key} has other numbers"
    return ""


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Return what a model says of eight tokens."""
    ids = torch.tensor([[5, 6, 7, 9, 8, 4, 11, 3]])
    more = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    torch.manual_seed(0)
    said: torch.Tensor = model(input_ids=ids, **more).logits
    return said


@functools.cache
def task() -> TaskFitness:
    """Return a small task of lm-eval."""
    return TaskFitness(example_section(), own_test=False)


# --- one type ------------------------------------------------------------------------------------


class Sweep:
    """The checks of one type, on models in a folder; `columns` and `reasons` gather results."""

    def __init__(self, name: str, folder: Path, folders: list[Path]):
        self.name, self.folder, self.folders = name, folder, folders
        self.names = tuple(map(str, folders))
        self.columns: dict[str, Any] = {}
        self.reasons: list[str] = []
        self.merger = merger_of(self.names)
        self.source = self.merger.sources[self.names[0]]
        options: dict[str, Any] = {"weight": WEIGHTS, "density": (DENSITY, DENSITY)}
        self.ties = ParametersRecipe(
            "ties", self.names[1:], (Group(None, None, options),), self.names[0]
        )
        groups = (Group(None, None, {"weight": LINEAR_WEIGHTS}),)
        self.linear = ParametersRecipe("linear", self.names, groups)

    def column(self, name: str, check: Callable[[], tuple[str, str]]) -> None:
        """Run a check, which returns what its column has and why; an error fails it."""
        try:
            result, reason = check()
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            result, reason = "FAILED", f"{one_line(error)} ({where})"
        self.columns[name] = result
        if reason:
            self.reasons.append(f"{name}: {reason}")

    def run(self) -> None:
        """Run all checks."""
        self.column("linear", lambda: self.merged(self.linear, linear_merge))
        self.column("ties", lambda: self.merged(self.ties, ties_merge))
        self.column("reload", self.reloaded)
        self.column("live", self.lives)
        self.column("scored", self.scored)
        self.column("routed", self.routed)

    def merged(
        self, recipe: ParametersRecipe, merge: Callable[[list[torch.Tensor]], torch.Tensor]
    ) -> tuple[str, str]:
        """Merge into a directory, and compare its tensors with a merge in plain torch."""
        out = self.folder / recipe.method
        merge_to(recipe, out)
        wrong = differing(out, self.folders, merge)
        return ("FAILED" if wrong else "ok"), wrong

    def reloaded(self) -> tuple[str, str]:
        """Load the directories in transformers, and compare what it misses."""
        for folder in (self.folder / "ties", self.folder / "linear"):
            _, said = loaded(self.name, folder, "bfloat16")
            _, before = loaded(self.name, self.folders[0], "bfloat16")
            if said != before:
                keys = [key for key in said if said[key] != before[key]]
                return "FAILED", f"{keys[0]} {said[keys[0]][:2]}, and {before[keys[0]][:2]} of base"
        faults = [key for key in before if before[key]]
        return "ok", f"transformers says of the base too: {faults}" if faults else ""

    def lives(self) -> tuple[str, str]:
        """Compare the live model with transformers' of the directory."""
        for dtype in ("bfloat16", "float32"):
            live = filled(self.merger, self.ties, dtype).model
            other, _ = loaded(self.name, self.folder / "ties", dtype)
            if wrong := unlike(live, other):
                return "FAILED", f"{wrong} ({dtype})"
        try:
            expected = logits(other)
        except Exception as error:
            return "weights", f"transformers does not run it on text alone: {one_line(error)}"
        if not expected.isfinite().all():
            return "weights", "its logits are not finite, in transformers either"
        if not torch.equal(logits(live), expected):
            return "FAILED", f"logits differ by {float((logits(live) - expected).abs().max()):.1e}"
        return "ok", ""

    @torch.inference_mode()
    def scored(self) -> tuple[str, str]:
        """Score the live model and transformers' of the directory."""
        live = filled(self.merger, self.ties, "float32")
        other, _ = loaded(self.name, self.folder / "ties", "float32")
        tokenizer = tiny_tokenizer()  # of which transformers would make another for some types
        fitness: TaskFitness | FunctionFitness
        result, why = "function", "" if speaks(self.source.class_name) else "it does not speak"
        if speaks(self.source.class_name):
            try:
                fitness = task()
                fitness.prepare(LoadedModel(other, tokenizer), [0, 1, 2, 3])
                expected = fitness.score([0, 1, 2, 3])
                result = "task"
            except Exception as error:
                why = f"lm-eval does not run transformers' own: {one_line(error)}"
        if result == "function":
            file = self.folder / "fitness.py"
            file.write_text(FITNESS)
            fitness = FunctionFitness(FunctionSection(name="mine", function=str(file)))
            try:
                logits(other)
            except Exception:
                return "-", "it runs on no text alone"
            fitness.prepare(LoadedModel(other, tokenizer), [0, 1])
            expected = fitness.score([0, 1])
        ordinals = [*range(len(expected))]
        fitness.prepare(LoadedModel(live.model, tokenizer), ordinals)
        found = fitness.score(ordinals)
        if found.tolist() != expected.tolist():
            return "FAILED", f"scores are {found}, and {expected} of the directory"
        return result, why

    def routed(self) -> tuple[str, str]:
        """Compare a live routed model with transformers' of its directory."""
        try:
            family_of(self.source.config)
        except ValueError as error:
            return "-", str(error).partition(";")[0]
        path = (Hop(0, 0), Hop(0, 1, 0.8), Hop(1, 1), Hop(0, 1), Hop(1, 2, 1.2), Hop(0, 3))
        recipe = RoutingRecipe(self.names[:2], path, 0, "bfloat16")
        out = self.folder / "routed"
        merge_to(recipe, out)
        models = {
            name: filled(self.merger, single(name, "bfloat16"), "float32")
            for name in self.names[:2]
        }
        frame = filled(self.merger, single(self.names[0], "bfloat16"), "float32")
        layers = {name: live.model for name, live in models.items()}
        Router(frame, {n: self.merger.sources[n] for n in layers}, layers).route(recipe)
        other, said = loaded(self.name, out, "float32")
        if missing := said["missing_keys"] + said["unexpected_keys"]:
            return "FAILED", f"{missing[0]} is missing or unexpected"
        ours, theirs = logits(frame.model), logits(other)
        apart = float((ours - theirs).abs().max() / theirs.abs().max())
        # the export rounds scaled branches to bfloat16
        return ("ok", "") if apart < 0.02 else ("FAILED", f"logits are {apart:.1e} apart")


def row_of(kind: str, name: str, folder: Path) -> Row:
    """Return the row of one type."""
    try:
        folders = save_models(kind, name, folder)
    except Exception as error:
        return Row(kind, name, "not made", reason=one_line(error))
    row = Row(kind, name, "refused", len(stored(folders[0])))
    try:
        open_source(str(folders[0]))
    except BadInput as error:
        if wrong := badly_refused(folders):
            return row._replace(result="FAILED", reason=wrong)
        return row._replace(reason=str(error).replace(str(folder) + "/", ""))
    sweep = Sweep(name, folder, folders)
    if sweep.source.class_name != name:
        return row._replace(result="FAILED", reason=f"opened as a {sweep.source.class_name}")
    sweep.run()
    result = "FAILED" if "FAILED" in sweep.columns.values() else "ok"
    return row._replace(result=result, **sweep.columns, reason="; ".join(sweep.reasons))


def badly_refused(folders: Sequence[Path]) -> str:
    """Return what is wrong with how `evomerge check` refuses sources; "" if nothing is."""
    file = folders[0].parent / "campaign.yaml"
    fitness = folders[0].parent / "fitness.py"
    fitness.write_text(FITNESS)
    plan = {
        "name": "types",
        "sources": {"base": str(folders[0]), "models": {f.name: str(f) for f in folders[1:]}},
        "space": {"kind": "parameters", "method": "linear", "axes": {"weight": AXIS}},
        "fitness": [{"name": "mine", "function": str(fitness), "items": 2}],
        "budget": {"evaluations": 2},
    }
    file.write_text(json.dumps(plan))
    done = CliRunner().invoke(evomerge, ["check", str(file)])
    if done.exit_code != 2 or "Traceback" in done.output:
        said = done.output.strip() or repr(done.exception)
        return f"check ends with {done.exit_code}: {said[:200]}"
    return ""


# --- all of them, each in a process of its own ---------------------------------------------------


def isolated(kind: str, name: str, pipe: int) -> None:
    """Write the row of a type to a pipe, in this forked process, within time and memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    signal.alarm(MOST_SECONDS)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        with tempfile.TemporaryDirectory(prefix="evomerge-types-") as folder:
            try:
                row = row_of(kind, name, Path(folder))
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                row = Row(kind, name, "FAILED", reason=f"{one_line(error)} ({where})")
    with os.fdopen(pipe, "w") as out:
        json.dump(row, out)


def swept(pairs: Sequence[tuple[str, str]], processes: int) -> Iterator[Row]:
    """Yield the row of each (type, class), as they end."""
    waiting = list(pairs)
    running: dict[int, tuple[str, str, int]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            kind, name = waiting.pop(0)
            read, write = os.pipe()
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    isolated(kind, name, write)
                os._exit(0)
            os.close(write)
            running[child] = (kind, name, read)
        child, status = os.wait()
        kind, name, read = running.pop(child)
        with os.fdopen(read) as pipe:
            written = pipe.read()
        if written:
            yield Row(*json.loads(written))
        else:
            yield Row(kind, name, "FAILED", reason=f"its process ended with {status}")


def summary(rows: Sequence[Row]) -> str:
    """Return one line of how many types came to what."""
    results = collections.Counter(row.result for row in rows)
    counts = [f"{results[name]} {name}" for name in ("ok", "not made", "refused", "FAILED")]
    return f"{len(rows)} models of {len({row.type for row in rows})} types: {', '.join(counts)}"


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all by default")
    parser.add_argument("--out", type=Path, help=f"CSV of the rows; {KEPT} where all are swept")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = common.parsed(parser, types=["llama", "gpt2", "t5", "falcon_h1", "marian"])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    pairs = [pair for pair in model_classes() if not options.types or pair[0] in options.types]
    if unknown := set(options.types) - {kind for kind, _ in pairs}:
        raise SystemExit(f"no such types: {', '.join(sorted(unknown))}")
    task()  # loaded once for all processes
    rows = []
    for row in swept(pairs, options.processes):
        rows.append(row)
        if not options.types:
            print(f"{len(rows)} of {len(pairs)}: {row.type} {row.result}", file=sys.stderr)
    rows.sort()
    out = options.out or (None if options.types else KEPT)
    if out is not None:
        with open(out / KEPT.name if out.is_dir() else out, "w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(rows)
    told = rows if options.types else [row for row in rows if row.result != "ok"]
    print(common.table(Row._fields, told))
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    print(summary(rows))


if __name__ == "__main__":
    main()
