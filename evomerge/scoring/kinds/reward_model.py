"""A reward model that scores answers, in each worker beside the model that gives them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.errors import BadInput, Fault, placed
from evomerge.scoring.fitness import Fitness, FitnessSection, Scorable
from evomerge.scoring.kinds import fitness
from evomerge.scoring.prompts import Prompt, PromptsFitness, PromptsSection, refuse_own_test
from evomerge.sections import Flag, Text, Whole, option
from evomerge.sources.digest import digest
from evomerge.sources.locate import local_directory
from evomerge.sources.source import Source, open_source


class RewardSection(PromptsSection):
    """A reward model: a sequence classifier of one number, in a local directory.

    >>> RewardSection(name="x", reward_model="models/reward", prompts="p.jsonl").sigmoid
    False
    """

    key = "reward_model"

    reward_model: Text = option(
        "directory of a sequence classifier of one label, with safetensors weights; code that comes"
        " with it is never run",
        example="models/reward",
    )
    sigmoid: Flag = option("score by 1 / (1 + exp(-reward)), in [0, 1], not by the reward", False)
    reward_batch: Whole = option("answers that the reward model reads at once", 16, ge=1)

    def resolved(self) -> FitnessSection:
        section = super().resolved()
        found = local_directory(self.reward_model)
        place = self.reward_model if found is None else str(found.resolve())
        return section.model_copy(update={"reward_model": place})


class RewardedAnswers(PromptsFitness):
    """Answers to prompts, scored by a reward model.

    It reads a question and its answer in its own chat template, or, without one, as a pair of
    texts; the score is the one number that it gives.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> from evomerge.testing.prompts import example_prompts, example_reward_model
    >>> section = RewardSection(
    ...     name="x", reward_model=str(example_reward_model()), prompts=str(example_prompts()),
    ...     max_tokens=3,
    ... )
    >>> rewarded = RewardedAnswers(section)
    >>> rewarded.prepare(example_live(), [0, 1])
    >>> rewarded.score([0, 1]).shape
    (2,)
    """

    def __init__(self, section: RewardSection):
        """
        Raises:
            BadInput: the prompts or the reward model will not do.
        """
        super().__init__(section)
        self._section: RewardSection = section
        with placed("reward_model"):
            self._source = _opened(section.reward_model)
        self.bytes = sum(tensor.bytes for tensor in self._source.tensors.values())
        self._reader: _Reader | None = None

    @property
    def definition(self) -> str:  # type: ignore[override]
        """Hash of the prompts, and of the reward model, which is read for it."""
        return f"{super().definition} {digest(self._source).sha256[:16]}"

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        super().prepare(live, ordinals)
        device = "cpu" if live.model is None else str(live.model.device)
        self._reader = _Reader(self._source, device, self._section.reward_batch)

    def scores(self, ordinals: Sequence[int]) -> np.ndarray:
        assert self._reader is not None
        pairs = zip([self.prompts[o] for o in ordinals], self.answers(ordinals), strict=True)
        rewards = self._reader.rewards(list(pairs))
        return 1.0 / (1.0 + np.exp(-rewards)) if self._section.sigmoid else rewards


class _Reader:
    """A loaded reward model."""

    def __init__(self, source: Source, device: str, batch: int):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        place = source.path
        self._model = AutoModelForSequenceClassification.from_pretrained(
            place, use_safetensors=True, trust_remote_code=False, dtype="auto"
        )
        self._model.to(torch.device(device)).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._model.config.pad_token_id is None:  # by which it finds a text's last token
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._batch = batch

    def rewards(self, pairs: Sequence[tuple[Prompt, str]]) -> np.ndarray:
        """Return the (pairs,) float32 rewards of questions with their answers."""
        import torch

        found: list[float] = []
        for first in range(0, len(pairs), self._batch):
            encoded = self._encoded(pairs[first : first + self._batch])
            encoded = {name: tensor.to(self._model.device) for name, tensor in encoded.items()}
            with torch.inference_mode():
                logits = self._model(**encoded).logits  # (batch, 1)
            found += logits[:, 0].float().tolist()
        return np.array(found, np.float32)

    def _encoded(self, pairs: Sequence[tuple[Prompt, str]]) -> dict[str, Any]:
        longest = getattr(self._model.config, "max_position_embeddings", None)
        options = {"padding": True, "return_tensors": "pt"}
        options |= {"truncation": True, "max_length": longest} if longest else {}
        if self._tokenizer.chat_template:
            turns = [[*p.turns, {"role": "assistant", "content": said}] for p, said in pairs]
            texts = [self._tokenizer.apply_chat_template(one, tokenize=False) for one in turns]
            # the template has the special tokens
            return dict(self._tokenizer(texts, add_special_tokens=False, **options))
        questions, answers = [prompt.text for prompt, _ in pairs], [said for _, said in pairs]
        return dict(self._tokenizer(questions, answers, **options))


def _opened(place: str) -> Source:
    """Open a reward model's directory by its headers, and see that it is one."""
    if local_directory(place) is None:
        raise BadInput(Fault("", f"there is no directory '{place}'", "write a local directory"))
    source = open_source(place)
    name = source.class_name
    if not name.endswith("ForSequenceClassification"):
        mend = "write the directory of a sequence classifier"
        raise BadInput(Fault("", f"'{place}' is a {name}, which gives no reward", mend))
    labels = source.config.get("num_labels") or len(source.config.get("id2label", "ab"))
    if labels != 1:
        wrong = f"'{place}' tells {labels} labels apart, and gives no single number"
        raise BadInput(Fault("", wrong, "take one of one label"))
    return source


@fitness(RewardSection)
def open_rewarded(section: RewardSection, own_test: bool) -> Fitness:
    """Open the prompts whose answers a reward model scores.

    >>> section = RewardSection(name="x", reward_model="nowhere", prompts="nowhere.jsonl")
    >>> open_rewarded(section, own_test=False)
    Traceback (most recent call last):
    evomerge.errors.BadInput: prompts: there is no file 'nowhere.jsonl'; write a path to a JSONL \
file
    """
    refuse_own_test(own_test)
    return RewardedAnswers(section)
