"""``GET /v1/events``: what changes reaches whoever listens, once, in order, and nobody else."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata_service import broadcast
from flowkit.metadata_service.access import EVERYBODY, Caller
from flowkit.metadata_service.broadcast import QUEUE, QUEUE_BYTES, ROUND, STALLED, Broadcaster, Listener, Wanted
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.metrics import Metrics
from flowkit.metadata_service.tokens import new_token


class Sent(NamedTuple):
    """One event as it came."""

    id: str
    kind: str
    data: Any


class Stream:
    """A listener; `after` is sent as ``Last-Event-ID``."""

    def __init__(
        self, url: str, after: object = None, headers: Mapping[str, str] | None = None, **wanted: object
    ) -> None:
        given = {**(headers or {}), **({} if after is None else {"Last-Event-ID": str(after)})}
        self._reply = requests.get(f"{url}/v1/events", params=wanted, headers=given, stream=True, timeout=DEADLINE)
        assert self._reply.status_code == 200, self._reply.text
        assert self._reply.headers["content-type"].startswith("text/event-stream")
        self._lines = self._reply.iter_lines(decode_unicode=True)
        self.first = self.next()

    def __iter__(self) -> Iterator[Sent]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
                continue
            if "data" in fields:
                yield Sent(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}

    def next(self) -> Sent:
        return next(iter(self))

    def take(self, count: int) -> list[Sent]:
        return [self.next() for _ in range(count)]

    def close(self) -> None:
        self._reply.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def run(number: object, flow: str = "F", **more: object) -> dict[str, Any]:
    state = more.pop("state", "running")
    return {"kind": "run", **RunRecord(flow, str(number), "ann", state, 1.0, **more).to_json()}


def task(number: object, step: str, flow: str = "F", name: str = "0") -> dict[str, Any]:
    return {"kind": "task", **TaskRecord(flow, str(number), step, name, "running").to_json()}


def post(url: str, *records: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
    reply = requests.post(f"{url}/v1/records", json={"records": records}, headers=headers, timeout=DEADLINE)
    assert reply.status_code == 200, reply.text


def about(sent: Sent) -> str:
    parts = (sent.kind, sent.data["flow"], sent.data["run"], sent.data["step"], sent.data["task"])
    return "/".join(part for part in parts if part is not None)


def metric(url: str, name: str) -> float:
    text = requests.get(f"{url}/metrics", timeout=DEADLINE).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def wait_for(condition: Any, what: str) -> Any:
    deadline = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def test_changes_reach_those_who_asked_for_them(database, tmp_path):
    with ServiceProcess(tmp_path, "--database", database) as service, ExitStack() as stack:
        url = service.url
        wanted = [{}, {"flow": "F"}, {"flow": "F", "run": "1"}, {"flow": "F", "run": "1", "step": "a"}]
        wanted += [{"flow": "F", "run": "1", "step": "a", "task": "1"}, {"kind": "tags"}, {"kind": ["run", "deleted"]}]
        all_, flow, one, step, single, tags, two = (stack.enter_context(Stream(url, **each)) for each in wanted)
        assert all_.first.kind == "ready"

        post(url, run(1), run(2), run(1, "G"), task(1, "a"), task(1, "a", name="1"), task(1, "b"))
        tag = requests.patch(f"{url}/v1/flows/F/runs/2/tags", json={"add": ["good"]}, timeout=DEADLINE)
        assert tag.status_code == 200
        assert requests.delete(f"{url}/v1/flows/G/runs/1", timeout=DEADLINE).status_code < 300

        heard = all_.take(8)
        assert {about(each) for each in heard} == {
            *("run/F/1", "run/F/2", "run/G/1", "task/F/1/a/0", "task/F/1/a/1", "task/F/1/b/0", "tags/F/2"),
            "deleted/G/1",
        }
        assert [int(each.id) for each in heard] == sorted({int(each.id) for each in heard})
        (first,) = (each for each in heard if about(each) == "run/F/1")
        assert first.data["data"]["user"] == "ann"
        assert first.data["id"] == first.id
        assert {about(each) for each in flow.take(6)} == {about(each) for each in heard if each.data["flow"] == "F"}
        assert {about(each) for each in one.take(4)} == {
            *("run/F/1", "task/F/1/a/0", "task/F/1/a/1", "task/F/1/b/0"),
        }
        assert {about(each) for each in step.take(2)} == {"task/F/1/a/0", "task/F/1/a/1"}
        assert about(single.next()) == "task/F/1/a/1"
        assert about(tags.next()) == "tags/F/2"
        assert {about(each) for each in two.take(4)} == {"run/F/1", "run/F/2", "run/G/1", "deleted/G/1"}

        # Whoever comes back with an id gets what is after it, of what they want, and then goes on live.
        with Stream(url, heard[2].id) as again, Stream(url, after_=1, flow="G", after=heard[0].id) as late:
            assert [again.first.kind, again.first.id] == ["ready", heard[2].id]
            assert again.take(5) == heard[3:]
            assert late.take(2 - (heard[0].data["flow"] == "G"))[-1].kind == "deleted"
            post(url, run(9))
            assert about(again.next()) == about(all_.next()) == "run/F/9"
        wait_for(lambda: metric(url, "flowkit_listeners ") == 7, "two listeners went away")

        # A stop ends every stream at once, and each one is told.
        assert service.process.poll() is None
        service.process.terminate()
        assert [[each.kind, each.data["reason"]] for each in all_] == [["end", "stopping"]]
        assert [each.kind for each in single] == ["end"]
        assert service.wait() == 0
        assert "Traceback" not in service.stderr


CROWD = 500


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service on SQLite for tests that leave nobody listening."""
    with ServiceProcess(tmp_path_factory.mktemp("shared"), "--no-access-log", "--max-streams", CROWD) as service:
        yield service


