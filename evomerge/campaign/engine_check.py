"""Whether the engine that a campaign asks for can be had."""

import os
from collections.abc import Iterable
from importlib.util import find_spec

from evomerge.campaign.campaign import QUANTIZER, Campaign
from evomerge.engines import ENGINES
from evomerge.errors import Fault
from evomerge.merging.joined_adapter import adapter_faults


def missing_engine(campaign: Campaign) -> Iterable[Fault]:
    """Return why a campaign's engine cannot run its models.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> list(missing_engine(example_campaign()))
    []
    """
    yield from _quantize_faults(campaign)
    if campaign.worker.engine in ("transformers", "auto"):
        return
    engine = ENGINES.get(campaign.worker.engine)
    mend = "write workers.engine: transformers"
    if campaign.sources[campaign.worker.frame].factory is not None:
        yield Fault("workers.engine", f"{engine.name} runs no module of a factory", mend)
    is_elsewhere = campaign.plan.workers.pool == "ray" and "RAY_ADDRESS" in os.environ
    if engine.needs and not is_elsewhere and find_spec(engine.needs) is None:
        wrong = f"{engine.name} is not installed"
        yield Fault("workers.engine", wrong, f'pip install "evomerge[{engine.needs}]"')
    frame = campaign.worker.frame
    others = [source for name, source in campaign.sources.items() if name != frame]
    sources = [campaign.sources[frame], *others]
    reasons = list(engine.unfit(sources))
    if engine.serves_adapters:
        reasons += [fault.wrong for fault in adapter_faults(campaign.worker.first, sources)]
    for reason in reasons:
        yield Fault("workers.engine", f"{engine.name} cannot: {reason}", "write vllm")


def _quantize_faults(campaign: Campaign) -> Iterable[Fault]:
    if not campaign.worker.quantize:
        return
    if any(search.space.kind == "routing" for search in campaign.plan.searches):
        wrong = "routed candidates are the sources' own layers, which are scored as they are"
        yield Fault("workers.quantize", wrong, "leave it out")
    is_elsewhere = campaign.plan.workers.pool == "ray" and "RAY_ADDRESS" in os.environ
    if not is_elsewhere and find_spec(QUANTIZER) is None:
        wrong = f"{QUANTIZER} is not installed"
        yield Fault("workers.quantize", wrong, 'pip install "evomerge[quantize]"')
