"""More than anybody needs, from many at once: the service answers others meanwhile, and does not grow with it."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata.records import RunRecord, TaskRecord

MEGABYTE = 1024 * 1024
SILENT = 2_000
LARGEST = 4 * MEGABYTE
TASKS = 1_200
FLOW = "Flooded"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with a run of many tasks."""
    folder: Path = tmp_path_factory.mktemp("flooded")
    options = ("--max-body", LARGEST, "--requests-per-second", 1_000_000, "--no-access-log")
    with ServiceProcess(folder, *options) as running:
        run = {"kind": "run", **RunRecord(FLOW, "1", "ann", "running", 1.0).to_json()}
        tasks = [TaskRecord(FLOW, "1", "a", str(n), "running", reason="why not " * 20) for n in range(TASKS)]
        body = {"records": [run, *({"kind": "task", **task.to_json()} for task in tasks)]}
        requests.post(f"{running.url}/v1/records", json=body, timeout=DEADLINE).raise_for_status()
        yield running
        assert "Traceback" not in running.stderr
        assert running.stop() == 0


@pytest.fixture(scope="module", autouse=True)
def files() -> Iterator[None]:
    """As many open files as the system allows, for the connections of a flood."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(service: ServiceProcess, what: str = "VmHWM") -> int:
    """Return how many bytes a process has (`VmRSS`), or had at most (`VmHWM`)."""
    for line in Path(f"/proc/{service.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


@contextmanager
def lines(service: ServiceProcess, count: int, said: bytes = b"", room: int = 0) -> Iterator[list[socket.socket]]:
    """Open connections on each of which something is said, and no more."""
    host, _, port = service.url.rpartition("//")[2].partition(":")
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            line = stack.enter_context(socket.socket())
            if room:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            line.settimeout(DEADLINE)
            line.connect((host, int(port)))
            line.sendall(said)
            opened.append(line)
        yield opened


def check_answers(service: ServiceProcess, name: str) -> None:
    """Write and read, on a new connection and on one that stays, as everybody else does meanwhile."""
    with requests.Session() as session:
        for turn in range(3):
            task = TaskRecord(FLOW, "1", "b", f"{name}-{turn}", "running")
            body = {"records": [{"kind": "task", **task.to_json()}]}
            reply = session.post(f"{service.url}/v1/records", json=body, timeout=DEADLINE)
            assert reply.status_code == 200, reply.text
            reply = session.get(f"{service.url}/v1/flows/{FLOW}/runs/1/steps/b/tasks/{task.task}", timeout=DEADLINE)
            assert reply.status_code == 200, reply.text
    assert requests.get(f"{service.url}/healthcheck", timeout=DEADLINE).status_code == 200


def test_thousands_that_say_nothing_or_begin_and_stop(service: ServiceProcess) -> None:
    before = memory(service)
    head = b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with ExitStack() as stack:
        stack.enter_context(lines(service, SILENT))
        check_answers(service, "silent")
        stack.enter_context(lines(service, 200, head[:-10]))
        stack.enter_context(lines(service, 200, head + b'Content-Length: 1000\r\n\r\n{"records": ['))
        stack.enter_context(lines(service, 200, head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"))
        check_answers(service, "begun")
        assert memory(service) < before + 200 * MEGABYTE
    check_answers(service, "gone")


@pytest.mark.parametrize("path", [f"/flows/{FLOW}/runs/1/steps/a/tasks", f"/v1/flows/{FLOW}/runs/1/tasks?limit=1000"])
def test_many_who_ask_for_much_and_do_not_read_it(service: ServiceProcess, path: str) -> None:
    before = memory(service)
    question = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with lines(service, 60, question, room=4096) as opened:  # more than there are threads
        for line in opened:
            assert line.recv(12) == b"HTTP/1.1 200"
        check_answers(service, f"unread-{len(path)}")
        assert memory(service) < before + 300 * MEGABYTE


_OUTPUT = b'{"records": [{"kind": "output", "artifacts": ['
_ARTIFACT = b'{"name": "x", "key": "' + b"k" * 40 + b'"},'
FILLINGS = {
    "text": b'{"records": [], "more": "' + b"x" * (LARGEST - 100) + b'"}',
    "lists": b'{"records": [' + b"[]," * (LARGEST // 3 - 100) + b"[]]}",
    "artifacts": _OUTPUT + b"[]," * (LARGEST // 3 - 100) + b"[]]}]}",
    "many artifacts": _OUTPUT + _ARTIFACT * (LARGEST // len(_ARTIFACT) - 100) + b"[]]}]}",
    "tags": b'{"records": [{"kind": "run", "tags": [' + b'"",' * (LARGEST // 3 - 100) + b'""]}]}',
}


def test_many_large_bodies_at_once(service: ServiceProcess) -> None:
    """What waits is bounded: who comes when there is too much of it is told to come again."""
    before = memory(service)

    def send(filling: bytes) -> int:
        headers = {"Content-Type": "application/json"}
        try:
            reply = requests.post(f"{service.url}/v1/records", data=filling, headers=headers, timeout=DEADLINE)
        except requests.ConnectionError:  # the answer came, and the connection ended, before all of it was sent
            return 503
        if reply.status_code == 503:
            assert reply.headers["Retry-After"]
        return reply.status_code

    with ThreadPoolExecutor(24) as clients:
        sent = [clients.submit(send, filling) for _ in range(4) for filling in FILLINGS.values()]
        while not all(each.done() for each in sent):
            reply = requests.get(f"{service.url}/v1/flows/{FLOW}/runs/1", timeout=DEADLINE)
            assert reply.status_code == 200, reply.text
        codes = {each.result() for each in sent}
    assert {422} <= codes <= {200, 422, 503}
    assert memory(service) < before + 1_000 * MEGABYTE, "a few of them, not all"
    check_answers(service, "large")
