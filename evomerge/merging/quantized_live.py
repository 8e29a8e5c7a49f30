"""A live model that computes with quantized linear weights, made anew of each merge.

People ship models whose weights are rounded to eight or four bits, and which merge is best may
depend on that. A merge needs the live weights as they are, so they stay, and each linear layer
computes with a quantized copy beside them (a byte a weight), which torchao makes
(https://github.com/pytorch/ao) as it does when the exported model is loaded quantized: the logits
are the same to the last bit.
"""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from evomerge.environment import NOISY
from evomerge.errors import BadInput, Fault
from evomerge.merging.live_model import Live
from evomerge.sources.transformers_loading import kept_in_float32

_GROUP = 32  # weights of a row that share a scale in four bits, as in llama.cpp's q4_0

_SMALLEST_GROUP = 8  # below it a row has one scale


class QuantizedLive:
    """A live model that quantizes its linear weights once they are overwritten; see `Live`.

    The last thing that is done to fill a model is `load`, so that is where they are quantized.

    Attributes:
        layers: those that compute with quantized weights.

    >>> import tempfile
    >>> from evomerge.merging.live_model import open_live_model
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plain = open_live_model(open_source(str(tiny_llama(folder, 0))), "float32")
    >>> len(QuantizedLive(plain, "int8").layers)
    14
    """

    def __init__(self, live: Live, kind: str):
        """
        Args:
            live: the model.
            kind: "int8", with a scale for each row, or "int4", with one for each 32 weights of a
                row, or for as many of 16 or 8 as divide the row.

        Raises:
            BadInput: the model has no linear layer.
        """
        self.model, self.tokenizer, self.direct = live.model, live.tokenizer, live.direct
        self._live, self._kind = live, kind
        self.layers = linear_layers(live.model)
        if not self.layers:
            wrong = f"{type(live.model).__name__} has no linear layer that is quantized"
            raise BadInput(Fault("workers.quantize", wrong, "leave it out"))
        self._whole = [layer.weight for layer in self.layers]

    @torch.no_grad()
    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `Live.load`; all that is in `direct` is overwritten by then."""
        self._live.load(stream)
        for layer, whole in zip(self.layers, self._whole, strict=True):
            layer.weight = whole
            quantize(layer, self._kind)


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the layers of a model whose weights are quantized when it is shipped.

    All linear ones but for the head, for what shares its tensor with embeddings, and for what
    transformers keeps in float32: as its own loading of quantized models has it.

    >>> len(linear_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))))
    1
    """
    from transformers import PreTrainedModel

    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    left_out = {module.weight.data_ptr() for module in embeddings}
    if isinstance(model, PreTrainedModel):
        head = model.get_output_embeddings()
        if head is not None:
            left_out.add(head.weight.data_ptr())
        left_out |= {tensor.data_ptr() for tensor in kept_in_float32(model)}
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [module for module in linear if module.weight.data_ptr() not in left_out]


def quantize(layer: nn.Linear, kind: str) -> None:
    """Let a layer compute with quantized weights; the tensor of its own is left as it is.

    Args:
        layer: whose weight becomes one of torchao's tensors.
        kind: "int8" or "int4".

    >>> layer = nn.Linear(4, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.5, -0.25, 0.126]]))
    >>> quantize(layer, "int8")
    >>> layer.weight.dequantize()
    tensor([[ 0.9961,  0.5020, -0.2510,  0.1255]])
    """
    config, by_torchao = quantization(kind, layer.in_features)
    by_torchao(nn.Sequential(layer), config)


def quantization(kind: str, width: int) -> tuple[Any, Any]:
    """Return torchao's configuration for weights of a width, and its function that applies it.

    >>> config, _ = quantization("int4", 368)
    >>> config.granularity
    PerGroup(group_size=16)
    """
    with _muted():
        from torchao.quantization import (
            Int8WeightOnlyConfig,
            IntxWeightOnlyConfig,
            PerAxis,
            PerGroup,
            quantize_,
        )

    if kind == "int8":
        return Int8WeightOnlyConfig(), quantize_
    group = math.gcd(_GROUP, width)
    granularity = PerGroup(group) if group >= _SMALLEST_GROUP else PerAxis(0)
    four_bits = getattr(torch, "int4")  # noqa: B009 (torch's types do not list it)
    return IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=granularity), quantize_


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keep a library from logging which of its GPU programs this build has not."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
