"""Where a model's files lie: in a folder, whose weights the hub may have still."""

from pathlib import Path
from typing import NamedTuple, Self

from evomerge.sources.hub import Repository
from evomerge.sources.weight_files import Folder, WeightFiles, lacks_weights


class Home(NamedTuple):
    """A folder, and the hub's repository whose weights it may lack still.

    Attributes:
        root: a local directory; of a repository, its directory in the cache.
        repository: org/name[@revision]; "" of a local directory.
        folder: below the root; "" is the root itself.

    >>> Home(Path("sdxl")).within("unet").path.as_posix()
    'sdxl/unet'
    """

    root: Path
    repository: str = ""
    folder: str = ""

    @property
    def path(self) -> Path:
        """The folder."""
        return self.root / self.folder

    def within(self, folder: str) -> Self:
        """Return a folder of the root."""
        return self._replace(folder=folder)

    def files(self, stem: str = "model") -> WeightFiles:
        """Return the folder's files: the repository's where its weights were not fetched yet.

        Args:
            stem: see `weight_files.shards`.

        Raises:
            BadInput: the repository's files cannot be listed.
        """
        # what has no config.json is no model: tokenizers and schedulers lack no weights
        is_model = (self.path / "config.json").is_file()
        if self.repository and is_model and lacks_weights(self.path, stem):
            return Repository(self.repository, self.root, self.folder)
        return Folder(self.path)
