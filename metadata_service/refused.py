"""What a request is answered that is not let in."""

from __future__ import annotations

from collections.abc import Mapping

from flowkit.exceptions import UsageError


class Refused(UsageError):
    """A request that is not let in.

    Parameters
    ----------
    status : int
        Of HTTP: 400, 401, 403, 408, 413, 414, 415, 429, 431, 503.
    headline, hint : str
        As for every error. Nothing of a credential is ever in them.
    headers : mapping, optional
        Of the answer: ``WWW-Authenticate``, ``Retry-After``.
    """

    def __init__(
        self, status: int, headline: str, hint: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(headline, hint)
        self.status = status
        self.headers = dict(headers or {})


def unknown(headline: str, hint: str | None = None, *, error: str | None = "invalid_token") -> Refused:
    """Return the refusal of somebody who did not say who they are, or not well (401)."""
    challenge = 'Bearer realm="flowkit"' + (f', error="{error}"' if error else "")
    return Refused(401, headline, hint, {"WWW-Authenticate": challenge})


def forbidden(headline: str, hint: str | None = None) -> Refused:
    """Return the refusal of somebody who is known and may not (403)."""
    return Refused(403, headline, hint)
