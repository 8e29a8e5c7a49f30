"""One of the GPUs that hold a model together in vLLM: it merges all, and keeps its own share.

Recipes travel to the ranks, not weights: each reads the sources itself, tensor by tensor, and
vLLM's loader takes what belongs there (https://arxiv.org/abs/1909.08053, section 3).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from evomerge.errors import CandidateFailure
from evomerge.merging.device_memory import room_for_sources
from evomerge.merging.merger import Merger
from evomerge.recipes.recipe import Recipe
from evomerge.sources.source import Source


class VllmRank:
    """What a worker of vLLM's own can do besides; vLLM makes it a base of its worker's class.

    >>> VllmRank.reload_weights
    Traceback (most recent call last):
    AttributeError: type object 'VllmRank' has no attribute 'reload_weights'
    """

    reload_weights: Any  # of vLLM's worker

    def open_sources(
        self,
        sources: Mapping[str, Source],
        hashes: Mapping[str, str],
        device: str,
        sources_bytes: int | None,
        ties: Mapping[str, list[str]],
    ) -> None:
        """Get ready to merge.

        Args:
            sources, hashes: see `Merger`.
            device: "cpu" or "cuda", the rank's own.
            sources_bytes: of sources that stay there; None: as many as fit.
            ties: see `with_ties`.
        """
        room = room_for_sources(device, sources_bytes)
        self._evomerge = Merger(sources, hashes, device, room), ties

    def become(self, recipe: Recipe) -> dict[str, np.ndarray] | str:
        """Take the weights of a recipe's model; return its tensors' digests, or why it has none.

        A candidate's failure is a result like another, and the same in all ranks: one that raised
        would leave the others' answers to be taken for those to the next question.
        """
        merger, ties = self._evomerge
        digests: dict[str, np.ndarray] = {}
        try:
            stream = merger.stream(recipe, None, digests)
            self.reload_weights(weights_iterator=with_ties(stream, ties))
        except CandidateFailure as error:
            return str(error)
        return digests


def with_ties(
    stream: Iterable[tuple[str, torch.Tensor]], ties: Mapping[str, list[str]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors, those that other names of the model take as well under these, too.

    Args:
        stream: (name, tensor).
        ties: name -> the other names.

    >>> [name for name, _ in with_ties([("embed", torch.ones(1))], {"embed": ["head"]})]
    ['embed', 'head']
    """
    for name, tensor in stream:
        yield name, tensor
        for other in ties.get(name, ()):
            yield other, tensor
