"""Talking to a metadata service: one connection that is kept, bounded waits, errors that a user understands.

``requests`` is imported by the first call, ``tenacity`` by the first one that has to be repeated: a run does both in a
thread while its tasks start.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from flowkit.exceptions import Conflict, FlowkitError, MissingExtra, NotFound, StoreError, UsageError
from flowkit.settings import variable

CONNECT_SECONDS = 3.0
"""How long it may take until a service takes a connection."""
READ_SECONDS = 15.0
"""How long a service may think about a request."""
TRIES = 4
"""How often a call is made that somebody waits for, over about three seconds where nobody answers at all."""
MOST_BYTES = 64 * 1024 * 1024
"""What an answer may have: a page of the longest records has a fraction of it."""
DEFAULT_URL = "http://127.0.0.1:8080"
_WHERE = "is FLOWKIT_SERVICE_URL right, and the service up? flowkit service starts one"
_NO_PATH = "there is nothing at this path"
"""What the service says of a path that none of its routes has, as opposed to a run that is not there."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Query = Sequence[tuple[str, str]]


class Away(StoreError):
    """The service cannot be reached, or has no time: another try later may work.

    Attributes
    ----------
    after : float or None
        Seconds to wait, where the service said so.
    """

    after: float | None = None


class Stranger(StoreError):
    """Something answers at the address that is no metadata service."""


class Refused(StoreError):
    """The service does not want us: no token, a wrong one, or one that may not do this."""


class Rejected(UsageError):
    """The service says that what was sent is wrong, so that sending it again is no use.

    Attributes
    ----------
    status : int
        The status of the answer.
    """

    status = 400


class Place(NamedTuple):
    """Where a service is.

    Parameters
    ----------
    url : str
        Without a slash at the end.
    token : str or None
        Never shown.
    """

    url: str
    token: str | None = None


def told(error: FlowkitError) -> str:
    """Return an error as one sentence, with its hint, for lines that go on."""
    headline = f"{error.headline[:1].upper()}{error.headline[1:]}"
    return headline if not error.hint else f"{headline} ({error.hint})"


def checked_url(text: str) -> str:
    """Return the address of a service without a slash at its end.

    Raises
    ------
    UsageError
        If it is no address of a service.
    """
    problem = url_problem(text)
    if problem is not None:
        raise UsageError(f"the metadata service's address {problem}", f"write it as {DEFAULT_URL}")
    return text.rstrip("/")


def url_problem(text: str) -> str | None:
    """Return what is wrong with the address of a service; None where it is one."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return "cannot be read as a URL"
    if parts.username is not None or parts.password is not None:
        return "holds a password: give a token by FLOWKIT_SERVICE_TOKEN"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"must begin with http:// or https:// and name a host, not be {text!r}"
    if parts.query or parts.fragment or any(c.isspace() or ord(c) < 33 for c in text):
        return f"has more than a host and a path: {text!r}"
    return None


def path_of(*parts: str) -> str:
    """Return a path below the service's address, each part quoted."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def needs_packages() -> None:
    """Raise if what calls need is not installed, without importing it.

    Raises
    ------
    MissingExtra
        With what to install.
    """
    from importlib.util import find_spec

    for name in ("requests", "tenacity"):
        if find_spec(name) is None:
            raise MissingExtra(
                f"the metadata store 'service' needs a package that is not installed: {name}",
                "pip install 'flowkit[service-client]'",
            )


def warm() -> None:
    """Import what calls need, in a thread: it takes longer than all the rest of a run's start."""
    threading.Thread(target=_import, name="flowkit-service-import", daemon=True).start()


def _import() -> None:
    try:
        import requests  # noqa: F401
    except ImportError:
        return  # whoever calls says so


