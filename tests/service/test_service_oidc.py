"""Bearer tokens of an identity provider: a local one, with real keys, over a real connection."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from service_process import DEADLINE, ServiceProcess

from flowkit.exceptions import UsageError
from flowkit.metadata_service import oidc
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.oidc import Oidc
from flowkit.metadata_service.refused import Refused
from flowkit.metadata_service.token_desk import TokenDesk

AUDIENCE = "flowkit"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """A key as its issuer shows it."""
    kinds = {rsa.RSAPrivateKey: "RSAAlgorithm", ec.EllipticCurvePrivateKey: "ECAlgorithm"}
    name = next((name for kind, name in kinds.items() if isinstance(key, kind)), "OKPAlgorithm")
    shown = json.loads(getattr(jwt.algorithms, name).to_jwk(key.public_key()))
    shown.pop("key_ops", None)
    return {**shown, **({} if kid is None else {"kid": kid}), **more}


class Issuer:
    """An identity provider on this machine.

    Attributes
    ----------
    keys : list
        What it shows; may be changed at any time.
    asked : int
        How often its keys were read.
    """

    def __init__(self) -> None:
        self.keys: list[Any] = [public(RSA_KEY, "one")]
        self.asked = 0
        self.answer: bytes | None = None
        self.configuration: dict[str, Any] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith("/.well-known/openid-configuration"):
                    told = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys", **issuer.configuration}
                    body = json.dumps(told).encode()
                elif self.path == "/elsewhere":
                    self.send_response(302)
                    self.send_header("Location", "/keys")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                else:
                    issuer.asked += 1
                    body = issuer.answer or json.dumps({"keys": issuer.keys}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None: ...  # who asked has gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 600, "scope": "read"}
        return {name: value for name, value in {**claims, **changed}.items() if value is not None}

    def token(
        self, key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "one", head: Any = None, **changed: Any
    ) -> str:
        headers = {**({} if kid is None else {"kid": kid}), **(head or {})}
        return jwt.encode(self.claims(**changed), key, algorithm=algorithm, headers=headers)

    def checker(self, **options: Any) -> Oidc:
        return Oidc(Configuration("sqlite:///x", oidc_issuer=self.url, oidc_audience=AUDIENCE, **options))


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


def refused(checker: Oidc, token: str) -> Refused:
    with pytest.raises(Refused) as caught:
        checker.check(token)
    assert checker.remembered(token) is None
    return caught.value


def packed(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


# -- what is let in ----------------------------------------------------------------------------------------------------


def test_a_good_token_tells_who_calls_and_what_they_may(issuer):
    checker = issuer.checker()
    assert checker.check(issuer.token()) == Caller("oidc:ann", "read", None)
    token = issuer.token(scope="openid flowkit:write profile", projects=["alpha", "beta"], sub="ci\nfake line")
    assert checker.check(token) == Caller("oidc:ci?fake line", "write", ("alpha", "beta"))
    assert checker.remembered(token) == checker.check(token)
    assert checker.check(issuer.token(aud=["another", AUDIENCE], scope=["admin", "read"])).scope == "admin"
    assert issuer.asked == 1


def test_claims_can_lie_deeper(issuer):
    checker = issuer.checker(oidc_scope_claim="realm_access.roles", oidc_project_claim="https://example.org/teams")
    token = issuer.token(
        scope="admin", realm_access={"roles": ["write"]}, **{"https://example.org/teams": "alpha beta"}
    )
    assert checker.check(token) == Caller("oidc:ann", "write", ("alpha", "beta"))


@pytest.mark.parametrize(
    ("projects", "seen"), [(None, None), ([], ()), ("", ()), ("*", None), (["a", "*"], None), (["a"], ("a",))]
)
def test_the_projects_of_a_claim(issuer, projects, seen):
    assert issuer.checker().check(issuer.token(projects=projects)).projects == seen


@pytest.mark.parametrize("projects", [7, True, {"a": 1}, ["a", 7], [["a"]]])
def test_a_claim_of_projects_that_is_none_is_refused(issuer, projects):
    assert refused(issuer.checker(), issuer.token(projects=projects)).status == 403


@pytest.mark.parametrize("scope", [None, "", "openid profile", [], 7, {"read": True}, ["READ"], "reader"])
def test_a_token_that_grants_nothing_here_is_forbidden(issuer, scope):
    assert refused(issuer.checker(), issuer.token(scope=scope)).status == 403


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA_KEY, "RS384"), (RSA_KEY, "PS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")]
)
def test_other_algorithms_with_two_keys(issuer, key, algorithm):
    issuer.keys = [public(key, "other", use="sig", alg=algorithm), public(OTHER_RSA_KEY, "one")]
    assert issuer.checker().check(issuer.token(key, algorithm, "other")).name == "oidc:ann"


def test_the_address_of_the_keys_can_be_given(issuer):
    issuer.configuration = {"issuer": "https://somebody.else"}
    assert issuer.checker(oidc_jwks_url=f"{issuer.url}/keys").check(issuer.token()).name == "oidc:ann"
    assert refused(issuer.checker(), issuer.token()).status == 503


# -- what is not -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"exp": 1_000_000_000}, "expired"),
        ({"exp": int(time.time()) - 2 * oidc.LEEWAY}, "expired"),
        ({"nbf": 9_999_999_999}, "not valid yet"),
        ({"iat": 9_999_999_999}, "not valid yet"),
        ({"aud": "another"}, "another audience"),
        ({"aud": ["another", "flowkit2"]}, "another audience"),
        ({"iss": "https://somebody.else"}, "another issuer"),
        ({"exp": None}, "lacks a claim"),
        ({"aud": None}, "lacks a claim"),
        ({"iss": None}, "lacks a claim"),
        ({"sub": None}, "lacks a claim"),
        ({"exp": "soon"}, "not good"),
        ({"exp": 10**400}, "not good"),
        ({"exp": "9999999999"}, "not good"),
        ({"exp": True}, "expired"),
    ],
)
def test_a_token_with_wrong_claims(issuer, changed, told):
    error = refused(issuer.checker(), issuer.token(**changed))
    assert error.status == 401
    assert told in error.headline


def test_a_clock_may_differ_a_little(issuer):
    now = int(time.time())
    checker = issuer.checker()
    assert checker.check(issuer.token(exp=now - oidc.LEEWAY // 3, iat=now + oidc.LEEWAY // 3))


def test_a_token_that_is_signed_by_nobody(issuer):
    for algorithm in ("none", "None", "NONE", ""):
        token = f"{packed({'alg': algorithm, 'kid': 'one'})}.{packed(issuer.claims())}."
        assert refused(issuer.checker(), token).status == 401


@pytest.mark.parametrize("form", ["pem", "der", "jwk"])
def test_a_token_that_is_signed_with_the_public_key_as_a_secret(issuer, form):
    """The classic: HS256, and the key that everybody knows as its secret."""
    key = RSA_KEY.public_key()
    encoding = {"pem": serialization.Encoding.PEM, "der": serialization.Encoding.DER}.get(form)
    if encoding is None:
        secret = json.dumps(issuer.keys[0]).encode()
    else:
        secret = key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"{packed({'alg': 'HS256', 'typ': 'JWT', 'kid': 'one'})}.{packed(issuer.claims())}"
    token = f"{text}.{packed(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"
    assert refused(issuer.checker(), token).status == 401


def test_a_shared_secret_among_the_keys_is_no_key(issuer):
    secret = b"s" * 32
    issuer.keys = [{"kty": "oct", "k": packed(secret), "kid": "one", "alg": "HS256"}]
    assert refused(issuer.checker(), issuer.token(secret, "HS256")).status == 401


def test_a_token_of_somebody_else_who_brings_the_key_along(issuer):
    mine = public(OTHER_RSA_KEY, "mine")
    for head in ({"jwk": mine}, {"jku": f"{issuer.url}/mine"}, {"x5u": f"{issuer.url}/mine"}, {}):
        assert refused(issuer.checker(), issuer.token(OTHER_RSA_KEY, head=head)).status == 401
        assert refused(issuer.checker(), issuer.token(OTHER_RSA_KEY, kid="mine", head=head)).status == 401


@pytest.mark.parametrize("kid", ["../../dev/null", "one' OR '1'='1", "one\x00", "", "x" * 600, "ONE"])
def test_key_ids_are_names_and_nothing_else(issuer, kid):
    assert refused(issuer.checker(), issuer.token(kid=kid)).status == 401


@pytest.mark.parametrize("kid", [7, None, ["one"], {"a": 1}, True])
def test_key_ids_that_are_no_text(issuer, kid):
    token = f"{packed({'alg': 'RS256', 'kid': kid})}.{packed(issuer.claims())}.AAAA"
    assert refused(issuer.checker(), token).status == 401


def test_a_token_without_a_key_id_is_good_where_there_is_one_key(issuer):
    assert issuer.checker().check(issuer.token(kid=None)).name == "oidc:ann"
    issuer.keys = [public(RSA_KEY, "one"), public(OTHER_RSA_KEY, "two")]
    assert refused(issuer.checker(), issuer.token(kid=None)).status == 401


def test_a_key_is_for_what_its_issuer_says(issuer):
    for more in ({"use": "enc"}, {"alg": "RS512"}, {"kty": "EC"}, {"kty": ["RSA"]}, {"n": "AQAB"}, {"n": 7}):
        issuer.keys = [{**public(RSA_KEY, "one"), **more}]
        assert refused(issuer.checker(), issuer.token()).status == 401
    issuer.keys = ["key", None, 7, public(RSA_KEY, "one")]
    assert issuer.checker().check(issuer.token()).name == "oidc:ann"


def test_a_short_key_does_not_count(issuer):
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    issuer.keys = [public(short, "one")]
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = issuer.token(short)
    assert refused(issuer.checker(), token).status == 401


def test_conditions_that_are_not_understood(issuer):
    assert refused(issuer.checker(), issuer.token(head={"crit": ["exp"], "exp": 1})).status == 401
    assert refused(issuer.checker(), issuer.token(head={"crit": ["b64"], "b64": True})).status == 401


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "a.b.c.d.e",
        "x" * 20_000,
        "é.é.é",
        f"{packed(b'[' * 9000)}.{packed({})}.AAAA",
        f"{packed([1])}.{packed({})}.AAAA",
        f"{packed({'alg': ['RS256']})}.{packed({})}.AAAA",
        f"{packed({'alg': 'RS256', 'kid': 'one'})}.{packed(b'[' * 9000)}.AAAA",
    ],
)
def test_what_is_no_token(issuer, token):
    assert refused(issuer.checker(), token).status == 401


# -- keys --------------------------------------------------------------------------------------------------------------


def test_new_keys_are_found_and_old_ones_forgotten(issuer, monkeypatch):
    monkeypatch.setattr(oidc, "PAUSE", 0.0)
    checker = issuer.checker()
    old = issuer.token()
    assert checker.check(old)
    issuer.keys = [public(OTHER_RSA_KEY, "two")]
    assert checker.check(issuer.token(OTHER_RSA_KEY, kid="two"))
    assert refused(checker, issuer.token(sub="another")).status == 401
    # the same id for another key: the new one counts
    issuer.keys = [public(RSA_KEY, "two")]
    monkeypatch.setattr(oidc, "FRESH", 0.0)
    assert checker.check(issuer.token(RSA_KEY, kid="two"))


def test_unknown_keys_do_not_make_the_issuer_busy(issuer):
    checker = issuer.checker()
    assert checker.check(issuer.token())
    threads = [
        threading.Thread(target=refused, args=(checker, issuer.token(OTHER_RSA_KEY, kid=f"unknown {number}")))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert issuer.asked == 1, "the keys were read a moment ago"


def test_many_at_once_read_the_keys_once(issuer):
    checker = issuer.checker()
    found: list[Caller] = []
    tokens = [issuer.token(sub=f"user {number}") for number in range(10)]
    threads = [threading.Thread(target=lambda token=token: found.append(checker.check(token))) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert issuer.asked == 1


def test_an_issuer_that_is_away_is_not_the_fault_of_who_calls(issuer, monkeypatch):
    monkeypatch.setattr(oidc, "PAUSE", 0.0)
    monkeypatch.setattr(oidc, "FRESH", 0.0)
    checker = issuer.checker()
    assert checker.check(issuer.token())
    for answer in (b"", b"no JSON", b"[]", b'{"keys": 7}', b'{"keys": [' + b"[" * 5000, b"x" * (oidc.MAX_DOCUMENT + 1)):
        issuer.answer = answer or b" "
        assert checker.check(issuer.token(sub=f"after {answer[:9]!r}")), "what was known of the keys counts on"
        assert refused(issuer.checker(), issuer.token()).status == 503
    monkeypatch.setattr(oidc, "STALE", 0.0)
    assert refused(checker, issuer.token(sub="later")).status == 503


def test_an_issuer_does_not_send_us_elsewhere(issuer):
    assert issuer.checker(oidc_jwks_url=f"{issuer.url}/keys").check(issuer.token())
    assert refused(issuer.checker(oidc_jwks_url=f"{issuer.url}/elsewhere"), issuer.token()).status == 503


def test_an_issuer_that_is_slow_is_not_waited_for_long(issuer, monkeypatch):
    monkeypatch.setattr(oidc, "PATIENCE", 0.2)
    release = threading.Event()

    class Slow(list):
        def __iter__(self) -> Iterator[Any]:
            release.wait(60)
            return iter(())

    issuer.keys = Slow([1])
    try:
        assert refused(issuer.checker(), issuer.token()).status == 503
    finally:
        release.set()


def test_a_service_takes_an_issuers_tokens_and_its_own(issuer, tmp_path):
    options = ("--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE, "--database", tmp_path / "database")
    with TokenDesk(str(tmp_path / "database")) as desk:
        own = desk.create("own", ["read"])[1]
    with ServiceProcess(tmp_path, *options) as service:

        def ask(token: str, method: str = "GET", path: str = "/v1/runs") -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return requests.request(
                method, service.url + path, headers=headers, json={"records": []}, timeout=DEADLINE
            ).status_code

        good = issuer.token(scope="write")
        assert ask(good) == 200
        assert ask(good, "POST", "/v1/records") == 200
        assert ask(good, "DELETE", "/v1/flows/F/runs/1") == 403
        assert ask(own) == 200
        assert ask(issuer.token(OTHER_RSA_KEY)) == 401
        assert ask(issuer.token(exp=1)) == 401
        assert ask(issuer.token(scope="openid")) == 403
        assert ask("") == 401
        assert good not in service.stderr
        assert good.rpartition(".")[2] not in service.stderr


# -- how it is set up --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"oidc_issuer": "http://issuer.example.org", "oidc_audience": "a"},
        {"oidc_issuer": "issuer.example.org", "oidc_audience": "a"},
        {"oidc_issuer": "file:///etc/passwd", "oidc_audience": "a"},
        {"oidc_issuer": "http://127.0.0.1.example.org", "oidc_audience": "a"},
        {"oidc_issuer": "https://issuer.example.org", "oidc_audience": "a", "oidc_jwks_url": "http://keys.example.org"},
        {"oidc_issuer": "https://issuer.example.org"},
        {"oidc_audience": "a"},
    ],
)
def test_what_could_not_be_trusted_is_refused_at_the_start(options):
    with pytest.raises(UsageError):
        Oidc(Configuration("sqlite:///x", **options))


def test_keys_that_are_not_encrypted_on_their_way_are_not_fetched(issuer):
    issuer.configuration = {"jwks_uri": "http://keys.example.org/keys"}
    assert refused(issuer.checker(), issuer.token()).status == 503
    issuer.configuration = {"jwks_uri": "file:///etc/passwd"}
    assert refused(issuer.checker(), issuer.token()).status == 503
