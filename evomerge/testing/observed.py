"""Tiny models that come with texts, for examples and tests of methods that merge by data."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.testing.campaigns import example_folder

if TYPE_CHECKING:
    import torch

    from evomerge.merging.live_model import Live
    from evomerge.merging.observations import Observations


def example_texts(words: int, first: int = 0) -> Path:
    """Write eight texts of four words; return the file.

    Args:
        words: how many different ones they have.
        first: of them.

    >>> example_texts(5).name
    'texts.jsonl'
    """
    file = Path(tempfile.mkdtemp(dir=example_folder())) / "texts.jsonl"
    lines = []
    for number in range(8):
        text = " ".join(f"w{first + (number * 3 + k * k) % words}" for k in range(4))
        lines.append(json.dumps({"text": text}))
    file.write_text("\n".join(lines) + "\n")
    return file


def example_names() -> tuple[str, list[str]]:
    """Return the names of a base, and of two fine-tunes that come with texts.

    >>> len(example_names()[1])
    2
    """
    folder = example_folder()
    first, second = example_texts(9), example_texts(7, first=9)
    models = [f"{folder / 'a'}?texts={first}", f"{folder / 'b'}?texts={second}"]
    return str(folder / "base"), models


def example_observations() -> "Observations":
    """Return what is known of the two.

    >>> example_observations().curvature("model.norm.weight")[0].shape
    torch.Size([16])
    """
    import torch

    from evomerge.merging.observations import Observations
    from evomerge.merging.source_weights import SourceWeights
    from evomerge.sources.digest import digest
    from evomerge.sources.source import open_source

    base, models = example_names()
    opened = {name: open_source(name) for name in (base, *models)}
    hashes = {name: digest(source).sha256 for name, source in opened.items()}
    weights = SourceWeights(opened, torch.device("cpu"))
    return Observations(
        opened[base], models, [opened[name] for name in models], hashes, weights.tensor
    )


def example_texts_merge(method: str) -> "dict[str, torch.Tensor]":
    """Return the two merged by a method that reads their texts, in float32.

    >>> example_texts_merge("regmean")["model.norm.weight"].shape
    torch.Size([16])
    """
    from evomerge.merging.merger import Merger
    from evomerge.sources.digest import digest
    from evomerge.sources.source import open_source
    from evomerge.testing.methods import recipe_of

    base, models = example_names()
    opened = {name: open_source(name) for name in (base, *models)}
    hashes = {name: digest(source).sha256 for name, source in opened.items()}
    return dict(Merger(opened, hashes).stream(recipe_of(method, models, base)))


def example_filled() -> "Live":
    """Return a live model in float32 with weights of its own.

    >>> example_filled().direct["model.norm.weight"].dtype
    torch.float32
    """
    return example_observations().fill(0)
