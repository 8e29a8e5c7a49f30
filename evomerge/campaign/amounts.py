"""How many candidates a budget pays for, on how many items each."""

from collections.abc import Iterable

from evomerge.campaign.campaign import Campaign
from evomerge.errors import Fault
from evomerge.recipes.category_soup import TENTHS, most_soups
from evomerge.scoring.parts import BatchesSection, items_fault


def baseline_count(campaign: Campaign) -> int:
    """Return how many baselines a search has at most, soups that wait for scores among them.

    What is learned counts too.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> baseline_count(example_campaign())
    4
    """
    baselines = len(campaign.baselines()) + ("metrics" in campaign.soups)
    if "greedy" in campaign.soups:
        baselines += len(campaign.models) - 1
    if "soce" in campaign.soups:
        categories = sum(not objective.cost for objective in campaign.objectives)
        baselines += most_soups(min(categories, len(campaign.models), TENTHS))
    return baselines + len(campaign.learned)


def amounts(campaign: Campaign) -> tuple[int, int]:
    """Return about how many proposals a search has, and how many search items it scores in all.

    Where only hours limit it, 0 proposals: how many there are depends on the machine.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> amounts(example_campaign())  # 6 proposals and 4 baselines of 25 items
    (6, 250)
    """
    budget, parts, full = campaign.search.budget, campaign.parts, campaign.search_items
    each = parts.size if parts else full
    baselines = baseline_count(campaign) * full
    share = _share(campaign)
    limits = []
    if budget.evaluations is not None:
        limits.append(budget.evaluations)
    if budget.items is not None:
        confirming = max(share * (budget.items - baselines), full) if parts else 0.0
        limits.append(max(0, int(budget.items - confirming - baselines) // each))
    proposals = min(limits, default=0)
    return proposals, baselines + int(proposals * each / (1.0 - share))


def _share(campaign: Campaign) -> float:
    """Return the share of the items that goes into confirmation."""
    scoring = campaign.plan.scoring
    return scoring.confirm if campaign.parts and isinstance(scoring, BatchesSection) else 0.0


def scoring_text(campaign: Campaign) -> str:
    """Say on how many items candidates are scored.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> scoring_text(example_campaign())
    'each candidate on all 25 items'
    """
    parts, full = campaign.parts, campaign.search_items
    if parts is None:
        return f"each candidate on all {full} items"
    batches = ", ".join(f"{count} of {name}" for name, count in parts.batch.items())
    return (
        f"most candidates on {parts.size} of {full} items ({batches}); the most promising on all"
        f" of them, for {100 * _share(campaign):g} % of the items scored"
    )


def limits_text(campaign: Campaign) -> str:
    """Say how many candidates there will be, and what ends the search.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> limits_text(example_campaign())
    '6 and 4 baselines'
    """
    budget, (proposals, _) = campaign.search.budget, amounts(campaign)
    ends = []
    if budget.items is not None:
        ends.append(f"{budget.items} items")
    if budget.hours is not None:
        ends.append(f"{budget.hours:g} h")
    if budget.patience is not None:
        ends.append(f"{budget.patience} without a better best")
    many = str(proposals) if budget.evaluations == proposals else f"about {proposals}"
    if not proposals:
        many = "as many as there is time for"
    until = f", until {' or '.join(ends)}" if ends else ""
    runs = ", ".join(campaign.plan.earlier_runs)
    taken = f"; baselines that {runs} scored alike are taken over" if runs else ""
    return f"{many} and {baseline_count(campaign)} baselines{until}{taken}"


def amount_faults(campaign: Campaign) -> Iterable[Fault]:
    """Return what asks for more items than there are, or for a search without a candidate.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> list(amount_faults(example_campaign(budget={"items": 200})))
    []
    """
    items = {name: len(split.search) for name, split in campaign.splits.items()}
    yield from (fault.under("scoring") for fault in items_fault(campaign.plan.scoring, items))
    given = campaign.search.budget.items
    if given is None:
        return
    parts, full = campaign.parts, campaign.search_items
    baselines = baseline_count(campaign) * full
    least = baselines + full + (parts.size if parts else 0)
    if given < least:
        wrong = f"{given} items do not pay for the baselines, {baselines} items, and one candidate"
        yield Fault("budget.items", wrong, f"write at least {least}")
