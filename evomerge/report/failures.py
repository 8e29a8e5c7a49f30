"""What failed, by reason."""

from evomerge.report.figures import Section, Table, Text
from evomerge.report.run import Run

_MOST = 15
_NAMED = 6


def failures(run: Run) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> failures(example_run()).parts[1].rows
    [('held out: OutOfMemoryError', '1', '4'), ('a merged tensor is not finite', '1', '5')]
    """
    reasons: dict[str, list[int]] = {}
    for row in run.rows:
        if row.status == "failed":
            reasons.setdefault(row.reason or "no reason given", []).append(row.id)
    for candidate, reason in run.final_failures.items():
        if reason:
            reasons.setdefault(f"held out: {reason}", []).append(candidate)
    if not reasons:
        return Section("failures", "Failures", (Text("Nothing has failed."),))
    told = [row.id for row in run.rows if row.status]
    failed = sum(row.status == "failed" for row in run.rows)
    ordered = sorted(reasons.items(), key=lambda pair: (-len(pair[1]), pair[1][0]))
    rows = []
    for reason, candidates in ordered[:_MOST]:
        more = ", …" if len(candidates) > _NAMED else ""
        named = ", ".join(map(str, candidates[:_NAMED]))
        rows.append((reason, f"{len(candidates):,}", f"{named}{more}"))
    left = len(ordered) - len(rows)
    caption = "Failures by reason" + (f" ({left} rarer reasons are left out)" if left else "")
    text = Text(
        f"{failed:,} of {len(told):,} candidates with an outcome failed. A failure ranks last; it"
        " ends no search."
    )
    table = Table(("reason", "how often", "candidates"), rows, caption, numeric=(1,))
    return Section("failures", "Failures", (text, table))