def test_what_makes_no_sense_is_said(shared):
    for query, word in (
        ("run=1", "flow"),
        ("flow=F&task=1", "step"),
        ("flow=..%2F", "flow"),
        ("kind=nonsense", "kind"),
        ("after=-1", "after"),
        (f"after={2**63}", "after"),
    ):
        reply = requests.get(f"{shared.url}/v1/events?{query}", timeout=DEADLINE)
        assert reply.status_code in (400, 422), query
        assert word in reply.json()["error"]
    for wrong in ("abc", "-1", "1" * 30, "²"):
        headers = {b"Last-Event-ID": wrong.encode()}
        reply = requests.get(f"{shared.url}/v1/events", headers=headers, timeout=DEADLINE)
        assert reply.status_code in (400, 422), wrong
    # An id that never was: list again.
    with Stream(shared.url, 10**9) as stream:
        assert stream.first.kind == "reset"
        assert stream.first.data == {"after": stream.first.id}


def test_old_events_are_dropped_and_those_who_missed_them_are_told(tmp_path):
    with ServiceProcess(tmp_path) as service, Stream(service.url) as stream:
        post(service.url, run(1), run(2))
        first, second = stream.take(2)
        store = open_store(f"sqlite:///{tmp_path / 'database'}")
        try:
            assert store.trim_events(-60) == 2
            post(service.url, run(3))
            third = stream.next()
            with Stream(service.url, first.id) as late:
                assert late.first.kind == "reset"
                post(service.url, run(4))
                assert about(late.next()) == about(stream.next()) == "run/F/4"
            with Stream(service.url, third.id) as fresh:
                assert fresh.first.kind == "ready"
                assert about(fresh.next()) == "run/F/4"
        finally:
            store.close()


def test_a_listener_that_comes_and_goes_among_writers_misses_nothing_and_gets_nothing_twice(database, tmp_path):
    count = 60
    with ServiceProcess(tmp_path, "--database", database) as service:
        url = service.url

        def write(writer: int) -> None:
            for number in range(count):
                post(url, run(number, f"W{writer}"), task(number, "start", f"W{writer}"))

        heard: list[Sent] = []
        total = 4 * 2 * count
        with Stream(url) as steady:
            writers = [threading.Thread(target=write, args=(each,)) for each in range(4)]
            for writer in writers:
                writer.start()
            after = steady.first.id
            # An id of before the first event would count as one that is not kept.
            heard.append(steady.next())
            after = heard[0].id
            while len(heard) < total:
                with Stream(url, after) as brief:
                    assert brief.first[:2] == (after, "ready")
                    heard += brief.take(min(37, total - len(heard)))
                    after = heard[-1].id
            for writer in writers:
                writer.join()
            assert [heard[0], *steady.take(total - 1)] == heard
        assert len({about(each) for each in heard}) == total
        assert [int(each.id) for each in heard] == sorted({int(each.id) for each in heard})
        of_one = {about(each) for each in heard if each.data["flow"] == "W2"}
        with Stream(url, heard[0].id, flow="W2") as filtered:
            missing = {about(heard[0])} & of_one
            assert {about(each) for each in filtered.take(len(of_one - missing))} == of_one - missing


