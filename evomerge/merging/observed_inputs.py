"""Gram matrices of the inputs of a model's linear layers, over texts that it reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from evomerge.merging.live_model import Live
from evomerge.node.phases import Steps
from evomerge.sources.model_class import class_of
from evomerge.sources.source import Source
from evomerge.sources.transformers_loading import conversions

# Wider inputs are described by the diagonal alone: one of 16,384 would take a gigabyte.
WIDEST = 8192


def inputs_of(
    live: Live, tokens: Sequence[torch.Tensor], steps: Steps
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read texts, and return what each linear layer took in.

    G = X^T X / n over all n tokens (Jin et al. 2023, arXiv:2212.09849). Layers that
    take the same tensor in (queries, keys and values) are told once.

    Args:
        live: filled.
        tokens: (1, tokens) int64 each.
        steps: hears of how many texts are read.

    Returns:
        Weight's name -> (in, in) float32, or (in,) where there are more than `WIDEST`; and {"same":
        name -> the name that stands for it}.

    >>> from evomerge.testing.observed import example_filled
    >>> live = example_filled()
    >>> grams, about = inputs_of(live, [torch.tensor([[1, 2, 3]])], Steps("", "texts", 1))
    >>> grams["model.layers.0.self_attn.q_proj.weight"].shape, len(about["same"])
    (torch.Size([16, 16]), 6)
    """
    layers = linear_layers(live)
    gatherer = Gatherer(layers)
    with gatherer, torch.inference_mode():
        for number, ids in enumerate(tokens):
            steps.done(number)
            live.model(input_ids=ids, use_cache=False)
    same = {name: first for name, first in gatherer.same.items() if name != first}
    return gatherer.grams(), {"same": same}


def linear_layers(live: Live) -> dict[str, torch.nn.Module]:
    """Return the linear layers whose weight is a checkpoint's tensor, by that tensor's name.

    >>> from evomerge.testing.observed import example_filled
    >>> len(linear_layers(example_filled()))  # seven in each of two layers, and the head
    15
    """
    by_weight: dict[int, torch.nn.Module] = {}
    for module in live.model.modules():
        if isinstance(module, torch.nn.Linear) or is_transposed(module):
            weight: torch.Tensor = module.get_parameter("weight")
            by_weight[weight.data_ptr()] = module
    layers = {}
    for name, tensor in live.direct.items():
        if tensor.data_ptr() in by_weight:
            layers[name] = by_weight[tensor.data_ptr()]
    return layers


def is_transposed(layer: torch.nn.Module) -> bool:
    """Tell whether a module is a linear layer whose weight is (in, out), as GPT-2 has them.

    >>> is_transposed(torch.nn.Linear(2, 3))
    False
    """
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def transposed_weights(frame: Source) -> set[str]:
    """Return the names of weights that are (in, out), as of GPT-2's layers.

    Asked of an empty model of the class; none of a source that has no class.

    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing.campaigns import example_folder
    >>> transposed_weights(open_source(str(example_folder() / "base")))
    set()
    """
    if not frame.class_name:
        return set()
    class_, config = class_of(frame.config, frame.path, remote_code=False)
    with torch.device("meta"):
        model = class_._from_config(config)
    modules = dict(model.named_modules())
    found = set()
    for name, conversion in conversions(model, frame.tensors).items():
        module = modules.get(conversion.target.removesuffix(".weight"))
        if module is not None and is_transposed(module):
            found.add(name)
    return found


class Gatherer:
    """Adds up the Gram matrices of linear layers' inputs while a model reads.

    Attributes:
        same: name -> the first name of those that took the same tensors in.

    >>> layer = torch.nn.Linear(2, 3)
    >>> with Gatherer({"w": layer}) as gatherer:
    ...     _ = layer(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    >>> gatherer.grams()["w"]
    tensor([[2., 0.],
            [0., 0.]])
    """

    def __init__(self, layers: Mapping[str, torch.nn.Module]):
        """
        Args:
            layers: by their weights' names.
        """
        self._layers = layers
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._last: tuple[str, torch.Tensor] | None = None  # what was taken in last, and by whom
        self.same: dict[str, str] = {}

    def __enter__(self) -> "Gatherer":
        for name, layer in self._layers.items():
            self._hooks.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._last = None

    def _hook(self, name: str) -> Any:
        def hear(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._add(name, inputs[0])

        return hear

    def _add(self, name: str, taken: torch.Tensor) -> None:
        if self._last is not None and self._last[1] is taken and self._is_same(name):
            self.same[name] = self._last[0]
            return
        self.same[name] = name
        self._last = name, taken  # kept alive, so that no other tensor can be taken for it
        rows = taken.reshape(-1, taken.shape[-1]).float()
        width = rows.shape[1]
        if name not in self._sums:
            self._sums[name] = rows.new_zeros((width, width) if width <= WIDEST else width)
            self._counts[name] = 0
        if width <= WIDEST:
            self._sums[name].addmm_(rows.T, rows)
        else:
            self._sums[name].add_(rows.square().sum(0))
        self._counts[name] += len(rows)

    def _is_same(self, name: str) -> bool:
        """Tell whether a layer took in what the last one did whenever it was asked before."""
        assert self._last is not None
        return name not in self._sums and self.same.get(name, self._last[0]) == self._last[0]

    def grams(self) -> dict[str, torch.Tensor]:
        """Return X^T X / n by name, on the processor; of those that took the same in, the first.

        What was added up is no longer kept then.
        """
        names = list(self._sums)
        return {name: (self._sums.pop(name) / self._counts[name]).cpu() for name in names}
