"""Text for people: the tables that the commands print."""

import json
import string
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from evomerge.recipes.parse import from_json
from evomerge.text import duration, interval


def front(rows: list[dict], standing: Mapping[int, tuple[bool, float | None]]) -> str:
    """Return the front and the baselines as a table, search beside held-out scores.

    Args:
        rows, standing: of `views`.
    """
    if not rows:
        return "no candidate has been scored yet"
    names = list(rows[0]["scores"])
    unknown = False, None  # it has been dominated since the rows were read
    header = ["id", "who", "front", "value"]
    header += [f"{n} {side}" for n in names for side in ("search", "held-out")]
    body = [
        [
            r["id"],
            (r["label"] or r["origin"]) + (" (misses a constraint)" if r.get("violation") else ""),
            "*" if standing.get(r["id"], unknown)[0] else "",
            _value(standing.get(r["id"], unknown)[1]),
        ]
        + [interval(r["scores"][n][side]) for n in names for side in ("search", "heldout")]
        for r in rows
    ]
    return tabulate(body, headers=header, floatfmt=".3f")


def status(found: dict) -> str:
    """Return a campaign's status as lines."""
    counts, budget, seconds = found["candidates"], found["budget"], found["seconds"]
    lines = [
        f"{found['name']}: {found['state']}" + (f" ({found['reason']})" if found["reason"] else ""),
        f"proposed   {budget['proposed']} of {budget['evaluations']}"
        + (f", at most {budget['hours']} h" if budget["hours"] else ""),
        *(
            f"  {stage['name']}: {stage['proposed']} of {stage['evaluations']}"
            for stage in found["stages"]
        ),
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
    rows = [["best", found["best"]]] if found["best"] else []
    rows += [[b["label"], b] for b in found["baselines"]]
    body = [
        [who, r["id"], _value(r["value"])] + [interval(s["search"]) for s in r["scores"].values()]
        for who, r in rows
    ]
    if body:
        names = list(rows[0][1]["scores"])
        headers = ["", "id", "value", *(f"{name} search" for name in names)]
        lines += ["", tabulate(body, headers=headers, floatfmt=".3f")]
    return "\n".join(lines)


def show(found: dict) -> str:
    """Return one candidate as lines: scores, outcome, recipe."""
    outcome = found["outcome"] or {}
    lines = [
        f"candidate {found['id']} ({found['label'] or found['origin']}), recipe"
        f" {found['recipe_id'][:12]}",
        f"parents   {', '.join(map(str, found['parents'])) or 'none'}",
        f"outcome   {outcome.get('status', 'none yet')}"
        + (f": {outcome['reason']}" if outcome.get("reason") else "")
        + (f" (copy of {outcome['copy_of']})" if outcome.get("copy_of") else ""),
    ]
    if outcome:
        lines.append(
            f"time      {outcome['seconds_merge']:.3f} s merging, {outcome['seconds_score']:.3f} s"
            f" scoring, by {outcome['worker'] or '-'}"
        )
    for name, score in found["scores"].items():
        lines.append(
            f"{name}: search {interval(score['search'])}, held-out {interval(score['heldout'])}"
        )
    for name, answers in found["answers"].items():
        lines += ["", f"{name}, answers to held-out items:"]
        lines += [f"  {a['ordinal']}: {a['answer']}" for a in answers]
    recipe = found["recipe"]
    long = ("groups", "chromosomes", "births", "path")
    head = {k: v for k, v in recipe.items() if k not in long}
    lines += ["", json.dumps(head)]
    if recipe["kind"] == "mixture":
        body = [
            [chromosome["modules"] or "rest", first, last - 1, _numbers(coefficients)]
            for chromosome in recipe["chromosomes"]
            for first, last, coefficients in chromosome["segments"]
        ]
        headers = ["modules", "from parameter", "to", "of each model"]
        return "\n".join([*lines, "", tabulate(body, headers=headers)])
    if recipe["kind"] == "explicit":
        body = [[" ".join(str(p)[:12] for p in b[0]), *b[1:]] for b in recipe["births"]]
        headers = ["of recipes", "mix", "split at", "sigma", "seed"]
        return "\n".join([*lines, "", tabulate(body, headers=headers)])
    if recipe["kind"] == "routing":
        return "\n".join([*lines, "", route(recipe)])
    body = [
        [_where(g["layers"]), g["modules"] or "rest"]
        + [_numbers(v) for k, v in g.items() if k not in ("layers", "modules")]
        for g in recipe["groups"]
    ]
    models = [Path(name).name for name in recipe["models"]]
    axes = [
        f"{k}: {' '.join(models)}" if isinstance(v, list) else k
        for k, v in recipe["groups"][0].items()
        if k not in ("layers", "modules")
    ]
    return "\n".join([*lines, "", tabulate(body, headers=["layers", "modules", *axes])])


def route(recipe: dict) -> str:
    """Return a path as a picture: hops from left to right, layers from below, a letter a model.

    Under it the gains of runs of hops, as what the branches are multiplied by.
    """
    routing = from_json(recipe)
    letters = {model: string.ascii_letters[i % 52] for i, model in enumerate(routing.models)}
    marks = [letters[routing.models[hop.model]] for hop in routing.path]
    lines = [f"{letter} = {model}" for model, letter in letters.items()]
    for layer in range(max(hop.layer for hop in routing.path), -1, -1):
        pairs = zip(marks, routing.path, strict=True)
        lines.append(f"{layer:3} " + "".join(m if h.layer == layer else "." for m, h in pairs))
    fold, body = routing.fold(), []
    for index, (mark, by) in enumerate(zip(marks, fold.hops, strict=True)):
        gains = [f"{gain / fold.embed:.3f}" for gain in by[:2]]
        if body and body[-1][0] == mark and body[-1][3:] == gains:
            body[-1][2] = index
        else:
            body.append([mark, index, index, *gains])
    lines += ["", tabulate(body, headers=["", "from hop", "to", "attention", "MLP"])]
    return "\n".join(lines)


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _where(layers: list | str | None) -> str:
    if isinstance(layers, list):
        return f"{layers[0]}-{layers[1] - 1}"
    return layers or "all"


def _numbers(value: float | list) -> str:
    values = value if isinstance(value, list) else [value]
    return " ".join(f"{v:.3f}" for v in values)


def listing(found: dict[str, list[dict]]) -> str:
    """Return the catalogue as text."""
    lines = []
    for what, entries in found.items():
        lines.append(f"{what}:")
        for e in entries:
            lines.append(f"  {e['name']}: {e['summary']}")
            if "keys" in e:
                lines.append(f"      keys {', '.join(e['keys'])}; see the README")
            for name, axis in e.get("axes", {}).items():
                low = "-inf" if axis["low"] is None else f"{axis['low']:g}"
                high = "inf" if axis["high"] is None else f"{axis['high']:g}"
                default = "required" if axis["default"] is None else f"default {axis['default']:g}"
                each = ", one per model" if axis["per_model"] else ""
                lines.append(f"      axis {name}: {low} to {high}, {default}{each}")
            for name, option in e.get("options", {}).items():
                if isinstance(option, dict):
                    said = f"{option['type']}, default {json.dumps(option['default'])}"
                else:
                    kind = "true or false" if isinstance(option, bool) else "a number"
                    said = f"{kind}, default {json.dumps(option)}"
                lines.append(f"      option {name}: {said}")
            if "paper" in e:
                needs = [f"{e['models']} models"] if e["models"] else []
                optional = "a base for task vectors, or none" if e["takes_base"] else ""
                base = "a base" if e["needs_base"] else optional
                needs += [base] if base else []
                lines.append(f"      needs {' and '.join(needs) or 'no base'}; {e['paper']}")
        lines.append("")
    return "\n".join(lines).rstrip()
