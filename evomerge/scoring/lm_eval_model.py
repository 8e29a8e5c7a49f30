"""A live model for lm-eval: what it is asked, and what it says, with the tokens of its answers.

lm-eval gives an answer as a text alone. A batch is generated until its last row has ended, so that
a row has more tokens than its answer: padding, or what the model went on to say.
"""

import bisect
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any, Self

from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.lm_eval_loading import quietly

DEFAULT_BATCH = 64  # prompts; a worker holds one model, and most fit its cache of keys and values


class Answer(str):
    """A text that remembers the tokens it was decoded from, also where lm-eval cuts it.

    Attributes:
        tokens: of its row, whatever comes after its end among them.
        is_cut: whether it was cut at a stop string.

    >>> said = Answer("w1 w2 w3", [5, 6, 7]).split(" w3")[0]
    >>> said, said.tokens, said.is_cut
    ('w1 w2', [5, 6, 7], True)
    """

    tokens: Sequence[int]
    is_cut: bool

    def __new__(cls, text: str, tokens: Sequence[int], is_cut: bool = False) -> Self:
        answer = super().__new__(cls, text)
        answer.tokens, answer.is_cut = tokens, is_cut
        return answer

    def split(self, sep: Any = None, maxsplit: Any = -1) -> list[Any]:
        """See `str.split`; lm-eval takes the first part, what is before a stop string."""
        parts = super().split(sep, maxsplit)
        return [Answer(part, self.tokens, self.is_cut or len(parts) > 1) for part in parts]

    def length(
        self, ends: Collection[int], decode: Callable[[Sequence[int]], str], given: int = 0
    ) -> int:
        """Return how many tokens were generated for it, its end token or stop string left out.

        Args:
            ends: tokens that end an answer.
            decode: from tokens to text, as the answer was decoded.
            given: how many of the first tokens were not generated.

        >>> Answer("w1 w2", [5, 6, 2, 0, 0]).length({2}, decode=str)
        2
        """
        tokens = self.tokens[given:]
        count = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
        if not self.is_cut:
            return count

        def is_whole(prefix: int) -> bool:
            return decode(tokens[:prefix]).startswith(words)

        # The fewest tokens whose text has all of it, and spaces at its end if they are tokens of
        # their own: many tokenizers put the space between words into the second one's token.
        words = self.rstrip()
        found = bisect.bisect_left(range(count), True, key=is_whole)
        while found < count and self.startswith(decode(tokens[: found + 1])):
            found += 1
        return found


def answer(lm: Any, requests: Sequence[Any]) -> None:
    """Run a model on requests afresh.

    Args:
        lm: see `language_model`.
        requests: lm-eval's; each then holds its answers, unfiltered, in `resps`, and in `said`
            those that the model generated, as `Answer`s.

    >>> answer(None, [])
    """
    by_type: dict[str, list[Any]] = defaultdict(list)
    for request in requests:
        request.resps, request.filtered_resps, request.said = [], {}, []
        by_type[request.request_type] += [request] * request.repeats
    with quietly():
        for kind, batch in by_type.items():
            answers = getattr(lm, kind)(batch, disable_tqdm=True)
            for request, said in zip(batch, answers, strict=True):
                if isinstance(said, Answer):
                    request.said.append(said)
                    said = str(said)
                request.resps.append(said)


def language_model(model: Any, tokenizer: Any, section: TaskSection) -> Any:
    """Wrap a live model for lm-eval, with every text tokenized once.

    Args:
        model: a transformers model, whose weights may change.
        tokenizer: its own.
        section: says how many prompts go at once.

    >>> from evomerge.testing.lm_eval_tasks import example_live, example_section
    >>> language_model(*example_live(), example_section()).batch_size
    64
    """
    from lm_eval.models.huggingface import HFLM

    class WarmHFLM(HFLM):
        """HFLM that remembers encodings, as the texts are the same for every candidate.

        What it generates are `Answer`s, whose length it tells.
        """

        def __init__(self, *args: Any, **options: Any):
            self._encoded: dict[tuple, Any] = {}
            super().__init__(*args, **options)

        def _remember(self, kind: str, key: Any, encode: Any) -> Any:
            if (kind, key) not in self._encoded:
                self._encoded[kind, key] = encode()
            return self._encoded[kind, key]

        def tok_encode(self, string: str, *args: Any, **options: Any) -> list[int]:
            key = (string, args, tuple(sorted(options.items())))
            found = self._remember(
                "one", key, lambda: super(WarmHFLM, self).tok_encode(string, *args, **options)
            )
            return list(found)

        def tok_batch_encode(self, strings: list[str], *args: Any, **options: Any) -> Any:
            key = (tuple(strings), args, tuple(sorted(options.items())))
            return self._remember(
                "batch",
                key,
                lambda: super(WarmHFLM, self).tok_batch_encode(strings, *args, **options),
            )

        def tok_decode(self, tokens: Any, *args: Any, **options: Any) -> str:
            text = super().tok_decode(tokens, *args, **options)
            return Answer(text, tokens) if isinstance(tokens, list) else text

        def length(self, said: Answer) -> int:
            """Return how many tokens an answer has."""
            ends = self.model.generation_config.eos_token_id
            known = set(ends if isinstance(ends, list) else [ends]) | {self.eot_token_id}
            # an encoder-decoder's first token is given, not generated
            given = 1 if self.backend == "seq2seq" else 0
            return said.length(known, super().tok_decode, given)

    batch_size = section.batch_size or DEFAULT_BATCH
    with quietly():
        return WarmHFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="seq2seq" if model.config.is_encoder_decoder else "causal",
            batch_size=batch_size,
            device=str(model.device),
        )
