"""The hub's repositories: what is fetched into its cache, and weights there by their headers.

A header is a few kilobytes of files of gigabytes, and the hub serves any part of a file. What its
client raises becomes one line for the user.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evomerge.errors import BadInput, Fault
from evomerge.sources.safetensors_file import LENGTH, Tensor, header_length, parse_header

_AT_ONCE = 8  # requests in flight, as many as the hub's client has when it downloads

_PARTIAL = 206  # HTTP's status of a part

_KEPT = 1024  # parts of files: each stage of a campaign asks for those of all its sources


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """Return the cache's directory of a repository, with its files of some names.

    Args:
        name: org/name[@revision].
        patterns: of the names, as shells have them.

    Raises:
        BadInput: they are not to be had.

    >>> fetch("nobody/no--thing", ["*.json"])
    Traceback (most recent call last):
    evomerge.errors.BadInput: 'nobody/no--thing' is no directory, and the hub does not have ...
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    with _asking(name):
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(patterns)
        )
    return Path(found)


class Repository:
    """The files of a repository's folder at one commit, whose weights are not here.

    >>> Repository("nobody/no--thing", Path("snapshots/c0ffee"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: 'nobody/no--thing' is no directory, and the hub does not have ...
    """

    def __init__(self, name: str, path: Path, folder: str = ""):
        """
        Args:
            name: org/name[@revision].
            path: its directory in the cache, called as the commit is.
            folder: of the repository; "" is the repository itself.

        Raises:
            BadInput: its files cannot be listed.
        """
        from huggingface_hub import HfApi, RepoFile, hf_hub_url

        self._name, self._path = name, path / folder
        repository = name.partition("@")[0]
        with _asking(name):
            listed = HfApi().list_repo_tree(repository, folder or None, revision=path.name)
            files = [file for file in listed if isinstance(file, RepoFile)]
        self.sizes = {file.path.rpartition("/")[2]: file.size for file in files}
        self._url = functools.partial(
            hf_hub_url, repository, subfolder=folder or None, revision=path.name
        )

    @property
    def names(self) -> Sequence[str]:
        """The names of its files."""
        return list(self.sizes)

    def headers(self, names: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return what some files hold, as `read_header` does, with paths where they will lie.

        Raises:
            ValueError: one is no safetensors file, or not a whole one.
            BadInput: they cannot be had.
        """
        sizes = [self.sizes[name] for name in names]
        files = [self._path / name for name in names]
        begins = self._parts(names, [(0, min(LENGTH, size)) for size in sizes])
        lengths = list(map(header_length, begins, files, sizes))
        texts = self._parts(names, [(LENGTH, LENGTH + length) for length in lengths])
        return list(map(parse_header, texts, files, sizes))

    def missing(self, tensors: Mapping[str, Tensor]) -> dict[Path, int]:
        """See `WeightFiles.missing`."""
        files = sorted({tensor.file for tensor in tensors.values()})
        return {file: self.sizes[file.name] for file in files if not file.exists()}

    def _parts(self, names: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes from a begin to an end of each file."""
        urls = [self._url(name) for name in names]
        with _asking(self._name), ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(_part, urls, *zip(*spans, strict=True)))


@functools.lru_cache(maxsize=_KEPT)
def _part(url: str, begin: int, end: int) -> bytes:
    """Return a part of a file, whose address names the commit, so that it never changes."""
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    if begin == end:
        return b""
    headers = build_hf_headers() | {"Range": f"bytes={begin}-{end - 1}"}
    headers |= {"Accept-Encoding": "identity"}  # else it may be a part of what is compressed
    with http_stream_backoff(
        "GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != _PARTIAL:  # it would be the whole file
            wrong = f"{url} is served as a whole only, so its header cannot be looked at"
            raise BadInput(Fault("", wrong, "fetch the model beforehand with `hf download`"))
        content: bytes = response.read()
        return content


@contextlib.contextmanager
def _asking(name: str) -> Iterator[None]:
    """Tell what the hub's client raises as a fault."""
    with quiet_client():
        try:
            yield
        except BadInput:
            raise
        except Exception as error:  # the client raises many kinds; each means: not to be had
            raise BadInput(_fault(name, error)) from error


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """Keep the hub's client from logging its retries.

    >>> with quiet_client():
    ...     logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING)
    False
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fault(name: str, error: Exception) -> Fault:
    """Return why the hub does not give a repository, in words of our own: no token is in them."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    repository, _, revision = name.partition("@")
    status = http_status(error)
    if isinstance(error, RevisionNotFoundError):
        wrong = f"the hub's '{repository}' has no revision '{revision}'"
        return Fault("", wrong, "write a branch, a tag or a commit that it has")
    if isinstance(error, GatedRepoError):
        wrong = f"'{name}' is gated: the hub gives it to those alone whom its owner let in"
        mend = "ask on its page, then log in (`hf auth login`, or HF_TOKEN)"
        return Fault("", wrong, mend)
    if status in (401, 403):
        wrong = f"the hub does not give '{name}' without a login that may read it"
        mend = "log in (`hf auth login`, or HF_TOKEN) if it is private, or check the id"
        return Fault("", wrong, mend)
    if status == 404:
        wrong = f"'{name}' is no directory, and the hub has no such model"
        return Fault("", wrong, "check the path or the id")
    wrong = f"'{name}' is no directory, and the hub does not have it or is out of reach"
    wrong += f" ({type(error).__name__})"
    return Fault("", wrong, "check the path or the id[@revision]")


def http_status(error: BaseException | None) -> int | None:
    """Return the status of HTTP that an exception comes from, None if it comes from none.

    >>> http_status(ValueError()) is None
    True
    """
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            status: int = response.status_code
            return status
        error = error.__cause__
    return None
