"""An archive's file, opened: the only place that knows SQLite.

A journal in WAL mode lets any number of processes read while one writes. Some file systems (network
disks above all) cannot share the memory that this takes; there a rollback journal serves, under
which readers and the writer wait for each other.
"""

import contextlib
import functools
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.archive.schema import MIGRATIONS
from evomerge.errors import EvomergeError

if TYPE_CHECKING:
    import sqlite_utils

DatabaseError = sqlite3.Error  # what a full or failing disk raises

Row = sqlite3.Row  # read by columns' names

_WAIT = 30.0  # seconds for another process's lock; a transaction here takes milliseconds

Value = str | int | float | bytes | None
Values = Sequence[Value] | Mapping[str, Value]


def connect(path: Path | str, write: bool) -> sqlite3.Connection:
    """Connect to an archive's file.

    In a folder that cannot be written, and where no journal is left to be read, the file is taken
    as one that nobody writes: SQLite would want to make files beside it.

    >>> connect(":memory:", write=True).execute("SELECT 1 + 1").fetchone()
    (2,)
    """
    path = Path(path)
    journals = (Path(f"{path}-wal"), Path(f"{path}-journal"))
    closed = not write and not os.access(path.parent, os.W_OK)
    if closed and not any(journal.exists() for journal in journals):
        address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        return sqlite3.connect(address, uri=True, timeout=_WAIT, isolation_level=None)
    return sqlite3.connect(path, timeout=_WAIT, isolation_level=None)


class Database:
    """The tables of `schema`, in one file.

    Attributes:
        journal: what SQLite calls it: "wal", "delete" for a rollback journal, "memory" where there
            is no file; "" where it is only read.
        version: of its tables, how many of `MIGRATIONS` it has had.

    >>> database = Database(":memory:", write=True)
    >>> database.insert("starts", at=0.0, seconds=2.5, machine="{}")
    1
    >>> database.rows("SELECT seconds FROM starts")[0]["seconds"]
    2.5
    """

    def __init__(self, path: Path | str, *, write: bool):
        """Open a file; with `write`, create it if need be and bring its schema up to date.

        Raises:
            EvomergeError: it cannot be read, or a later version of evomerge wrote it.
        """
        self.journal = ""
        try:
            self._connection = connect(path, write)
        except sqlite3.DatabaseError as error:
            raise EvomergeError(f"{path}: {error}; is it an archive of evomerge?") from error
        try:
            self._connection.row_factory = Row
            # a run's directory may come from anyone: what its file defines calls no functions
            self._connection.execute("PRAGMA trusted_schema = OFF")
            if not write:
                self._connection.execute("PRAGMA query_only = ON")
            if write:
                self.journal = self._choose_journal()
            self._connection.execute("BEGIN")  # one state of a file that may just be made
            version = self.rows("PRAGMA user_version")[0]["user_version"]
            if version < 0:
                raise sqlite3.DatabaseError(f"its version is {version}")
            if version > len(MIGRATIONS):
                raise EvomergeError(f"{path}: written by a later version of evomerge; update it")
            self._check_schema(path, version)
            self._connection.execute("COMMIT")
            self.version = len(MIGRATIONS) if write else version
            if write:
                for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                    self._connection.executescript(
                        f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT"
                    )
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise EvomergeError(f"{path}: {error}; is it an archive of evomerge?") from error
            raise

    def _check_schema(self, path: Path | str, version: int) -> None:
        """Raise `EvomergeError` where the file's tables are not those of its version.

        A view in the place of a table could give rows for ever, and a trigger change what is
        written. Views of the user's own beside ours are no harm, as nothing here reads them.
        """
        own, wanted = _definitions(self._connection), _defined(version)
        for name in _defined(len(MIGRATIONS)) | wanted:
            if own.get(name) != wanted.get(name):
                wrong = f"{name} is not as evomerge defines it" if name in own else f"no {name}"
                raise EvomergeError(f"{path}: has {wrong}; is it an archive of evomerge?")
        if trigger := next((n for n, (kind, _) in own.items() if kind == "trigger"), None):
            raise EvomergeError(f"{path}: has a trigger, {trigger}, which evomerge has not made")

    def _choose_journal(self) -> str:
        """Take WAL where the file system gives it, else a rollback journal; return which."""
        # WAL with synchronous=NORMAL loses no commit to a killed process, and perhaps the last
        # ones to a power cut (https://www.sqlite.org/pragma.html#pragma_synchronous). A rollback
        # journal needs FULL to stay whole through one.
        with contextlib.suppress(sqlite3.OperationalError):
            journal: str = self.rows("PRAGMA journal_mode = WAL")[0][0]
            if journal in ("wal", "memory"):
                self._connection.execute("PRAGMA synchronous = NORMAL")
                return journal
        # A file that was in WAL mode elsewhere opens here only without shared memory, which an
        # exclusive lock does not need (https://www.sqlite.org/wal.html#noshm).
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        journal = self.rows("PRAGMA journal_mode = DELETE")[0][0]
        self._connection.execute("PRAGMA locking_mode = NORMAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        return journal

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        """Return all rows of a query, read to the end so that no lock is kept."""
        return self._connection.execute(sql, values).fetchall()

    def first(self, sql: str, values: Values = ()) -> Row | None:
        """Return the first row of a query, if there is one."""
        rows = self.rows(sql, values)
        return rows[0] if rows else None

    def execute(self, sql: str, values: Values = ()) -> None:
        """Run one statement, whose rows nobody reads."""
        self._connection.execute(sql, values)

    def execute_each(self, sql: str, rows: Iterable[Values]) -> None:
        """Run one statement for each row of values."""
        self._connection.executemany(sql, rows)

    def insert(self, table: str, **columns: Value) -> int:
        """Insert one row by its columns' names; return its rowid."""
        sql = _insertion(table, tuple(columns))
        return self._connection.execute(sql, tuple(columns.values())).lastrowid or 0

    def transaction(self) -> contextlib.AbstractContextManager[object]:
        """Commit all that is written within, or, where it raises, none of it."""
        return self._utilities.atomic()

    @contextlib.contextmanager
    def one_state(self) -> Iterator[None]:
        """Let all that is read within be of one moment, whatever is written meanwhile."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("COMMIT")

    @functools.cached_property
    def _utilities(self) -> "sqlite_utils.Database":
        """The connection as sqlite-utils has it; made once, as SQLite then forgets its plans."""
        import sqlite_utils  # which takes longer to import than `evomerge status` to read

        return sqlite_utils.Database(
            self._connection, recursive_triggers=False, execute_plugins=False
        )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


@functools.cache
def _insertion(table: str, columns: tuple[str, ...]) -> str:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({marks})"


@functools.cache
def _defined(version: int) -> dict[str, tuple[str, str]]:
    """Return what a file of some version has, as `_definitions` does."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for script in MIGRATIONS[:version]:
            connection.executescript(script)
        return _definitions(connection)


def _definitions(connection: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    """Return name -> kind and SQL of all that a file defines, but for what SQLite adds itself."""
    sql = "SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL"
    found = connection.execute(sql).fetchall()
    return {name: (kind, " ".join(str(text).split())) for name, kind, text in found}
