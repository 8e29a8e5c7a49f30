"""Whether a campaign's models fit their GPU, and what of the sources stays beside them."""

from collections.abc import Iterable

from evomerge.campaign.campaign import Campaign
from evomerge.config.parts import WorkersSection
from evomerge.dtypes import CODES, SIZE
from evomerge.errors import Fault
from evomerge.merging.device_memory import RESERVED
from evomerge.merging.methods import METHODS
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.search.spaces.routing import RoutingSection
from evomerge.text import byte_size

_BYTES = {dtype: SIZE[code] for dtype, code in CODES.items()}


def on_gpu(device: str, workers: WorkersSection) -> bool:
    """Tell whether workers of a campaign have a GPU, as far as it can be told here.

    >>> on_gpu("cuda:1", WorkersSection()), on_gpu("cpu", WorkersSection())
    (True, False)
    """
    import torch

    if device != "auto":
        return device.startswith("cuda")
    return bool(workers.gpus_each) or torch.cuda.is_available()


def live_bytes(campaign: Campaign) -> int:
    """Return the bytes of the models that a worker keeps live.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> live_bytes(example_campaign())  # 5,200 parameters of bfloat16
    10400
    """
    frame = campaign.sources[campaign.worker.frame]
    parameters = sum(tensor.elements for tensor in frame.tensors.values())
    models = 1
    if isinstance(campaign.search.space, RoutingSection):
        # a routing worker keeps a live model of each source besides the one that is scored
        models += len(campaign.listed.models) + (campaign.listed.base is not None)
    quantized = parameters if campaign.worker.quantize else 0  # a byte a weight
    rest = 0  # of a pipeline or a file, which lives beside the denoiser
    if frame.is_image_model:
        rest = sum(tensor.bytes for tensor in frame.carried.values())
    return models * parameters * _BYTES[campaign.worker.compute_dtype] + quantized + rest


def kept_bytes(campaign: Campaign) -> int:
    """Return the bytes of sources' weights that stay on a worker's GPU; 0 without one.

    Where the workers' GPU cannot be seen from here, as many as the campaign file says, else all.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> kept_bytes(example_campaign())
    0
    """
    workers, device = campaign.plan.workers, campaign.worker.device
    is_routed = isinstance(campaign.search.space, RoutingSection)
    if is_routed or not on_gpu(device, workers):
        return 0  # a path's sources are among the live models
    kept = read_bytes(campaign)
    if workers.sources_bytes is not None:
        kept = min(kept, workers.sources_bytes)
    total = gpu_bytes(device)
    if total is not None:
        kept = min(kept, max(0, _share(total, workers) - _live_on_each(campaign)))
    return kept


def prepared_bytes(campaign: Campaign) -> int:
    """Return the bytes that the campaign's prepared sources take, on disk and mapped, at most.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> prepared_bytes(example_campaign())
    0
    """
    recipe, total = campaign.space.first, 0
    if not isinstance(recipe, ParametersRecipe):
        return total
    tensors = campaign.sources[campaign.worker.frame].tensors.values()
    for name in recipe.methods:
        method = METHODS.get(name)
        if method.prepare:
            total += method.direction_bytes(tensors) * len(recipe.models)
    return total


def read_bytes(campaign: Campaign) -> int:
    """Return the bytes of weights that merges read: prepared ones instead of the models.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> read_bytes(example_campaign())  # three models of 5,200 parameters of bfloat16
    31200
    """
    recipe, sources = campaign.space.first, campaign.sources
    is_prepared = isinstance(recipe, ParametersRecipe) and all(
        METHODS.get(name).prepare for name in recipe.methods
    )
    if is_prepared:
        return sources[campaign.worker.frame].merged_bytes + prepared_bytes(campaign)
    return sum(source.merged_bytes for source in sources.values()) + prepared_bytes(campaign)


def gpu_faults(campaign: Campaign) -> Iterable[Fault]:
    """Return why a worker's live models do not fit the GPU that is seen from here.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> list(gpu_faults(example_campaign()))
    []
    """
    workers, device = campaign.plan.workers, campaign.worker.device
    total = gpu_bytes(device) if on_gpu(device, workers) else None
    if total is not None and _live_on_each(campaign) > _share(total, workers):
        wrong = f"models of {byte_size(_live_on_each(campaign))} do not fit a worker's share of"
        wrong += f" a GPU of {byte_size(total)}, a quarter of which is left to batches"
        yield Fault("workers.device", wrong, "write cpu, or fewer workers for each GPU")


def gpu_bytes(device: str) -> int | None:
    """Return the memory of the GPU that a worker here would take; None if none is seen.

    >>> gpu_bytes("cpu") is None
    True
    """
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return None
    named = "cuda" if device == "auto" else device
    return int(torch.cuda.get_device_properties(named).total_memory)


def _live_on_each(campaign: Campaign) -> int:
    """Return the bytes of live models on each GPU, of several that hold a model together."""
    return live_bytes(campaign) // campaign.worker.gpus


def _share(total: int, workers: WorkersSection) -> int:
    return int(total * workers.device_share * (1.0 - RESERVED))
