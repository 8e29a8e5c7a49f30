"""Text for people: what the commands print.

Every function returns text. Given a terminal's console, tables are drawn with lines and fitted to
its width; without one they are plain, as wide as they are, for files, pipes and notebooks.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console

from evomerge.archive.records import Agreement
from evomerge.archive.shapes import CandidateShape, DetailsShape, ScoreShape, StatusShape
from evomerge.cache.eviction import Removed
from evomerge.cache.summary import CacheShape
from evomerge.cli.console import Cell, table
from evomerge.cli.recipe_text import recipe_text
from evomerge.recipes.parse import parse_recipe
from evomerge.text import Z95, byte_size, duration, interval, printable

if TYPE_CHECKING:  # what they come from loads far more than a table needs
    from evomerge.campaign.estimate import Estimate
    from evomerge.cli.catalogue import Entry


def check(stages: Sequence["Estimate"]) -> str:
    """Return what a campaign will need, of `estimate`, stage by stage, and the warnings.

    >>> print(check([{"summary": {"space": "parameters, 9 genes"}, "warnings": ["few items"]}]))
    space        parameters, 9 genes
    warning: few items
    """
    lines = []
    for number, stage in enumerate(stages, start=1):
        if len(stages) > 1:
            lines += ["", f"stage {number}"] if number > 1 else [f"stage {number}"]
        lines += [f"{key:12} {value}" for key, value in stage["summary"].items()]
    warnings = dict.fromkeys(warning for stage in stages for warning in stage["warnings"])
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def front(
    rows: Sequence[CandidateShape],
    standing: Mapping[int, tuple[bool, float | None]],
    console: Console | None = None,
) -> str:
    """Return the front and the baselines as a table, search beside held-out scores.

    Args:
        rows, standing: of `summary`.
        console: of a terminal.

    >>> from evomerge.archive.summary import row
    >>> from evomerge.testing.archives import example_archive
    >>> print(front([row(example_archive(), 4)], {4: (True, 1.125)}))
    id  who     front  value  accuracy search  accuracy held-out  length search   length held-out
    ---------------------------------------------------------------------------------------------
     4  search  *      1.125  0.500 ± 0.283    failed             10.000 ± 0.283  failed
    4 failed on held-out items: OutOfMemoryError
    """
    if not rows:
        return "no candidate has been scored yet"
    names = list(rows[0]["scores"])
    headers = ["id", "who", "front", "value"]
    guards = list(rows[0].get("guards", {}))
    said = [*names, *(f"{name} (guard)" for name in guards)]
    headers += [f"{name} {side}" for name in said for side in ("search", "held-out")]
    body, failures = [], []
    for row in rows:
        # It may have been dominated since the rows were read.
        on_front, value = standing.get(row["id"], (False, None))
        who = row["label"] or row["origin"]
        if row.get("violation"):
            who += " (misses a constraint)"
        cells: list[Cell] = [row["id"], who, "*" if on_front else "", value]
        every = [row["scores"][name] for name in names]
        for scores in [*every, *(row["guards"][name] for name in guards)]:
            failed = "failed" if "heldout_failure" in row else interval(scores["heldout"])
            cells += [interval(scores["search"]), failed]
        body.append(cells)
        if "heldout_failure" in row:
            failures.append(f"{row['id']} failed on held-out items: {row['heldout_failure']}")
    return "\n".join([table(headers, body, console), *failures])


def status(found: StatusShape, console: Console | None = None) -> str:
    """Return a campaign's status as lines.

    >>> import tempfile
    >>> from evomerge.archive import summary
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     print(status(summary.status(run)).splitlines()[0])
    example: interrupted
    """
    counts, budget, seconds = found["candidates"], found["budget"], found["seconds"]
    items, in_parts = found["items"], found["in_parts"]
    reason = f" ({found['reason']})" if found["reason"] else ""
    hours = f", at most {budget['hours']} h" if budget["hours"] else ""
    lines = [
        f"{found['name']}: {found['state']}{reason}",
        f"proposed   {of_limit(budget['proposed'], budget['evaluations'])}{hours}",
    ]
    for stage in found["stages"]:
        lines.append(f"  {stage['name']}: {of_limit(stage['proposed'], stage['evaluations'])}")
    lines.append(
        f"items      {of_limit(items['search'], budget['items'])} scored for the search,"
        f" {items['heldout']} held-out"
    )
    if in_parts["parts"]:
        lines.append(
            f"scored     {in_parts['parts']} candidates on parts of the items, {in_parts['full']}"
            " on all (the best, and those of the front, are among these)"
        )
    lines += [
        f"candidates {counts['ok']} ok, {counts['failed']} failed, {counts['stopped']} stopped,"
        f" {counts['running']} without outcome",
        f"time       {duration(seconds['total'])}, {found['per_hour']:.0f} candidates per hour;"
        f" workers spent {duration(seconds['merge'])} merging and"
        f" {duration(seconds['score'])} scoring",
    ]
    if found["hypervolume"] is not None and len(found["baselines"][0]["scores"]) > 1:
        lines.append(f"progress   hypervolume {found['hypervolume']:.4f} on the baselines' scale")
    if found["state"] == "running":
        lines.append(f"           about {duration(seconds['left'])} left")
    best = found["best"]
    rows = [(f"best: {best['label']}" if best["label"] else "best", best)] if best else []
    rows += [(str(baseline["label"]), baseline) for baseline in found["baselines"]]
    if rows:
        headers = ["", "id", "value", *(f"{name} search" for name in rows[0][1]["scores"])]
        body = []
        for who, row in rows:
            scores = [interval(score["search"]) for score in row["scores"].values()]
            body.append([who, row["id"], row["value"], *scores])
        lines += ["", table(headers, body, console)]
    return "\n".join(lines)


def gap(found: Mapping[str, ScoreShape]) -> str:
    """Return the winner's gap as a line; "" where there is none.

    >>> gap({"maths": {"mean": 0.01, "stderr": 0.01, "items": 400}})
    'best, search minus held-out: maths +0.010 ± 0.020 (it was chosen by the former)'
    """
    if not found:
        return ""
    parts = [f"{n} {s['mean']:+.3f} ± {Z95 * s['stderr']:.3f}" for n, s in found.items()]
    return f"best, search minus held-out: {', '.join(parts)} (it was chosen by the former)"


def quantized(said: str) -> str:
    """Return what weights were rounded to for scoring as a line; "" where they were not.

    >>> quantized("int8 by torchao 0.18.0")
    'all scores are of weights in int8 by torchao 0.18.0; an export is not quantized'
    """
    return said and f"all scores are of weights in {printable(said)}; an export is not quantized"


def agreement(found: Mapping[str, Agreement]) -> str:
    """Return what transformers says to the best as a line; "" where nothing was compared.

    >>> from evomerge.archive.records import Agreement
    >>> agreement({"maths": Agreement(400, 3, 0.6425, 0.64)})
    'best, held out, by transformers: maths 0.640 (3 of 400 items fall otherwise)'
    """
    if not found:
        return ""
    parts = []
    for name, one in found.items():
        fallen = f"{one.differing} of {one.items} items fall otherwise"
        parts.append(f"{name} {one.by_transformers:.3f} ({fallen})")
    return f"best, held out, by transformers: {', '.join(parts)}"


def of_limit(count: int, limit: int | None) -> str:
    """Say how many of how many, where there is a limit.

    >>> of_limit(3, 8), of_limit(3, None)
    ('3 of 8', '3')
    """
    return str(count) if limit is None else f"{count} of {limit}"


def show(found: DetailsShape, console: Console | None = None) -> str:
    """Return one candidate as lines: scores, outcome, recipe.

    >>> import tempfile
    >>> from evomerge.archive import summary
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     print("\\n".join(show(summary.show(run, 5)).splitlines()[:3]))
    candidate 5 (search), recipe recipe 2
    parents   none
    outcome   failed: a merged tensor is not finite
    """
    outcome = found["outcome"] or {"status": "none yet", "reason": "", "copy_of": None}
    reason = f": {outcome['reason']}" if outcome["reason"] else ""
    copy = f" (copy of {outcome['copy_of']})" if outcome["copy_of"] else ""
    lines = [
        f"candidate {found['id']} ({found['label'] or found['origin']}),"
        f" recipe {found['recipe_id'][:12]}",
        f"parents   {', '.join(map(str, found['parents'])) or 'none'}",
        f"outcome   {outcome['status']}{reason}{copy}",
    ]
    if "heldout_failure" in found:
        lines.append(f"held-out  failed: {found['heldout_failure']}")
    if found["outcome"]:
        lines.append(
            f"time      {outcome['seconds_merge']:.3f} s merging, {outcome['seconds_score']:.3f} s"
            f" scoring, by {outcome['worker'] or '-'}"
        )
    for name, score in found["scores"].items():
        search, heldout = interval(score["search"]), interval(score["heldout"])
        lines.append(f"{name}: search {search}, held-out {heldout}")
    for name, answers in found["answers"].items():
        lines += ["", f"{name}, answers to held-out items:"]
        lines += [f"  {a['ordinal']}: {a['answer']}" for a in answers]
    recipe = parse_recipe(found["recipe"])
    return "\n".join([*lines, "", recipe_text(recipe, console)])


def listing(listed: Mapping[str, Sequence["Entry"]]) -> str:
    """Return the catalogue as text.

    >>> from evomerge.cli.catalogue import listing as entries
    >>> print(listing(entries("controllers")))
    controllers:
      ...
      random: ...
    """
    lines = []
    for what, entries in listed.items():
        lines.append(f"{what}:")
        for entry in entries:
            lines.append(f"  {entry['name']}: {entry['summary']}")
            for option in entry["fields"]:
                unit = f" ({option['unit']})" if option["unit"] else ""
                required = option["default"] is None
                default = "required" if required else f"default {option['default']}"
                lines.append(f"      {option['name']}: {option['kind']}{unit}, {default}")
                lines.append(f"          {option['description']}")
            notes = [f"needs {entry['needs']}"] if entry["needs"] else []
            notes += [entry["paper"]] if entry["paper"] else []
            notes += [f"of the package {entry['package']}"] if entry["package"] else []
            if notes:
                lines.append(f"      {'; '.join(notes)}")
        lines.append("")
    return "\n".join(lines).rstrip()


def cache(found: CacheShape, console: Console | None = None) -> str:
    """Return what lies in the cache as a table, and below it where and how much may.

    >>> native = {"kind": "native", "what": "compiled kernels", "entries": 1, "bytes": 80_000,
    ...           "last_used": None, "in_use": 0}
    >>> print(cache({"folder": "cache", "limit_bytes": None, "limit_days": 30, "kinds": [native]}))
    kind    what              entries  size     last used  in use
    -------------------------------------------------------------
    native  compiled kernels        1  80.0 kB          -       0
    80.0 kB in cache
    without a limit (EVOMERGE_CACHE_GB); what is unused for 30 days goes (EVOMERGE_CACHE_DAYS)
    """
    body: list[list[Cell]] = []
    for row in found["kinds"]:
        used = row["last_used"]
        when = f"{datetime.fromisoformat(used).astimezone():%Y-%m-%d %H:%M}" if used else None
        taken = byte_size(row["bytes"])
        body.append([row["kind"], row["what"], row["entries"], taken, when, row["in_use"]])
    headers = ["kind", "what", "entries", "size", "last used", "in use"]
    size, days = found["limit_bytes"], found["limit_days"]
    total = byte_size(sum(row["bytes"] for row in found["kinds"]))
    most = "without a limit" if size is None else f"at most {byte_size(size)} in all"
    ages = "nothing goes by age" if days is None else f"what is unused for {days:g} days goes"
    lines = [
        table(headers, body, console),
        f"{total} in {found['folder']}",
        f"{most} (EVOMERGE_CACHE_GB); {ages} (EVOMERGE_CACHE_DAYS)",
    ]
    return "\n".join(lines)


def removed(found: Removed) -> str:
    """Return what was removed from the cache as a line, and one for each entry that stays.

    >>> print(removed(Removed(2, 1_500_000, {"prepared/0f": "in use by process 7 on node"})))
    freed 1.5 MB; entries removed: 2
    prepared/0f stays: in use by process 7 on node
    """
    lines = [f"freed {byte_size(found.bytes)}; entries removed: {found.entries}"]
    return "\n".join([*lines, *(f"{name} stays: {why}" for name, why in found.kept.items())])
