"""The model card of a merged model: sources, recipe, both scores, provenance."""

from collections.abc import Iterable
from typing import Literal

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.summary import mean_score, row, searches, whole_budget
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.sources.source import is_candidate
from evomerge.text import interval


def model_card(archive: ArchiveReader, candidate: int, recipe: Recipe) -> str:
    """Return README.md for a candidate of a campaign.

    Args:
        archive: of the campaign.
        candidate: its number.
        recipe: of the candidate.

    >>> from evomerge.testing.archives import example_archive
    >>> archive = example_archive()
    >>> card = model_card(archive, 3, archive.candidate(3).recipe)
    >>> print(card[card.index("# ") :].splitlines()[0])
    # example, candidate 3
    """
    merged_by = recipe.kind
    if isinstance(recipe, ParametersRecipe):
        merged_by = "`, `".join(recipe.methods)
    lines = [
        f"# {archive.campaign['name']}, candidate {candidate}",
        "",
        f"A merge of {len(recipe.sources)} models with `{merged_by}`, found by an evolutionary"
        " search with evomerge. The recipe is in `recipe.json`"
        " (`evomerge merge recipe.json OUT` makes the model again).",
        "",
        "## Scores",
        "",
        "Mean with its 95 % interval. Search items chose the model, so its score on them is"
        " flattered; held-out items were never seen by the search.",
        "",
        *_score_tables(archive, candidate),
        "## Sources",
        "",
    ]
    for source in archive.sources:
        lines.append(f"- {source.label}: `{source.name}` (sha256 of its content {source.sha256})")
    lines += ["", "## Provenance", "", *_provenance(archive), ""]
    names = [source.name for source in archive.sources]
    return _head(recipe, names) + "\n".join(lines)


def _score_tables(archive: ArchiveReader, candidate: int) -> list[str]:
    """Return a table for each side of the split: the candidate, then the baselines."""
    names = [objective.name for objective in archive.objectives]
    labelled = [("**this model**", candidate)]
    for baseline in archive.baselines():
        labelled.append((str(baseline.label), baseline.id))
    lines = []
    sides: list[tuple[Literal["search", "heldout"], str]]
    sides = [("search", "search"), ("heldout", "held-out")]
    for split, title in sides:
        lines += [f"| {title} | {' | '.join(names)} | mean |", "|---" * (len(names) + 2) + "|"]
        for label, number in labelled:
            scores = row(archive, number)["scores"]
            cells = [interval(scores[name][split]) for name in names]
            mean = mean_score(archive, number, split)
            cells.append(interval({"mean": mean.mean, "stderr": mean.stderr} if mean else None))
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _provenance(archive: ArchiveReader) -> list[str]:
    campaign = archive.campaign
    provenance, plan = campaign["provenance"], campaign["plan"]
    machine = provenance["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    commit = machine["git"]["commit"] if machine["git"] else "none"
    controllers = "`, then `".join(part["controller"]["kind"] for part in searches(plan))
    return [
        f"- search: `{controllers}`, seed {provenance['seed']}, {archive.proposed()} of"
        f" {whole_budget(plan)[0]} candidates",
        f"- begun {machine['at']} on {machine['cores']} cores, {machine['platform']}",
        f"- {versions}; git commit {commit}",
    ]


def short_card(recipe: Recipe) -> str:
    """Return README.md for a model of which only the recipe is known.

    >>> from evomerge.recipes.parameters import uniform
    >>> print(short_card(uniform(("a", "b"), "float32")))
    ---
    library_name: transformers
    base_model:
    - a
    - b
    tags:
    - mergekit
    - merge
    - evomerge
    ---
    <BLANKLINE>
    # Merged model
    <BLANKLINE>
    Made by evomerge from `recipe.json`.
    <BLANKLINE>
    """
    return _head(recipe) + "# Merged model\n\nMade by evomerge from `recipe.json`.\n"


def _head(recipe: Recipe, also: Iterable[str] = ()) -> str:
    """Return the metadata block of a model card: the hub's merge tags and the sources.

    Args:
        recipe: of the model.
        also: what candidates of runs among its sources were made of, whose names say nothing to
            others.
    """
    sources = list(recipe.sources)
    if any(is_candidate(name) for name in sources):
        sources += also
    names = [f"- {name}\n" for name in dict.fromkeys(sources) if not is_candidate(name)]
    return (
        "---\nlibrary_name: transformers\nbase_model:\n"
        f"{''.join(names)}tags:\n- mergekit\n- merge\n- evomerge\n---\n\n"
    )