_FOREIGN_EVENT = """INSERT INTO events (event_id, kind, flow, run, data, projects, created)
    SELECT ((SELECT value::bigint FROM facts WHERE name = 'event_base') + pg_current_xact_id()::text::bigint) << 20,
        'run', 'F', 'early', '{}', '[]', 0"""


def test_overlapping_transactions_make_nobody_skip_an_event(postgresql, tmp_path):
    with ServiceProcess(tmp_path, "--database", postgresql) as service, Stream(service.url) as stream:
        post(service.url, run("first"))
        last = stream.next()
        for ending in ("COMMIT", "ROLLBACK"):
            with psycopg.connect(postgresql) as early, ExitStack() as stack:
                early.execute(_FOREIGN_EVENT)
                post(service.url, run(f"late-{ending}"))
                # While the early one is open, readers stop before both: it would be skipped for ever otherwise.
                other = stack.enter_context(Stream(service.url, last.id))
                assert other.first.kind == "ready"
                early.execute(ending)
                wanted = ["run/F/early"] if ending == "COMMIT" else []
                wanted.append(f"run/F/late-{ending}")
                for listener in (stream, other):
                    heard = listener.take(len(wanted))
                    assert [about(each) for each in heard] == wanted
                last = heard[-1]


def test_a_stream_goes_on_after_the_database_was_away(postgresql_server, postgresql, tmp_path):
    with ServiceProcess(tmp_path, "--database", postgresql) as service, Stream(service.url) as stream:
        post(service.url, run(1))
        first = stream.next()
        assert about(first) == "run/F/1"
        assert requests.get(f"{service.url}/healthcheck", timeout=DEADLINE).status_code == 200
        postgresql_server.stop()

        def ill() -> bool:
            return requests.get(f"{service.url}/healthcheck", timeout=DEADLINE).status_code == 503

        wait_for(ill, "the health check notices a database that is away")
        assert requests.get(f"{service.url}/ping", timeout=DEADLINE).status_code == 200
        postgresql_server.start()
        wait_for(lambda: not ill(), "the health check notices that it is back")
        post(service.url, run(2))
        assert about(stream.next()) == "run/F/2"
        with Stream(service.url, first.id) as again:
            assert about(again.next()) == "run/F/2"


def test_who_does_not_read_is_cut_off_and_comes_back_for_the_rest(shared):
    text = "x" * 60_000
    slow_ones = 20
    with ExitStack() as stack:
        place = urlsplit(shared.url)
        idle = []
        for _ in range(slow_ones):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            client.settimeout(DEADLINE)
            client.connect((place.hostname, place.port))
            client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            idle.append(client)
        wait_for(lambda: metric(shared.url, "flowkit_listeners ") == slow_ones, "all listen")
        reader = stack.enter_context(Stream(shared.url))
        before = metric(shared.url, "process_resident_memory_bytes")
        cut_off = 'flowkit_listeners_ended_total{reason="slow"}'
        sent: list[Sent] = []
        # How much it takes depends on the kernel's buffers; beyond them nobody may hold more than a queue of events.
        while metric(shared.url, cut_off) < slow_ones:
            assert len(sent) * len(text) < 200_000_000, "nobody is cut off"
            post(shared.url, *(run(len(sent) + number, reason=text) for number in range(20)))
            sent += reader.take(20)
        assert metric(shared.url, "process_resident_memory_bytes") - before < 20 * QUEUE_BYTES
        for client in idle[1:]:
            client.close()
        # One of them begins to read at last: it gets what was on its way, and then the news.
        raw = b""
        while not raw.endswith(b"0\r\n\r\n"):
            piece = idle[0].recv(1 << 20)
            assert piece
            raw += piece
        assert b"event: end" in raw
        assert b'"reason":"slow"' in raw
        last = raw.rpartition(b'"after":"')[2].partition(b'"')[0].decode()
        assert f'"id":"{last}"'.encode() in raw
        assert metric(shared.url, cut_off) == slow_ones
        with Stream(shared.url, last) as again:
            assert [each.id for each in again.take(int(sent[-1].id) - int(last))] == [
                each.id for each in sent if int(each.id) > int(last)
            ]
        wait_for(lambda: metric(shared.url, "flowkit_listeners ") == 1, "the others are gone")


