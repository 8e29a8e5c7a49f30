"""A candidate of a run put on the hub: exported as ever, and sent as one commit."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evomerge import __version__
from evomerge.archive.summary import as_written, open_run
from evomerge.errors import EvomergeError
from evomerge.export.candidates import Exported, export_candidate
from evomerge.export.nested_recipes import scratch
from evomerge.export.published_names import check_secrets, published_names, rename_models
from evomerge.sources.hub_upload import Target, check_id, look_at, upload
from evomerge.sources.own_cards import head_of_card
from evomerge.sources.trust import NOBODY, Trust


class Pushed(NamedTuple):
    """What was pushed, or would be.

    Attributes:
        exported: the candidate, and how its weights compare.
        files: name -> bytes.
        head: the card's metadata.
        url: of the commit; "" where nothing was sent.

    >>> Pushed(Exported(7, "5f0c", "as scored"), {"config.json": 512}, {}).url
    ''
    """

    exported: Exported
    files: Mapping[str, int]
    head: Mapping[str, Any]
    url: str = ""


def push_candidate(
    directory: Path,
    which: str,
    target: Target,
    dry: bool,
    folder: Path | None = None,
    moved: Mapping[str, str] | None = None,
    trust: Trust = NOBODY,
    as_adapter: bool = False,
) -> Pushed:
    """Export a candidate of a run and put it on the hub.

    No folder of this machine is named in what is sent: models are called by the hub's ids, and
    those of no hub by the campaign's labels.

    Args:
        directory: the run's.
        which: as `selection.pick` takes it.
        target: where to put it.
        dry: send nothing, and ask the hub nothing.
        folder: where to write the model, which stays there; a path that does not exist yet. By
            default it is in the cache until it is sent.
        moved, trust, as_adapter: see `export_candidate`.

    Raises:
        BadInput: see `check_id`, `look_at` and `export_candidate`.
        EvomergeError: see `export_candidate` and `upload`; the repository is as it was.

    >>> push_candidate(Path("runs/absent"), "best", Target("org/a--b"), dry=True)
    Traceback (most recent call last):
    evomerge.errors.BadInput: 'org/a--b' is no repository's id; write ORG/NAME, ...
    """
    check_id(target.repository)
    with contextlib.closing(open_run(directory)) as archive, as_written():
        names = published_names(archive)
        private = {*names, *(place for s in archive.sources for place in s.path.split("+"))}
        title = str(archive.campaign["name"])
    there = None if dry else look_at(target)
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(scratch(str(directory))) / "model"
        exported = export_candidate(
            directory, folder, which, moved, trust=trust, as_adapter=as_adapter
        )
        rename_models(folder, names)
        files = _files(folder)
        # names that are the same elsewhere say nothing of this machine
        check_secrets(folder, files, {p for p in private if names.get(p) != p} | {str(Path.home())})
        head = head_of_card(folder)
        if dry:
            return Pushed(exported, files, head)
        message = f"Candidate {exported.candidate} of {title}, by evomerge {__version__}"
        return Pushed(exported, files, head, upload(folder, list(files), target, there, message))


def _files(folder: Path) -> dict[str, int]:
    """Return the files of a directory with their bytes, the card first, then by name."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if any(path.is_symlink() for path in found):
        raise EvomergeError(f"{folder} holds links, so nothing was pushed")
    named = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    return dict(sorted(named.items(), key=lambda item: (item[0] != "README.md", item[0])))
