"""The model card of an exported candidate: sources, recipe, both scores, provenance."""

from evomerge.archive.archive import Archive
from evomerge.archive.summary import mean_score, row, searches
from evomerge.export.model_directory import card_head
from evomerge.recipes.parameters import Recipe
from evomerge.text import Z95, interval


def model_card(archive: Archive, candidate: int, recipe: Recipe) -> str:
    """Return README.md for a candidate of a campaign."""
    campaign = archive.campaign
    provenance = campaign["provenance"]
    baselines = archive.baselines()
    rows = [("**this model**", candidate), *((c.label, c.id) for c in baselines)]
    names = [o.name for o in archive.objectives]
    how = "`, `".join(recipe.methods) if recipe.kind == "parameters" else recipe.kind
    lines = [
        f"# {campaign['name']}, candidate {candidate}",
        "",
        f"A merge of {len(recipe.sources)} models with `{how}`, found by an evolutionary"
        " search with evomerge. The recipe is in `recipe.json`"
        " (`evomerge merge recipe.json OUT` makes the model again).",
        "",
        "## Scores",
        "",
        "Mean with its 95 % interval. Search items chose the model, so its score on them is"
        " flattered; held-out items were never seen by the search.",
        "",
    ]
    for split, said in (("search", "search"), ("heldout", "held-out")):
        lines += [
            f"| {said} | " + " | ".join(names) + " | mean |",
            "|---" * (len(names) + 2) + "|",
        ]
        for who, number in rows:
            scores = row(archive, number)["scores"]
            mean = mean_score(archive, number, split)
            cells = [interval(scores[n][split]) for n in names]
            total = "-" if mean is None else f"{mean.mean:.3f} ± {Z95 * mean.stderr:.3f}"
            lines.append(f"| {who} | " + " | ".join(cells) + f" | {total} |")
        lines.append("")
    lines += ["## Sources", ""]
    lines += [
        f"- {label}: `{source['name']}` (sha256 of its content {source['sha256']})"
        for label, source in provenance["sources"].items()
    ]
    machine = provenance["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    budget = campaign["plan"]["budget"]["evaluations"]
    kinds = [part["controller"]["kind"] for part in searches(campaign["plan"])]
    controller = "`, then `".join(kinds)
    commit = machine["git"]["commit"] if machine["git"] else "none"
    lines += [
        "",
        "## Provenance",
        "",
        f"- search: `{controller}`, seed {provenance['seed']}, {archive.proposed()} of {budget}"
        " candidates",
        f"- begun {machine['at']} on {machine['cores']} cores, {machine['platform']}",
        f"- {versions}; git commit {commit}",
        "",
    ]
    names = [source["name"] for source in provenance["sources"].values()]
    return card_head(recipe, names) + "\n".join(lines)
