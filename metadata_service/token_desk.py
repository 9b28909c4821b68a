"""Where tokens are made, listed and taken back: for the command line, straight at the database."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from types import TracebackType

from flowkit.exceptions import NotFound
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.store import Token
from flowkit.metadata_service.tokens import new_token

_ID = re.compile(r"(?:fk_)?([0-9a-z]{12})(?:_[0-9A-Za-z]{43})?")


class TokenDesk:
    """The tokens in the database of a service, which may be running or not; a context that closes it.

    Parameters
    ----------
    database : str
        As for ``flowkit service --database``.

    Raises
    ------
    StoreError
        If it cannot be opened, or is newer than this program.
    """

    def __init__(self, database: str) -> None:
        self._store = open_store(database, pool=1)

    def __enter__(self) -> TokenDesk:
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._store.close()

    def create(
        self, name: str, scopes: Iterable[str], projects: Iterable[str] = (), seconds: float | None = None
    ) -> tuple[Token, str]:
        """Make a token; returns it, and its text, which nobody can ask for again.

        Parameters
        ----------
        name : str
            What to call it.
        scopes, projects : iterable of str
            What it is good for; no projects stands for all.
        seconds : float, optional
            For how long; None for ever.

        Raises
        ------
        UsageError
            If something of it is not as it should be.
        """
        token, text, digest = new_token(name, scopes, projects, None if seconds is None else time.time() + seconds)
        self._store.add_token(token, digest)
        return token, text

    def tokens(self) -> list[Token]:
        """Return all tokens, the oldest first."""
        return self._store.tokens()

    def revoke(self, token_id: str) -> Token:
        """Take a token back: a running service refuses it within seconds. Returns it as it is now.

        Raises
        ------
        NotFound
            If there is none of that id.
        """
        form = _ID.fullmatch(token_id)
        if form is None or not self._store.revoke_token(form[1], time.time()):
            shown = form[1] if form else "of that form"
            raise NotFound(f"there is no token {shown}", "flowkit service token list shows the ids")
        found = self._store.find_token(form[1])
        assert found is not None
        return found[0]
