"""Parts of the service by themselves: pages, log lines, bodies."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowkit.exceptions import StoreError, UsageError
from flowkit.metadata.records import ArtifactRecord, OutputRecord, RunRecord, TaskRecord
from flowkit.metadata_service import log_lines, wire
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.log_lines import JsonLines, LineWriter
from flowkit.metadata_service.problems import Unprocessable, tell_problems
from flowkit.metadata_service.server import Server, check_exposure
from flowkit.metadata_service.v1_pages import cursor_place, cursor_text, filled_page

UNHURRIED = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@given(count=st.integers(0, 60), limit=st.integers(1, 12), scan=st.integers(1, 30), every=st.none() | st.integers(1, 9))
@UNHURRIED
def test_pages_together_are_the_list(count: int, limit: int, scan: int, every: int | None) -> None:
    items = list(range(count))
    keep = None if every is None else lambda item: item % every == 0
    looked = 0

    def fetch(after: tuple[int] | None, size: int) -> list[int]:
        nonlocal looked
        begin = 0 if after is None else after[0] + 1
        looked += size
        return items[begin : begin + size]

    found: list[int] = []
    cursor = None
    for _ in range(count + 2):
        looked = 0
        page, cursor = filled_page(fetch, lambda item: (item,), cursor_place(cursor, int), limit, keep, scan)
        assert len(page) <= limit
        assert keep is None or looked <= max(scan, limit + 1)
        found += page
        if cursor is None:
            break
    assert cursor is None
    assert found == [item for item in items if keep is None or keep(item)]


@UNHURRIED
@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    for kinds in ((str,), (float, str, str), (str, str, int, str)):
        try:
            place = cursor_place(text, *kinds)
        except UsageError:
            continue
        assert cursor_place(cursor_text(place), *kinds) == place


@UNHURRIED
@given(st.tuples(st.floats(-1e15, 1e15), st.text(max_size=50), st.integers(-(2**61), 2**61)))
def test_a_cursor_comes_back_as_it_was(place: tuple[float, str, int]) -> None:
    if "\0" not in place[1]:
        assert cursor_place(cursor_text(place), float, str, int) == place


def test_a_log_that_nobody_reads_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(log_lines, "WAITING", 10)
    stuck, go_on, written = threading.Event(), threading.Event(), []

    def write(text: str) -> None:
        stuck.set()
        assert go_on.wait(60)
        written.append(text)

    writer = LineWriter(write)
    writer.put({"n": -1})
    assert stuck.wait(60)
    for n in range(25):
        writer.put({"n": n})
    go_on.set()
    writer.close(60)
    lines = [json.loads(line) for line in "".join(written).splitlines()]
    assert [line["n"] for line in lines if "n" in line] == list(range(-1, 10))
    assert [line["message"] for line in lines if "message" in line] == ["15 lines of the log were dropped"]


def test_what_is_logged_is_one_line_whatever_it_holds():
    written: list[str] = []
    writer = LineWriter(written.append)
    logger = logging.Logger("test")
    logger.addHandler(JsonLines(writer))
    logger.warning("two\nlines \x1b[31m %s", "é\u2028")
    logger.info("%d is no number", "this")
    logger.info("audit", extra={"fields": {"who": "ann\n", "level": "not mine"}})
    try:
        raise ValueError("inside")
    except ValueError:
        logger.exception("broken")
    writer.close()
    first, second, third, fourth = (json.loads(line) for line in "".join(written).splitlines())
    assert (first["level"], first["message"]) == ("warning", "two\nlines \x1b[31m é\u2028")
    assert "cannot be had" in second["message"]
    assert (third["who"], third["level"], third["message"]) == ("ann\n", "info", "audit")
    assert "ValueError: inside" in fourth["traceback"]
    assert "".join(written).isascii()


def test_a_body_becomes_the_records_that_it_was_made_of():
    run = RunRecord("F", "1", "ann", "running", 1.5, tags=("a",), system_tags=("b",), pid=3)
    task = TaskRecord("F", "1", "start", "0", "failed", 2, 1.0, 2.0, "no luck\nat all \0")
    output = OutputRecord("F", "1", "start", "0", 2, (ArtifactRecord("größe", "k", 5, "int", "raw"),), ("x=k",))
    kinds = (("run", run), ("task", task), ("output", output))
    sent = {"records": [{"kind": kind, **record.to_json(), "newer": 1} for kind, record in kinds]}
    assert wire.records_of(json.dumps(sent).encode()) == [run, task, output]
    with pytest.raises(Unprocessable) as refused:
        wire.records_of(json.dumps({"records": [{"kind": "task", "flow": "hush/", "attempt": -1}] * 9}).encode())
    assert "records[0].task.run" in refused.value.headline
    assert "more" in refused.value.headline
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_who_is_asked_depends_on_who_can_reach_it(host, alone):
    plain = Configuration("sqlite:///x", host=host)
    assert plain.loopback == alone
    assert plain.guarded != alone
    if alone:
        check_exposure(plain)
    else:
        with pytest.raises(UsageError):
            check_exposure(plain)
    for given_up in ({"insecure": True}, {"authentication": True}, {"oidc_issuer": "https://issuer"}):
        check_exposure(Configuration("sqlite:///x", host=host, **given_up))
    assert Configuration("sqlite:///x", host=host, authentication=True, insecure=True).guarded


def test_a_password_is_not_shown():
    for url, shown in (
        ("postgresql://me:hush@db:5432/flows?password=hush2", "PostgreSQL at db:5432/flows"),
        ("postgresql://me:a@b@db/flows", "PostgreSQL at db/flows"),
        ("postgresql:///flows?host=db&password=hush", "PostgreSQL at /flows"),
        ("sqlite:////srv/flows", "SQLite in /srv/flows"),
    ):
        assert Server.configured(database=url).shown_database == shown


def test_where_the_database_is_stands_in_the_log_and_in_no_answer(caplog):
    app = FastAPI()
    failures = []
    tell_problems(app, lambda: failures.append(1))

    @app.get("/")
    def fail() -> None:
        raise StoreError(
            "the database postgresql://ada@db.example/flows does not answer: it is called so", "look there"
        )

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.get("/")

    answer = asyncio.run(ask())
    assert answer.status_code == 503
    assert failures == [1]
    assert answer.json()["error"] == "the database does not answer as it should"
    assert "db.example" not in answer.text
    assert "db.example" in caplog.text
    assert "Traceback" not in caplog.text
