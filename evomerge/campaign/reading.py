"""What a campaign's models read before the search, for methods that merge by data."""

from collections.abc import Sequence
from typing import NamedTuple

from evomerge.campaign.campaign import Campaign
from evomerge.dtypes import CODES, SIZE
from evomerge.merging.methods import METHODS
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.sources.source import Source
from evomerge.sources.texts import LONGEST, Passage, read_texts

_FLOAT32 = SIZE[CODES["float32"]]
_BYTES = 4  # of a token: English in the usual vocabularies


class Reading(NamedTuple):
    """What is read, and what that takes.

    Attributes:
        texts: of all models together.
        memory_bytes: beside the weights of a worker, once; at least, as a text's activations and
            gradients come on top.
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
    texts, memory, disk, states = 0, 0, 0, 0
    for name in campaign.space.shapes.models:
        source = campaign.sources[name]
        if not reads or "texts" not in source.evidence.files:
            continue
        passages = read_texts(source.evidence.files["texts"])
        texts += len(passages)
        if "texts" in reads:  # layer by layer: what enters the next one, of all models at once
            states += _states(source, passages)
        kept = _kept(source, reads)
        disk += kept
        model = _FLOAT32 * sum(tensor.elements for tensor in source.tensors.values())
        memory = max(memory, model + kept)
    return Reading(texts, memory + states, disk)


def averaged_note(campaign: Campaign) -> list[str]:
    """Return a warning where a method that reads layers' inputs cannot see most of a model's.

    transformers computes the experts of a mixture in one call, of tensors that it stacks.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> averaged_note(example_campaign())
    []
    """
    methods = set()
    for recipe in campaign.space.representatives:
        if isinstance(recipe, ParametersRecipe):
            known = [METHODS.get(method) for method in recipe.methods]
            methods |= {method.name for method in known if method.reads in ("inputs", "texts")}
    tensors = campaign.sources[campaign.worker.frame].tensors
    experts = [name for name in tensors if ".experts." in name]
    if not methods or not experts:
        return []
    whole = sum(tensor.elements for tensor in tensors.values())
    share = sum(tensors[name].elements for name in experts) / whole
    said = f"{', '.join(sorted(methods))}: the experts' {len(experts)} tensors ({share:.0%} of the"
    return [f"{said} model) are averaged, as their inputs cannot be seen"]


def _states(source: Source, passages: Sequence[Passage]) -> int:
    """Return about the bytes of one hidden state a token; a token is some four bytes of a text."""
    config = source.config.get("text_config") or source.config  # a part of several
    width = config.get("hidden_size") or config.get("n_embd") or 0  # 0: of no language model
    sizes = (len(passage.prompt.encode()) // _BYTES for passage in passages)
    return sum(min(size, LONGEST) for size in sizes) * width * _FLOAT32


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
