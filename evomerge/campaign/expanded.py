"""Groups of tasks that are to be objectives of their own become entries of their own."""

from evomerge.config.schema import CampaignPlan
from evomerge.errors import Faults
from evomerge.scoring.fitness import CostSection, FitnessSection, TaskSection
from evomerge.scoring.kinds.tasks import TasksSection, entry_of
from evomerge.scoring.lm_eval_loading import members_of_group


def expanded_plan(plan: CampaignPlan) -> CampaignPlan:
    """Return a plan in which each task of an entry with `aggregate: objectives` has its own entry.

    Raises:
        BadInput: an entry names no group, or what it becomes does not go with the rest.

    >>> from evomerge.testing.campaigns import example_plan
    >>> expanded_plan(example_plan()) == example_plan()
    True
    """
    if not any(map(_is_several, plan.fitness)):
        return plan
    faults, names = Faults(), dict[str, list[str]]()
    entries: list[FitnessSection] = []
    for index, section in enumerate(plan.fitness):
        found: list[FitnessSection] = [section]
        with faults.gather(f"fitness.{index}"):
            found = _expanded(section, f"fitness.{index}")
        names[section.name] = [one.name for one in found]
        entries += found
    faults.check()
    for index, section in enumerate(entries):
        if isinstance(section, CostSection) and section.of:
            of = [one for name in section.of for one in names.get(name, [name])]
            entries[index] = section.put(section.place, of=of)
    plan = plan.model_copy(update={"fitness": entries})
    fields = {name: getattr(plan, name) for name in CampaignPlan.model_fields}
    faults.extend(plan.cross_faults(fields))
    faults.check()
    return plan


def _is_several(section: FitnessSection) -> bool:
    return isinstance(section, TaskSection | TasksSection) and section.aggregate == "objectives"


def _expanded(section: FitnessSection, place: str) -> list[FitnessSection]:
    """Return the entries that one stands for."""
    if not isinstance(section, TaskSection | TasksSection) or section.aggregate != "objectives":
        return [section.put(place)]
    tasks = section.tasks if isinstance(section, TasksSection) else members_of_group(section)
    return [entry_of(section, task, len(tasks)).put(place) for task in tasks]
