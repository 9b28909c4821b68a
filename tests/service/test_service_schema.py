"""What the service says of itself, tried on it: random requests by its OpenAPI document, right ones and wrong ones.

``FLOWKIT_SOAK=1`` asks for a long form.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata.records import ArtifactRecord, OutputRecord, RunRecord, TaskRecord

with warnings.catch_warnings():  # of packages that it uses
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

SOAK = os.environ.get("FLOWKIT_SOAK") == "1"
EXAMPLES = 60 if SOAK else 2
"""Requests for each operation, in the short form on PostgreSQL; thrice as many where there is a body."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
KEY = "b3" + "1" * 40
PLACE = {"flow": "Known", "run": "1", "step": "start", "task": "0", "key": KEY, "name": "x", "attempt": "0"}
"""Something that is there: what is made up seldom is."""
RECORDS = [
    ("run", RunRecord("Known", "1", "ann", "running", 10.0, tags=("blue",), system_tags=("user:ann",))),
    ("task", TaskRecord("Known", "1", "start", "0", "succeeded", started=11.0, finished=12.0)),
    ("output", OutputRecord("Known", "1", "start", "0", 0, (ArtifactRecord("x", KEY, 5),), (f"y={KEY}",))),
]
OPTIONS = ("--max-body", 2_000_000, "--requests-per-second", 1_000_000, "--log-level", "warning")


@pytest.fixture
def served(database: str, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service on each database."""
    with ServiceProcess(tmp_path, "--database", database, *OPTIONS) as service:
        yield service


def wrong_or_right(operation: Any) -> st.SearchStrategy[Any]:
    """Return requests for an operation: as they are described, on things that are there or not, and otherwise."""
    names = [name for name in PLACE if f"{{{name}}}" in operation.path]
    given = {name: PLACE[name] for name in names}
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not (names or operation.query or operation.headers or operation.body):
        return right
    there = operation.as_strategy(generation_mode=GenerationMode.POSITIVE, path_parameters=given)
    return st.one_of(*([there] if names else []), right, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))


def ask(operation: Any, session: requests.Session, url: str, examples: int) -> None:
    """Send requests for an operation, and look at the answers."""

    @settings(
        max_examples=examples * (3 if operation.body else 1),
        deadline=None,
        database=None,
        derandomize=not SOAK,
        phases=(Phase.generate, *([Phase.shrink] if SOAK else [])),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=wrong_or_right(operation))
    def send(case: Any) -> None:
        if operation.path != "/v1/events":
            case.call_and_validate(session=session, checks=CHECKS, timeout=DEADLINE)
            return
        options = {**case.as_transport_kwargs(base_url=url), "stream": True, "timeout": DEADLINE}
        with requests.request(**options) as reply:  # it does not end
            assert str(reply.status_code) in operation.definition.raw["responses"], reply.status_code
            assert reply.status_code < 500

    send()


def with_(value: bytes) -> bytes:
    """Return a body that has a value under every name that some route knows, and one that none knows."""
    names = ("records", "heartbeats", "at_least", "add", "remove", "tags", "system_tags", "tags_to_add", "user_name")
    return b"{" + b", ".join(b'"%s": %s' % (name.encode(), value) for name in (*names, "unknown")) + b"}"


_DEEP = b"[" * 50_000 + b"]" * 50_000
ODD = [
    *(b"", b"null", b"7", b"{}{}", b"\xef\xbb\xbf{}", b"{" * 50_000, _DEEP, b'{"unknown": ' + _DEEP + b"}"),
    *map(
        with_, (_DEEP, b"1e400", b"NaN", b"-Infinity", b"9" * 1_000, b"-1", b"1.0", b"true", b'"\\ud800"', b'"\\u0000"')
    ),
    with_(json.dumps([f"t{number}" for number in range(10_000)]).encode()),
    with_(b"[]")[:-1] + b", " + with_(b"[{}]")[1:],  # every name twice
]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_odd_bodies_on_every_route(served: ServiceProcess) -> None:
    record = {"records": [{"kind": kind, **each.to_json()} for kind, each in RECORDS]}
    with requests.Session() as session:
        session.post(f"{served.url}/v1/records", json=record, timeout=DEADLINE).raise_for_status()
        paths = session.get(f"{served.url}/openapi.json", timeout=DEADLINE).json()["paths"]
        routes = [(verb, path) for path, verbs in paths.items() for verb in verbs if verb in ("post", "patch")]
        assert len(routes) > 10
        for verb, path in routes:
            for body in ODD:
                reply = session.request(verb, served.url + path.format(**PLACE), data=body, timeout=DEADLINE)
                assert reply.status_code < 500, (verb, path, body[:100])
                # a heartbeat carries nothing, and of what nobody knows it does not matter what it is
                assert reply.status_code >= 400 or path.endswith("/heartbeat") or b"unknown" in body, (path, body[:100])
    assert "Traceback" not in served.stderr


def test_random_requests_get_the_answers_that_are_described(served: ServiceProcess, database: str) -> None:
    described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    record = {"records": [{"kind": kind, **each.to_json()} for kind, each in RECORDS]}
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) > 40
    with requests.Session() as session:
        for operation in operations:
            session.post(f"{served.url}/v1/records", json=record, timeout=DEADLINE).raise_for_status()
            ask(operation, session, served.url, EXAMPLES if database.startswith("postgresql") else 2 * EXAMPLES)
    assert "Traceback" not in served.stderr
