"""What was acknowledged is there, once, whatever is killed meanwhile: services, PostgreSQL, several of them at once.

``FLOWKIT_SOAK=1`` asks for many rounds.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from postgresql_server import PostgresqlServer
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata_service.databases import open_store

ROUNDS = 20 if os.environ.get("FLOWKIT_SOAK") == "1" else 1
KINDS = ("record", "task", "field", "number", "read")
FLOW = "Killed"
QUIET = ("--no-access-log", "--requests-per-second", 1_000_000, "--pool", 5)


def eventually(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Load:
    """Clients that write and read all the time, and remember what they were told.

    Parameters
    ----------
    *services : ServiceProcess
        Whom they call, in turn; one that does not answer is called again, or another one in its place.

    Attributes
    ----------
    told : dict
        For each kind of request the names of what was answered with a 200.
    refused : Counter
        How often each kind was answered with a 503, or not at all.
    wrong : list of str
        Other answers, and none within a minute.
    """

    def __init__(self, *services: ServiceProcess) -> None:
        self.urls = [service.url for service in services]
        self.told: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.sent: set[str] = set()
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._ended = threading.Event()
        jobs = [self._write, self._write, self._write, self._number, self._number, self._tell, self._tell, self._read]
        self._threads = [threading.Thread(target=self._go_on, args=(job, n)) for n, job in enumerate(jobs)]

    def __enter__(self) -> Load:
        self.call("POST", "/v1/records", 0, json=batch(RunRecord(FLOW, "1", "ann", "running", 1.0))).raise_for_status()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def progress(self, count: int = 15) -> None:
        """Wait until so many requests of every kind were answered from now on."""
        before = {kind: len(told) for kind, told in self.told.items()}
        eventually(
            lambda: self.wrong or all(len(self.told[kind]) >= before[kind] + count for kind in KINDS), "it goes on"
        )
        assert not self.wrong, self.wrong[:5]

    def call(self, method: str, path: str, turn: int, session: Any = requests, **options: Any) -> requests.Response:
        urls = self.urls
        reply: requests.Response = session.request(method, urls[turn % len(urls)] + path, timeout=DEADLINE, **options)
        return reply

    def _go_on(self, job: Callable[[requests.Session, str, int], None], writer: int) -> None:
        with requests.Session() as session:
            turn = 0
            while not self._ended.is_set():
                job(session, f"{writer}-{turn}", writer + turn)
                turn += 1

    def _ask(self, kind: str, turn: int, method: str, path: str, session: Any, **options: Any) -> Any:
        """Send a request; None where nobody knows whether it was carried out."""
        try:
            reply = self.call(method, path, turn, session, **options)
        except requests.Timeout:
            self.wrong.append(f"{method} {path} is not answered")
        except requests.RequestException:  # killed meanwhile
            self.refused[kind] += 1
            time.sleep(0.01)
        else:
            if reply.status_code == 200:
                return reply.json()
            if reply.status_code == 503:
                self.refused[f"{kind} 503"] += 1
                time.sleep(0.01)
            else:
                self.wrong.append(f"{method} {path}: {reply.status_code} {reply.text[:300]}")
        return None

    def _write(self, session: requests.Session, name: str, turn: int) -> None:
        """Write a task, again and again with the same key until that is acknowledged."""
        self.sent.add(name)
        while not self._ended.is_set():
            if self._ask("record", turn, "POST", "/v1/records", session, **keyed(name)) is not None:
                self.told["record"].append(name)
                return
            turn += 1

    def _number(self, session: requests.Session, name: str, turn: int) -> None:
        told = self._ask("number", turn, "POST", "/v1/flows/Numbers/reserve", session, json={})
        if told is not None:
            self.told["number"].append(told["run"])

    def _tell(self, session: requests.Session, name: str, turn: int) -> None:
        """Do as Metaflow's clients: a task, then a field of it; each is sent once."""
        steps = f"/flows/{FLOW}/runs/1/steps/b"
        told = self._ask("task", turn, "POST", f"{steps}/task", session, json={"user_name": "ann"})
        if told is None:
            return
        self.told["task"].append(told["task_id"])
        field = {"field_name": name, "value": name, "type": "note", "user_name": "ann"}
        path = f"{steps}/tasks/{told['task_id']}/metadata"
        if self._ask("field", turn, "POST", path, session, json=[field]) is not None:
            self.told["field"].append(name)

    def _read(self, session: requests.Session, name: str, turn: int) -> None:
        """Read what was acknowledged before."""
        known = self.told["record"][-1:]
        path = f"/v1/flows/{FLOW}/runs/1" + "".join(f"/steps/a/tasks/{name}" for name in known)
        told = self._ask("read", turn, "GET", path, session)
        if told is not None:
            assert told["flow"] == FLOW
            self.told["read"].append(name)

    def check(self, url: str, database: str) -> None:
        """Check that all that was acknowledged is there, and nothing twice."""
        assert not self.wrong, self.wrong[:5]
        for kind in ("number", "task"):
            assert len(set(self.told[kind])) == len(self.told[kind]), f"a {kind} was given out twice"
        store = open_store(database)
        try:
            there = Counter(each.task for each in store.tasks(FLOW, "1", "a"))
            events = Counter(e.task for e in store.events_after(0, 10**6) if (e.kind, e.step) == ("task", "a"))
            fields = Counter(field.name for field in store.fields(FLOW, "1"))
        finally:
            store.close()
        assert set(self.told["record"]) <= set(there) <= self.sent
        assert events == there, "an event for each, and one only"
        assert set(self.told["field"]) <= set(fields)
        assert {fields[name] for name in self.told["field"]} == {1}
        tasks = requests.get(f"{url}/flows/{FLOW}/runs/1/steps/b/tasks", timeout=DEADLINE).json()
        assert set(self.told["task"]) <= {str(task["task_id"]) for task in tasks}
        for name in self.told["record"][-3:]:
            reply = requests.post(f"{url}/v1/records", timeout=DEADLINE, **keyed(name))
            assert reply.json() == {"written": 0, "repeated": True}


