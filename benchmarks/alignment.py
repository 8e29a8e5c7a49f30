"""Models trained apart, before and after alignment: what lies between them, and what is found.

    python benchmarks/alignment.py digits --seeds 5
    python benchmarks/alignment.py language
    python benchmarks/alignment.py decoders

`digits` trains two perceptrons of M2N2's shape (fitness/digits.py), each from a random start of its
own and on its own batches: both on all training digits (`all`), or one on 0 to 4 and the other on
5 to 9 (`halves`). The second one is aligned with the first by weight matching. Before and after,
their midpoint is judged, the barrier on the line between them, and the best candidate that a search
finds (the campaign of search_spaces/digits-pretrained.yaml, by default of 1,000 passes). Rows are
appended to benchmarks/alignment.csv; a row that is there is not made again.

`language` trains two Llamas of 0.3 M parameters on the documentation's bytes, from random starts of
their own, and prints the loss on held-out bytes of each merge of the two.

`decoders` aligns two Llamas of random weights in bfloat16, in a process of its own: seconds, those
of its processor time, and the peak of memory that the page cache does not hold.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import alignment_language
import common
import torch
from memory import peak_of
from models import make_model, noise
from rows import Rows, deviation
from safetensors.torch import load_file, save_file

from evomerge.aligning.command import run
from evomerge.sources.trust import Trust

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/alignment")
FACTORY = "fitness/digits.py:network"
TRAINING = 1437  # the first 80 %; the rest is held out, as in the campaign
STEPS, BATCH, RATE = 300, 128, 0.003
PARTS = {"all": (range(10), range(10)), "halves": (range(5), range(5, 10))}


def train(file: Path, digits_known: range, seed: int) -> None:
    """Train a perceptron on some digits from a random start, if it is not there yet."""
    if file.exists():
        return
    data, network = digits_module()
    torch.manual_seed(seed)
    images, digits = (part[:TRAINING] for part in data())
    known = torch.isin(digits, torch.tensor(list(digits_known)))
    images, digits = images[known], digits[known]
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
    for _ in range(STEPS):
        batch = torch.randint(len(images), (BATCH,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images[batch]), digits[batch]).backward()
        optimizer.step()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(module.state_dict()), file)


def digits_module():
    """Return the data and the network of fitness/digits.py."""
    sys.path.insert(0, "fitness")
    from digits import data, network

    return data, network


def accuracy(weights: dict[str, torch.Tensor]) -> float:
    """Return the share of held-out images that a perceptron recognizes."""
    data, network = digits_module()
    images, digits = (part[TRAINING:] for part in data())
    module = network()
    module.load_state_dict(weights)
    with torch.no_grad():
        return float((module(images).argmax(1) == digits).float().mean())


def search(files: list[Path], directory: Path, seed: int, passes: int) -> float:
    """Return the held-out accuracy of the best candidate that a campaign over two files finds."""
    settings = [f"seed={seed}", f"budget.evaluations={passes}", "finals=0"]
    for name, file in zip(("low", "high"), files, strict=True):
        settings.append(f'sources.models.{name}={{factory: "{FACTORY}", weights: {file}}}')
    archive = common.run_silently(Path("search_spaces/digits-pretrained.yaml"), directory, settings)
    best = archive.best()
    assert best is not None, "a finished campaign has scored a candidate"
    return archive.means(best, "heldout")["accuracy"]


def digits(start: str, seed: int, passes: int, rows: Rows, runs: Path) -> None:
    """Make the rows of one pair of perceptrons, before and after."""
    folder = runs / f"{start}-{seed}"
    one, other, aligned = (folder / f"{n}.safetensors" for n in ("one", "other", "aligned"))
    for file, known, own in zip((one, other), PARTS[start], (2 * seed, 2 * seed + 1), strict=True):
        train(file, known, own)
    aligned.unlink(missing_ok=True)
    found = run(
        aligned,
        Trust(True, True),
        reference=f"{FACTORY}@{one}",
        model=f"{FACTORY}@{other}",
        fitness=Path("fitness/digits.py"),
    )
    first = load_file(one)
    for state, file in (("as trained", other), ("aligned", aligned)):
        if rows.has(start, state, seed, passes):
            continue
        second = load_file(file)
        line = found["line"]["before" if state == "as trained" else "after"]
        kind = found["units"]["hidden"]
        best = search([one, file], folder / f"run {state} {passes}", seed, passes)
        row = {
            "models": start,
            "state": state,
            "seed": seed,
            "passes": passes,
            "cosine": round(kind["before" if state == "as trained" else "after"], 3),
            "parents": round((accuracy(first) + accuracy(second)) / 2, 4),
            "barrier": round(line["barrier"], 4),
            "midpoint": round(accuracy({n: (first[n] + second[n]) / 2 for n in first}), 4),
            "search": round(best, 4),
        }
        rows.append(row)


def stranger(model: Path, folder: Path) -> Path:
    """Write a Llama of a model's shape with random weights of its own; return its folder."""
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            tensors[name] = noise(tuple(tensor.shape), generator)
    folder.mkdir()
    shutil.copy(model / "config.json", folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def decoders(sizes: list[str], streams: list[bool]) -> None:
    """Print what aligning two random Llamas takes."""
    table = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            one = make_model(size, Path(folder) / "one")
            models = one, stranger(one, Path(folder) / "other")
            for options in (["--stream"] if stream else [] for stream in streams):
                out = f"{folder}/out{len(options)}"
                words = [sys.executable, "-m", "evomerge", "align", *map(str, models), out]
                before = sum(os.times()[2:4])  # of processes that have ended
                peak, seconds = peak_of([*words, *options])
                row = [size, "neurons, heads, stream" if options else "neurons, heads"]
                table.append([*row, seconds, sum(os.times()[2:4]) - before, peak / 1e9])
    headers = ["parameters", "matched", "s", "s of processor", "GB"]
    print(common.table(headers, table, ["", "", ".1f", ".1f", ".2f"]))


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("part", choices=["digits", "language", "decoders"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300, help="of training language models")
    parser.add_argument("--sizes", nargs="*", default=["25M", "135M"])
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(parser, seeds=1, passes=20, steps=3, sizes=["0.2M"])
    torch.set_num_threads(1)
    if options.part == "decoders":
        decoders(options.sizes, [True] if options.short else [False, True])
        return
    if options.part == "language":
        with tempfile.TemporaryDirectory() as folder:
            found = alignment_language.rows(Path(folder), options.steps, points=11)
        headers = ["merge", "parameters", "nats a byte", "barrier"]
        print(common.table(headers, found, ["", "", ".3f", ".3f"]))
        return
    rows = Rows(
        options.out / CSV.name if options.out else CSV, ("models", "state", "seed", "passes")
    )
    for start in PARTS:
        for seed in range(42, 42 + options.seeds):
            digits(start, seed, options.passes, rows, options.out or RUNS)
    groups = {"models": "trained on", "state": "state", "passes": "passes"}
    columns = ("cosine", "parents", "barrier", "midpoint", "search")
    print(rows.table(groups, columns, deviation))


if __name__ == "__main__":
    main()
