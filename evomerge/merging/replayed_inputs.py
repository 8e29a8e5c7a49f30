"""Texts read layer by layer, each layer of a model fed by what the merged layers before it gave."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from evomerge.errors import BadInput, Fault
from evomerge.merging.live_model import Live
from evomerge.merging.observations import LinearInputs, Observations
from evomerge.merging.observed_inputs import Gatherer, is_transposed, linear_layers
from evomerge.tensor_names import before_layer, place

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Replay:
    """Reads every model's texts through one decoder, whose layers are merged one after another.

    Each layer is called twice for each text: with its model's own weights, to see what its linear
    layers take in, and with the merged ones, to go on.

    >>> Replay.inputs.__doc__.splitlines()[0]
    "Return what each model's own layer takes in, behind the merged layers before it."
    """

    def __init__(self, known: Observations, count: int, merged: Mapping[str, torch.Tensor]):
        """
        Args:
            known: of the models.
            count: of the models.
            merged: what stands before the layers, merged, by name.

        Raises:
            BadInput: the frame is no decoder whose layers follow one another.
        """
        self._known, self._count = known, count
        live = known.live()
        layers = _layers(live)
        first = [_First(layers) for _ in range(count)]
        for i in range(count):
            tokens = known.tokens(i)
            live = known.fill(i)
            live.load(merged.items())
            body = cast("PreTrainedModel", live.model).base_model  # the head is not asked
            with first[i], torch.inference_mode():
                for ids in tokens:
                    body(input_ids=ids, use_cache=False)
            first[i].check()
        self._layers, self._live = layers, live
        self._linear = linear_layers(live)
        self._hidden = [reader.hidden for reader in first]
        self._options = [reader.options for reader in first]  # model, text, layer

    def inputs(self, layer: int, names: Sequence[str]) -> dict[str, LinearInputs]:
        """Return what each model's own layer takes in, behind the merged layers before it.

        Args:
            layer: the next one.
            names: of its tensors.

        Returns:
            By name, of those that are linear layers' weights.
        """
        linear = {name: self._linear[name] for name in names if name in self._linear}
        found: dict[str, list[torch.Tensor]] = {name: [] for name in linear}
        for i in range(self._count):
            self._live.load((name, self._known.tensor(i, name)) for name in names)
            with Gatherer(linear) as gatherer, torch.inference_mode():
                for text, hidden in enumerate(self._hidden[i]):
                    self._layers[layer](hidden, **self._options[i][text][layer])
            grams = gatherer.grams()
            for name in linear:
                key = gatherer.same.get(name, name)
                if key in grams:  # an expert may have been sent no token
                    found[name].append(grams[key])
        whole = {name: grams for name, grams in found.items() if len(grams) == self._count}
        return {n: LinearInputs(grams, is_transposed(linear[n])) for n, grams in whole.items()}

    def go_on(self, layer: int, merged: Mapping[str, torch.Tensor]) -> None:
        """Read on to the next layer, through this one merged.

        Args:
            layer: this one.
            merged: all of its tensors, by name.
        """
        self._live.load(merged.items())
        with torch.inference_mode():
            for i in range(self._count):
                for text, hidden in enumerate(self._hidden[i]):
                    given = self._layers[layer](hidden, **self._options[i][text][layer])
                    self._hidden[i][text] = _hidden_of(given)


def _layers(live: Live) -> list[torch.nn.Module]:
    """Return a decoder's layers in their order.

    Raises:
        BadInput: it has none that can be told.
    """
    names = [name for name, _ in live.model.named_parameters() if place(name).part == "layer"]
    lists = {before_layer(name).removesuffix(".") for name in names}
    if len(lists) == 1:
        found = live.model.get_submodule(lists.pop())
        if isinstance(found, torch.nn.ModuleList):
            return list(found)
    raise _no_decoder()


def _no_decoder() -> BadInput:
    wrong = "the base is no decoder whose layers follow one another"
    return BadInput(Fault("base", wrong, "take regmean, which reads all layers at once"))


class _First:
    """What a first reading tells: what enters the first layer, and what else each is given.

    Attributes:
        hidden: of each text, what enters the first layer.
        options: of each text and layer, the keyword arguments.
    """

    def __init__(self, layers: Sequence[torch.nn.Module]):
        self._layers, self._hooks = layers, list[Any]()
        self.hidden: list[torch.Tensor] = []
        self.options: list[list[dict[str, Any]]] = []
        self._given: torch.Tensor | None = None  # by the layer before
        self._follows = True

    def __enter__(self) -> "_First":
        for number, layer in enumerate(self._layers):
            before = layer.register_forward_pre_hook(self._hear(number), with_kwargs=True)
            self._hooks += [before, layer.register_forward_hook(self._keep)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hear(self, number: int) -> Any:
        def hear(_: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            others = dict(options)
            taken = inputs[0] if inputs else others.pop("hidden_states", None)
            if number == 0:
                self.hidden.append(taken)
                self.options.append([])
            else:
                self._follows = self._follows and taken is self._given and len(inputs) < 2
            self.options[-1].append(others)

        return hear

    def _keep(self, _: torch.nn.Module, __: tuple[Any, ...], given: Any) -> None:
        self._given = _hidden_of(given)

    def check(self) -> None:
        """Refuse a model in which something happens between its layers.

        Raises:
            BadInput: it does.
        """
        all_once = all(len(of_text) == len(self._layers) for of_text in self.options)
        if not self._follows or not all_once:
            raise _no_decoder()


def _hidden_of(given: Any) -> torch.Tensor:
    """Return the hidden states among what a layer gives."""
    hidden: torch.Tensor = given[0] if isinstance(given, tuple) else given
    return hidden
