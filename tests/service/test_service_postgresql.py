"""What only PostgreSQL does to the service: overlapping transactions, a server that goes away, other schemas."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from postgresql_server import PASSWORD, PostgresqlServer

from flowkit.exceptions import FlowkitError, StoreError, UsageError
from flowkit.metadata import sql as shared
from flowkit.metadata.records import ArtifactRecord, OutputRecord, RunRecord, TaskRecord
from flowkit.metadata.store import RunFilter
from flowkit.metadata_service import sql
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.migrations import migrate
from flowkit.metadata_service.postgresql import PostgresqlStore
from flowkit.metadata_service.tables import Outbox

NOW = time.time()
RUN = RunRecord("F", "1", "ada", "running", NOW)


@pytest.fixture
def store(postgresql: str) -> Iterator[PostgresqlStore]:
    made = open_store(postgresql, pool=5)
    assert isinstance(made, PostgresqlStore)
    yield made
    made.close()


def task(name: str, state: str = "succeeded") -> TaskRecord:
    return TaskRecord("F", "1", "a", name, state, started=NOW)  # type: ignore[arg-type]


def eventually(happened: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def working(action: Callable[[], object]) -> bool:
    try:
        action()
    except StoreError:
        return False
    return True


# -- events of overlapping transactions -----------------------------------------------------------------------------


class Slow:
    """A transaction that has written an event, and stays open until it is told to go on."""

    def __init__(self, store: PostgresqlStore, name: str) -> None:
        self._store = store
        self._name = name
        self._written = threading.Event()
        self._go_on = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._written.wait(30)

    def _run(self) -> None:
        with self._store._transaction() as db:
            outbox = Outbox(NOW)
            outbox.add_task(task(self._name), ())
            self._store._send(db, outbox)
            self._written.set()
            self._go_on.wait(60)

    def end(self) -> None:
        self._go_on.set()
        self._thread.join()


def test_an_event_of_a_transaction_that_began_early_and_ends_late_is_not_skipped(store: PostgresqlStore) -> None:
    store.register([RUN])
    told = threading.Event()
    store.listen(told.set)
    seen = store.last_event()
    slow = Slow(store, "early")
    other = Slow(store, "later")
    store.register([task("quick")])
    other.end()
    assert store.run("F", "1") is not None
    assert store.task("F", "1", "a", "quick") is not None, "the records themselves can be read"
    assert store.events_after(seen) == [], "an older transaction could still precede them"
    assert store.last_event() == seen
    told.clear()
    slow.end()
    found = store.events_after(seen)
    assert [event.task for event in found] == ["early", "later", "quick"]
    assert [event.id for event in found] == sorted(event.id for event in found)
    assert store.last_event() == found[-1].id
    assert told.wait(30)


def test_whoever_listens_is_told_when_a_silent_transaction_ends(store: PostgresqlStore, postgresql: str) -> None:
    """It is not of the service, and sends no NOTIFY when it stops hiding the events after it."""
    store.register([RUN])
    told_event = threading.Event()
    store.listen(told_event.set)
    with psycopg.connect(postgresql) as silent:
        silent.execute("SELECT pg_current_xact_id()")
        seen = store.last_event()
        store.register([task("0")])
        assert store.events_after(seen) == []
        silent.rollback()
    told = False

    def arrived() -> bool:
        nonlocal told
        told = told or told_event.is_set()
        return told and [event.task for event in store.events_after(seen)] == ["0"]

    eventually(arrived)


def test_ids_go_on_in_a_server_that_counts_transactions_anew(store: PostgresqlStore, postgresql: str) -> None:
    with psycopg.connect(postgresql, autocommit=True) as db:
        db.execute(
            "INSERT INTO events VALUES ((pg_current_xact_id()::text::bigint + 5000000) << 20,"
            " 'run', 'F', '1', NULL, NULL, '{}', '[]', 0)"
        )
        high = db.execute("SELECT max(event_id) FROM events").fetchone()
    assert high is not None
    again = open_store(postgresql)
    try:
        again.register([RUN])
        store.register([task("0")])
        assert [event.id > high[0] for event in again.events_after(0)] == [False, True, True]
    finally:
        again.close()


# -- a server that goes away ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_is_restarted_is_found_again(
    store: PostgresqlStore, postgresql_server: PostgresqlServer, how: signal.Signals
) -> None:
    store.register([RUN])
    with ThreadPoolExecutor(5) as threads:
        assert len([*threads.map(lambda n: store.register([task(str(n))]), range(20))]) == 20
    told = threading.Event()
    store.listen(told.set)
    postgresql_server.stop(how)
    try:
        for action in (store.ping, lambda: store.register([task("x")]), lambda: store.reserve_run("F")):
            with pytest.raises(StoreError, match="postgresql://flowkit@127"):
                action()
    finally:
        postgresql_server.start()
    assert store.register([task("after")])
    assert len(store.tasks("F", "1")) == 21
    told.clear()
    eventually(lambda: store.register([task(str(time.time_ns()))]) and told.is_set())


def test_a_connection_that_was_cut_is_no_failure(store: PostgresqlStore, postgresql: str) -> None:
    store.register([RUN])
    with psycopg.connect(postgresql, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'flowkit%'")
    assert store.register([task("0")])
    assert store.task("F", "1", "a", "0") == task("0")


def test_what_was_acknowledged_is_there_after_the_server_was_killed(
    store: PostgresqlStore, postgresql_server: PostgresqlServer
) -> None:
    store.register([RUN])
    ended = threading.Event()
    acknowledged: list[str] = []

    def write(writer: int) -> None:
        turn = 0
        while not ended.is_set():
            name = f"{writer}-{turn}"
            if working(lambda: store.register([task(name)], name)):  # noqa: B023
                acknowledged.append(name)
            turn += 1

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(acknowledged) > 50)
        postgresql_server.stop(signal.SIGQUIT)
        postgresql_server.start()
        before = len(acknowledged)
        eventually(lambda: len(acknowledged) > before + 20)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    there = {found.task for found in store.tasks("F", "1")}
    assert set(acknowledged) <= there


# -- names and passwords --------------------------------------------------------------------------------------------


def test_a_password_is_never_repeated(postgresql_server: PostgresqlServer, caplog: pytest.LogCaptureFixture) -> None:
    secret = "hush/hush@9"
    written = quote(secret, safe="")
    urls = [
        postgresql_server.url("nowhere"),
        f"postgresql://flowkit:{written}@127.0.0.1:{postgresql_server.port}/postgres",
        f"postgresql://flowkit:{written}@127.0.0.1:1/postgres?connect_timeout=2",
        f"postgresql://flowkit:{written}%zz@127.0.0.1/postgres",
        f"postgresql://flowkit:{written}@127.0.0.1:port/postgres",
        f"postgresql://flowkit:{written}@127.0.0.1/postgres?no_such_option={written}",
        f"mysql://flowkit:{written}@127.0.0.1/postgres",
    ]
    for url in urls:
        with pytest.raises(FlowkitError) as caught:
            open_store(url)
        chain: BaseException | None = caught.value
        while chain is not None:
            for form in (secret, written, PASSWORD, quote(PASSWORD, safe="")):
                assert form not in str(chain)
            chain = None if chain.__suppress_context__ and chain.__cause__ is None else chain.__cause__
    assert secret not in caplog.text
    assert written not in caplog.text


# -- migrations -----------------------------------------------------------------------------------------------------


def test_many_services_may_start_at_once(postgresql_server: PostgresqlServer) -> None:
    url = postgresql_server.create()
    try:
        plan = migrate(url, check=True)
        assert plan.pending
        assert plan.metadata == plan.service == 0
        assert any(statement.startswith("CREATE TABLE events") for statement in plan.statements)
        with ThreadPoolExecutor(4) as threads:
            stores = [*threads.map(open_store, [url] * 4)]
        for number, store in enumerate(stores):
            store.register([RUN._replace(run=str(number))])
            store.close()
        assert not migrate(url, check=True).pending
        with psycopg.connect(url) as db:
            # what is told to be carried out by hand is what is carried out
            shown = db.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        by_hand = postgresql_server.create()
        with psycopg.connect(by_hand) as db:
            for statement in plan.statements:
                db.execute(statement)
            assert db.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == shown
        assert not migrate(by_hand, check=True).pending
        open_store(by_hand).close()
        postgresql_server.drop(by_hand)
    finally:
        postgresql_server.drop(url)


def test_a_database_of_a_newer_program_is_refused(postgresql: str) -> None:
    for name in (sql.METADATA_VERSION, sql.SERVICE_VERSION):
        with psycopg.connect(postgresql) as db:
            db.execute("UPDATE facts SET value = (value::int + 1)::text WHERE name = %s", (name,))
        for check in (True, False):
            with pytest.raises(StoreError, match="a newer flowkit"):
                migrate(postgresql, check=check)
        with psycopg.connect(postgresql) as db:
            db.execute("UPDATE facts SET value = (value::int - 1)::text WHERE name = %s", (name,))


@pytest.mark.parametrize("table", ["facts (name text, value text)", "facts (a int)", "runs (a int)"])
def test_tables_of_somebody_else_are_left_alone(postgresql_server: PostgresqlServer, table: str) -> None:
    url = postgresql_server.create()
    with psycopg.connect(url) as db:
        db.execute(f"CREATE TABLE {table}")
    with pytest.raises(StoreError, match="not flowkit's"):
        migrate(url)
    postgresql_server.drop(url)


def test_a_database_that_does_not_keep_unicode_is_refused(postgresql_server: PostgresqlServer) -> None:
    with psycopg.connect(postgresql_server.url(), autocommit=True) as db:
        db.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(StoreError, match="UTF-8"):
        migrate(postgresql_server.url("ascii"))
    postgresql_server.drop(postgresql_server.url("ascii"))


# -- large ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(store: PostgresqlStore, postgresql: str) -> PostgresqlStore:
    """20,000 runs of five flows, one of which has 20,000 tasks that made and read the same."""
    with psycopg.connect(postgresql, autocommit=True) as db:
        db.execute(
            """INSERT INTO runs (flow, run, user_name, state, created, tags, system_tags, is_open, number, position)
            SELECT 'F' || (g % 5), (g / 5)::text, 'u' || (g % 7), CASE WHEN g % 10 = 1 THEN 'failed' ELSE 'succeeded'
            END, g, '[]', '["project:p"]', 0, g / 5, g FROM generate_series(1, 20000) g"""
        )
        db.execute("INSERT INTO run_tags SELECT run_key, 'project:p', flow, position, number, run, created FROM runs")
        key = "(SELECT run_key FROM runs WHERE flow = 'F1' AND run = '7')"
        db.execute(
            f"""INSERT INTO tasks (run_key, step, task, place, began, state, attempt, started, finished)
            SELECT {key}, 's' || (g % 4), g::text, 'a' || g, g, CASE WHEN g % 100 = 1 THEN 'failed' ELSE 'succeeded'
            END, 0, g, g + 1 FROM generate_series(1, 20000) g"""
        )
        db.execute(
            f"""INSERT INTO artifacts (run_key, step, task, attempt, name, content)
            SELECT {key}, 's' || (g % 4), g::text, 0, 'x', 'common' FROM generate_series(1, 20000) g"""
        )
        db.execute(
            f"""INSERT INTO artifact_reads (run_key, step, task, name, content)
            SELECT {key}, 's' || (g % 4), g::text, 'x', 'common' FROM generate_series(1, 20000) g"""
        )
        db.execute(
            """INSERT INTO events (event_id, kind, flow, data, projects, created)
            SELECT g, 'run', 'F1', '{}', '[]', 0 FROM generate_series(1, 20000) g"""
        )
        db.execute("ANALYZE")
    return store


def test_pages_are_walks_along_an_index(large: PostgresqlStore, postgresql: str) -> None:
    with large._snapshot() as session:
        (run_key,) = session.select(shared.POSTGRESQL.write(shared.RUN_KEY), ("F1", "7"))[0]
    pages = [
        sql.recent_runs(None, None, 100),
        sql.recent_runs((9000.0, "F1", "5"), None, 100),
        sql.recent_runs(None, "project:p", 100),
        *(shared.list_runs("F1", which, None, 100) for which in FILTERS),
        *(shared.list_runs("F1", which, (9000.0, 5, "5"), 100) for which in FILTERS),
        *(shared.list_tasks(run_key, step, states, None, 100) for step in (None, "s1") for states in STATES),
        *(shared.list_tasks(run_key, step, states, (9.0, "s1", "a9"), 9) for step in (None, "s1") for states in STATES),
        sql.list_artifacts(run_key, None, None, attempt=None, name=None, after=None, limit=100),
        sql.list_artifacts(run_key, "s1", None, attempt=0, name=None, after=("s1", "5", 0, "x"), limit=100),
        sql.artifacts_by_content("common", None, 100),
        sql.artifacts_by_content("common", (run_key, "s1", "5", 0, "x"), 100),
        sql.readers_of("common", None, 100),
        (f"{sql.EVENTS_AFTER}{sql.EVENT_BOUND_POSTGRESQL} ORDER BY event_id LIMIT ?", [0, 100]),
    ]
    with psycopg.connect(postgresql) as db:
        for query, parameters in pages:
            text = f"EXPLAIN (FORMAT JSON, ANALYZE) {shared.POSTGRESQL.write(query)}"
            found = db.execute(text, parameters).fetchone()
            assert found is not None
            plan = found[0][0]["Plan"]
            assert set(_scanned(plan)) <= {"facts"}, (query, plan)
            assert _rows_read(plan) < 2000, (query, plan)


FILTERS = [
    RunFilter(),
    RunFilter(user="u3"),
    RunFilter(status="failed"),
    RunFilter(status="running"),
    RunFilter(since=15_000.0),
    RunFilter(tags=("project:p",)),
]
STATES = [None, ("failed",), ("running",), ("succeeded",)]


def _scanned(plan: dict[str, Any]) -> list[str]:
    """The tables that are read from end to end."""
    below = [table for child in plan.get("Plans", []) for table in _scanned(child)]
    return [*below, plan["Relation Name"]] if plan["Node Type"] == "Seq Scan" else below


def _rows_read(plan: dict[str, Any]) -> int:
    """The most rows that a part of a plan gave, those that were filtered out included."""
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return max([int(own), *map(_rows_read, plan.get("Plans", []))])


def test_a_burst_is_a_handful_of_statements(store: PostgresqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = tuple(ArtifactRecord(f"a{n}", f"k{n}") for n in range(3))
    burst = [r for n in range(100) for r in (task(str(n)), OutputRecord("F", "1", "a", str(n), 0, artifacts, ("x=k",)))]
    store.register([RUN])
    sent: list[str] = []
    execute, this_thread = psycopg.Connection.execute, threading.get_ident()

    def counted(connection: psycopg.Connection, query: str, *rest: object, **options: object) -> object:
        if threading.get_ident() == this_thread:
            sent.append(query)
        return execute(connection, query, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(psycopg.Connection, "execute", counted)
    store.register(burst, "key")
    assert 5 < len(sent) <= 12
    assert len(store.artifacts("F", "1")) == 300


def test_a_value_that_is_no_text_names_the_cause(store: PostgresqlStore) -> None:
    with pytest.raises(UsageError, match="NUL"):
        store.register([RUN._replace(flow="a\0b")])
