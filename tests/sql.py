"""SQL questions to a run's archive, for tests that look at what no method tells."""

import sqlite3
from contextlib import closing
from pathlib import Path


def query(run: Path, sql: str) -> list[sqlite3.Row]:
    """Return all rows of a query, each a mapping by column."""
    with closing(sqlite3.connect(run / "archive.db")) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(sql).fetchall()


def change(run: Path, sql: str, values: tuple = ()) -> None:
    """Change an archive behind its back."""
    with closing(sqlite3.connect(run / "archive.db")) as connection, connection:
        connection.execute(sql, values)
