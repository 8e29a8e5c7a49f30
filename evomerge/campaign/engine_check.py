"""Whether the engine that a campaign asks for can be had."""

import os
from collections.abc import Iterable
from importlib.util import find_spec

from evomerge.campaign.campaign import QUANTIZER, Campaign
from evomerge.engines import ENGINES
from evomerge.errors import Fault
from evomerge.merging.joined_adapter import adapter_faults
from evomerge.sources.sentence_models import INSTALL
from evomerge.sources.sentence_models import is_installed as sentence_models_are_installed


def missing_engine(campaign: Campaign) -> Iterable[Fault]:
    """Return why a campaign's engine cannot run its models.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> list(missing_engine(example_campaign()))
    []
    """
    yield from _quantize_faults(campaign)
    yield from _form_faults(campaign)
    if campaign.worker.engine in ("transformers", "auto"):
        return
    engine = ENGINES.get(campaign.worker.engine)
    mend = "write workers.engine: transformers"
    source = campaign.sources[campaign.worker.frame]
    if source.factory is not None:
        yield Fault("workers.engine", f"{engine.name} runs no module of a factory", mend)
    elif source.form != "transformers" or source.parts:
        wrong = f"{engine.name} runs whole models of transformers alone"
        yield Fault("workers.engine", wrong, mend)
        return
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


def _form_faults(campaign: Campaign) -> Iterable[Fault]:
    """Return what is asked for that models of other layouts than transformers' own do not have."""
    frame = campaign.sources[campaign.worker.frame]
    if frame.form == "transformers" and not frame.parts:
        return
    what = f"models of {', '.join(frame.parts)} alone" if frame.parts else "models of this layout"
    if campaign.worker.quantize:
        yield Fault("workers.quantize", f"{what} are scored as they are merged", "leave it out")
    if campaign.worker.gpus > 1:
        yield Fault("workers.gpus_each", f"{what} lie on one GPU", "write 1")
    is_elsewhere = campaign.plan.workers.pool == "ray" and "RAY_ADDRESS" in os.environ
    if frame.form == "sentence" and not is_elsewhere and not sentence_models_are_installed():
        wrong = "sentence-transformers, which runs it, is not installed"
        yield Fault("sources", f"'{frame.name}' is a sentence embedder: {wrong}", INSTALL)


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
