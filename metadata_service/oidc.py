"""Bearer tokens of an identity provider (OpenID Connect): who issued one, for whom, until when, and what it grants.

Only signatures with two different keys count (RS, PS, ES, EdDSA): with a shared one (HS) whoever can check a token can
make one, and with none everybody can. The key comes from the issuer's own list, never from what a token says of it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt

from flowkit.exceptions import UsageError
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.refused import Refused, forbidden, unknown
from flowkit.metadata_service.tokens import highest

logger = logging.getLogger(__name__)

ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
"""What each kind of key (``kty``, ``crv``) may have signed."""
LEEWAY = 30
"""Seconds by which the issuer's clock may differ from ours."""
LATEST = 253_402_300_799
"""The last second of the year 9999."""
MAX_TOKEN = 16 * 1024
"""Characters."""
MAX_KEYS = 100
MAX_DOCUMENT = 1024 * 1024
"""Bytes of what an issuer tells."""
PATIENCE = 5.0
"""Seconds for one of its documents."""
FRESH = 300.0
"""Seconds after which its keys are read again: so long does one count that it took back."""
STALE = 3_600.0
"""Seconds for which they count when they cannot be read again."""
PAUSE = 10.0
"""Seconds between two readings, however many unknown keys are asked for."""
REMEMBERED = 10_000
"""Tokens that were found good, in memory."""
KEPT = 60.0
"""Seconds for which one is not checked again."""
RSA_BITS = 2_048


class _Good(NamedTuple):
    caller: Caller
    expires: float
    until: float