class Calls:
    """Calls of one service, from one thread at a time.

    Parameters
    ----------
    place : Place
        Where, and with which token.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._session: Any = None

    def get(self, path: str, query: Query = (), *, patience: float | None = None) -> Any:
        """Return what is at a path; see `call`."""
        return self.call("GET", path, query=query, patience=patience)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Query = (),
        key: str | None = None,
        tries: int = TRIES,
        patience: float | None = None,
    ) -> Any:
        """Make a call, again where that may help, and return the answer's JSON value (None for no content).

        Parameters
        ----------
        key : str, optional
            The idempotency key: the service carries the request out once, however often it comes.
        tries : int
            How often it is made at most.
        patience : float, optional
            Seconds that one try may take, where that is less than the usual bounds.

        Raises
        ------
        Away, Stranger, Refused
            If the service does not work for us.
        NotFound, Conflict, Rejected
            As the service answered.
        """
        try:
            return self._once(method, path, body, query, key, patience)
        except Away as error:
            if tries < 2:
                raise
            time.sleep(min(error.after or 0.05, 2.0))
        import tenacity

        again = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(tries - 1),
            wait=tenacity.wait_random_exponential(multiplier=0.4, max=2.0),
            retry=tenacity.retry_if_exception_type(Away),
            reraise=True,
        )
        return again(self._once, method, path, body, query, key, patience)

    def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _once(
        self, method: str, path: str, body: bytes | None, query: Query, key: str | None, patience: float | None
    ) -> Any:
        session = self._open()
        import requests

        headers = {} if body is None else {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        waits = (CONNECT_SECONDS, READ_SECONDS)
        if patience is not None:
            waits = (min(patience, waits[0]), min(patience, waits[1]))
        try:
            with session.request(
                method,
                self.place.url + path,
                params=list(query),
                data=body,
                headers=headers,
                timeout=waits,
                allow_redirects=False,  # the token is for this service, and for no other
                stream=True,
            ) as answer:
                content = self._content(answer)
                return self._value(answer.status_code, answer.headers, content)
        except FlowkitError:
            raise
        except requests.exceptions.SSLError:
            raise Stranger(
                f"the metadata service at {self.place.url} has no certificate that is trusted here",
                "REQUESTS_CA_BUNDLE names a file with the certificates to trust; is FLOWKIT_SERVICE_URL right?",
            ) from None
        except requests.exceptions.Timeout:
            raise Away(f"the metadata service at {self.place.url} does not answer", _WHERE) from None
        except requests.exceptions.ConnectionError:
            self.close()
            raise Away(f"the metadata service at {self.place.url} cannot be reached", _WHERE) from None
        except Exception as error:  # the border to a library that reads what strangers send
            self.close()
            if isinstance(error, OSError) and not isinstance(error, requests.exceptions.RequestException):
                raise StoreError(str(error), "REQUESTS_CA_BUNDLE names a file with the certificates to trust") from None
            raise self._stranger(type(error).__name__) from None

    def _open(self) -> Any:
        if self._session is None:
            try:
                import requests
            except ImportError as error:
                raise MissingExtra(
                    f"the metadata store 'service' needs a package that is not installed: {error.name}",
                    "pip install 'flowkit[service-client]'",
                ) from error
            from flowkit.version import __version__

            session = requests.Session()
            token = self.place.token

            def authenticate(request: Any) -> Any:  # also keeps requests from sending what is in ~/.netrc
                if token:
                    request.headers["Authorization"] = f"Bearer {token}"
                return request

            session.auth = authenticate
            session.headers.update({"User-Agent": f"flowkit/{__version__}", "Accept": "application/json"})
            if urlsplit(self.place.url).hostname in _LOOPBACK:
                session.trust_env = False  # a proxy for the world knows nothing of this machine
                session.verify = variable("REQUESTS_CA_BUNDLE") or variable("CURL_CA_BUNDLE") or True
            self._session = session
        return self._session

    def _content(self, answer: Any) -> bytes:
        parts, size = [], 0
        until = time.monotonic() + 4 * READ_SECONDS
        for part in answer.iter_content(65_536):
            size += len(part)
            if size > MOST_BYTES or time.monotonic() > until:
                raise self._stranger("it has no end")
            parts.append(part)
        return b"".join(parts)

    def _value(self, status: int, headers: Mapping[str, str], content: bytes) -> Any:
        if status == 204:
            return None
        if 300 <= status < 400:
            raise self._stranger(f"it sends us somewhere else, status {status}")
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            if status in (408, 425, 429) or status >= 500:  # something in between that waits for the service itself
                raise self._away(status, headers, None) from None
            raise self._stranger(f"status {status}, and no JSON") from None
        if 200 <= status < 300:
            return value
        told = value if isinstance(value, dict) else {}
        headline = self._shown(told.get("error"))
        if headline is None and status not in (408, 429) and status < 500:
            raise self._stranger(f"status {status}")
        hint = self._shown(told.get("hint"))
        if status in (408, 425, 429) or status >= 500:
            raise self._away(status, headers, headline)
        if status in (401, 403):
            given = "is the token in FLOWKIT_SERVICE_TOKEN right?" if self.place.token else "set FLOWKIT_SERVICE_TOKEN"
            raise Refused(f"the metadata service at {self.place.url} refuses this: {headline}", hint or given)
        if status == 404 and headline == _NO_PATH:
            raise Stranger(
                f"the metadata service does not know what is asked for at {self.place.url}",
                "is FLOWKIT_SERVICE_URL right, and the service not older than this flowkit?",
            )
        if status == 404:
            raise NotFound(str(headline), hint)
        if status == 409:
            raise Conflict(str(headline), hint)
        rejected = Rejected(str(headline), hint)
        rejected.status = status
        raise rejected

    def _away(self, status: int, headers: Mapping[str, str], headline: str | None) -> Away:
        error = Away(
            f"the metadata service at {self.place.url} cannot do this now: {headline or f'status {status}'}",
            "try again in a moment; the service's log says more",
        )
        after = headers.get("Retry-After", "")
        if after.isascii() and after.isdigit() and len(after) < 6:
            error.after = min(float(after), 60.0)
        return error

    def _stranger(self, why: str) -> Stranger:
        return Stranger(
            f"what answers at {self.place.url} is no metadata service of flowkit ({why})",
            "is FLOWKIT_SERVICE_URL right?",
        )

    def _shown(self, text: Any) -> str | None:
        """Return a text of the service's as it can be shown: on one line, not long, and without the token."""
        if not isinstance(text, str) or not text:
            return None
        line = "".join(c if c.isprintable() else " " for c in text[:1_000])[:500]
        return line.replace(self.place.token, "********") if self.place.token else line
