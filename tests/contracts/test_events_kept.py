"""What everything does that keeps events: a datastore, the metadata service over both databases, its client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from served_metadata import ServedMetadata, ServedService

from flowkit.datastore import layout
from flowkit.datastore.event_log import EventLog
from flowkit.datastore.storage import Storage
from flowkit.exceptions import UsageError
from flowkit.metadata.memory import MemoryMetadata
from flowkit.metadata_service.databases import open_store
from flowkit.model.event import MOST_BYTES, EmittedEvent


class _Log(EventLog):
    def close(self) -> None:
        """Nothing is held."""


def _log(kind: str) -> Callable[[pytest.FixtureRequest], Any]:
    def made(request: pytest.FixtureRequest) -> Any:
        from flowkit.datastore.local import LocalStorage
        from flowkit.datastore.memory import MemoryStorage

        if kind == "s3":
            from flowkit.plugins.aws.s3_storage import S3Storage

            return _Log(S3Storage(f"s3://{request.getfixturevalue('aws').bucket()}/some/root", fresh=0))
        return _Log(MemoryStorage() if kind == "memory" else LocalStorage(str(request.getfixturevalue("tmp_path"))))

    return made


def _served(request: pytest.FixtureRequest) -> Any:
    served: ServedService = request.getfixturevalue("served_service")
    served.empty()
    return ServedMetadata(served)


KEEPERS: dict[str, Callable[[pytest.FixtureRequest], Any]] = {
    "folder": _log("local"),
    "s3": _log("s3"),
    "memory": lambda request: MemoryMetadata(),
    "service on sqlite": lambda request: open_store(f"sqlite:///{request.getfixturevalue('tmp_path') / 'service'}"),
    "service on postgresql": lambda request: open_store(request.getfixturevalue("postgresql")),
    "client of a service": _served,
}


@pytest.fixture(params=sorted(KEEPERS))
def events(request: pytest.FixtureRequest) -> Iterator[Any]:
    with closing(KEEPERS[request.param](request)) as made:
        yield made


def test_events_come_back_in_their_order_and_none_twice(events: Any) -> None:
    assert (events.last_emitted(), events.emitted(0)) == (0, [])
    first = events.emit("data_arrived", {"table": "söld", "rows": [1, None, 2.5]}, user="ada")
    second = events.emit("data_arrived", id="nightly-1")
    third = events.emit("other")
    assert [first.number, second.number, third.number] == [1, 2, 3]
    assert first.data == {"table": "söld", "rows": [1, None, 2.5]}
    assert (second.id, second.data, first.user) == ("nightly-1", {}, "ada")
    assert first.id != third.id
    # What was emitted is emitted: the same id is the same event, with the data that it had.
    assert events.emit("data_arrived", {"table": "x"}, id="nightly-1") == second
    assert events.emit("other", id="nightly-1").number == 4
    assert events.emitted(0)[:3] == [first, second, third]
    assert events.emitted(1, 2) == [second, third]
    assert events.emitted(-5, 1) == [first]
    assert events.emitted(4) == []
    assert events.last_emitted() == 4


def test_what_is_no_event_is_refused(events: Any) -> None:
    wrong: list[tuple[str, Any, str | None]] = [
        ("", None, None),
        ("a\nb", None, None),
        (" a", None, None),
        ("flowkit.Train.end", None, None),
        ("a" * 251, None, None),
        ("a", [1], None),
        ("a", {"x": float("nan")}, None),
        ("a", {"x": "y" * MOST_BYTES}, None),
        ("a", None, ""),
        ("a", None, "i" * 201),
    ]
    for name, data, event_id in wrong:
        with pytest.raises(UsageError):
            events.emit(name, data, id=event_id if event_id != "" else "\x00")
    assert events.last_emitted() == 0


def test_a_reader_that_remembers_one_number_misses_nothing_of_many_writers(events: Any) -> None:
    writers, each = 4, 6
    seen: list[EmittedEvent] = []
    failed: list[BaseException] = []

    def write(who: int) -> None:
        try:
            for count in range(each):
                events.emit(f"from-{who}", {"count": count})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(writers)]
    for thread in threads:
        thread.start()
    while not failed and len(seen) < writers * each:
        seen += events.emitted(seen[-1].number if seen else 0, 5)
    for thread in threads:
        thread.join()
    assert not failed
    assert [event.number for event in seen] == list(range(1, writers * each + 1))
    for who in range(writers):
        assert [event.data["count"] for event in seen if event.name == f"from-{who}"] == list(range(each))
    assert len({event.id for event in seen}) == writers * each


def test_a_datastore_forgets_old_events_and_a_lost_hint_does_no_harm(storage: Storage) -> None:
    log = EventLog(storage)
    for number in range(5):
        log.emit("a", {"number": number})
    storage.delete(layout.last_event_file())
    assert log.last_emitted() == 5
    assert log.emit("a").number == 6
    assert log.trim_emitted(4, keep=-60.0) == 4
    assert [event.number for event in log.emitted(0)] == [5, 6]
    assert [event.number for event in log.emitted(2, 1)] == [5]
    # The newest one stays, so that no number is given out again; a damaged one never happened.
    assert log.trim_emitted(99, keep=-60.0) == 1
    storage.replace(layout.event_file(6), [b"torn"])
    assert log.emit("a").number == 7
    assert [event.number for event in log.emitted(0)] == [7]
