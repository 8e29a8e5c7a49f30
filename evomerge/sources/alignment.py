"""One vocabulary for several models: the rows of embeddings and heads, and which token has which.

Embeddings are often padded to a round number of rows, by each fine-tune to its own; and a fine-tune
may give a name to a row that was spare. Rows beyond a tokenizer are nobody's: merges have as many
as the first source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from evomerge.errors import Fault
from evomerge.sources.architectures import effective
from evomerge.sources.model_class import is_known
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source
from evomerge.sources.tokenizer import loaded_vocabulary
from evomerge.tensor_names import place

# Spare rows that fine-tunes have named anew, as Llama 3's 248 reserved tokens are: at most so many,
# and a tenth of the vocabulary, lest two tokenizers of one size pass for one.
_MOST_RENAMED = 256


def aligned(first: Source, other: Source) -> Source:
    """Return a source with as many rows of embeddings and head as another, the measure.

    Rows too many are left out. Missing ones are the other's own, so that a task vector is zero
    there. What differs in any other way stays as it is.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a = open_source(str(tiny_llama(folder, seed=0)))
    >>> aligned(a, a) is a
    True
    """
    rows, wanted = _rows(other), _rows(first)
    if rows is None or wanted is None or rows == wanted:
        return other
    tensors = dict(other.tensors)
    for name, tensor in other.tensors.items():
        if not _is_by_token(name, tensor, rows) or name not in first.tensors:
            continue
        measure = first.tensors[name]
        if measure.shape[0] != wanted or measure.shape[1:] != tensor.shape[1:]:
            continue
        if other.adapter and name in {*other.adapter.factors, *other.adapter.replaced}:
            continue
        tensors[name] = _with_rows(tensor, measure)
    config = _with_vocabulary(other.config, wanted)
    return replace(other, tensors=tensors, config=config, unaligned=other.unaligned or other)


def all_aligned(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Return sources with as many rows of embeddings and head as the first of them, by name.

    >>> all_aligned({})
    {}
    """
    together: dict[str, Source] = {}
    for name, source in sources.items():
        first = next(iter(together.values()), source)
        together[name] = aligned(first, source)
    return together


def _with_rows(tensor: Tensor, measure: Tensor) -> Tensor:
    wanted, stored = measure.shape[0], tensor.shape[0]
    shape = (wanted, *tensor.shape[1:])
    if wanted < stored:
        end = tensor.begin + tensor.bytes // stored * wanted
        return tensor._replace(shape=shape, end=end, rows=wanted)
    return tensor._replace(shape=shape, rows=stored, filler=measure)


def _is_by_token(name: str, tensor: Tensor, rows: int) -> bool:
    """Tell whether a tensor has a row for each token."""
    return place(name).part in ("embed", "head") and tensor.shape[:1] == (rows,)


def _rows(source: Source) -> int | None:
    """Return how many rows a model's embeddings have by its config, None if it does not say."""
    if not is_known(source.config):
        return None
    settings = effective(source.config)
    for part in (settings, settings.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int):
            rows: int = part["vocab_size"]
            return rows
    return None


def _with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    text = config.get("text_config")
    if "vocab_size" not in config and isinstance(text, Mapping):
        return {**config, "text_config": {**text, "vocab_size": rows}}
    return {**config, "vocab_size": rows}


def tokenizer_faults(first: Source, other: Source) -> list[Fault]:
    """Return why two models' tokens are not the same rows, if they are not.

    >>> from pathlib import Path
    >>> a, b = (Source(n, Path(n), {}, {}, {"x": i, "y": 1 - i}) for i, n in enumerate("ab"))
    >>> print(tokenizer_faults(a, b)[0].wrong)
    'b' and 'a' have different tokenizers: 2 tokens, first 'x' is 1 and 0, 'y' is 0 and 1
    """
    ours, theirs = _vocabularies(first, other)
    if not ours or not theirs or ours == theirs:
        return []
    pair = f"'{other.name}' and '{first.name}'"
    differing = _differing(ours, theirs)
    by_id = {number: token for token, number in ours.items()}
    moved = [token for token in differing if token in ours and token in theirs]
    renamed = [t for t in differing if t not in ours and theirs[t] in by_id]
    few = len(renamed) <= min(_MOST_RENAMED, len(ours) // 10)
    if moved or not few:
        wrong = f"{pair} have different tokenizers: {_told(ours, theirs, differing)}"
        return [Fault("", wrong, "merge models that share one tokenizer")]
    rows = min((n for n in (_rows(first), _rows(other)) if n is not None), default=0)
    for token in differing:
        number = ours.get(token, theirs.get(token, 0))
        if number >= rows:
            wrong = f"{pair} do not both have a row for the token {token!r}, {number}"
            mend = "merge models that share one tokenizer, or resize the embeddings of one"
            return [Fault("", wrong, mend)]
    return []


def tokenizer_notes(sources: Iterable[Source]) -> list[str]:
    """Return what a user should know of the tokens of sources that go together, one line each.

    >>> tokenizer_notes([])
    []
    """
    lines = []
    listed = list(sources)
    for other in listed[1:]:
        first = listed[0]
        ours, theirs = _vocabularies(first, other)
        pair = f"'{other.name}' and '{first.name}'"
        if ours and theirs and ours != theirs:
            told = _told(ours, theirs, _differing(ours, theirs))
            lines.append(f"{pair}: {told}; merges take the tokenizer of the latter")
        rows, wanted = _rows(other.unaligned or other), _rows(first)
        if rows is not None and wanted is not None and rows != wanted:
            lines.append(f"{pair} have {rows} and {wanted} rows of embeddings; merges {wanted}")
    return lines


def _vocabularies(first: Source, other: Source) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return two models' vocabularies, as transformers loads them where their files differ."""
    if first.vocabulary == other.vocabulary:
        return first.vocabulary, other.vocabulary
    if first.factory or other.factory or not first.vocabulary or not other.vocabulary:
        return first.vocabulary, other.vocabulary
    loaded = loaded_vocabulary(first.path), loaded_vocabulary(other.path)
    return loaded if all(loaded) else (first.vocabulary, other.vocabulary)


def _differing(first: Mapping[str, int], other: Mapping[str, int]) -> list[str]:
    """Return the tokens that have not the same number in both, those of low numbers first."""
    tokens = [t for t in first.keys() | other.keys() if first.get(t) != other.get(t)]

    def earliest(token: str) -> tuple[int, str]:
        return min(v[token] for v in (first, other) if token in v), token

    return sorted(tokens, key=earliest)


def _told(first: Mapping[str, int], other: Mapping[str, int], differing: list[str]) -> str:
    """Say how many tokens differ, and which are the first three."""
    listed = []
    for token in differing[:3]:
        listed.append(f"{token!r} is {other.get(token, 'absent')} and {first.get(token, 'absent')}")
    count = "1 token" if len(differing) == 1 else f"{len(differing)} tokens"
    return f"{count}, first {', '.join(listed)}"
