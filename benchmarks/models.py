"""Models of random weights that the benchmarks merge, and the clock that they are merged by."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from evomerge.merging.merger import Merger
from evomerge.sources.digest import digest
from evomerge.sources.source import Source, open_source

Tensors = dict[str, torch.Tensor]


class Shape(NamedTuple):
    """The shape of a Llama with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    width: int  # of the MLP
    vocabulary: int

    def config(self) -> dict[str, object]:
        """Return what config.json says of it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "intermediate_size": self.width,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
        }

    def layer(self, generator: torch.Generator) -> Tensors:
        """Draw a layer's tensors, by their names within it."""
        shared = self.hidden * self.key_value_heads // self.heads
        shapes = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (shared, self.hidden),
            "self_attn.v_proj": (shared, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.width, self.hidden),
            "mlp.up_proj": (self.width, self.hidden),
            "mlp.down_proj": (self.hidden, self.width),
        }
        drawn = {f"{name}.weight": noise(shape, generator) for name, shape in shapes.items()}
        one = torch.ones(self.hidden, dtype=torch.bfloat16)
        norms = ("input_layernorm", "post_attention_layernorm")
        return drawn | {f"{name}.weight": one.clone() for name in norms}

    def outside(self, generator: torch.Generator) -> Tensors:
        """Draw what is outside the layers."""
        embeddings = noise((self.vocabulary, self.hidden), generator)
        norm = torch.ones(self.hidden, dtype=torch.bfloat16)
        return {"model.embed_tokens.weight": embeddings, "model.norm.weight": norm}


SHAPES = {
    "0.2M": Shape(64, 4, 4, 2, 128, 512),  # of the short forms
    "25M": Shape(384, 12, 6, 2, 1024, 16384),
    "135M": Shape(576, 30, 9, 3, 1536, 49152),
    "500M": Shape(896, 24, 14, 2, 4864, 151936),
    "1.5B": Shape(2048, 24, 16, 4, 8192, 32000),
    "7B": Shape(4096, 32, 32, 8, 14336, 32000),
}


def noise(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Return weights as Llamas begin with: normal, of standard deviation 0.02."""
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    return (drawn * 0.02).to(torch.bfloat16).cpu()


def in_layer(index: int, tensors: Tensors) -> Tensors:
    """Return a layer's tensors by their names in the whole model."""
    return {f"model.layers.{index}.{name}": tensor for name, tensor in tensors.items()}


def make_model(size: str, folder: Path, device: str = "cpu") -> Path:
    """Write a Llama of random bfloat16 weights, of one of SHAPES; return its folder.

    Drawn on a device, which is quick for large ones, and gives other numbers there.
    """
    shape, generator = SHAPES[size], torch.Generator(device).manual_seed(0)
    tensors = shape.outside(generator)
    for index in range(shape.layers):
        tensors |= in_layer(index, shape.layer(generator))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config()))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_expert(base: Path, folder: Path, seed: int, device: str = "cpu") -> Path:
    """Write `base` plus noise of a twentieth of each tensor's deviation; return its folder."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        wide = tensor.to(device).float()
        drawn = torch.randn(wide.shape, generator=generator, device=device)
        noise = drawn * (0.05 * float(wide.std()) + 1e-4)
        tensors[name] = (wide + noise).to(tensor.dtype).cpu()
    return write_like(base, folder, tensors)


def write_like(base: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a model with the config of `base` and weights of its own; return its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def merger_of(names: Iterable[str], device: str = "cpu", room: int | None = None) -> Merger:
    """Return a merger over sources, each opened and hashed; see `Merger` for `room`."""
    opened = {name: open_source(name) for name in names}
    hashes = {name: digest(source).sha256 for name, source in opened.items()}
    return Merger(opened, hashes, device, room)


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
