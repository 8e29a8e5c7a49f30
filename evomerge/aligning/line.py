"""The line between two models, walked: whether what lies on it is any good.

Models that a straight line joins without a loss on the way can be merged; those with a barrier
between them cannot. The barrier is the most by which the loss exceeds, at some point of the line,
what a straight line between the ends' losses has there (Frankle et al. 2020, arXiv:1912.05671;
Entezari et al. 2022, arXiv:2110.06296, definition 1).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch

from evomerge.aligning.aligned_model import REFERENCE, Pair
from evomerge.errors import BadInput, Fault
from evomerge.merging.live_model import Live, open_live_model
from evomerge.scoring.fitness import FunctionSection, Scorable
from evomerge.scoring.function import FunctionFitness
from evomerge.sources.texts import LONGEST, Passage, read_texts


class Judge(Protocol):
    """What says how good a live model is, in one number.

    Attributes:
        measure: what the number is.
        lower_is_better: whether it is a loss.
    """

    measure: str
    lower_is_better: bool

    def __call__(self, live: Live) -> float: ...


class Line(NamedTuple):
    """What was found along a line.

    Attributes:
        at: shares of the second model, from 0 to 1.
        values: (points,) of the measure.
        barrier: the most that a point is worse than the straight line between the ends' values;
            0 where none is.

    >>> Line((0.0, 0.5, 1.0), (1.0, 2.5, 2.0), 1.0).barrier
    1.0
    """

    at: tuple[float, ...]
    values: tuple[float, ...]
    barrier: float


def barrier(at: Sequence[float], values: Sequence[float], lower_is_better: bool) -> float:
    """Return the barrier of values along a line.

    Args:
        at: shares of the second model, the first 0 and the last 1.
        values: there.
        lower_is_better: whether they are losses.

    >>> barrier([0.0, 0.5, 1.0], [1.0, 2.5, 2.0], lower_is_better=True)
    1.0
    """
    shares, found = np.asarray(at), np.asarray(values)
    straight = (1 - shares) * found[0] + shares * found[-1]
    worse = found - straight if lower_is_better else straight - found
    return max(0.0, float(worse.max()))  # max_t L(t) - ((1 - t) L(0) + t L(1))


def walk(pair: Pair, end: Callable[[str], torch.Tensor], judge: Judge, points: int = 11) -> Line:
    """Judge models at equal steps from a pair's reference to its model, or to another end.

    Args:
        pair: the models.
        end: a tensor of the line's end, by its name.
        judge: of each point.
        points: how many, both ends among them.

    >>> import tempfile
    >>> from evomerge.aligning.aligned_model import MODEL, open_pair
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     names = [str(tiny_llama(f"{folder}/{seed}", seed)) for seed in (0, 1)]
    ...     _ = Path(folder, "texts.txt").write_text("w1 w2 w3")
    ...     pair, texts = open_pair(*names), TextLoss(Path(folder, "texts.txt"))
    ...     line = walk(pair, lambda name: pair.weights.tensor(MODEL, name), texts, points=3)
    >>> line.at, len(line.values)
    ((0.0, 0.5, 1.0), 3)
    """
    live = open_live_model(pair.reference, "float32")
    at = np.linspace(0.0, 1.0, points).tolist()
    values = []
    for share in at:
        live.load(_between(pair, end, share))
        values.append(judge(live))
    return Line(tuple(at), tuple(values), barrier(at, values, judge.lower_is_better))


def _between(
    pair: Pair, end: Callable[[str], torch.Tensor], share: float
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in pair.reference.tensors:
        start = pair.weights.tensor(REFERENCE, name).float()
        yield name, torch.lerp(start, end(name).float(), share)


class TextLoss:
    """The mean loss of a causal language model on texts, in nats a token.

    >>> TextLoss.measure
    'loss (nats a token)'
    """

    measure = "loss (nats a token)"
    lower_is_better = True

    def __init__(self, file: Path):
        """
        Args:
            file: of texts.

        Raises:
            BadInput: it cannot be read, or holds none.
        """
        self._file = file
        self._texts = read_texts(file)

    def __call__(self, live: Live) -> float:
        total, tokens = 0.0, 0
        for ids in tokenized(live, self._texts):
            with torch.inference_mode():
                logits = live.model(ids).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
        if not tokens:
            wrong = "holds no text of two tokens"
            raise BadInput(Fault("", wrong, "write longer ones", str(self._file)))
        return total / tokens


class FunctionScore:
    """The mean score of a Python fitness over its items; see `scoring.function`.

    >>> FunctionScore.lower_is_better
    False
    """

    lower_is_better = False

    def __init__(self, file: Path, lower_is_better: bool = False):
        """
        Args:
            file: the fitness.
            lower_is_better: whether its scores are losses.

        Raises:
            BadInput: it is no fitness.
        """
        self._fitness = FunctionFitness(FunctionSection(name=file.stem, function=str(file)))
        self.measure = file.stem
        self.lower_is_better = lower_is_better

    def __call__(self, live: Live) -> float:
        ordinals = range(len(self._fitness.hashes))
        self._fitness.prepare(cast(Scorable, live), ordinals)  # it asks for no language model
        with torch.inference_mode():
            return float(self._fitness.score(ordinals).mean())


def tokenized(live: Live, texts: Sequence[Passage]) -> Iterator[torch.Tensor]:
    """Yield the (1, tokens) ids of each text of two tokens or more.

    Raises:
        BadInput: the model has no tokenizer.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> [ids.tolist() for ids in tokenized(example_live(), [Passage("w1 w2"), Passage("w3")])]
    [[[5, 6]]]
    """
    if live.tokenizer is None:
        raise BadInput(Fault("", "the model has no tokenizer to read texts with", "give it one"))
    positions = getattr(live.model.config, "max_position_embeddings", None) or LONGEST
    longest = min(positions, LONGEST)
    for text in texts:
        found = live.tokenizer(
            text.prompt, return_tensors="pt", truncation=True, max_length=longest
        )
        ids: torch.Tensor = found["input_ids"]
        if ids.shape[1] > 1:
            yield ids
