"""Two small language models trained apart on the same texts, merged in each way there is.

A part of benchmarks/alignment.py: `python benchmarks/alignment.py language`.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.aligning.aligned_model import MODEL, Alignment, align, open_pair
from evomerge.aligning.line import Line, walk
from evomerge.aligning.widened import widen
from evomerge.merging.live_model import Live, LiveModel
from evomerge.merging.source_weights import SourceWeights
from evomerge.sources.source import open_source

Row = list[object]

LENGTH, BATCH, RATE = 128, 16, 0.003
HELD_OUT = 32  # stretches of LENGTH bytes, at the texts' end


def texts(folder: Path) -> torch.Tensor:
    """Return the (bytes,) of all Markdown in a folder, which is text enough for a small model."""
    joined = "\n".join(file.read_text("utf-8") for file in sorted(folder.glob("*.md")))
    return torch.tensor(list(joined.encode()))


def batches(data: torch.Tensor, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield (BATCH, LENGTH) bytes, drawn from all but those held out."""
    generator = torch.Generator().manual_seed(seed)
    last = len(data) - HELD_OUT * LENGTH - LENGTH
    for _ in range(steps):
        starts = torch.randint(last, (BATCH,), generator=generator)
        yield torch.stack([data[start : start + LENGTH] for start in starts.tolist()])


def train(folder: Path, data: torch.Tensor, steps: int, seed: int) -> Path:
    """Train a Llama of 0.3 M parameters on bytes from a random start; return its folder."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for batch in batches(data, steps, seed):
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    bytes_tokenizer().save_pretrained(folder)
    return folder


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes, by their values."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # which stand for themselves
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    letters |= {chr(256 + number): byte for number, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class HeldOut:
    """The loss on the texts' end, in nats a byte."""

    measure = "nats a byte"
    lower_is_better = True

    def __init__(self, data: torch.Tensor):
        self._rows = data[-HELD_OUT * LENGTH :].view(HELD_OUT, LENGTH)

    def __call__(self, live: Live) -> float:
        with torch.inference_mode():
            return float(live.model(self._rows, labels=self._rows).loss)


def parameters(folder: Path | str) -> int:
    """Return how many numbers a model has."""
    return sum(tensor.elements for tensor in open_source(str(folder)).tensors.values())


def judged(folder: Path, judge: HeldOut) -> float:
    """Return the loss of a saved model."""
    source = open_source(str(folder))
    live = LiveModel(source, "float32")
    weights = SourceWeights({"": source}, torch.device("cpu"), room=0)
    live.load((name, weights.tensor("", name)) for name in source.tensors)
    return judge(live)


def rows(folder: Path, steps: int, points: int) -> list[Row]:
    """Return merge, parameters, loss and barrier of each way to merge two models trained apart."""
    data = texts(Path(__file__).parent.parent / "docs")
    judge = HeldOut(data)
    trained = [train(folder / str(seed), data, steps, seed) for seed in (0, 1)]
    size = parameters(trained[0])
    found: list[Row] = [
        [f"model {i}", f"{size:,}", judged(model, judge)] for i, model in enumerate(trained)
    ]
    pair = open_pair(*map(str, trained))

    def line(alignment: Alignment | None) -> Line:
        end = alignment.tensor if alignment else lambda name: pair.weights.tensor(MODEL, name)
        return walk(pair, end, judge, points)

    ways = {
        "as trained": None,
        "neurons and heads aligned": align(pair),
        "stream aligned too": align(pair, stream=True),
    }
    for name, alignment in ways.items():
        walked = line(alignment)
        middle = walked.values[points // 2]
        found.append([f"midpoint, {name}", f"{size:,}", middle, walked.barrier])
    stretches = torch.cat([*batches(data, 4, seed=2)]).tolist()  # 8 KB of what was trained on
    lines = [bytes(row).decode("utf-8", "ignore").replace("\n", " ") for row in stretches]
    file = folder / "texts.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    for apart in (0.0, 0.2, 1.0):
        for fitted in (None, file):
            out = folder / f"wider {apart} {fitted is not None}"
            widened = widen(*map(str, trained), out, apart=apart, stream=True, texts=fitted)
            name = f"{100 * apart:.0f} % apart{', fitted' if fitted else ''}"
            found.append([name, f"{widened.parameters:,}", judged(out, judge)])
    return found
