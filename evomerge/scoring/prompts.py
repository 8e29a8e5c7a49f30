"""Prompts of a JSONL file, answered by the model that is scored, whoever scores the answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.canonical import file_hash, item_hash
from evomerge.errors import BadInput, Fault, one_line, placed
from evomerge.scoring.fitness import (
    AskedSection,
    Fitness,
    FitnessSection,
    Scorable,
    from_root,
)
from evomerge.scoring.items import ItemText
from evomerge.scoring.lm_eval_model import answer
from evomerge.sections import Text, Whole, option

_LINE = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


class PromptsSection(AskedSection):
    """Prompts, and how they are answered: greedily, in the chat template where there is one.

    >>> PromptsSection(name="x", prompts="prompts.jsonl").max_tokens
    256
    """

    asks = "a prompt"

    prompts: Text = option(
        "path of a JSONL file; each line has `prompt`, a text, or `messages`, the turns of a"
        " conversation, and perhaps `reference`, a good answer",
        example="prompts.jsonl",
    )
    items: Whole | None = option("items to take before the split; null: all", None, ge=1)
    max_tokens: Whole = option("of an answer", 256, unit="tokens", ge=1)
    until: list[Text] = option(
        "texts that end an answer, beside the end token", factory=list, example=["\n\n"]
    )
    system: Text | None = option("system message of the chat template", None)

    @property
    def taken(self) -> int | None:
        return self.items

    @property
    def file_key(self) -> str:
        return "prompts"

    def resolved(self) -> FitnessSection:
        return self.model_copy(update={"prompts": from_root(self.prompts)})


class Prompt(dict[str, Any]):
    """One line of the file.

    >>> Prompt(prompt="Why?").turns
    [{'role': 'user', 'content': 'Why?'}]
    """

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation so far."""
        if "messages" in self:
            return [{"role": turn["role"], "content": turn["content"]} for turn in self["messages"]]
        return [{"role": "user", "content": self["prompt"]}]

    @property
    def text(self) -> str:
        """The conversation as one text."""
        turns = self.turns
        if len(turns) == 1:
            return turns[0]["content"]
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)

    @property
    def reference(self) -> str:
        """A good answer; "" if there is none."""
        return str(self.get("reference") or "")


def read_prompts(path: Path) -> list[Prompt]:
    """Read a file of prompts.

    Raises:
        BadInput: it is not there, or a line of it is no prompt.

    >>> read_prompts(Path("nowhere.jsonl"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no file 'nowhere.jsonl'; write a path to a JSONL file
    """
    try:
        # by line feeds alone: texts of the web hold other separators, which JSON leaves as they are
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        mend = "write a path to a JSONL file"
        raise BadInput(Fault("", f"there is no file '{path}'", mend)) from None
    except (OSError, ValueError) as error:
        wrong = f"'{path}' cannot be read ({one_line(error)})"
        raise BadInput(Fault("", wrong, "check the file")) from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            wrong = f"{path}, line {number} is no JSON ({one_line(error)})"
            raise BadInput(Fault("", wrong, f"write {_LINE}")) from None
        if not _is_prompt(data):
            raise BadInput(Fault("", f"{path}, line {number} is no prompt", f"write {_LINE}"))
        found.append(Prompt(data))
    return found


def refuse_own_test(own_test: bool) -> None:
    """Refuse to hold a test split out of a file of prompts, which has none.

    >>> refuse_own_test(False)
    """
    if own_test:
        wrong = "a file of prompts has no validation and test split of its own"
        raise BadInput(Fault("prompts", wrong, "write heldout: 0.5, or another share"))


def _is_prompt(data: Any) -> bool:
    if not isinstance(data, Mapping) or ("prompt" in data) == ("messages" in data):
        return False
    if "prompt" in data:
        return isinstance(data["prompt"], str) and bool(data["prompt"])
    turns = data["messages"]
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(
            isinstance(turn, Mapping)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in turns
        )
    )


class PromptsFitness(Fitness):
    """Asks the prompts of a file; what scores the answers is a subclass.

    Attributes:
        prompts: one for each item.

    >>> from evomerge.testing.prompts import example_prompts_fitness
    >>> fitness = example_prompts_fitness()
    >>> len(fitness.prompts), fitness.prompts[0].text
    (24, 'w1 w2')
    """

    def __init__(self, section: PromptsSection):
        """
        Raises:
            BadInput: the file will not do.
        """
        self._section = section
        self.direction = section.direction or "maximize"
        path = Path(section.prompts)
        with placed("prompts"):
            self.prompts = read_prompts(path)
        self._file_hash = file_hash(path)
        self.hashes = [item_hash(prompt) for prompt in self.prompts]

    @property
    def definition(self) -> str:  # type: ignore[override]
        """Hash of the prompts."""
        return self._file_hash

    def characters(self) -> float:
        """Return the mean length of a prompt."""
        return sum(len(prompt.text) for prompt in self.prompts) / max(1, len(self.prompts))

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        from lm_eval.api.instance import Instance

        self._lm = live.language_model(self._section)
        section = self._section
        arguments = {
            "until": list(section.until),
            "max_gen_toks": section.max_tokens,
            "do_sample": False,
            "temperature": 0.0,
        }
        has_template = bool(getattr(live.tokenizer, "chat_template", None))
        self._requests = {}
        for ordinal in ordinals:
            context = self._context(self.prompts[ordinal], has_template)
            metadata = (section.name, ordinal, 1)  # 1: asked once
            request = Instance("generate_until", {}, (context, dict(arguments)), 0, metadata)
            self._requests[ordinal] = request

    def _context(self, prompt: Prompt, has_template: bool) -> str:
        """Return what the model is given to go on from."""
        system = self._section.system
        turns = prompt.turns
        if system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": system}, *turns]
        if has_template:
            return str(self._lm.apply_chat_template(turns))
        if len(turns) == 1:
            return turns[0]["content"]
        return "\n\n".join(turn["content"] for turn in turns)

    def questions(self, ordinals: Sequence[int]) -> tuple[Any, list[Any]]:
        return self._lm, [self._requests[ordinal] for ordinal in ordinals]

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        answer(*self.questions(ordinals))
        return self.scores(ordinals)

    def answers(self, ordinals: Sequence[int]) -> list[str]:
        """Return what the model said when it was last asked, without space around it."""
        return [str(self._requests[ordinal].resps[0]).strip() for ordinal in ordinals]

    def text(self, ordinal: int) -> ItemText:
        prompt = self.prompts[ordinal]
        return ItemText(prompt.text, prompt.reference)

    def spoken(self) -> Sequence[int]:
        return range(len(self.hashes))

    def lengths(self, ordinals: Sequence[int]) -> np.ndarray:
        lengths = []
        for ordinal in ordinals:
            said = getattr(self._requests[ordinal], "said", None)
            if not said:
                raise ValueError(f"item {ordinal} was not answered when the model was last scored")
            lengths.append(np.mean([self._lm.length(text) for text in said]))
        return np.array(lengths, np.float32)
