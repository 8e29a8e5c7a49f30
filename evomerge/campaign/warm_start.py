"""What a campaign begins with: candidates of other runs, in the terms of its own space."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from evomerge.archive.records import Candidate
from evomerge.archive.references import read_candidate
from evomerge.campaign.campaign import Campaign, WarmStart
from evomerge.errors import BadInput, Fault, Faults
from evomerge.recipes.mixture import MixtureRecipe
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.search.spaces import BreedingSpace, PointSpace, quantize


class Named(NamedTuple):
    """A candidate that an entry of `init` means.

    Attributes:
        key: of the entry.
        label: RUN#NUMBER.
        recipe: over the models of its own run.
        hashes: name -> content hash of these models.
        checksum: of its weights as its run scored them; "" if it has none.

    >>> from evomerge.recipes.parameters import single
    >>> Named("init.0", "runs/first#7", single("a", "float32"), {"a": "0f"}).key
    'init.0'
    """

    key: str
    label: str
    recipe: Recipe
    hashes: Mapping[str, str]
    checksum: str = ""


def warm_starts(campaign: Campaign) -> tuple[WarmStart, ...]:
    """Return the candidates of other runs that a campaign begins with, in its space's terms.

    The space expresses each as nearly as it can. A candidate may have only this campaign's
    models, whatever they are called there. Those that it does not have weigh nothing, as far as
    the space lets them: so a pool that has grown begins with what was found for the smaller one.

    Raises:
        BadInput: a run or a candidate is not there, or merges other models.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> warm_starts(example_campaign())
    ()
    """
    found: dict[str, WarmStart] = {}
    faults = Faults()
    space = campaign.space
    kind = space.first.kind if isinstance(space, PointSpace) else None
    for candidate in candidates_of(campaign.plan.init, kind):
        with faults.gather(candidate.key):
            genome = None
            if isinstance(space, PointSpace):
                genome = quantize(space.encode(_over_own_models(candidate, campaign)))
                recipe = space.decode(genome)
            else:
                assert isinstance(space, BreedingSpace)
                recipe = space.individual(_renamed(candidate, campaign))
            start = WarmStart(candidate.label, recipe, genome, candidate.checksum)
            found.setdefault(recipe.id(campaign.worker.hashes), start)
    faults.check()
    return tuple(found.values())


def candidates_of(entries: Sequence[str], kind: str | None) -> list[Named]:
    """Return the candidates that entries mean.

    Args:
        entries: `RUN#front`, `RUN#best` (that is no baseline) or `RUN#NUMBER`.
        kind: of the recipes; None for any.

    Raises:
        BadInput: a run or a candidate is not there, or is of another kind.

    >>> candidates_of(["runs/absent#best"], "parameters")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    evomerge.errors.BadInput: init.0: runs/absent: is no run's directory; ...
    """
    found: list[Named] = []
    faults = Faults()
    for index, entry in enumerate(entries):
        key = f"init.{index}"
        with faults.gather(key):
            candidates = _candidates(entry, key)
            for other in candidates:
                if kind not in (None, other.recipe.kind):
                    wrong = f"'{other.label}' is of kind {other.recipe.kind}, this space's are not"
                    mend = "begin with a run over a space of the same kind"
                    raise BadInput(Fault("", wrong, mend))
            found += candidates
    faults.check()
    return found


def _candidates(entry: str, key: str) -> list[Named]:
    run, _, which = entry.rpartition("#")
    archive, first = read_candidate(f"{run}#best" if which == "front" else entry)
    with closing(archive):
        chosen: list[Candidate] = [first]
        if which == "front":
            chosen = [archive.candidate(number) for number in archive.front()]
        elif which == "best" and (number := archive.best_found()) is not None:
            chosen = [archive.candidate(number)]  # a source may be better than all that was found
        hashes = {source.name: source.sha256 for source in archive.sources}
        rows = []
        for candidate in chosen:
            if candidate.origin == "baseline":
                continue
            outcome = archive.outcome(candidate.id)
            checksum = outcome["weights_checksum"] if outcome else ""
            label = f"{run}#{candidate.id}"
            rows.append(Named(key, label, candidate.recipe, hashes, checksum))
    if not rows:
        mend = "let that campaign run on, or name another candidate"
        raise BadInput(Fault("", f"'{entry}' holds baselines only", mend))
    return rows


def _over_own_models(named: Named, campaign: Campaign) -> Recipe:
    """Return a recipe over this campaign's models, in their order."""
    recipe, hashes = named.recipe, campaign.worker.hashes
    models, base = campaign.space.shapes.models, campaign.space.shapes.base
    own = {hashes[model]: index for index, model in enumerate(models)}
    for name in recipe.models if isinstance(recipe, ParametersRecipe) else recipe.sources:
        _refuse_unless(named.hashes[name] in own, named, name)
    if isinstance(recipe, RoutingRecipe):

        def index_of(model: int) -> int:
            return own[named.hashes[recipe.models[model]]]

        path = tuple(hop._replace(model=index_of(hop.model)) for hop in recipe.path)
        return replace(recipe, models=models, path=path, frame=index_of(recipe.frame))
    assert isinstance(recipe, ParametersRecipe)
    if recipe.base and base:
        _refuse_unless(named.hashes[recipe.base] == hashes[base], named, recipe.base)
    # models that it does not merge weigh nothing; what else they have is the mean of the others',
    # so that where it is tied it stays what it is
    at = {named.hashes[name]: index for index, name in enumerate(recipe.models)}
    order = [at.get(hashes[model]) for model in models]
    groups = []
    for group in recipe.groups:
        values = dict(group.values)
        for name, value in values.items():
            if isinstance(value, tuple):
                missing = 0.0 if name == "weight" else sum(value) / len(value)
                values[name] = tuple(missing if i is None else value[i] for i in order)
        groups.append(replace(group, values=values))
    return replace(recipe, models=models, base=base, groups=tuple(groups))


def _renamed(named: Named, campaign: Campaign) -> Recipe:
    """Return a recipe with its sources called as this campaign calls them."""
    own = {sha256: name for name, sha256 in campaign.worker.hashes.items()}
    for name in named.recipe.sources:
        _refuse_unless(named.hashes[name] in own, named, name)
    recipe = named.recipe
    models = tuple(own[named.hashes[name]] for name in recipe.models)
    if isinstance(recipe, ParametersRecipe):
        base = None if recipe.base is None else own[named.hashes[recipe.base]]
        return replace(recipe, models=models, base=base)
    if isinstance(recipe, MixtureRecipe):
        return replace(recipe, models=models)
    return recipe  # of no kind that a space of individuals takes, as it will say


def _refuse_unless(is_known: bool, named: Named, source: str) -> None:
    if not is_known:
        wrong = f"'{named.label}' has {source}, which is no source of this campaign"
        raise BadInput(Fault("", wrong, "begin with a run over the same sources"))
