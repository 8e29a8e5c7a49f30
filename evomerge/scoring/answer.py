"""What a model says to a prompt, with the tokens of its answer.

lm-eval gives an answer as a text alone. A batch is generated until its last row has ended, so that
a row has more tokens than its answer: padding, or what the model went on to say.
"""

import bisect
from collections.abc import Callable, Collection, Sequence
from typing import Any, Self


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
