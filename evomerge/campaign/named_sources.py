"""The sources that a plan names: opened by their headers, and whether they fit together."""

from collections.abc import Container, Iterable, Mapping

from evomerge.campaign.campaign import Campaign
from evomerge.config.parts import SourcesSection
from evomerge.config.schema import CampaignPlan
from evomerge.errors import BadInput, Fault, Faults
from evomerge.export.candidates import open_candidate
from evomerge.merging.adapters import factored_faults
from evomerge.merging.methods import METHODS
from evomerge.merging.validation import by_method, check_evidence_of
from evomerge.recipes.block_names import holds, is_block
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.fitness import AskedSection, CostSection
from evomerge.search.objectives import parse_bound
from evomerge.search.spaces import SPACES, BreedingSpace, SpaceSection
from evomerge.search.spaces.routing import RoutingSection
from evomerge.sources.compatibility import mismatches, settings_of, stream_mismatches
from evomerge.sources.model_class import speaks
from evomerge.sources.named_parts import like
from evomerge.sources.source import Source, is_candidate, moved_faults, open_source
from evomerge.sources.tokenizer import generation_fault, has_tokenizer, loading_fault
from evomerge.sources.trust import Trust


def open_sources(
    listed: SourcesSection,
    moved: Mapping[str, str],
    faults: Faults,
    stages: Container[str] = (),
    *,
    weights: bool = False,
) -> dict[str, Source]:
    """Open the sources by their headers, gathering what is wrong with them.

    Args:
        listed: what the file says of them.
        moved: label -> directory of sources that lie elsewhere.
        faults: gets what is wrong.
        stages: labels of those that stages of this very campaign found.
        weights: fetch those that are on the hub, see `open_source`.

    >>> from evomerge.testing.campaigns import example_plan
    >>> sources, faults = example_plan().sources, Faults()
    >>> len(open_sources(sources, {}, faults)), faults.found
    (3, [])
    """
    faults.extend(moved_faults(moved, listed.labels.values()))
    opened: dict[str, Source] = {}
    for name, label in listed.labels.items():
        # a function that this very file names is the user's own
        place = like(moved[label], name) if label in moved else name
        trust = Trust(listed.trust_remote_code, functions=True)
        with faults.gather("sources.base" if label == "base" else f"sources.models.{label}"):
            if is_candidate(place):
                of_run = trust if label in stages else trust.of_others
                opened[name] = open_candidate(place, moved, of_run)
            else:
                opened[name] = open_source(place, trust, weights=weights)
    return opened


def check_sources(
    opened: Mapping[str, Source],
    listed: SourcesSection,
    space: SpaceSection | None,
    faults: Faults,
) -> None:
    """Check that sources have what a space needs, and that they fit together.

    Args:
        opened: those that could be opened, by name.
        listed: what the file says of them.
        space: None if it is unknown; then whether they fit together is not asked.

    >>> from evomerge.testing.campaigns import example_plan
    >>> plan, faults = example_plan(), Faults()
    >>> check_sources(open_sources(plan.sources, {}, faults), plan.sources, plan.space, faults)
    >>> faults.found
    []
    """
    if space is None:
        return
    is_breeding = issubclass(SPACES.get(space.kind), BreedingSpace)
    is_by_layer = not is_breeding and space.needs_layers
    for name, source in opened.items():
        if is_by_layer and not source.layers:
            label = listed.labels[name]
            key = "sources.base" if label == "base" else f"sources.models.{label}"
            wrong = f"'{name}' has no layers that can be told from its tensor names"
            mend = "leave out layer_groups and smooth, and name parts in module_groups, or take a"
            mend += " model with numbered layers or a space of another kind"
            faults.add(key, wrong, mend)
    if opened:
        fit = stream_mismatches if isinstance(space, RoutingSection) else mismatches
        faults.extend(fit(list(opened.values())), "sources")


def check_adapters(
    representatives: Iterable[Recipe],
    listed: SourcesSection,
    opened: Mapping[str, Source],
    faults: Faults,
) -> None:
    """Refuse sources that are no adapters of the base, where a method merges those alone.

    Args:
        representatives: recipes that have every method of a space between them.
        listed: what the file says of the sources.
        opened: those that could be opened, by name.
        faults: gets what is wrong.

    >>> from evomerge.testing import recipe_of
    >>> from evomerge.testing.campaigns import example_plan
    >>> listed, faults = example_plan().sources, Faults()
    >>> opened = open_sources(listed, {}, faults)
    >>> recipe = recipe_of("knots_ties", list(listed.models.values()), listed.base)
    >>> check_adapters([recipe], listed, opened, faults)
    >>> [fault.key for fault in faults.found]
    ['sources.models.a', 'sources.models.b']
    """
    told = set()
    for recipe in representatives:
        for name, fault in factored_faults(recipe, opened):
            if name is None:
                key = "sources.models"
            else:
                label = listed.labels[name]
                key = "sources.base" if label == "base" else f"sources.models.{label}"
            if key not in told:
                faults.add(key, fault.wrong, fault.mend)
            told.add(key)


