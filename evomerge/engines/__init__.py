"""What runs a live model: it takes merged weights, and answers what fitnesses ask.

A new engine is one new file here. What an engine answers is part of a campaign: near-ties fall
otherwise in another one, so that a campaign has one engine from its first candidate to its last.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from evomerge.merging.merger import Merger
from evomerge.recipes.recipe import Recipe
from evomerge.registry import Registry
from evomerge.scoring.fitness import AskedSection
from evomerge.sources.source import Source


class EngineOptions(NamedTuple):
    """How an engine is made.

    Attributes:
        dtype: of the live weights, as recipes write it.
        device: "cpu", "cuda" or "cuda:1".
        trust_remote_code: whether modelling code that comes with the source may run.
        memory: share of the device that it may take, caches of keys and values included.
        gpus: that hold the model together.
        sources_bytes: of the sources' weights that stay on each of several GPUs; None: as many as
            fit.
        by_request: kind of request, as lm-eval calls them, or "model" for fitnesses in Python ->
            the engine that answers it, where there are several.
        sources: all that are merged, the first gives config and tokenizer; for engines that serve
            adapters.
        candidates: how many it is to hold at once, where it can.
        quantize: "int8" or "int4", in which linear layers compute; "": as they are merged.
        heads: label -> source, of those whose trunk alone is merged.

    >>> EngineOptions("bfloat16").device
    'cpu'
    """

    dtype: str
    device: str = "cpu"
    trust_remote_code: bool = False
    memory: float = 0.5
    gpus: int = 1
    sources_bytes: int | None = None
    by_request: Mapping[str, str] = MappingProxyType({})
    sources: Sequence[Source] = ()
    candidates: int = 1
    quantize: str = ""
    heads: Mapping[str, Source] = MappingProxyType({})


class Engine(ABC):
    """A model that is filled again and again, and answers.

    Attributes:
        name: of the engine, as campaign files write it.
        needs: the package that it needs, if that is an extra.
        model: of transformers or of a factory, in eval mode, for fitnesses in Python; None where
            the engine has none.
        tokenizer: the source's; None if it has none.
        direct: the live tensors that hold a checkpoint's tensor as it is, by the latter's name;
            the others are filled by `load`.
        serves_adapters: whether candidates are LoRA adapters beside one base, and not weights.
        checksum: of the factors of the adapter that it serves.

    >>> sorted(ENGINES.all())
    ['auto', 'transformers', 'vllm', 'vllm-lora']
    """

    name: ClassVar[str]
    needs: ClassVar[str] = ""
    serves_adapters: ClassVar[bool] = False
    checksum: str = ""
    model: torch.nn.Module | None
    tokenizer: Any
    direct: dict[str, torch.Tensor]

    @classmethod
    @abstractmethod
    def open(cls, source: Source, options: EngineOptions) -> "Engine":
        """Return an engine for models with the architecture of `source`; weights come later.

        Raises:
            BadInput: it has no such model.
        """

    @abstractmethod
    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite weights with a stream of (checkpoint name, tensor) in any order.

        What is in `direct` may be left out, if it was overwritten before.
        """

    def become(self, merger: Merger, recipe: Recipe) -> dict[str, np.ndarray]:
        """Let the model be that of a recipe; return the digests of its tensors by name.

        Raises:
            CandidateFailure: see `Merger.stream`; the weights are of no model then.
        """
        digests = merger.fill(recipe, self.direct)
        # what transformers stacks or splits on loading is streamed
        others = [name for name in merger.shapes(recipe) if name not in digests]
        self.load(merger.stream(recipe, others, digests))
        return digests

    def expect(self, merger: Merger, recipes: Sequence[Recipe]) -> None:  # noqa: B027
        """Hear which recipes it will `become` next, one after the other, to be asked the same.

        An engine that holds several candidates answers for all of them at once.
        """

    @classmethod
    def unfit(cls, sources: Sequence[Source]) -> Iterable[str]:
        """Yield why it cannot run merges of sources, as far as their headers tell."""
        return ()

    @abstractmethod
    def language_model(self, section: AskedSection) -> Any:
        """Return the model for lm-eval, as a task's entry wants it."""

    @property
    def parts(self) -> Sequence["Engine"]:
        """The engines that it is made of: itself, or those that share the work."""
        return (self,)

    def close(self) -> None:  # noqa: B027 (most have nothing to do)
        """Give back what it took."""


ENGINES: Registry[type[Engine]] = Registry("evomerge.engines", "engine")
