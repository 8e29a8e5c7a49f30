"""The model card of a merged model: sources, recipe, both scores, provenance.

It is read by strangers on the hub, so it names sources by the hub's ids and by the hashes of what
they hold, never by folders of this machine; and all names in it, which a campaign's author or an
archive chose, are plain text, whatever Markdown or HTML they hold.
"""

import re
from typing import Literal

from evomerge.archive.archived_plan import searches
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import SourceRecord
from evomerge.archive.summary import mean_score, row
from evomerge.engines import ENGINES
from evomerge.export.card_head import card_head, model_index
from evomerge.export.hub_ids import hub_ids
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.sources.own_cards import Inherited
from evomerge.text import in_one_line, interval

# Of sources that nobody looked at: the card says nothing of their licences.
NOTHING = Inherited()


def model_card(
    archive: ArchiveReader,
    candidate: int,
    recipe: Recipe,
    as_adapter: bool = False,
    inherited: Inherited = NOTHING,
) -> str:
    """Return README.md for a candidate of a campaign.

    Args:
        archive: of the campaign.
        candidate: its number.
        recipe: of the candidate.
        as_adapter: the directory holds a LoRA adapter in the place of weights.
        inherited: from the sources' cards.

    >>> from evomerge.testing.archives import example_archive
    >>> archive = example_archive()
    >>> card = model_card(archive, 3, archive.candidate(3).recipe)
    >>> print(card[card.index("# ") :].splitlines()[0])
    # example, candidate 3
    """
    methods = recipe.methods if isinstance(recipe, ParametersRecipe) else (recipe.kind,)
    merged_by = ", ".join(_code(method) for method in methods)
    lines = [
        f"# {_plain(archive.campaign['name'])}, candidate {candidate}",
        "",
        f"A merge of {len(recipe.sources)} models with {merged_by}, found by an evolutionary"
        " search with evomerge. The recipe is in `recipe.json`"
        " (`evomerge merge recipe.json OUT` makes the model again).",
        "",
        *(_ADAPTER if as_adapter else ()),
        "## Scores",
        "",
        "Mean with its 95 % interval. Search items chose the model, so its score on them is"
        " flattered; held-out items were never seen by the search.",
        "",
        *_score_tables(archive, candidate),
        "## Sources",
        "",
        *map(_source, archive.sources),
        "",
        *_license(inherited),
        "## Provenance",
        "",
        *_provenance(archive),
        "",
    ]
    head = card_head(
        recipe,
        inherited,
        known=archive.sources,
        as_adapter=as_adapter,
        results=model_index(archive, candidate) if inherited.pipeline else (),
    )
    return head + "\n".join(lines)


_ADAPTER = (
    "It is a LoRA adapter of the models' common base, made of their updates' factors as the recipe"
    " says. PEFT loads it (`PeftModel.from_pretrained(base, FOLDER)`), and what serves"
    " adapters serves it; `evomerge merge recipe.json OUT` writes whole weights.",
    "",
)


def _license(inherited: Inherited) -> list[str]:
    """Return a section that says why the head has no licence, where it has none."""
    if not inherited.doubt:
        return []
    doubt = f"This card names none: {_plain(inherited.doubt)}. Each source's own licence holds."
    return ["## Licence", "", doubt, ""]


def _source(source: SourceRecord) -> str:
    ids = "".join(f"{_code(repository)}, " for repository in hub_ids(source.name, source.path))
    return f"- {_plain(source.label)}: {ids}sha256 of its content {_plain(source.sha256)}"


def _score_tables(archive: ArchiveReader, candidate: int) -> list[str]:
    """Return a table for each side of the split: the candidate, then the baselines."""
    names = [objective.name for objective in archive.objectives]
    labelled = [("**this model**", candidate)]
    for baseline in archive.baselines():
        labelled.append((_plain(baseline.label), baseline.id))
    lines = []
    sides: list[tuple[Literal["search", "heldout"], str]]
    sides = [("search", "search"), ("heldout", "held-out")]
    for split, title in sides:
        titles = " | ".join([title, *map(_plain, names), "mean"])
        lines += [f"| {titles} |", "|---" * (len(names) + 2) + "|"]
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
    how = ", as LoRA adapters beside their base, which merged weights round otherwise"
    rounded = f", with weights in {_plain(archive.quantized)}, which those here are not"
    controllers = ", then ".join(_code(part["controller"]["kind"]) for part in searches(plan))
    return [
        f"- search: {controllers}, seed {_plain(provenance['seed'])}, {archive.proposed()}"
        f" candidates, {archive.items_scored()} items scored by {_plain(archive.engine)}"
        f"{how if served_adapters(archive) else ''}{rounded if archive.quantized else ''}",
        f"- begun {_plain(machine['at'])} on {_plain(machine['cores'])} cores,"
        f" {_plain(machine['platform'])}",
        f"- {_plain(versions)}; git commit {_plain(commit)}",
    ]


def served_adapters(archive: ArchiveReader) -> bool:
    """Tell whether a campaign's candidates were scored as adapters, and not as merged weights.

    >>> from evomerge.testing.archives import example_archive
    >>> served_adapters(example_archive())
    False
    """
    engine = ENGINES.all().get(archive.engine)
    return engine is not None and engine.serves_adapters


def short_card(
    recipe: Recipe,
    as_adapter: bool = False,
    inherited: Inherited = NOTHING,
    made_from: str = "recipe.json",
) -> str:
    """Return README.md for a model of which only the recipe is known.

    Args:
        recipe, as_adapter, inherited: see `model_card`.
        made_from: the file beside it that says how it was made.

    >>> from evomerge.recipes.parameters import uniform
    >>> print(short_card(uniform(("org/a", "models/of/mine"), "float32")))
    ---
    library_name: transformers
    base_model:
    - org/a
    base_model_relation: merge
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
    text = f"# Merged model\n\nMade by evomerge from `{made_from}`.\n"
    if as_adapter:
        text += "\n" + "\n".join(_ADAPTER)
    if inherited.doubt:
        text += "\n" + "\n".join(_license(inherited))
    return card_head(recipe, inherited, as_adapter=as_adapter) + text


def _plain(said: object) -> str:
    r"""Return text that Markdown shows as it is, in one line.

    >>> print(_plain("- a|b <script> [x](y) maths_ja"))
    \- a\|b \<script\> \[x\](y) maths_ja
    """
    text = re.sub(r"([\\`*\[\]<>#|~&!$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", in_one_line(said))
    text = re.sub(r":(?=//)|(?<=\bwww)\.", r"\\\g<0>", text)  # or it would be a link by itself
    return re.sub(r"^(\d+(?=[.)]))?(?=[-+=.)])", r"\1\\", text)  # or it would begin a list


def _code(said: object) -> str:
    """Return text as Markdown's code, in one line; it has no escapes of its own.

    >>> print(_code("ties"), _code("a`b"))
    `ties` `a'b`
    """
    return f"`{in_one_line(said).replace('`', chr(39))}`"
