"""Whose code may run: by default nobody's."""

from typing import NamedTuple


class Trust(NamedTuple):
    """What code a user lets run when models are opened.

    Attributes:
        remote_code: code that comes with a model, which transformers imports.
        functions: Python functions that make modules, `FILE.py:function@WEIGHTS`. A campaign file
            of one's own is trusted with those that it names; recipes and runs are not.

    >>> Trust().of_others, Trust(remote_code=False, functions=True).of_others
    (Trust(remote_code=False, functions=False), Trust(remote_code=False, functions=False))
    """

    remote_code: bool = False
    functions: bool = False

    @property
    def of_others(self) -> "Trust":
        """The trust in what files name that the user did not write: runs, and what they found."""
        return Trust(self.remote_code, self.remote_code)


NOBODY = Trust()
