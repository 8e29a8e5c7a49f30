"""Whether a worker's engine reads as transformers does, asked once, when the worker starts."""

import logging
import os
from collections.abc import Mapping

from evomerge.dtypes import CODES, SIZE
from evomerge.engines import Engine, EngineOptions
from evomerge.engines.alike import check_alike, texts_of
from evomerge.engines.transformers_engine import TransformersEngine
from evomerge.merging.merger import Merger
from evomerge.scoring.fitness import AskedSection, Fitness
from evomerge.sources.source import Source
from evomerge.text import byte_size
from evomerge.workers.protocol import WorkerPlan

log = logging.getLogger("evomerge")

_ITEMS = 2  # of each task, whose texts are read


def check_engine(
    engine: Engine,
    options: EngineOptions,
    frame: Source,
    plan: WorkerPlan,
    merger: Merger,
    fitnesses: Mapping[str, Fitness],
) -> None:
    """Refuse an engine that reads otherwise than transformers with the same weights.

    transformers' model is made beside it for a moment, where there is none, in this machine's
    memory and not the GPU's. Where that is too small for it, a warning in the log says so.

    Args:
        engine: its weights become those of the space's first recipe.
        options: by which it was made.
        frame: the source that gives config and tokenizer.
        plan: of the worker.
        merger: over its sources.
        fitnesses: by objective, prepared.

    Raises:
        BadInput: see `check_alike`.

    >>> import numpy as np
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing.campaigns import example_campaign
    >>> plan = example_campaign(hashed=True).worker
    >>> frame = open_source(plan.frame)
    >>> plain = TransformersEngine.open(frame, EngineOptions("float32"))
    >>> check_engine(plain, EngineOptions("float32"), frame, plan, Merger({}, {}), {})
    """
    others = {part.name: part for part in engine.parts if part.name != "transformers"}
    if not others:
        return
    plain = next((part for part in engine.parts if part.name == "transformers"), None)
    if plain is None:
        elements = sum(tensor.elements for tensor in frame.tensors.values())
        needed, free = elements * SIZE[CODES[options.dtype]], _free_memory()
        if needed > free:
            what = f"{byte_size(needed)} of memory, and {byte_size(free)} are free"
            log.warning("not compared with transformers, whose model takes %s", what)
            return
        plain = TransformersEngine.open(frame, options._replace(device="cpu", gpus=1))
        plain.become(merger, plan.first)
    engine.become(merger, plan.first)
    for objective, section in plan.fitness.items():
        questions = fitnesses[objective].questions(plan.splits[objective].search[:_ITEMS])
        if questions is None or not isinstance(section, AskedSection):
            continue
        texts = texts_of(questions[1])
        for name, part in others.items():
            check_alike(name, part, plain, section, texts, options.dtype)


def _free_memory() -> int:
    """Return the bytes of this machine's memory that are free or a cache of files."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
