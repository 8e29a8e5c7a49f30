"""Models of random weights that the benchmarks merge, and the clock that they are merged by."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evomerge.merging.merger import Merger
from evomerge.sources.digest import digest
from evomerge.sources.source import Source, open_source

SHAPES = {  # hidden size, layers, heads, key-value heads, width of the MLP, vocabulary
    "0.2M": (64, 4, 4, 2, 128, 512),  # of the short forms
    "25M": (384, 12, 6, 2, 1024, 16384),
    "135M": (576, 30, 9, 3, 1536, 49152),
    "7B": (4096, 32, 32, 8, 14336, 32000),
}


def make_model(size: str, folder: Path) -> Path:
    """Write a Llama of random bfloat16 weights, of one of SHAPES; return its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, shared, width, vocabulary = SHAPES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        intermediate_size=width,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_expert(base: Path, folder: Path, seed: int) -> Path:
    """Write `base` plus noise of a twentieth of each tensor's deviation; return its folder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        wide = tensor.float()
        noise = torch.randn(wide.shape, generator=generator) * (0.05 * float(wide.std()) + 1e-4)
        tensors[name] = (wide + noise).to(tensor.dtype)
    return write_like(base, folder, tensors)


def write_like(base: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a model with the config of `base` and weights of its own; return its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def merger_of(names: Iterable[str], device: str = "cpu") -> Merger:
    """Return a merger over sources, each opened and hashed."""
    opened = {name: open_source(name) for name in names}
    return Merger(opened, {name: digest(source).sha256 for name, source in opened.items()}, device)


def live_tensors(source: Source, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return what a live model has: a bfloat16 tensor for each of a source's."""
    return {
        name: torch.zeros(tensor.shape, dtype=torch.bfloat16, device=device)
        for name, tensor in source.tensors.items()
    }


def seconds_of(work: Callable[[], object], times: int = 1) -> float:
    """Return the seconds of the quickest of so many calls, what a GPU does in them included."""
    quickest = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        work()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        quickest = min(quickest, time.perf_counter() - started)
    return quickest