def batch(*records: Any) -> dict[str, Any]:
    kinds = {RunRecord: "run", TaskRecord: "task"}
    return {"records": [{"kind": kinds[type(record)], **record.to_json()} for record in records]}


def keyed(name: str) -> dict[str, Any]:
    record = TaskRecord(FLOW, "1", "a", name, "succeeded", started=1.0, finished=2.0)
    return {"json": batch(record), "headers": {"Idempotency-Key": name}}


@contextmanager
def listening(service: ServiceProcess) -> Iterator[list[str]]:
    """Hear of tasks of step a, on one connection, until a run ends that is written in the end."""
    heard: list[str] = []
    last = f"last-{os.urandom(4).hex()}"
    with requests.get(f"{service.url}/v1/events", stream=True, timeout=DEADLINE) as stream:
        lines = stream.iter_lines()
        assert any(b"ready" in line for line in lines)

        def listen() -> None:
            for line in lines:
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if event.get("step") == "a":
                    heard.append(event["task"])
                elif event.get("flow") == last or event.get("reason"):
                    return

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield heard
        finally:
            record = batch(RunRecord(last, "1", "ann", "failed", 1.0))
            requests.post(f"{service.url}/v1/records", json=record, timeout=DEADLINE).raise_for_status()
            thread.join(DEADLINE)
            assert not thread.is_alive(), "the stream does not go on"


def check_heard(heard: list[str], load: Load) -> None:
    """Check that a stream has told of everything that was acknowledged, once."""
    assert set(load.told["record"]) <= set(heard) <= load.sent
    assert set(Counter(heard).values()) == {1}


@pytest.fixture
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shared'}"
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    url = server.create()
    yield url
    server.drop(url)


@pytest.mark.parametrize("empty", ["sqlite", "postgresql"], indirect=True)
def test_services_on_one_database_of_which_some_are_killed(empty: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        # all of them find an empty database, and make the tables
        services = [ServiceProcess(tmp_path, *QUIET, "--database", empty) for _ in range(3)]
        for service in services:
            stack.callback(service.close)
        for service in services:
            service.wait_ready()
        survivor = services.pop()
        with listening(survivor) as heard, Load(survivor, *services) as load:
            load.progress()
            for turn in range(ROUNDS):
                before = load.refused.total()
                services[turn % 2].process.kill()
                services[turn % 2].wait()
                eventually(lambda: load.wrong or load.refused.total() > before, "somebody notices")  # noqa: B023
                services[turn % 2] = stack.enter_context(ServiceProcess(tmp_path, *QUIET, "--database", empty))
                load.urls = [survivor.url, *(service.url for service in services)]
                load.progress()
        load.check(survivor.url, empty)
        check_heard(heard, load)
        assert "Traceback" not in survivor.stderr


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_only_service_is_killed_and_started_again(database: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        service = stack.enter_context(ServiceProcess(tmp_path, *QUIET, "--database", database))
        with Load(service) as load:
            for _ in range(ROUNDS):
                load.progress()
                service.process.kill()
                service.wait()
                eventually(lambda: load.wrong or load.refused["record"], "somebody notices")
                load.refused.clear()
                service = stack.enter_context(ServiceProcess(tmp_path, *QUIET, "--database", database))
                load.urls = [service.url]
                load.progress()
        load.check(service.url, database)


def started_again(server: PostgresqlServer) -> None:
    """Start PostgreSQL; after a kill it waits until the last one of the old processes has gone."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            server.start()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "PostgreSQL starts again"
            time.sleep(0.05)


def test_postgresql_is_stopped_and_killed_under_load(
    postgresql_server: PostgresqlServer, postgresql: str, tmp_path: Path
) -> None:
    with ServiceProcess(tmp_path, *QUIET, "--database", postgresql) as service:
        with listening(service) as heard, Load(service) as load:
            for how in (signal.SIGINT, signal.SIGKILL) * ROUNDS:
                load.progress()
                postgresql_server.stop(how)
                for kind in ("record 503", "read 503"):
                    before = load.refused[kind]
                    eventually(lambda: load.wrong or load.refused[kind] > before + 5, "it says that it is away")  # noqa: B023
                assert requests.get(f"{service.url}/ping", timeout=DEADLINE).status_code == 200
                started_again(postgresql_server)
                load.progress()
        load.check(service.url, postgresql)
        assert load.refused.keys() <= {f"{kind} 503" for kind in KINDS}, "the service itself was always there"
        check_heard(heard, load)
