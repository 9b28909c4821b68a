"""Tokens: how they are made, kept and checked.

A token is ``fk_<id>_<secret>``. The id is public: it names the token in lists and logs. The secret has 256 random
bits and is shown once; the database has its SHA-256. A slow hash, as passwords need, would not add anything: nobody
goes through 2**256 secrets, however fast the hash, and a request would pay for it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

from flowkit.exceptions import UsageError, did_you_mean
from flowkit.metadata_service.access import SCOPES, Caller
from flowkit.metadata_service.refused import Refused, forbidden, unknown
from flowkit.metadata_service.store import ServiceStore, Token

PREFIX = "fk_"
"""Scanners of source code find a token by it, and the guard tells ours from those of an issuer."""
KEPT = 3.0
"""Seconds for which a token is not asked for again: so long can one be used that was revoked."""
REMEMBERED = 10_000
"""Tokens (and ids that are none) in memory."""
MAX_NAME = 200
MAX_PROJECTS = 100

_ID_LETTERS = string.ascii_lowercase + string.digits
_SECRET_LETTERS = string.ascii_letters + string.digits
_FORM = re.compile(r"fk_([0-9a-z]{12})_([0-9A-Za-z]{43})")
_PROJECT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_HINT = "make one with: flowkit service token create NAME"


def new_token(
    name: str, scopes: Iterable[str], projects: Iterable[str] = (), expires: float | None = None
) -> tuple[Token, str, str]:
    """Make a token.

    Parameters
    ----------
    name : str
        What its maker calls it; up to `MAX_NAME` characters.
    scopes : iterable of str
        Of ``read``, ``write``, ``admin``.
    projects : iterable of str
        The only projects whose runs it may touch; none for all.
    expires : float, optional
        Seconds since the epoch.

    Returns
    -------
    tuple
        The token as it is kept, its text (for whoever uses it, and nobody else), and the hash that is kept.

    Raises
    ------
    UsageError
        If something of it is not as it should be.
    """
    wanted, limited = tuple(dict.fromkeys(scopes)), tuple(dict.fromkeys(projects))
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(f"a token's name has 1 to {MAX_NAME} printable characters")
    if not wanted:
        raise UsageError("a token needs a scope", f"one of {', '.join(SCOPES)}; each includes those before it")
    for scope in wanted:
        if scope not in SCOPES:
            hint = did_you_mean(scope, SCOPES) or f"one of {', '.join(SCOPES)}"
            raise UsageError(f"there is no scope '{scope}'", hint)
    if len(limited) > MAX_PROJECTS:
        raise UsageError(f"a token has at most {MAX_PROJECTS} projects", "without any it is good for all")
    for project in limited:
        if not _PROJECT.fullmatch(project):
            raise UsageError(f"'{project}' is no name of a project", "letters, digits and . _ - as @project has them")
    now = time.time()
    if expires is not None and expires <= now:
        raise UsageError("a token that has expired already is of no use")
    token_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(12))
    secret = "".join(secrets.choice(_SECRET_LETTERS) for _ in range(43))
    return Token(token_id, name, wanted, limited, now, expires), f"{PREFIX}{token_id}_{secret}", digest_of(secret)


def digest_of(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


class _Known(NamedTuple):
    token: Token | None
    digest: str
    read: float


class Tokens:
    """The tokens of a service, as requests bring them.

    Parameters
    ----------
    store : ServiceStore
        Where they are kept.
    kept : float, default `KEPT`
        Seconds for which one that was read counts.
    """

    def __init__(self, store: ServiceStore, kept: float = KEPT) -> None:
        self._store = store
        self._kept = kept
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._used: dict[str, float] = {}

    def remembered(self, text: str) -> Caller | None:
        """Return who brings a token, without asking the database; None where that is needed or it is not good."""
        form = _FORM.fullmatch(text)
        if form is None:
            return None
        with self._lock:
            known = self._known.get(form[1])
        if known is None or time.monotonic() - known.read > self._kept:
            return None
        try:
            return self._judge(known, form[2])
        except Refused:
            return None

    def familiar(self, text: str) -> bool:
        """Whether a token was good when it was last looked at."""
        form = _FORM.fullmatch(text)
        if form is None:
            return False
        with self._lock:
            known = self._known.get(form[1])
        return known is not None and known.token is not None and hmac.compare_digest(known.digest, digest_of(form[2]))

    def check(self, text: str) -> Caller:
        """Return who brings a token.

        Raises
        ------
        Refused
            401 for none of ours, one that expired or was revoked; 403 for one without any scope.
        StoreError
            If the database does not answer.
        """
        form = _FORM.fullmatch(text)
        if form is None:
            raise unknown("this is no token of this service", _HINT)
        return self._judge(self._read(form[1]), form[2])

    def note_used(self) -> None:
        """Write down when tokens were last used (since the last call)."""
        with self._lock:
            used, self._used = self._used, {}
        if used:
            self._store.use_tokens(used)

    def _read(self, token_id: str) -> _Known:
        now = time.monotonic()
        with self._lock:
            known = self._known.get(token_id)
        if known is not None and now - known.read <= self._kept:
            return known
        found = self._store.find_token(token_id)
        known = _Known(found[0], found[1], now) if found else _Known(None, digest_of(""), now)
        with self._lock:
            self._known[token_id] = known
            self._known.move_to_end(token_id)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known

    def _judge(self, known: _Known, secret: str) -> Caller:
        good = hmac.compare_digest(known.digest, digest_of(secret))
        token = known.token
        if token is None or not good:
            # The same for an id that is none and for a wrong secret: nobody learns which ids there are.
            raise unknown("this token is not known here", _HINT)
        now = time.time()
        if token.revoked is not None:
            raise unknown("this token was revoked", _HINT)
        if token.expires is not None and token.expires <= now:
            raise unknown("this token has expired", _HINT)
        with self._lock:
            self._used[token.id] = now
        return Caller(f"token:{token.id}", highest(token.scopes), token.projects or None)


def highest(scopes: Iterable[str]) -> Any:
    """Return the highest of some scopes; unknown ones do not count.

    Raises
    ------
    Refused
        403, if there is none.
    """
    granted = set(scopes)
    for scope in reversed(SCOPES):
        if scope in granted:
            return scope
    raise forbidden("this token grants nothing here", f"it needs a scope: {', '.join(SCOPES)}")
