"""The fitnesses that a plan names: opened, and their items split."""

from collections.abc import Iterable, Mapping, Sequence

from evomerge.campaign.campaign import Campaign
from evomerge.config.schema import CampaignPlan
from evomerge.errors import Fault, Faults
from evomerge.scoring.fitness import AskedSection, CostSection, Fitness, FitnessSection
from evomerge.scoring.followers import followed_split
from evomerge.scoring.items import LastSection, Split, TestSplitSection, split_items
from evomerge.scoring.open_fitness import open_fitness
from evomerge.sources.tokenizer import has_chat_template

FEW_ITEMS = 20  # on a side of the split: below, an interval is wider than most differences


def refuse_language_model_fitness(entries: Sequence[FitnessSection], faults: Faults) -> None:
    """Refuse tasks and costs where sources are modules of their own.

    >>> faults = Faults()
    >>> refuse_language_model_fitness([CostSection(name="size", cost="parameters")], faults)
    >>> [fault.key for fault in faults.found]
    ['fitness']
    """
    mend = "write function: FILE.py"
    if any(isinstance(entry, AskedSection) for entry in entries):
        wrong = "questions are for language models, and a source is a module of its own"
        faults.add("fitness", wrong, mend)
    if any(entry.is_for_text and not isinstance(entry, AskedSection) for entry in entries):
        wrong = "costs are those of language models, and a source is a module of its own"
        faults.add("fitness", wrong, mend)


def open_fitnesses(
    entries: Sequence[tuple[str, FitnessSection | None]], own_test: bool, faults: Faults
) -> dict[str, Fitness]:
    """Open the entries that are right, by objective, gathering what is wrong with them.

    Args:
        entries: each with its key; None for one that is wrong.
        own_test: see `open_fitness`.
        faults: gathers them.

    >>> size = CostSection(name="size", cost="parameters")
    >>> list(open_fitnesses([("fitness.0", size)], False, Faults()))
    ['size']
    """
    opened: dict[str, Fitness] = {}
    for key, section in entries:
        if section is not None:
            with faults.gather(key):
                opened[section.name] = open_fitness(section.resolved(), own_test)
    if len(opened) == len(entries):  # else what is missing is told already
        for (key, _), fitness in zip(entries, opened.values(), strict=True):
            with faults.gather(key):
                fitness.follow(opened)
    return opened


def split_fitnesses(
    plan: CampaignPlan, fitness: Mapping[str, Fitness], faults: Faults
) -> tuple[dict[str, Split], list[str]]:
    """Return each objective's split, and warnings: what its fitness notes, and few items.

    >>> from evomerge.testing.campaigns import example_plan
    >>> plan, faults = example_plan(), Faults()
    >>> opened = open_fitnesses(plan.entries, False, faults)
    >>> splits, warnings = split_fitnesses(plan, opened, faults)
    >>> len(splits["likely"].search), warnings
    (25, [])
    """
    splits: dict[str, Split] = {}
    warnings: list[str] = []
    for key, section in plan.entries:
        opened = fitness.get(section.name)
        if opened is None or isinstance(section, CostSection):  # it has no items to split
            continue
        before = len(faults.found)
        faults.extend(_item_faults(plan, section, opened, key))
        if len(faults.found) > before:
            continue
        split = split_items(
            len(opened.hashes), opened.test_from, section.taken, plan.heldout, plan.seed
        )
        splits[section.name] = split
        warnings += [f"{section.name}: {note}" for note in opened.notes]
        sides = {"search": len(split.search), "held-out": len(split.heldout)}
        for side, count in sides.items():
            if count < FEW_ITEMS:
                warnings.append(f"{section.name}: only {count} {side} items")
    # A cost has one item, the model; it is measured on both sides, if there are two.
    is_held_out = any(split.heldout for split in splits.values())
    ordered = {}
    for _, section in plan.entries:
        opened = fitness.get(section.name)
        if opened is not None and opened.is_cost:
            ordered[section.name] = Split((0,), (0,) if is_held_out else ())
        elif opened is not None and opened.follows:
            ordered[section.name] = followed_split(opened, splits)
        elif section.name in splits:
            ordered[section.name] = splits[section.name]
    return ordered, warnings


def _item_faults(
    plan: CampaignPlan, section: FitnessSection, fitness: Fitness, key: str
) -> Iterable[Fault]:
    """Return why a fitness's items cannot be split as the plan says."""
    count = len(fitness.hashes) if fitness.test_from is None else fitness.test_from
    if section.taken and section.taken > count:
        wrong = f"{section.taken} items are more than the {count} there are"
        yield Fault(f"{key}.items", wrong, f"write at most {count}")
    share = 0.0
    if isinstance(plan.heldout, LastSection):
        share = plan.heldout.last
    elif not isinstance(plan.heldout, TestSplitSection):
        share = plan.heldout
    taken = min(section.taken or count, count)
    if count and share and taken == round(share * taken):
        wrong = f"holding {share} of {taken} items out leaves none to search on"
        yield Fault("heldout", wrong, "hold out less, or take more items")
    if not count:
        yield Fault(key, "there is no item", "give it items")
    if plan.own_test and fitness.test_from is None:
        wrong = f"'{section.name}' has no validation and test split of its own"
        yield Fault("heldout", wrong, "write a share such as 0.5")
    is_public = fitness.is_public_test_split() and not plan.own_test
    if is_public and not plan.allow_benchmarks:
        wrong = f"'{section.name}' would search on the test split of a public benchmark"
        mend = "write heldout: {split: test}, or allow_benchmarks: true if you mean it"
        yield Fault(f"{key}.task", wrong, mend)


def chat_faults(campaign: Campaign) -> Iterable[Fault]:
    """Return the tasks that ask for a chat template where the model that is scored has none.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> list(chat_faults(example_campaign()))
    []
    """
    frame = campaign.sources[campaign.worker.frame]
    for key, section in campaign.plan.entries:
        if not isinstance(section, AskedSection) or not section.wants_chat_template:
            continue
        if not has_chat_template(frame.path):
            wrong = f"'{frame.name}', whose tokenizer merges get, has no chat template"
            mend = "put a chat_template.jinja into its directory, or leave this out"
            yield Fault(f"{key}.chat_template", wrong, mend)
