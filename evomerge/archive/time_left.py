"""How long a campaign goes on: what is left to score, at the pace that its ledger shows.

What is left is counted in seconds of workers: the baselines and the proposals until the budget is
spent, the races that score the best in full, the finalists on held-out items. Each kind of
candidate costs what those of its kind have cost so far. The clock is slower or quicker than the
workers: some of them wait, or several work at once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from evomerge.archive.archived_plan import searches
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.work import Cost
from evomerge.scoring.parts import BatchesSection, FullSection, make_parts
from evomerge.sections import parse

# Fewer items take less time, but more for each of them: while no candidate was scored on a part, a
# part of one k-th of the items is taken to cost k^-0.75 of all. (Between k^-1, where items take
# all the time, and k^-0.5, as on small models, where it is the batches' number that counts.)
_EXPONENT = 0.75
_FEW = 3  # outcomes of a kind, below which they are not leant on
# Of a worker that waits now and then for the controller and the archive, until it is measured.
_USUAL = 0.9


class _Sizes(NamedTuple):
    """On how many items candidates of a stage are scored.

    Attributes:
        full: in full.
        part: at first; the same where all are scored in full.
        confirm: the share of the items that goes into races.
    """

    full: int
    part: int
    confirm: float


class _Search(NamedTuple):
    """What one search of a campaign has spent and proposed so far.

    Attributes:
        stage: its number.
        budget: as the plan has it.
        sizes: of its candidates' items.
        costs: origin -> what outcomes of this stage have taken.
        every: the same over all stages.
    """

    stage: int
    budget: Mapping[str, Any]
    sizes: _Sizes
    costs: Mapping[str, Cost]
    every: Mapping[str, Cost]

    @property
    def per_item(self) -> float:
        """Seconds for an item of a candidate that is scored in full."""
        for costs in (self.costs, self.every):
            cost = Cost(0, 0, 0.0)
            for origin in ("baseline", "warm_start", "recommended"):
                cost += costs.get(origin, Cost(0, 0, 0.0))
            if cost.items:
                return cost.seconds / cost.items
        return 0.0

    @property
    def per_proposal(self) -> Cost:
        """What one proposal costs, as one outcome; copies of earlier ones cost nothing."""
        found = self.costs.get("search", Cost(0, 0, 0.0))
        if found.outcomes < _FEW or not found.items:
            in_full = self.per_item * self.sizes.full
            share = self.sizes.part / self.sizes.full
            return Cost(1, self.sizes.part, in_full * share**_EXPONENT)
        each = round(found.items / found.outcomes)
        return Cost(1, max(1, each), found.seconds / found.outcomes)


def seconds_left(archive: ArchiveReader) -> float | None:
    """Return how many seconds of the clock a campaign still takes; None before the first outcome.

    Mostly right within a third after a tenth of the time; `benchmarks/time_left.py` says how often.

    >>> from evomerge.testing.archives import example_archive
    >>> seconds_left(example_archive()) is None  # which was never started
    True
    """
    campaign, costs = archive.campaign, archive.costs()
    found = archive.utilization()
    if campaign["state"] == "finished":
        return 0.0
    if found is None or not any(cost.items for cost in costs.values()):
        return None
    speed = _speed(archive, *found)
    every: dict[str, Cost] = {}
    for (_, origin), cost in costs.items():
        every[origin] = every.get(origin, Cost(0, 0, 0.0)) + cost
    seconds, per_item, parts = 0.0, 0.0, searches(campaign["plan"])
    for stage, part in enumerate(parts):
        if stage + 1 < len(parts) and archive.stage_has_begun(stage + 1):
            continue
        own = {origin: cost for (of, origin), cost in costs.items() if of == stage}
        sizes = _sizes(archive, campaign["plan"], stage)
        search = _Search(stage, part["budget"], sizes, own, every)
        seconds += _search_seconds(archive, search, speed) / speed
        per_item = search.per_item
    return seconds + _final_seconds(archive, per_item) / speed


def _speed(archive: ArchiveReader, measured: float, outcomes: int) -> float:
    """Return seconds of workers for each second of the clock."""
    workers = archive.campaign["plan"].get("workers", {}).get("count", 1)
    usual = _USUAL * workers
    # at first most of what workers have done is in flight, and not told
    weight = outcomes / (outcomes + 2.0 * workers)
    return weight * measured + (1.0 - weight) * usual


def _sizes(archive: ArchiveReader, plan: Mapping[str, Any], stage: int) -> _Sizes:
    """Return on how many items candidates of a stage are scored."""
    items = archive.items_of("search")
    costs = {objective.name for objective in archive.objectives if objective.cost}
    full = max(1, sum(items.values()))
    kind = plan.get("scoring", {"kind": "full"})
    section: FullSection | BatchesSection
    section = parse(FullSection, kind) if kind["kind"] == "full" else parse(BatchesSection, kind)
    parts = make_parts(section, items, costs, int(plan.get("seed", 0)), stage)
    if parts is None or isinstance(section, FullSection):
        return _Sizes(full, full, 0.0)
    return _Sizes(full, parts.size, section.confirm)


def _search_seconds(archive: ArchiveReader, search: _Search, speed: float) -> float:
    """Return the seconds of workers until a search's budget is spent, its races included.

    Args:
        archive: of the campaign.
        search: one of it.
        speed: of the workers, see `_speed`.
    """
    baselines = archive.waiting(search.stage, "baseline") * search.sizes.full * search.per_item
    each = search.per_proposal.seconds
    proposals = [_proposals_by_items(archive, search), *_proposals_by_count(archive, search)]
    if (hours := search.budget.get("hours")) is not None and each:
        # until then proposals are made; a race may come after
        proposals.append(((3600.0 * hours - archive.seconds) * speed - baselines) / each)
    count = max(0.0, min(proposals))
    races = _race_items(archive, search, count) * search.per_item
    return baselines + count * each + races


def _proposals_by_items(archive: ArchiveReader, search: _Search) -> float:
    """Return how many proposals the items allow that are left."""
    limit = search.budget.get("items")
    if limit is None:
        return float("inf")
    left = limit - archive.items_scored(search.stage)
    left -= archive.waiting(search.stage, "baseline") * search.sizes.full
    left -= _race_items(archive, search, 0.0)
    return max(0.0, left) / search.per_proposal.items


def _proposals_by_count(archive: ArchiveReader, search: _Search) -> list[float]:
    """Return how many proposals are left by the evaluations and by the patience."""
    found = []
    flying = archive.waiting(search.stage, "search")
    proposed = archive.proposed_in(search.stage)
    if (limit := search.budget.get("evaluations")) is not None:
        found.append(float(limit - proposed + flying))
    if (patience := search.budget.get("patience")) is not None:
        since = min(archive.proposed_since_best(), proposed)
        found.append(patience_left(patience, since, proposed) + flying)
    return found


def patience_left(patience: int, since: int, proposed: int) -> float:
    """Return after how many more proposals a search loses its patience, as a median.

    Of n values in any order, the highest is among the first m with probability m / n: so a best at
    proposal m is still the best at n. While it is likelier than not that a better one comes before
    the patience is lost, it is taken to come at the middle of where it may.

    Args:
        patience: proposals without a better best, after which it ends.
        since: how many there were.
        proposed: how many in all.

    >>> patience_left(10, 4, 100), round(patience_left(100, 0, 10))
    (6.0, 141)
    """
    now = float(max(1, proposed))
    end, goes_on = now + patience - since, 1.0
    while True:
        stays = now / end
        goes_on *= 1.0 - stays
        if goes_on <= 0.5:
            return max(0.0, end - proposed)
        now /= 1.0 - 0.5 * (1.0 - stays)
        end = now + patience


def _race_items(archive: ArchiveReader, search: _Search, proposals: float) -> float:
    """Return the items that races still take, where the best are scored in full.

    Args:
        archive: of the campaign.
        search: one of it.
        proposals: that are still to come, by which a search not limited in items is counted.
    """
    share, full = search.sizes.confirm, search.sizes.full
    if not share:
        return 0.0
    spent = search.costs.get("recommended", Cost(0, 0, 0.0)).items
    limit = search.budget.get("items")
    if limit is not None:
        baselines = len(archive.baselines(search.stage)) * full
        earned = max(share * (limit - baselines), float(spent + full))
    else:
        searched = archive.items_scored(search.stage) - spent
        for origin in ("baseline", "seed", "warm_start"):
            searched -= search.costs.get(origin, Cost(0, 0, 0.0)).items
        searched += round(proposals * search.per_proposal.items)
        earned = share / (1.0 - share) * searched
    return max(0.0, earned - spent)


def _final_seconds(archive: ArchiveReader, per_item: float) -> float:
    """Return the seconds of workers for the finalists' held-out items."""
    items = sum(archive.items_of("heldout").values())
    if not items:
        return 0.0
    done = archive.final_cost()
    each = done.seconds / done.outcomes if done.outcomes else items * per_item
    baselines = {candidate.id for candidate in archive.baselines()}
    front = len(set(archive.front()) - baselines)
    most = archive.campaign["plan"].get("finals", 0)
    left = len(baselines) + max(1, min(most, front)) - done.outcomes
    return max(0, left) * each
