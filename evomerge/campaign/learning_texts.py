"""On which texts a campaign learns before its search, and what that takes."""

import json
import logging
from collections.abc import Iterable, Sequence

from evomerge.campaign.campaign import Campaign
from evomerge.errors import BadInput, Fault, Faults, placed
from evomerge.learning.learners import LearnerSection
from evomerge.learning.memory import memory_bytes
from evomerge.learning.parting import parted
from evomerge.learning.texts import chosen
from evomerge.sources.factory import parse_factory
from evomerge.sources.texts import Passage, read_texts
from evomerge.text import byte_size

log = logging.getLogger("evomerge")


def texts_of(campaign: Campaign, section: LearnerSection) -> list[Passage]:
    """Return the texts that an entry of `learned` is learned on: its file's, or search items.

    Of several fitnesses equally many, as far as they have them, drawn with the campaign's seed.
    Held-out items are never among them.

    Raises:
        BadInput: the file will not do, or no fitness has words.

    >>> from evomerge.learning.learners.adamerging import AdaMergingSection
    >>> from evomerge.testing.campaigns import example_campaign
    >>> texts_of(example_campaign(), AdaMergingSection())
    Traceback (most recent call last):
    evomerge.errors.BadInput: texts: no fitness has prompts to learn on; write texts: FILE.jsonl
    """
    count, seed = section.count, campaign.plan.seed
    if section.texts is None:
        found = search_texts(campaign, [o.name for o in campaign.objectives], count)
    else:
        with placed("texts"):
            found = chosen([read_texts(section.texts)], count, seed)
    if section.wants_answers():
        found = [text for text in found if text.answer]
    if found:
        return found
    what = "prompts with answers" if section.wants_answers() else "prompts"
    source = "no fitness has" if section.texts is None else f"{section.texts} has no"
    raise BadInput(Fault("texts", f"{source} {what} to learn on", "write texts: FILE.jsonl"))


def search_texts(campaign: Campaign, objectives: Sequence[str], count: int) -> list[Passage]:
    """Return the words of search items, those of fitnesses without words left out.

    Args:
        campaign: whose items they are.
        objectives: from which they are drawn.
        count: how many at most.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> search_texts(example_campaign(), ["likely"], 8)
    []
    """
    lists = []
    for name in objectives:
        ordinals = campaign.splits[name].search
        if ordinals and _text(campaign, name, ordinals[0]) is not None:
            lists.append([(name, ordinal) for ordinal in ordinals])
    found = (_text(campaign, *item) for item in chosen(lists, count, campaign.plan.seed))
    return [text for text in found if text is not None]


def _text(campaign: Campaign, objective: str, ordinal: int) -> Passage | None:
    """Return an item's words; None if it has none."""
    try:
        item = campaign.fitness[objective].text(ordinal)
    except Exception:  # a stranger's template
        log.exception("%s: item %d cannot be read as a text", objective, ordinal)
        return None
    if item is None or not item.text or (not item.target and _is_data(item.text)):
        return None
    return Passage(item.text, item.target.split(" | ")[0])  # of several answers, the first


def _is_data(text: str) -> bool:
    """Tell whether a text is JSON, as items of Python functions are shown that are no texts."""
    try:
        return isinstance(json.loads(text), list | dict)
    except ValueError:
        return False


def own_texts(campaign: Campaign, section: LearnerSection) -> dict[int, list[Passage]]:
    """Return the texts that are some models' own, by the model's index.

    Raises:
        BadInput: a label, a fitness or a file is not there.

    >>> from evomerge.learning.learners.adamerging import AdaMergingSection
    >>> from evomerge.testing.campaigns import example_campaign
    >>> own_texts(example_campaign(), AdaMergingSection())
    {}
    """
    labels, faults = list(campaign.listed.models), Faults()
    objectives = [objective.name for objective in campaign.objectives]
    found = {}
    for label, source in section.experts_texts.items():
        key = f"experts.{label}"
        if label not in labels:
            mend = f"write one of {', '.join(labels)}"
            faults.add(key, f"no model is called '{label}'", mend)
            continue
        with faults.gather(key):
            if source in objectives:
                texts = search_texts(campaign, [source], section.count)
            else:
                texts = chosen([read_texts(source)], section.count, campaign.plan.seed)
            if not texts:
                raise BadInput(Fault("", f"{source} has no prompts", "write a JSONL file"))
            found[labels.index(label)] = texts
    faults.check()
    return found


def learned_faults(campaign: Campaign) -> Iterable[Fault]:
    """Return why what `learned` lists cannot be learned, as far as that shows before it is begun.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> list(learned_faults(example_campaign()))
    []
    """
    if not campaign.learned:
        return
    if any(map(parse_factory, campaign.labels)):
        wrong = "coefficients are learned of language models, and a source is a module of its own"
        yield Fault("learned", wrong, "leave it out")
        return
    for index, section in enumerate(campaign.learned):
        faults = Faults()
        with faults.gather():
            own_texts(campaign, section)
        if not section.experts_texts:
            with faults.gather():
                texts_of(campaign, section)
        yield from (fault.under(f"learned.{index}") for fault in faults.found)


def learned_text(campaign: Campaign) -> str:
    """Say what will be learned, on how many texts, and what it takes of memory.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> learned_text(example_campaign())
    ''
    """
    if not campaign.learned:
        return ""
    tensors = campaign.space.shapes.tensors
    said = []
    for section in campaign.learned:
        own = own_texts(campaign, section)
        count = sum(map(len, own.values())) if own else len(texts_of(campaign, section))
        cells = len(parted(tensors, section.by).cells)
        genes = f"{cells * len(campaign.models)} coefficients"
        said.append(f"{section.label} ({genes}, {count} texts, {section.effort})")
    size = byte_size(memory_bytes(tensors, len(campaign.models)))
    return f"{', '.join(said)}; about {size} of memory beside its batches"
