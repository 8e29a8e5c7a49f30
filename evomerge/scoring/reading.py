"""What a live model predicts after each token of some texts, read in batches."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

# Logits of one batch: 2^26 float32 numbers are 256 MiB, of which a softmax takes a few copies.
_LOGITS = 2**26

_VOCABULARY = 2**17  # of a model whose config does not say


class Row(NamedTuple):
    """A text to be read.

    Attributes:
        tokens: all of it.
        first: the first position whose prediction counts; so do all after it.

    >>> Row([5, 6, 7], 1).positions
    2
    """

    tokens: Sequence[int]
    first: int

    @property
    def positions(self) -> int:
        """How many positions count."""
        return len(self.tokens) - self.first


class Read(NamedTuple):
    """What a model predicts at the positions that count, of some rows one after the other.

    Attributes:
        places: of the rows among all that are read.
        counts: how many positions each of them has.
        logits: (positions, vocabulary) float32, of the token that comes next.
        hidden: (layers, positions, width) float32 hidden states; None if none were asked for.

    >>> import torch
    >>> Read([1, 0], [2, 1], torch.zeros(3, 32), None).counts
    [2, 1]
    """

    places: list[int]
    counts: list[int]
    logits: "torch.Tensor"
    hidden: "torch.Tensor | None"


class Reader:
    """Reads rows of tokens in a live causal model, whose weights may change.

    Rows are padded on the right: a causal model's predictions do not depend on what comes after,
    so they are those of the row alone, but for rounding.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> reader = Reader(example_live().model, batch=2)
    >>> (read,) = reader.read([Row([5, 6], 0), Row([5, 6, 7], 2)])
    >>> read.places, read.counts, read.logits.shape
    ([1, 0], [1, 2], torch.Size([3, 32]))
    """

    def __init__(self, model: Any, batch: int):
        """
        Args:
            model: a causal model of transformers.
            batch: how many rows it reads at once at most.
        """
        self._model, self._batch = model, batch
        settings = model.config.get_text_config()
        self._vocabulary = int(getattr(settings, "vocab_size", _VOCABULARY))

    def read(self, rows: Sequence[Row], layers: Sequence[int] = ()) -> Iterator[Read]:
        """Yield what is predicted, batch by batch, the longest rows first.

        Args:
            rows: each with a token at least.
            layers: whose hidden states are wanted: 0 is the embeddings, -1 what the head reads.

        Raises:
            IndexError: there is no such layer.
        """
        for places in self._batches(rows):
            yield self._read(places, [rows[place] for place in places], list(layers))

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[int]]:
        order = sorted(range(len(rows)), key=lambda place: (-len(rows[place].tokens), place))
        at = 0
        while at < len(order):
            longest = len(rows[order[at]].tokens)
            fitting = _LOGITS // (longest * self._vocabulary)
            taken = max(1, min(self._batch, fitting))
            yield order[at : at + taken]
            at += taken

    def _read(self, places: list[int], rows: Sequence[Row], layers: list[int]) -> Read:
        import torch

        width = len(rows[0].tokens)  # the longest comes first
        tokens = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros(len(rows), width, dtype=torch.int64)
        counted = torch.zeros(len(rows), width, dtype=torch.bool)
        for n, row in enumerate(rows):
            length = len(row.tokens)
            tokens[n, :length] = torch.tensor(row.tokens)
            mask[n, :length] = 1
            counted[n, row.first : length] = True
        device = self._model.device
        with torch.inference_mode():
            out = self._model(
                input_ids=tokens.to(device),
                attention_mask=mask.to(device),
                use_cache=False,
                output_hidden_states=bool(layers),
            )
            place = out.logits.device
            logits = out.logits[counted.to(place)].float()
            hidden = None
            if layers:  # which may lie on several GPUs
                states = [out.hidden_states[layer] for layer in layers]
                found = [state[counted.to(state.device)].float().to(place) for state in states]
                hidden = torch.stack(found)
        return Read(places, [row.positions for row in rows], logits, hidden)


def row_means(values: "torch.Tensor", counts: Sequence[int]) -> np.ndarray:
    """Return the (rows,) float64 means over each row's positions.

    Args:
        values: (positions,), of the rows one after the other.
        counts: how many positions each row has, at least one.

    >>> import torch
    >>> row_means(torch.tensor([1.0, 3.0, 5.0]), [2, 1]).tolist()
    [2.0, 5.0]
    """
    wide = values.double().cpu().numpy()
    starts = np.cumsum([0, *counts[:-1]])
    return np.asarray(np.add.reduceat(wide, starts) / np.array(counts))