class Oidc:
    """Checks bearer tokens of one issuer.

    Parameters
    ----------
    configuration : Configuration
        `oidc_issuer` and `oidc_audience`; `oidc_jwks_url` where it is not to be discovered; the claims' names.

    Raises
    ------
    UsageError
        If an address is not https (but on loopback), or the audience is missing.
    """

    def __init__(self, configuration: Configuration) -> None:
        issuer, audience = configuration.oidc_issuer, configuration.oidc_audience
        if not issuer or not audience:
            raise UsageError(
                "an OIDC issuer needs an audience, and an audience an issuer",
                "give --oidc-issuer and --oidc-audience: else a token for any other service would be good here",
            )
        self._issuer, self._audience = issuer, audience
        self._scope_claim = configuration.oidc_scope_claim
        self._project_claim = configuration.oidc_project_claim
        _check_address(issuer, "--oidc-issuer")
        if configuration.oidc_jwks_url:
            _check_address(configuration.oidc_jwks_url, "--oidc-jwks-url")
        self._keys = _Keys(issuer, configuration.oidc_jwks_url)
        self._lock = threading.Lock()
        self._good: OrderedDict[bytes, _Good] = OrderedDict()

    def remembered(self, text: str) -> Caller | None:
        """Return who brings a token that was found good lately; None for others."""
        with self._lock:
            good = self._good.get(_mark(text))
        if good is None or time.monotonic() > good.until or time.time() > good.expires + LEEWAY:
            return None
        return good.caller

    def familiar(self, text: str) -> bool:
        """Whether a token was good when it was last looked at."""
        with self._lock:
            return _mark(text) in self._good

    def check(self, text: str) -> Caller:
        """Return who brings a token.

        Raises
        ------
        Refused
            401 for a token that is not good, 403 for one that grants nothing here, 503 where the issuer's keys cannot
            be read.
        """
        known = self.remembered(text)
        if known is not None:
            return known
        claims = self._claims(text)
        name = f"oidc:{_shown(claims['sub'])}"
        caller = Caller(name, highest(_scopes(_claim(claims, self._scope_claim))), self._projects(claims))
        with self._lock:
            self._good[_mark(text)] = _Good(caller, float(claims["exp"]), time.monotonic() + KEPT)
            while len(self._good) > REMEMBERED:
                self._good.popitem(last=False)
        return caller

    def _claims(self, text: str) -> dict[str, Any]:
        if len(text) > MAX_TOKEN or not text.isascii():
            raise unknown("this is no token that can be read")
        try:
            header = jwt.get_unverified_header(text)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise unknown("this is no token that can be read") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header or "b64" in header:
            raise unknown("this token has conditions that are not understood here")
        if not isinstance(algorithm, str) or not any(algorithm in each for each in ALGORITHMS.values()):
            raise unknown("this token is not signed in a way that counts here", "RS, PS, ES or EdDSA")
        if kid is not None and (not isinstance(kid, str) or len(kid) > 500):
            raise unknown("this token's key id makes no sense")
        key = self._keys.find(kid, algorithm)
        try:
            claims = jwt.decode(
                text,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"], "verify_signature": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise unknown(_why(error)) from None
        if type(claims["exp"]) not in (int, float) or not 0 <= claims["exp"] <= LATEST:
            raise unknown(_why(ValueError()))
        if not isinstance(claims["sub"], str) or not claims["sub"]:
            raise unknown("this token does not say whose it is")
        return claims

    def _projects(self, claims: Mapping[str, Any]) -> tuple[str, ...] | None:
        found = _claim(claims, self._project_claim)
        if found is None:
            return None
        names = found.split() if isinstance(found, str) else found
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise forbidden(f"the claim '{self._project_claim}' of this token is no list of projects")
        return None if "*" in names else tuple(dict.fromkeys(names))


class _Keys:
    """The keys of an issuer."""

    def __init__(self, issuer: str, address: str | None) -> None:
        self._issuer = issuer
        self._address = address
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._keys: list[Mapping[str, Any]] = []
        self._read = float("-inf")
        self._tried = float("-inf")

    def find(self, kid: str | None, algorithm: str) -> Any:
        """Return the key by which a token says that it is signed.

        Raises
        ------
        Refused
            401 if there is no such key; 503 if nothing is known of the issuer's keys.
        """
        if time.monotonic() - self._read > FRESH:
            self._refresh()
        found = self._pick(kid, algorithm)
        if found is None:
            self._refresh()  # a key that is new
            found = self._pick(kid, algorithm)
        if found is None:
            raise unknown("this token is signed with a key that is not its issuer's (any more)")
        try:
            key = jwt.PyJWK(dict(found), algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError):
            raise unknown("the key of this token's issuer cannot be used") from None
        if found.get("kty") == "RSA" and getattr(key.key, "key_size", 0) < RSA_BITS:
            raise unknown(f"the key of this token's issuer is too short: it has less than {RSA_BITS} bits")
        return key

    def _pick(self, kid: str | None, algorithm: str) -> Mapping[str, Any] | None:
        with self._lock:
            if time.monotonic() - self._read > STALE:
                raise Refused(
                    503, "the keys of the identity provider cannot be read", "try again", {"Retry-After": "5"}
                )
            keys = [key for key in self._keys if _signs(key, algorithm)]
        if kid is not None:
            keys = [key for key in keys if key.get("kid") == kid]
        return keys[0] if len(keys) == 1 else None  # of several, which one is not for the token to leave open

    def _refresh(self) -> None:
        # One thread reads, the others wait for what it finds: they need it too.
        seen = self._tried
        with self._reading:
            if self._tried != seen or time.monotonic() - self._tried < PAUSE:
                return
            self._tried = time.monotonic()
            try:
                keys = self._fetch()
            except (OSError, HTTPException, ValueError, KeyError, TypeError, RecursionError) as error:
                logger.warning("the keys of the OIDC issuer cannot be read: %r", error)
                return
            with self._lock:
                self._keys, self._read = keys, time.monotonic()

    def _fetch(self) -> list[Mapping[str, Any]]:
        deadline = time.monotonic() + 2 * PATIENCE
        address = self._address
        if address is None:
            told = _document(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration", deadline)
            if told.get("issuer") != self._issuer:
                raise ValueError("its configuration is for another issuer")
            address = str(told["jwks_uri"])
            if not _trusted(address):
                raise ValueError("its keys are not at an https address")
        keys = _document(address, deadline)["keys"]
        if not isinstance(keys, list) or len(keys) > MAX_KEYS:
            raise ValueError("its keys are no list, or too many")
        return [key for key in keys if isinstance(key, dict)]


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: an issuer says itself where its keys are."""

    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        return None


def _document(address: str, deadline: float) -> dict[str, Any]:
    opener = urllib.request.build_opener(_Straight)
    request = urllib.request.Request(address, headers={"Accept": "application/json"})
    with opener.open(request, timeout=PATIENCE) as reply:
        parts: list[bytes] = []
        size = 0
        while True:
            part = reply.read1(64 * 1024)
            if not part:
                break
            size += len(part)
            if size > MAX_DOCUMENT:
                raise ValueError(f"it is larger than {MAX_DOCUMENT:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("it comes too slowly")
            parts.append(part)
    found = json.loads(b"".join(parts))
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _mark(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _signs(key: Mapping[str, Any], algorithm: str) -> bool:
    """Whether a key of an issuer is for checking signatures of a kind."""
    kind = key.get("kty")
    curve = None if kind == "RSA" else key.get("crv")
    if not isinstance(kind, str) or not (curve is None or isinstance(curve, str)):
        return False
    return (
        algorithm in ALGORITHMS.get((kind, curve), ())
        and key.get("use") in (None, "sig")
        and key.get("alg") in (None, algorithm)
    )


def _trusted(address: str) -> bool:
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    if parts.scheme != "http":
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_address(address: str, option: str) -> None:
    if not _trusted(address):
        raise UsageError(f"{option} is no https address", "keys that come unencrypted could be anybody's")


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name, or by a path with dots: ``realm_access.roles``."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _scopes(found: Any) -> Iterable[str]:
    """Return the scopes that a claim grants: ``read``, or ``flowkit:read`` where one issuer serves many."""
    words = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
    return [word.removeprefix("flowkit:") for word in words if isinstance(word, str)]


def _shown(subject: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in subject[:200])


def _why(error: Exception) -> str:
    told: tuple[tuple[type[Exception], str], ...] = (
        (jwt.ExpiredSignatureError, "this token has expired"),
        (jwt.ImmatureSignatureError, "this token is not valid yet"),
        (jwt.InvalidAudienceError, "this token is for another audience"),
        (jwt.InvalidIssuerError, "this token is of another issuer"),
        (jwt.MissingRequiredClaimError, "this token lacks a claim: exp, iss, aud and sub are needed"),
        (jwt.InvalidSignatureError, "the signature of this token is wrong"),
    )
    return next((text for kind, text in told if isinstance(error, kind)), "this token is not good")
