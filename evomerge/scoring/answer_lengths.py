"""How long the answers of other objectives are, in tokens, as an objective of its own."""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.errors import Faults, nearest
from evomerge.scoring.fitness import CostSection, Fitness, Scorable


class AnswerLengths(Fitness):
    """The tokens of the answers that other objectives' items got, one length for each item.

    It asks the model nothing: it measures what was answered when those were last scored. Its items
    are theirs, with the same hashes, so that lengths have a standard error over items, and two
    models can be compared item by item.

    >>> from evomerge.testing.lm_eval_tasks import example_lengths, example_live
    >>> maths, lengths = example_lengths().values()
    >>> lengths.follows, lengths.items_of({"maths": [3, 5]})
    (('maths',), (3, 5))
    >>> maths.prepare(example_live(), [3, 5])
    >>> _ = maths.score([3, 5])
    >>> lengths.score([3, 5]).tolist()
    [4.0, 4.0]
    """

    def __init__(self, section: CostSection):
        self.direction = section.direction or "minimize"
        self.hashes = []
        self._named = section.of

    def follow(self, others: Mapping[str, Fitness]) -> None:
        speaking = {name: fitness for name, fitness in others.items() if fitness.spoken()}
        faults = Faults()
        for index, name in enumerate(self._named):
            if name not in others:
                mend = nearest(name, speaking)
                faults.add(f"of.{index}", f"there is no objective '{name}'", mend)
            elif name not in speaking:
                wrong = f"'{name}' is not answered in words"
                faults.add(f"of.{index}", wrong, "write tasks by generation")
        if not speaking:
            wrong = "there are no answers to count the tokens of: no task generates"
            faults = Faults()
            faults.add("cost", wrong, "add a task whose output_type is generate_until")
        faults.check()
        names = tuple(dict.fromkeys(self._named)) or tuple(speaking)
        # of each item the objective, and its ordinal there
        self._places = [(name, ordinal) for name in names for ordinal in speaking[name].spoken()]
        self._ordinals = {place: ordinal for ordinal, place in enumerate(self._places)}
        self.hashes = [speaking[name].hashes[ordinal] for name, ordinal in self._places]
        self._followed = {name: speaking[name] for name in names}
        self.follows = names

    def items_of(self, ordinals: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        places = [(name, ordinal) for name in self.follows for ordinal in ordinals.get(name, ())]
        return tuple(sorted(self._ordinals[p] for p in places if p in self._ordinals))

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        """Get ready: the objectives that it follows ask the model."""

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        lengths = np.empty(len(ordinals), np.float32)
        for name, fitness in self._followed.items():
            at = [n for n, ordinal in enumerate(ordinals) if self._places[ordinal][0] == name]
            lengths[at] = fitness.lengths([self._places[ordinals[n]][1] for n in at])
        return lengths

    def characters(self) -> float:
        """Return the length of what is read to score an item: nothing more than is read anyway."""
        return 0.0
