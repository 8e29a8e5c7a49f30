"""Two engines for one model: each kind of request goes to the one that answers it sooner.

Which that is depends on the model, the task and the machine: vLLM generates several times as fast
as transformers, and is slower at multiple choice, where it computes the head for every token of a
prompt. `campaign.engine_choice` measures it once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from evomerge.engines import ENGINES, Engine, EngineOptions
from evomerge.merging.merger import Merger
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.fitness import AskedSection
from evomerge.sources.source import Source


class AutoEngine(Engine):
    """Engines that are one model together.

    >>> AutoEngine.open(None, EngineOptions("float32"))
    Traceback (most recent call last):
    ValueError: which engine answers what is measured before it is opened
    """

    name = "auto"

    def __init__(self, engines: Mapping[str, Engine], by_request: Mapping[str, str]):
        """
        Args:
            engines: by name.
            by_request: see `EngineOptions`.
        """
        # what has live tensors comes first: the merge goes into them, and on from there
        ordered = sorted(engines.items(), key=lambda item: not item[1].direct)
        self._named = dict(ordered)
        self._first, *self._others = self._named.values()
        self._by_request = dict(by_request)
        self.direct = self._first.direct
        self.model, self.tokenizer = self._first.model, self._first.tokenizer
        self._language_models: dict[tuple[int, ...], _EitherLM] = {}

    @classmethod
    def open(cls, source: Source, options: EngineOptions) -> "AutoEngine":
        if not options.by_request:
            raise ValueError("which engine answers what is measured before it is opened")
        names = sorted(set(options.by_request.values()))
        opened = {name: ENGINES.get(name).open(source, options) for name in names}
        return cls(opened, options.by_request)

    @property
    def parts(self) -> Sequence[Engine]:
        return (self._first, *self._others)

    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        tensors = list(stream)  # for each of them; a whole model goes by `become`
        for engine in self.parts:
            engine.load(tensors)

    def become(self, merger: Merger, recipe: Recipe) -> dict[str, np.ndarray]:
        digests = self._first.become(merger, recipe)
        for engine in self._others:
            engine.load(self._merged(merger, recipe))
        return digests

    def _merged(self, merger: Merger, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield a recipe's tensors: those that are live already, and the others merged again."""
        others = [name for name in merger.shapes(recipe) if name not in self.direct]
        return chain(self.direct.items(), merger.stream(recipe, others))

    def language_model(self, section: AskedSection) -> Any:
        models = {name: engine.language_model(section) for name, engine in self._named.items()}
        key = tuple(map(id, models.values()))
        if key not in self._language_models:
            self._language_models[key] = _EitherLM(models, self._by_request)
        return self._language_models[key]

    def close(self) -> None:
        for engine in self.parts:
            engine.close()


class _EitherLM:
    """Models for lm-eval, each asked what it answers sooner."""

    def __init__(self, models: Mapping[str, Any], by_request: Mapping[str, str]):
        first = next(iter(models.values()))
        # encodings and chat templates are the same in all, those of lm-eval's own HFLM
        self.tokenizer_name = first.tokenizer_name
        self.apply_chat_template = first.apply_chat_template
        asked = {kind: models[name] for kind, name in by_request.items() if name in models}
        generating = asked.get("generate_until", first)
        self.generate_until, self.length = generating.generate_until, generating.length
        self.loglikelihood = asked.get("loglikelihood", first).loglikelihood
        rolling = asked.get("loglikelihood_rolling", first)
        self.loglikelihood_rolling = rolling.loglikelihood_rolling


ENGINES.add("auto", AutoEngine)
