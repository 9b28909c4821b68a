"""What migrations need of a database, whichever it is, and which one a line of text names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from flowkit.exceptions import UsageError
from flowkit.metadata_service.sql import Words

_POSTGRESQL = ("postgresql://", "postgres://")
_SQLITE = "sqlite:///"


class Opened(Protocol):
    """A database in one transaction, with nobody else migrating it."""

    words: Words
    shown: str

    def run(self, statement: str) -> None:
        """Carry out a statement."""

    def numbers(self) -> dict[str, int] | None:
        """Return the numbers that it has; None where there are no tables."""

    def finish(self) -> None:
        """Do what is to be done at every start."""


def sqlite_folder(database: str) -> str | None:
    """Return the folder of an SQLite database; None for PostgreSQL.

    Raises
    ------
    UsageError
        If it is neither; the text is not repeated, since it may hold a password.
    """
    if database.startswith(_POSTGRESQL):
        return None
    if database.startswith(_SQLITE) and len(database) > len(_SQLITE):
        return os.path.expanduser(database[len(_SQLITE) :])
    if not database or "://" in database or database.startswith("sqlite:"):
        kind = database.partition(":")[0]
        raise UsageError(
            f"the database of kind '{kind}' is not known", "sqlite:///<folder>, or postgresql://user@host/name"
        )
    return os.path.expanduser(database)


@contextmanager
def nothing_there(words: Words, shown: str) -> Iterator[Opened]:
    """Stand in for a database that does not exist yet and is only looked at."""
    yield _Nothing(words, shown)


class _Nothing:
    def __init__(self, words: Words, shown: str) -> None:
        self.words = words
        self.shown = shown

    def run(self, statement: str) -> None:
        raise AssertionError("only looked at")

    def numbers(self) -> dict[str, int] | None:
        return None

    def finish(self) -> None:
        raise AssertionError("only looked at")
