"""How far a candidate agrees with an expert on prompts of the expert's own, which takes no labels.

Expert Merging learns merging coefficients so that hidden states and logits come near each expert's
on a few unlabelled prompts (arXiv:2509.25712; github Littleor/ExpertMerging,
`compute_kldiv_loss` and `compute_hidden_states_loss`, temperature 3). Here the same is a score.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evomerge.errors import BadInput, Fault
from evomerge.node.phases import Steps
from evomerge.scoring.expert_file import Arrays, kept_or_made
from evomerge.scoring.fitness import Fitness, Scorable
from evomerge.scoring.kept_predictions import Kept, divergence, keep
from evomerge.scoring.kinds import fitness
from evomerge.scoring.prompts import refuse_own_test
from evomerge.scoring.read_prompts import Over, ReadPrompts, ReadSection
from evomerge.scoring.reading import Read, Row, row_means
from evomerge.sections import Number, Text, Whole, option

if TYPE_CHECKING:
    import torch

_VERSION = 1  # of what is kept

_CHARACTERS_PER_TOKEN = 4.0  # of English under common tokenizers

_BYTES = 8  # of a token that is kept, with its log-probability

_WIDTH = 4096  # of hidden states, where no model is known yet


class AgreementSection(ReadSection):
    """How near a candidate's predictions are to those of an expert, one of the sources.

    >>> section = AgreementSection(name="ja", agreement="ja", prompts="ja.jsonl")
    >>> section.temperature, section.over, section.expert
    (3.0, 'answer', 'ja')
    """

    key = "agreement"

    agreement: Text = option("the expert: the label of a source", example="ja")
    where: Over = option(
        "where they are compared; prompt: after each token of a prompt; answer: at each token of"
        " the expert's own greedy answer",
        "answer",
    )
    measure: Literal["logits", "hidden"] = option(
        "what is compared; logits: minus KL(expert || candidate), in nats; hidden: minus the"
        " squared distance of hidden states, over the squared length of the expert's",
        "logits",
    )
    temperature: Number = option("by which logits are divided before they are compared", 3.0, gt=0)
    kept: Whole = option(
        "of the expert's predictions, at each position: half the likeliest, half drawn for all"
        " others; a vocabulary that is no larger is kept whole",
        256,
        unit="tokens",
        ge=16,
    )
    layers: list[Whole] = option(
        "whose hidden states are compared: 0 is the embeddings, 1 the first layer's output, -1 what"
        " the head reads",
        factory=lambda: [-1],
        least=1,
    )

    @property
    def over(self) -> Over:
        return self.where

    @property
    def expert(self) -> str:
        return self.agreement

    @property
    def compared_layers(self) -> Sequence[int]:
        return self.layers if self.measure == "hidden" else ()

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        if fields.get("direction") == "minimize":
            wrong = "the best agreement is 0, and all others are less"
            yield Fault("direction", wrong, "leave it out")


class Agreement(ReadPrompts):
    """Minus the distance between what an expert and a candidate predict, over some positions.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> from evomerge.testing.prompts import example_prompts
    >>> section = AgreementSection(name="a", agreement="a", prompts=str(example_prompts()))
    >>> agreement = Agreement(section)
    >>> live = example_live()
    >>> agreement.prepare(live, [0, 1])
    >>> agreement.learn("the model itself", lambda: None)
    >>> np.abs(agreement.score([0, 1])).max() < 1e-6
    np.True_
    """

    def __init__(self, section: AgreementSection):
        """
        Raises:
            BadInput: the file of prompts will not do.
        """
        super().__init__(section)
        self._asked = section
        positions = self.characters() / _CHARACTERS_PER_TOKEN
        if self._over == "answer":
            positions = section.max_tokens
        each = section.kept * _BYTES
        if section.measure == "hidden":
            each = len(section.layers) * _WIDTH * 2
        self.bytes = round(len(self.prompts) * positions * each)
        self._expert: _Expert | None = None

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        super().prepare(live, ordinals)
        self._ordinals = tuple(ordinals)

    def learn(self, content: str, become: Callable[[], object]) -> None:
        section = self._asked
        if not self._prompts:  # see `prepare`
            return
        options = section.model_dump(
            include={"where", "measure", "temperature", "kept", "layers", "until", "max_tokens"}
        )
        asked = [self._prompts[ordinal] for ordinal in self._ordinals]
        key = [_VERSION, content, options, asked]
        doing = f"asking {section.agreement} what {section.name} compares with"

        def make() -> Arrays:
            become()
            return self._said(Steps(doing, "prompts", len(asked)))

        self._expert = _Expert(self._ordinals, kept_or_made(key, doing, make))

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        expert = self._expert
        assert expert is not None, "an expert is learnt before the first candidate"
        rows = [expert.rows[ordinal] for ordinal in ordinals]
        found = np.zeros(len(ordinals), np.float32)
        for read in self._reader.read(rows, self._asked.compared_layers):
            apart = self._apart(read, expert, [ordinals[place] for place in read.places])
            found[read.places] = -row_means(apart, read.counts)
        return found

    def _apart(self, read: Read, expert: "_Expert", ordinals: Sequence[int]) -> "torch.Tensor":
        """Return the (positions,) distances between what is read and what the expert says."""
        if read.hidden is None:
            return divergence(expert.kept(ordinals, read), read.logits, self._asked.temperature)
        directions, lengths = expert.hidden(ordinals, read)
        # |h - h*|^2 / |h*|^2, with h* = length * direction
        scaled = read.hidden / lengths[..., None]
        return (scaled - directions).square().sum(-1).mean(0)

    def _said(self, steps: Steps) -> Arrays:
        """Read the prompts, or the answers to them, with the live model, which is the expert.

        Args:
            steps: hears how many are read.

        Raises:
            BadInput: what it predicts is not finite.
        """
        section, rows = self._asked, self.rows(self._ordinals)
        parts: dict[int, dict[str, np.ndarray]] = {}
        for read in self._reader.read(rows, self._asked.compared_layers):
            if not bool(read.logits.isfinite().all()):
                wrong = f"'{section.agreement}' predicts what is not finite"
                raise BadInput(Fault("agreement", wrong, "take another expert"))
            arrays = self._kept(read) if read.hidden is None else _directions(read.hidden)
            ends = np.cumsum(read.counts)[:-1]
            for name, array in arrays.items():
                for place, own in zip(read.places, np.split(array, ends), strict=True):
                    parts.setdefault(place, {})[name] = own
            steps.done(len(parts))
        names = list(parts[0])
        found = {name: np.concatenate([parts[p][name] for p in sorted(parts)]) for name in names}
        found["row_tokens"] = np.array([*itertools.chain(*(r.tokens for r in rows))], np.int32)
        found["row_lengths"] = np.array([len(row.tokens) for row in rows], np.int32)
        found["row_firsts"] = np.array([row.first for row in rows], np.int32)
        return found

    def _kept(self, read: Read) -> dict[str, np.ndarray]:
        offsets = []
        for place, count in zip(read.places, read.counts, strict=True):
            seed = int(self.hashes[self._ordinals[place]], 16)  # whatever is in its batch
            offsets.append(np.random.default_rng(seed).random(count))
        section = self._asked
        kept = keep(read.logits, section.temperature, section.kept, np.concatenate(offsets))
        return {
            "tokens": kept.tokens.cpu().numpy().astype(np.int32),
            "logs": kept.logs.cpu().numpy(),
            "rest": kept.rest.cpu().numpy(),
            "likeliest": np.full(len(kept.tokens), kept.likeliest, np.int32),
        }


def _directions(hidden: "torch.Tensor") -> dict[str, np.ndarray]:
    """Return (layers, positions, width) hidden states as directions and lengths, positions first.

    Directions fit float16, which some models' hidden states do not.
    """
    lengths = hidden.norm(dim=-1).clamp(min=1e-12)  # (layers, positions)
    directions = (hidden / lengths[..., None]).transpose(0, 1)
    return {
        "directions": directions.half().cpu().numpy(),
        "lengths": lengths.transpose(0, 1).cpu().numpy(),
    }


class _Expert:
    """What an expert says, by item.

    Attributes:
        rows: ordinal -> what is read.
    """

    def __init__(self, ordinals: Sequence[int], arrays: Arrays):
        self.rows: dict[int, Row] = {}
        self._arrays = arrays
        self._where: dict[int, range] = {}  # ordinal -> its positions
        texts = np.split(arrays["row_tokens"], np.cumsum(arrays["row_lengths"])[:-1])
        start = 0
        for ordinal, text, first in zip(ordinals, texts, arrays["row_firsts"], strict=True):
            row = Row(text.tolist(), int(first))
            self.rows[ordinal] = row
            self._where[ordinal] = range(start, start + row.positions)
            start += row.positions

    def _of(self, name: str, ordinals: Sequence[int], like: "torch.Tensor") -> "torch.Tensor":
        """Return an array's part of some items, one after the other, on a tensor's device."""
        import torch

        at = np.concatenate([self._where[ordinal] for ordinal in ordinals])
        return torch.from_numpy(self._arrays[name][at]).to(like.device)

    def kept(self, ordinals: Sequence[int], read: Read) -> Kept:
        """Return its predictions at the positions that were read."""
        like = read.logits
        tokens = self._of("tokens", ordinals, like).long()
        logs, rest = self._of("logs", ordinals, like), self._of("rest", ordinals, like)
        return Kept(tokens, logs, rest, int(self._arrays["likeliest"][0]))

    def hidden(self, ordinals: Sequence[int], read: Read) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return its (layers, positions, width) directions and (layers, positions) lengths."""
        assert read.hidden is not None
        directions = self._of("directions", ordinals, read.hidden).float()
        lengths = self._of("lengths", ordinals, read.hidden)
        return directions.transpose(0, 1), lengths.transpose(0, 1)


@fitness(AgreementSection)
def open_agreement(section: AgreementSection, own_test: bool) -> Fitness:
    """Open the prompts on which a candidate is to agree with an expert.

    >>> section = AgreementSection(name="x", agreement="ja", prompts="no.jsonl")
    >>> open_agreement(section, own_test=False)
    Traceback (most recent call last):
    evomerge.errors.BadInput: prompts: there is no file 'no.jsonl'; write a path to a JSONL file
    """
    refuse_own_test(own_test)
    return Agreement(section)
