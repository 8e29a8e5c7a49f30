"""A sentence embedder that lives on a worker's device: see `live_model.Live`."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from evomerge.merging.live import Live
from evomerge.sources.opened import Source
from evomerge.sources.sentence_models import sentence_model_around
from evomerge.sources.sentence_modules import module_tensors


class LiveSentence:
    """A SentenceTransformer, whose transformers model and dense layers are filled again and again.

    Attributes:
        model, tokenizer, direct: see `Live`; names of a module's begin with its folder.

    >>> LiveSentence.__init__.__annotations__["device"]
    <class 'str'>
    """

    def __init__(self, inner: Live, source: Source, dtype: str, device: str):
        """
        Args:
            inner: the transformers model.
            source: of form "sentence".
            dtype: of the modules' weights, as recipes write it.
            device: e.g. "cpu" or "cuda".

        Raises:
            BadInput: sentence-transformers is not installed.
        """
        self._inner, self.tokenizer = inner, inner.tokenizer
        self.model: Any = sentence_model_around(inner.model, source.path, device)
        own = {**source.tensors, **source.carried}
        self._modules: dict[str, torch.Tensor] = {}
        for module, folder in zip(self.model, _folders(self.model, source), strict=True):
            if folder and any(name.startswith(f"{folder}.") for name in own):
                module.to(device, getattr(torch, dtype))
                state = module.state_dict()
                self._modules |= {f"{folder}.{key}": tensor for key, tensor in state.items()}
        self.direct = dict(inner.direct)
        for name in source.tensors:
            if name in self._modules and self._modules[name].is_contiguous():
                self.direct[name] = self._modules[name]

    @torch.no_grad()
    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `Live.load`."""
        others = []
        for name, tensor in stream:
            if name in self._modules:
                self._modules[name].copy_(tensor)
            else:
                others.append((name, tensor))
        self._inner.load(others)


def without_modules(source: Source) -> Source:
    """Return the transformers model of a sentence embedder as a source of its own.

    >>> from pathlib import Path
    >>> without_modules(Source("a", Path("a"), {}, {}, {}, form="transformers")).tensors
    {}
    """
    folders = module_tensors(source.path) if source.form == "sentence" else ()
    own = []
    for tensors in (source.tensors, source.carried):
        kept = {n: t for n, t in tensors.items() if n.partition(".")[0] not in folders}
        own.append(kept)
    return replace(source, tensors=own[0], carried=own[1], form="transformers")


def _folders(model: Any, source: Source) -> list[str]:
    """Return the folder of each module of a model, in their order; "" of the first."""
    folders = ["", *module_tensors(source.path)]
    assert len(folders) == len(model), "each module has its entry in modules.json"
    return folders