def test_hundreds_of_idle_listeners_need_no_threads_and_all_of_them_hear(shared):
    url, place = shared.url, urlsplit(shared.url)

    def count_threads() -> int:
        with open(f"/proc/{shared.process.pid}/status") as status:
            return int(next(line.split()[1] for line in status if line.startswith("Threads:")))

    async def listen() -> None:
        streams = []
        for _ in range(CROWD):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(b"GET /v1/events?flow=Crowd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            streams.append((reader, writer))
        for reader, _ in streams:
            await asyncio.wait_for(reader.readuntil(b"event: ready\n"), DEADLINE)
        loop = asyncio.get_running_loop()
        threads = await loop.run_in_executor(None, count_threads)
        assert threads - bare < 50  # as many as the routes may use, however many listen
        # It holds as many as it was told to.
        full = await loop.run_in_executor(None, lambda: requests.get(f"{url}/v1/events", timeout=DEADLINE))
        assert (full.status_code, full.headers["Retry-After"]) == (503, "5")
        assert "listeners" in full.json()["error"]
        await loop.run_in_executor(None, post, url, run(1, "Crowd"))
        for reader, writer in streams:
            await asyncio.wait_for(reader.readuntil(b"event: run\n"), DEADLINE)
            writer.close()
        for _, writer in streams:
            await writer.wait_closed()

    bare, sent = count_threads(), metric(url, "flowkit_events_sent_total")
    asyncio.run(listen())
    assert metric(url, "flowkit_events_sent_total") - sent == CROWD
    wait_for(lambda: metric(url, "flowkit_listeners ") == 0, "all are gone")


def test_a_listener_hears_of_its_own_projects_only_and_only_with_a_token(tmp_path):
    database = f"sqlite:///{tmp_path / 'database'}"
    store = open_store(database)
    try:
        texts = {}
        for name, projects in (("blue", ["blue"]), ("red", ["red"]), ("all", [])):
            token, text, digest = new_token(name, ["write"], projects)
            store.add_token(token, digest)
            texts[name] = {"Authorization": f"Bearer {text}"}
    finally:
        store.close()
    with ServiceProcess(tmp_path, "--database", database, "--authentication") as service, ExitStack() as stack:
        url = service.url
        assert requests.get(f"{url}/v1/events", timeout=DEADLINE).status_code == 401
        assert requests.get(f"{url}/metrics", timeout=DEADLINE).status_code == 401
        blue, red, all_ = (
            stack.enter_context(Stream(url, headers=texts[name], flow="F")) for name in ("blue", "red", "all")
        )
        write = texts["all"]
        post(url, run(1, system_tags=("project:red",)), task(1, "a"), headers=write)
        post(url, run(2, tags=("project:blue",)), headers=write)
        post(url, run(3, system_tags=("project:blue",)), headers=write)
        post(url, run(4, system_tags=("project:red",)), headers=write)
        heard = all_.take(5)
        assert {about(each) for each in heard} == {"run/F/1", "task/F/1/a/0", "run/F/2", "run/F/3", "run/F/4"}
        assert about(blue.next()) == "run/F/3"
        assert {about(each) for each in red.take(3)} == {"run/F/1", "task/F/1/a/0", "run/F/4"}
        # The same from the database, and where a run is named that they may not see.
        mine = [each for each in heard[1:] if about(each) == "run/F/3"]
        with Stream(url, heard[0].id, headers=texts["blue"]) as again:
            assert again.take(1) == mine
        with Stream(url, heard[0].id, headers=texts["blue"], flow="F", run="4") as foreign:
            service.process.terminate()
            assert [each.kind for each in foreign] == ["end"]
        assert service.wait() == 0


def test_a_listener_whose_token_is_no_good_any_more_is_sent_away(sqlite_store, monkeypatch):
    """The timer asks for all listeners; here it is turned by hand."""
    monkeypatch.setattr(broadcast, "TICK", 3600.0)

    async def listen() -> None:
        broadcaster = Broadcaster(sqlite_store, Configuration("sqlite:///nowhere"), Metrics())
        broadcaster.start()
        try:
            good = [True]
            asked = []

            def valid() -> bool:
                asked.append(1)
                return good[0]

            listener = Listener(Wanted(), EVERYBODY, valid)
            quiet = Listener(Wanted(), Caller("token:x", "read", ("blue",)))
            for each in (listener, quiet):
                broadcaster.enter(each)
                assert await broadcaster.position() == 0
                broadcaster.join(each)
                each.live = True
            # Each one is given a sign of life once in a round, and is asked for once.
            for _ in range(ROUND):
                broadcaster.tick()
            assert await listener.take() == await quiet.take() == b"id: 0\n\n"
            assert (listener.ended, len(asked)) == (None, 1)
            good[0] = False
            for _ in range(ROUND):
                broadcaster.tick()
            assert await listener.take() == b"id: 0\n\n"
            assert await asyncio.wait_for(listener.take(), DEADLINE) == b""
            assert (listener.ended, quiet.ended) == ("expired", None)
            # What is not taken does not pile up.
            assert await quiet.take() == b"id: 0\n\n"
            assert [quiet.put(number, b"x") for number in range(QUEUE + 2)] == [True] * QUEUE + [False] * 2
            broadcaster.end(quiet, "slow")
            assert quiet.idle
            # One that does not take the news of its end is cut, and so is one that takes nothing of what is past.
            stuck = Listener(Wanted(), EVERYBODY)
            broadcaster.enter(stuck)
            stuck.moved -= 2 * STALLED
            stuck.sending = asyncio.create_task(asyncio.sleep(DEADLINE))
            for _ in range(ROUND):
                broadcaster.tick()
            assert stuck.ended == "slow"
            stuck.ended_at -= 2 * STALLED
            for _ in range(ROUND):
                broadcaster.tick()
            with pytest.raises(asyncio.CancelledError):
                await stuck.sending
            for each in (listener, quiet, stuck):
                broadcaster.leave(each)
        finally:
            broadcaster.stop()
            broadcaster.stop()

    asyncio.run(listen())


def test_operators_get_versions_and_counts_by_route(shared):
    url = shared.url
    ping = requests.get(f"{url}/ping", timeout=DEADLINE)
    assert (ping.text, ping.status_code) == ("pong", 200)
    assert tuple(map(int, ping.headers["METADATA_SERVICE_VERSION"].split("."))) >= (2, 3, 0)
    version = requests.get(f"{url}/version", timeout=DEADLINE).json()
    assert version["service"] == "flowkit"
    counted = ('flowkit_records_total{kind="run"}', 'flowkit_request_seconds_count{method="POST",route="/v1/records"}')
    before = [metric(url, each) for each in counted]
    for number in range(3):
        post(url, run(number, "Operated"))
        requests.get(f"{url}/v1/flows/Operated/runs/{number}", timeout=DEADLINE)
        requests.get(f"{url}/nothing/{number}", timeout=DEADLINE)
        requests.request(f"VERB{number}", f"{url}/version", timeout=DEADLINE)
    assert [metric(url, each) for each in counted] == [each + 3 for each in before]
    text = requests.get(f"{url}/metrics", timeout=DEADLINE).text
    series = [line for line in text.splitlines() if line.startswith("flowkit_requests_total")]
    assert any("/v1/flows/{flow}/runs/{run}" in line for line in series)
    assert len([line for line in series if "no such route" in line]) == 1
    assert 'method="other"' in text
    assert "VERB" not in text
    assert "Operated" not in text
    assert "flowkit_build" in text
