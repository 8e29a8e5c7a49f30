"""Repositories of the hub as models are put there: looked at, made, and filled by one commit.

What a commit holds is there as a whole or not at all, so that a push that failed changed nothing
that people read, and can be made again.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from evomerge.errors import BadInput, EvomergeError, Fault
from evomerge.sources.hub import http_status, quiet_client

LOG_IN = (
    "log in (`hf auth login`) or set HF_TOKEN, to a token that may write (hf.co/settings/tokens)"
)

_MARK = "recipe.json"  # which every model has that evomerge wrote

_BEFORE = {".gitattributes", "README.md"}  # what an empty repository may have

# What of an earlier push would be read beside the new weights: other shards, an adapter.
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf")
_SETTINGS = ("adapter_config.json", "mergekit_config.yml")


class Target(NamedTuple):
    """Where a model is put.

    Attributes:
        repository: ORG/NAME.
        branch: which is made if it is not there; None: the default branch.
        private: to be seen by its owner alone.

    >>> Target("org/name").branch is None
    True
    """

    repository: str
    branch: str | None = None
    private: bool = False


class There(NamedTuple):
    """What a repository holds.

    Attributes:
        files: their names.
        commit: at which it was looked at.

    >>> There(frozenset({"README.md"}), "0f" * 20).commit[:4]
    '0f0f'
    """

    files: frozenset[str]
    commit: str


def check_id(repository: str) -> None:
    """Refuse what is no ORG/NAME.

    Raises:
        BadInput: it is not of the hub's form.

    >>> check_id("org/a--b")
    Traceback (most recent call last):
    evomerge.errors.BadInput: 'org/a--b' is no repository's id; write ORG/NAME, of letters, ...
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    is_right = repository.count("/") == 1 and all(repository.split("/"))
    try:
        validate_repo_id(repository)
    except HFValidationError:
        is_right = False
    if not is_right:
        mend = "write ORG/NAME, of letters, digits, '-', '_' and '.'"
        raise BadInput(Fault("", f"'{repository}' is no repository's id", mend))


def known_tokens() -> list[str]:
    """Return the token that the hub's client knows here, if it knows one.

    >>> len(known_tokens()) < 2
    True
    """
    from huggingface_hub import get_token

    token = get_token()
    return [] if token is None else [token]


def endpoint() -> str:
    """Return the hub's address, of HF_ENDPOINT where that is set.

    >>> endpoint().startswith("http")
    True
    """
    from huggingface_hub.constants import ENDPOINT

    return ENDPOINT


def look_at(target: Target) -> There | None:
    """Return what a repository holds to which a model is to be pushed; None if it is not there.

    Raises:
        BadInput: it holds something else, or all may see it and nobody is to.
        EvomergeError: the hub does not take the token, or is out of reach.

    >>> look_at(Target("nobody/no--thing"))
    Traceback (most recent call last):
    evomerge.errors.EvomergeError: nothing was pushed: ...
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    with _pushing(target):
        api.whoami()  # where the hub does not take a token, it calls repositories not found
        try:
            try:
                info = api.model_info(target.repository, revision=target.branch)
            except RevisionNotFoundError:
                info = api.model_info(target.repository)  # from which the branch is made
        except RepositoryNotFoundError:
            return None
    there = There(frozenset(f.rfilename for f in info.siblings or ()), info.sha or "")
    if there.files - _BEFORE and _MARK not in there.files:
        wrong = f"'{target.repository}' is there already, and holds what evomerge did not push"
        raise BadInput(Fault("", wrong, "name another repository"))
    if target.private and not info.private:
        wrong = f"'{target.repository}' is there already, and is public"
        raise BadInput(Fault("", wrong, "leave out --private, or change it on its page"))
    return there


def upload(
    folder: Path, files: Sequence[str], target: Target, there: There | None, message: str
) -> str:
    """Put files into a repository by one commit, and return the commit's address.

    Weights that an earlier push left there, and that the new model has not, are removed.

    Args:
        folder: of the files.
        files: their names within it.
        target: where to put them.
        there: see `look_at`; a commit that was made since then is not written over.
        message: of the commit.

    Raises:
        EvomergeError: the hub does not take them, or is out of reach; nothing was committed.

    >>> upload(Path("merged"), [], Target("nobody/no--thing"), None, "a merge")
    Traceback (most recent call last):
    evomerge.errors.EvomergeError: nothing was pushed: ...
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    operations += [CommitOperationAdd(name, folder / name) for name in files]
    for name in sorted(there.files if there is not None else ()):
        is_weight = name.endswith(_WEIGHTS) or name in _SETTINGS
        if is_weight and "/" not in name and name not in files:
            operations.append(CommitOperationDelete(name))
    with _pushing(target), _bars_on_terminals():
        if there is None:
            api.create_repo(target.repository, private=target.private or None, exist_ok=True)
        if target.branch is not None:
            api.create_branch(target.repository, branch=target.branch, exist_ok=True)
        commit = api.create_commit(
            target.repository,
            operations,
            commit_message=message,
            revision=target.branch,
            parent_commit=there.commit if there is not None and there.commit else None,
        )
    return commit.commit_url


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Have the hub's client draw its progress on a terminal alone."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    is_silenced = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if is_silenced:
        disable_progress_bars()
    try:
        yield
    finally:
        if is_silenced:
            enable_progress_bars()


@contextlib.contextmanager
def _pushing(target: Target) -> Iterator[None]:
    """Tell what the hub's client raises as one line."""
    with quiet_client():
        try:
            yield
        except Exception as error:  # the client raises many kinds; each means: not pushed
            raise EvomergeError(f"nothing was pushed: {_reason(target, error)}") from error


def _reason(target: Target, error: Exception) -> str:
    """Return why the hub took nothing, in words of our own: no token is in them."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    name, status = target.repository, http_status(error)
    if status == 401:
        return f"the hub does not take the token; {LOG_IN}"
    if status == 403:
        owner = name.partition("/")[0]
        return (
            f"this login may not write to '{name}'; {LOG_IN}, or name one of yours, not {owner}'s"
        )
    if status == 404:
        return f"the hub has no '{name}' that this login may write to; check the id, or {LOG_IN}"
    if status in (409, 412):
        return f"'{name}' was changed by somebody else meanwhile; run the command again"
    if status in (400, 413, 422):
        return f"the hub refuses it ({status}): {_said(error)}"
    if status is not None:
        return f"the hub answered with an error of its own ({status}); run the command again"
    if isinstance(error, ValueError):
        return f"the hub refuses it: {_said(error)}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it"
    kind = type(error.__cause__ or error).__name__
    return f"the hub at {endpoint()} is out of reach ({kind}); run the command again"


def _said(error: Exception) -> str:
    """Return what the hub said, in one line."""
    said = getattr(error, "server_message", None) or str(error)
    return " ".join(said.split())[:300]
