"""transformers' own forward passes and `generate`, by way of lm-eval's model for them."""

from collections.abc import Iterable
from typing import Any

import torch

from evomerge.engines import ENGINES, Engine, EngineOptions
from evomerge.merging.live_heads import Heads
from evomerge.merging.live_model import Live, open_live_model
from evomerge.merging.quantized_live import QuantizedLive
from evomerge.scoring.fitness import AskedSection
from evomerge.scoring.lm_eval_model import LoadedModel
from evomerge.sources.source import Source


class TransformersEngine(Engine):
    """A live model of transformers, or the module of a factory.

    Attributes:
        live: the model.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(folder, 0)))
    ...     engine = TransformersEngine.open(source, EngineOptions("float32"))
    >>> engine.direct["model.norm.weight"].shape
    torch.Size([16])
    """

    name = "transformers"

    def __init__(self, live: Live):
        self.live, self.model, self.tokenizer = live, live.model, live.tokenizer
        self.direct = live.direct
        self._language_models: dict[int | None, Any] = {}  # by prompts at once

    @classmethod
    def open(cls, source: Source, options: EngineOptions) -> "TransformersEngine":
        live: Live = open_live_model(
            source, options.dtype, options.device, options.trust_remote_code, options.gpus
        )
        if options.heads:  # a mapping, which torch does not take for a part of the model
            live.model.heads = Heads(live.model, options.heads)  # type: ignore[assignment]
        if options.quantize:
            live = QuantizedLive(live, options.quantize)
        return cls(live)

    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.live.load(stream)

    def language_model(self, section: AskedSection) -> Any:
        size = section.batch_size
        if size not in self._language_models:
            loaded = LoadedModel(self.model, self.tokenizer)
            self._language_models[size] = loaded.language_model(section)
        return self._language_models[size]


ENGINES.add("transformers", TransformersEngine)
