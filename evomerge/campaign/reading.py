"""What a campaign's models read before the search, for methods that merge by data."""

from typing import NamedTuple

from evomerge.campaign.campaign import Campaign
from evomerge.dtypes import CODES, SIZE
from evomerge.merging.methods import METHODS
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.sources.source import Source
from evomerge.sources.texts import read_texts

_FLOAT32 = SIZE[CODES["float32"]]


class Reading(NamedTuple):
    """What is read, and what that takes.

    Attributes:
        texts: of all models together.
        memory_bytes: beside the weights of a worker, once.
        disk_bytes: of what is kept of it.

    >>> Reading(0, 0, 0).texts
    0
    """

    texts: int
    memory_bytes: int
    disk_bytes: int


def reading(campaign: Campaign) -> Reading:
    """Return what the models of a campaign read once, before its first candidate.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> reading(example_campaign())
    Reading(texts=0, memory_bytes=0, disk_bytes=0)
    """
    reads: set[str] = set()
    for recipe in campaign.space.representatives:
        if isinstance(recipe, ParametersRecipe):
            reads |= {METHODS.get(method).reads for method in recipe.methods}
    reads.discard("")
    texts, memory, disk = 0, 0, 0
    for name in campaign.space.shapes.models:
        source = campaign.sources[name]
        if not reads or "texts" not in source.evidence.files:
            continue
        texts += len(read_texts(source.evidence.files["texts"]))
        kept = _kept(source, reads)
        disk += kept
        model = _FLOAT32 * sum(tensor.elements for tensor in source.tensors.values())
        memory = max(memory, model + kept)
    return Reading(texts, memory, disk)


def _kept(source: Source, reads: set[str]) -> int:
    """Return the bytes of what one model's reading gives.

    Of inputs at most: layers that take the same in, such as queries, keys and values, share one.
    """
    from evomerge.merging.observed_inputs import WIDEST  # which needs torch

    kept = 0
    for tensor in source.tensors.values():
        if "curvature" in reads:
            kept += _FLOAT32 * tensor.elements
        if "inputs" in reads and len(tensor.shape) == 2:
            width = tensor.shape[1]
            kept += _FLOAT32 * (width * width if width <= WIDEST else width)
    return kept
