"""What all kinds of recipes have in common: what they read, how they are written, their id."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

VERSION = 1  # of the JSON that recipes are written as


class Recipe(abc.ABC):
    """The frozen, JSON-able, complete description of one merged model.

    A recipe's id is a hash of its content with each model replaced by the hash of the model's, so
    that the same merge has the same id wherever its sources lie.

    Attributes:
        kind: which of the kinds it is, as its JSON says it.
        models: names of what is merged: a directory, a hub id with or without @revision, or an
            archived candidate.
        dtype: of the merged weights.

    >>> from evomerge.recipes.parameters import uniform
    >>> recipe: Recipe = uniform(("a", "b"), "float32")
    >>> recipe.kind, recipe.sources
    ('parameters', ('a', 'b'))
    >>> recipe.id({"a": "hash of a", "b": "hash of b"})[:8]
    'e98ab7ca'
    """

    kind: ClassVar[str]
    models: tuple[str, ...]
    dtype: str

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct sources that it reads; the first gives config and tokenizer."""
        return tuple(dict.fromkeys(self.models))

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON-able data; `parse_recipe` reads it back, equal."""

    @abc.abstractmethod
    def id(self, hashes: Mapping[str, str]) -> str:
        """Return the recipe's id, 64 hex digits.

        Args:
            hashes: the content hash of each of `sources`.
        """
