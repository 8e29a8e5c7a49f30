"""What `evomerge push` says of what it sent, or would send."""

from typing import TYPE_CHECKING

from evomerge.cli.conventions import license_warning, weights_of
from evomerge.text import byte_size, printable

if TYPE_CHECKING:
    from evomerge.export.hub_push import Pushed
    from evomerge.sources.hub_upload import Target


def push_text(done: "Pushed", target: "Target", as_adapter: bool) -> str:
    """Return what was pushed: the commit; or what would be: files, sizes and the card's head.

    >>> from evomerge.export.candidates import Exported
    >>> from evomerge.export.hub_push import Pushed
    >>> from evomerge.sources.hub_upload import Target
    >>> done = Pushed(Exported(7, "5f0c", "as scored"), {"config.json": 512}, {}, "hf.co/org/name")
    >>> print(push_text(done, Target("org/name"), as_adapter=False))
    candidate 7 -> hf.co/org/name (1 file, 512 bytes; weights 5f0c, as scored)
    """
    import yaml

    from evomerge.sources.hub_upload import LOG_IN, endpoint, known_tokens

    candidate, checksum, compared, doubt = done.exported
    weights = f"{weights_of(as_adapter)} {checksum}, {compared}"
    number = len(done.files)
    amount = f"{number} file{'s' if number != 1 else ''}, {byte_size(sum(done.files.values()))}"
    warning = [license_warning(doubt)] if doubt else []
    if done.url:
        return "\n".join([f"candidate {candidate} -> {done.url} ({amount}; {weights})", *warning])
    branch = f", branch {target.branch}" if target.branch else ""
    seen = "private" if target.private else "public, if it is new"
    wide = max(map(len, done.files))
    head = yaml.safe_dump(dict(done.head), sort_keys=False, allow_unicode=True)
    lines = [
        f"candidate {candidate} would go to {endpoint()}/{target.repository} ({seen}{branch})",
        f"{amount}; {weights}",
        *(f"  {name:{wide}}  {byte_size(size)}" for name, size in done.files.items()),
        "the card's metadata:",
        *(f"  {line}" for line in head.splitlines()),
        *warning,
        "nothing was sent" + ("" if known_tokens() else f": no token is known here; {LOG_IN}"),
    ]
    return str(printable("\n".join(lines)))
