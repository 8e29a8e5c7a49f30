"""What a candidate costs to run, as an objective: depth, size, or measured time."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evomerge.canonical import item_hash
from evomerge.scoring.fitness import CostSection, Fitness, Scorable

# Enough of each to leave out what the first steps cost, and to take less than a second.
_PROMPT, _TOKENS = 32, 16


class CostFitness(Fitness):
    """One item, whose score is the cost; for the search and, measured again, held out.

    - `hops`: layers that a token passes.
    - `parameters`: of the model as it is exported, where a layer that comes twice counts twice.
    - `seconds_per_token`: the quickest of some greedy steps with the key-value cache, batch 1; what
      else the machine does can only add to it.

    >>> CostFitness(CostSection(name="depth", cost="hops")).is_cost
    True
    """

    is_cost = True

    def __init__(self, section: CostSection):
        self.direction = section.direction or "minimize"
        self.hashes = [item_hash(section.cost)]
        self._measure = _MEASURES[section.cost]

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        self._model = live.model

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        return np.full(len(ordinals), self._measure(self._model), np.float32)

    def characters(self) -> float:
        """Return the length of what is read to score it: next to nothing."""
        return 0.0


def _hops(model: Any) -> float:
    return float(model.config.num_hidden_layers)


def _parameters(model: Any) -> float:
    from evomerge.merging.live_routing import layers_of

    layers = layers_of(model.base_model)
    inside = {p for layer in layers for p in layer.parameters()}
    outside = [p.numel() for p in model.parameters() if p not in inside]
    return sum(outside) + sum(p.numel() for layer in layers for p in layer.parameters())


def _seconds_per_token(model: Any) -> float:
    import torch

    device = next(model.parameters()).device
    ids = torch.arange(_PROMPT, device=device)[None] % model.config.vocab_size
    seconds = []
    with torch.inference_mode():
        out = model(ids, use_cache=True)
        for _ in range(_TOKENS):
            started = time.perf_counter()
            ids = out.logits[:, -1:].argmax(-1)
            out = model(ids, past_key_values=out.past_key_values, use_cache=True)
            out.logits[0, -1, 0].item()  # waits for a device
            seconds.append(time.perf_counter() - started)
    return min(seconds)


_MEASURES: dict[str, Callable[[Any], float]] = {
    "hops": _hops,
    "parameters": _parameters,
    "seconds_per_token": _seconds_per_token,
}