def check_averages(
    plan: CampaignPlan,
    listed: SourcesSection,
    space: SpaceSection,
    opened: Mapping[str, Source],
    faults: Faults,
) -> None:
    """Refuse what depends on an average of routed sources that have none.

    What stages found has no part in it: it is scored before them.

    >>> from evomerge.testing.campaigns import example_plan
    >>> plan, faults = example_plan(), Faults()
    >>> check_averages(plan, plan.sources, plan.searches[0].space, {}, faults)
    >>> faults.found
    []
    """
    stages = {stage.name for stage in plan.stages}
    given = [source for name, source in opened.items() if listed.labels[name] not in stages]
    if not isinstance(space, RoutingSection) or not given or not mismatches(given):
        return
    wrong = "there is no average of these sources"
    mend = "leave it out: only models of one shape are averaged"
    if plan.soups:
        faults.add("soups", wrong, mend)
    for index, section in enumerate(plan.fitness):
        if section.constraint and parse_bound(section.constraint).baseline == "uniform":
            faults.add(f"fitness.{index}.constraint", wrong, mend)


def check_soups(plan: CampaignPlan, faults: Faults) -> None:
    """Refuse a soup of category experts where there are no categories; groups are objectives here.

    >>> from evomerge.testing.campaigns import example_plan
    >>> faults = Faults()
    >>> check_soups(example_plan(soups=["soce"]), faults)
    >>> [fault.key for fault in faults.found]
    ['soups']
    """
    categories = [section for section in plan.fitness if not isinstance(section, CostSection)]
    if "soce" in plan.soups and len(categories) < 2:
        wrong = "soce chooses models by how they score on several objectives, and there is one"
        faults.add("soups", wrong, "write one more under fitness, or leave soce out")


def check_parts(
    space: SpaceSection, opened: Mapping[str, Source], under: str, faults: Faults
) -> None:
    """Refuse parts of tensor names that no tensor has, and groups of layers that no layer has.

    >>> from evomerge.search.spaces.mixture import MixtureSection
    >>> from evomerge.testing.campaigns import example_plan
    >>> faults = Faults()
    >>> opened = open_sources(example_plan().sources, {}, faults)
    >>> check_parts(MixtureSection(chromosomes=["atn"]), opened, "space", faults)
    >>> [fault.key for fault in faults.found]
    ['space.chromosomes']
    """
    layers = min(source.layers for source in opened.values())
    if layers:  # else that is what is told
        faults.extend(space.depth_faults(layers), under)
    names = {name for source in opened.values() for name in source.tensors}
    for key, part in space.substrings():
        if not any(holds(part, name) for name in names):
            wrong = f"no tensor is in '{part}'" if is_block(part) else ""
            wrong = wrong or f"no tensor's name holds '{part}'"
            faults.add(f"{under}.{key}", wrong, "mend or leave it out")


def evidence_faults(campaign: Campaign) -> Iterable[Fault]:
    """Return the models of which something is not known that a method reads.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> list(evidence_faults(example_campaign()))
    []
    """
    told = set()
    for recipe in campaign.space.representatives:
        if not isinstance(recipe, ParametersRecipe):
            continue
        for name, part in by_method(recipe).items():
            for model in part.models:
                try:
                    check_evidence_of(METHODS.get(name), campaign.sources, [model])
                except BadInput as error:
                    told.add((f"sources.models.{campaign.labels[model]}", error.faults[0]))
    for key, fault in sorted(told, key=str):
        yield fault.under(key)


def scoring_faults(campaign: Campaign) -> Iterable[Fault]:
    """Return why the model that is scored gives no answers to a task, or cannot read one.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> list(scoring_faults(example_campaign()))
    []
    """
    frame = campaign.sources[campaign.worker.frame]
    entries = campaign.plan.entries
    is_module = frame.factory is not None or frame.is_image_model
    if is_module or all(isinstance(s, CostSection) for _, s in entries):
        return
    unreadable = loading_fault(frame.path, campaign.worker.trust.remote_code)
    if unreadable and has_tokenizer(frame.path):
        wrong = f"the tokenizer of '{frame.name}' cannot be loaded ({unreadable})"
        yield Fault(f"sources.{_key_of(campaign, frame)}", wrong, "mend its files")
        return
    if wrong := generation_fault(frame.path):
        where = f"generation_config.json of '{frame.name}' cannot be read ({wrong})"
        yield Fault(f"sources.{_key_of(campaign, frame)}", where, "mend or remove the file")
    depth = frame.layers
    for key, section in entries:
        if not isinstance(section, AskedSection):
            continue
        if not speaks(frame.class_name):
            wrong = f"{section.asks} needs a model that gives text, and '{frame.name}' is a"
            wrong += f" {frame.class_name}"
            yield Fault(f"{key}.{section.key}", wrong, "write function: FILE.py, or another model")
        elif section.needs_decoder and settings_of(frame).get("is_encoder_decoder"):
            wrong = "what is read token by token needs a decoder, and"
            wrong += f" '{frame.name}' is a {frame.class_name}"
            yield Fault(f"{key}.{section.key}", wrong, "write another fitness")
        elif too_deep := [n for n in section.compared_layers if not -depth - 1 <= n <= depth]:
            wrong = f"there is no layer {too_deep[0]}: '{frame.name}' has {depth}"
            yield Fault(f"{key}.layers", wrong, f"write 0 to {depth}, or -1 for the last")
        elif unreadable:
            wrong = f"{section.asks} needs a tokenizer, and '{frame.name}' has none"
            mend = "save the tokenizer into its directory"
            yield Fault(f"sources.{_key_of(campaign, frame)}", wrong, mend)
            return


def _key_of(campaign: Campaign, source: Source) -> str:
    label = campaign.labels.get(campaign.worker.frame, source.name)
    return "base" if label == "base" else f"models.{label}"
