"""What every store of the metadata service does: on SQLite, and on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowkit.exceptions import NotFound, StoreError, UsageError
from flowkit.metadata.records import ArtifactRecord, OutputRecord, RunRecord, TaskRecord
from flowkit.metadata.relational import UnknownRun
from flowkit.metadata.store import RunFilter
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.store import (
    ArtifactPlace,
    Attempt,
    Beat,
    Event,
    Field,
    ForeignArtifact,
    Read,
    ServiceStore,
    Token,
)

NOW = time.time()
LIMIT = 30.0


@pytest.fixture
def store(database: str) -> Iterator[ServiceStore]:
    made = open_store(database)
    yield made
    made.close()


def run(name: str = "1", flow: str = "Train", **values: Any) -> RunRecord:
    return RunRecord(flow, name, **{"user": "ada", "state": "running", "created": NOW - 100, **values})


def task(name: str, state: str = "succeeded", attempt: int = 0, step: str = "a", **values: Any) -> TaskRecord:
    values = {"started": NOW, **values}
    return TaskRecord("Train", values.pop("run", "1"), step, name, state, attempt, **values)  # type: ignore[arg-type]


def output(name: str, *artifacts: str, attempt: int = 0, reads: tuple[str, ...] = (), step: str = "a") -> OutputRecord:
    """Artifacts are given as name=key."""
    found = tuple(ArtifactRecord(*text.split("="), size=3, type="builtins.str", codec="raw") for text in artifacts)
    return OutputRecord("Train", "1", step, name, attempt, found, reads)


def eventually(happened: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kinds(events: list[Event]) -> list[str]:
    return ["/".join(filter(None, (event.kind, event.run, event.step, event.task))) for event in events]


# -- registering ----------------------------------------------------------------------------------------------------


def test_what_is_registered_can_be_read(store: ServiceStore) -> None:
    assert store.outputs
    assert store.register([task("0"), output("0", "x=k1", "y=k2", reads=("x=k0", "z=k0")), run()])
    assert store.register([task("1"), output("1", "x=k1", reads=("x=k1",))])
    assert [t.task for t in store.tasks("Train", "1")] == ["0", "1"]
    found = store.artifacts("Train", "1")
    assert [(place.task, place.artifact.name, place.artifact.key) for place in found] == [
        ("0", "x", "k1"),
        ("0", "y", "k2"),
        ("1", "x", "k1"),
    ]
    assert found[0] == ArtifactPlace("Train", "1", "a", "0", 0, ArtifactRecord("x", "k1", 3, "builtins.str", "raw"))
    assert store.output("Train", "1", "a", "0") == output("0", "x=k1", "y=k2", reads=("x=k0", "z=k0"))
    assert store.output("Train", "1", "a", "7") is None
    assert store.reads("Train", "1", "a", "1") == [Read("Train", "1", "a", "1", "x", "k1")]
    assert [read.key for read in store.reads("Train", "1")] == ["k0", "k0", "k1"]
    assert [(place.run, place.task) for place in store.artifacts_by_key("k1")] == [("1", "0"), ("1", "1")]
    assert [(read.task, read.name) for read in store.readers("k0")] == [("0", "x"), ("0", "z")]
    assert store.artifacts_by_key("nothing") == [] == store.readers("nothing") == store.artifacts("Train", "2")


def test_a_request_that_comes_again_is_written_once(store: ServiceStore) -> None:
    assert store.register([run(), task("0", "running")], "first")
    assert store.register([task("0", "failed")], "second")
    last = store.last_event()
    assert not store.register([run(), task("0", "running")], "first")
    assert not store.register([task("1")], "second")
    assert store.task("Train", "1", "a", "1") is None
    assert store.last_event() == last


def test_a_request_that_failed_may_come_again_under_its_key(store: ServiceStore) -> None:
    with pytest.raises(UnknownRun, match="Train/1"):
        store.register([task("0")], "key")
    assert store.register([run(), task("0")], "key")


@pytest.mark.parametrize(
    "wrong",
    [
        [run(created=float("nan"))],
        [run(created=float("inf"))],
        [run(), task("0", attempt=2**40)],
        [run(), task("0", attempt=2**70)],
        [run(pid=2**63)],
        [run(), output("0", reads=("no key",))],
    ],
)
def test_what_no_database_can_hold_is_refused_whole(store: ServiceStore, wrong: list[Any]) -> None:
    with pytest.raises(UsageError):
        store.register(wrong)
    assert store.run("Train", "1") is None
    assert store.events_after(0) == []


@pytest.mark.parametrize("text", ["'; DROP TABLE runs; --", "ä/🙂", "%s", "{0}", "\\", '"', "a\nb"])
def test_any_text_is_a_value_and_nothing_else(store: ServiceStore, text: str) -> None:
    record = run(text, flow=text, user=text, tags=(text,), state="succeeded", reason=text)
    store.register([record, TaskRecord(text, text, text, text, "succeeded", reason=text)])
    store.register([OutputRecord(text, text, text, text, 0, (ArtifactRecord(text, text),), (f"x={text}",))], text)
    assert store.run(text, text) == record
    assert store.artifacts_by_key(text)[0].artifact.name == text
    assert store.readers(text)[0].task == text
    assert store.events_after(0)[-1].task == text
    assert store.runs(text, RunFilter(tags=(text,), user=text)) == [record]
    store.put_facts(text, text, {text: text})
    assert store.facts(text, text) == {text: text}


@pytest.mark.parametrize("text", ["a\0b", "a\udcffb"])
def test_names_that_are_no_text_are_refused_or_stored_but_never_a_failure(store: ServiceStore, text: str) -> None:
    for records in ([run(text)], [run(), task(text)], [run(), output(text, f"{text}=k")]):
        try:
            store.register(records)
        except UsageError:
            continue
        assert store.name == "sqlite"


def test_a_burst_is_one_transaction_with_events_in_order(store: ServiceStore) -> None:
    store.register([run()])
    before = store.last_event()
    records = [record for n in range(350) for record in (task(str(n)), output(str(n), "x=k", "y=k", "z=k"))]
    store.register(records)
    assert len(store.tasks("Train", "1")) == 350
    assert len(store.artifacts("Train", "1")) == 1050
    assert sorted(int(event.task or "") for event in store.events_after(before)) == [*range(350)]


# -- attempts and outputs -------------------------------------------------------------------------------------------


def test_every_attempt_is_kept(store: ServiceStore) -> None:
    store.register([run(), task("0", "running", started=NOW - 9), task("0", "failed", started=NOW - 9, reason="why")])
    store.register([task("0", "running", 1), task("0", "succeeded", 1, finished=NOW + 1)])
    store.register([task("0", "running", 0)])
    assert store.attempts("Train", "1", "a", "0") == [
        Attempt(0, "failed", NOW - 9, None, "why"),
        Attempt(1, "succeeded", NOW, NOW + 1, None),
    ]
    assert store.attempts("Train", "1", "a", "1") == []
    assert store.attempts("Train", "2", "a", "0") == []


def test_the_newest_output_counts(store: ServiceStore) -> None:
    store.register([run(), task("0", attempt=1)])
    store.register([output("0", "x=k1", attempt=1, reads=("p=q1",))])
    store.register([output("0", "x=k0", "old=k", attempt=0, reads=("p=q0",))])
    assert store.output("Train", "1", "a", "0") == output("0", "x=k1", attempt=1, reads=("p=q1",))
    assert [place.artifact.key for place in store.artifacts("Train", "1")] == ["k1"]
    assert [place.artifact.key for place in store.artifacts("Train", "1", attempt=0)] == ["k", "k0"]
    store.register([output("0", "x=k3", attempt=1, reads=("p=q3",))])
    assert store.output("Train", "1", "a", "0") == output("0", "x=k3", attempt=1, reads=("p=q3",))
    assert store.readers("q1") == []
    store.register([output("1")])
    assert store.output("Train", "1", "a", "1") == output("1")


def test_artifacts_and_reads_in_pages(store: ServiceStore) -> None:
    store.register(
        [run(), *(output(str(n), "x=k", "y=k", reads=("b=k", "a=k"), step=s) for n in range(5) for s in "pq")]
    )
    store.register([run("2"), OutputRecord("Train", "2", "p", "0", 0, (ArtifactRecord("x", "k"),), ("a=k",))])
    everything = store.artifacts("Train", "1")
    assert len(everything) == 20
    pages: list[Any] = []
    while page := store.artifacts("Train", "1", after=(*pages[-1][2:5], pages[-1][5].name) if pages else None, limit=3):
        pages += page
    assert pages == everything
    assert [place.task for place in store.artifacts("Train", "1", "q", name="y")] == ["0", "1", "2", "3", "4"]
    assert [place.artifact.name for place in store.artifacts("Train", "1", "q", "3")] == ["x", "y"]
    pages = []
    while page := store.artifacts_by_key("k", after=(*pages[-1][:5], pages[-1][5].name) if pages else None, limit=4):
        pages += page
    assert pages == everything + store.artifacts("Train", "2")
    pages = []
    while page := store.readers("k", after=pages[-1][:5] if pages else None, limit=4):
        pages += page
    assert pages == store.reads("Train", "1") + store.reads("Train", "2")
    pages = []
    while page := store.reads("Train", "1", "p", after=pages[-1][2:] if pages else None, limit=3):
        pages += page
    assert pages == store.reads("Train", "1", "p")
    assert len(pages) == 10
    with pytest.raises(NotFound):
        store.artifacts_by_key("k", after=("Train", "404", "a", "0", 0, "x"))


# -- states ---------------------------------------------------------------------------------------------------------


def test_clocks_of_clients_do_no_harm(store: ServiceStore) -> None:
    store.register([run("1", created=NOW - 9e6, heartbeat=NOW - 9e6, host="elsewhere")])
    store.register([run("2", created=NOW + 9e6, heartbeat=NOW + 9e6, host="elsewhere")])
    store.register([run("3", created=NOW)])
    one, two = store.run("Train", "1"), store.run("Train", "2")
    assert one is not None
    assert two is not None
    assert (one.state, two.state) == ("running", "running")
    assert two.heartbeat is not None
    assert two.heartbeat < time.time() + 1
    assert two.created < time.time() + 1
    store.register([run("2", state="failed", heartbeat=NOW + 9e6, host="elsewhere")])
    assert store.run("Train", "2") == two._replace(state="failed")


def test_silence_is_measured_by_the_service(database: str) -> None:
    store = open_store(database, heartbeat_interval=0.05)
    try:
        assert store.heartbeat_limit == pytest.approx(0.15)
        store.register([run("1", host="elsewhere"), run("2", state="pending")])
        eventually(lambda: [r.state for r in store.runs("Train", RunFilter())] == ["lost", "lost"])
        assert store.heartbeats([Beat("Train", "1")], time.time() + 1000) == []
        found = store.run("Train", "1")
        assert found is not None
        assert found.state == "running"
        store.heartbeats([Beat("Train", "1")], time.time() - 1000)  # an older sign of life takes nothing back
        assert found == store.run("Train", "1")
    finally:
        store.close()


def test_an_end_wins_over_a_late_heartbeat(store: ServiceStore) -> None:
    store.register([run("1", state="succeeded", finished=NOW)])
    assert store.heartbeats([Beat("Train", "1")], time.time()) == []
    found = store.run("Train", "1")
    assert found is not None
    assert found.state == "succeeded"


def test_many_heartbeats_at_once_and_the_unknown_among_them(store: ServiceStore) -> None:
    store.write([run(str(n), heartbeat=NOW - 900, host="elsewhere") for n in range(1, 250)])
    store.write([task("0", "running", run="7")])
    beats = [Beat("Train", str(n)) for n in range(2, 250)]
    strange = [Beat("Train", "404"), Beat("Other", "1"), Beat("Train", "7", "a", "404")]
    assert store.heartbeats([*beats, *strange, Beat("Train", "7", "a", "0")], time.time()) == strange
    states = {record.run: record.state for record in store.runs("Train", RunFilter())}
    assert states.pop("1") == "lost"
    assert set(states.values()) == {"running"}
    store.write([run("1", heartbeat=NOW - 900), task("0", "running")])
    store.heartbeats([Beat("Train", "1", "a", "0")], time.time())
    assert store.task("Train", "1", "a", "0") == task("0", "running")


# -- runs of all flows ----------------------------------------------------------------------------------------------


def test_runs_of_all_flows_newest_first_in_pages(store: ServiceStore) -> None:
    store.write([run(str(n), flow=f, created=NOW - 100 + n // 2, state="failed") for n in range(9) for f in "AB"])
    everything = [(r.created, r.flow, r.run) for r in store.recent_runs(limit=100)]
    assert len(everything) == 18
    assert everything == sorted(everything, reverse=True)
    pages: list[tuple[float, str, str]] = []
    while page := store.recent_runs(limit=4, before=pages[-1] if pages else None):
        pages += [(r.created, r.flow, r.run) for r in page]
    assert pages == everything
    assert store.recent_runs(limit=0) == []


def test_a_project_has_the_runs_that_the_system_says_it_has(store: ServiceStore) -> None:
    system = ("project:one", "user:ada")
    store.write([run(str(n), state="failed", created=NOW - n, system_tags=system) for n in range(5)])
    store.write([run("9", state="failed", tags=("project:one",)), run("8", state="failed")])
    assert [r.run for r in store.recent_runs(limit=3, project="one")] == ["0", "1", "2"]
    assert [r.run for r in store.recent_runs(limit=9, project="one", before=(NOW - 2, "Train", "2"))] == ["3", "4"]
    assert store.recent_runs(limit=9, project="two") == []


# -- numbers --------------------------------------------------------------------------------------------------------


def test_numbers_of_runs_are_given_once_whoever_asks_at_once(store: ServiceStore) -> None:
    store.register([run("7", state="failed")])
    with ThreadPoolExecutor(8) as threads:
        numbers = [*threads.map(lambda n: store.reserve_run("Train"), range(40))]
    assert sorted(numbers) == [*range(8, 48)]
    assert store.reserve_run("Train", 100) == 100
    assert store.reserve_run("Train", 5) == 101
    assert store.reserve_run("Other") == 1
    store.register([run("300", state="failed")])
    assert store.delete_run("Train", "300")
    assert store.reserve_run("Train") == 301
    with pytest.raises(UsageError):
        store.reserve_run("Train", 10**30)


def test_named_runs_have_numbers_of_their_own(store: ServiceStore) -> None:
    store.register([run("3"), run("argo-x"), run("argo-y")])
    assert store.run_id("Train", "3") == 3
    with ThreadPoolExecutor(4) as threads:
        given = [*threads.map(lambda name: store.run_id("Train", name), ["argo-x", "argo-y"] * 8)]
    x, y = given[:2]
    assert given == [x, y] * 8
    assert x != y
    assert min(x, y) > 3
    assert store.run_name("Train", x) == "argo-x"
    assert store.run_name("Train", 3) is None
    assert store.reserve_run("Train") > max(x, y)
    with pytest.raises(NotFound):
        store.run_id("Train", "argo-z")
    store.delete_run("Train", "argo-x")
    assert store.run_name("Train", x) is None


def test_numbers_of_tasks_are_given_once_whoever_asks_at_once(store: ServiceStore) -> None:
    store.register([run(), *(task(str(n)) for n in range(20))])

    def ask(turn: int) -> tuple[str, int]:
        return store.new_task("Train", "1", "b"), store.task_number("Train", "1", "a", str(turn % 20))

    with ThreadPoolExecutor(8) as threads:
        answers = [*threads.map(ask, range(40))]
    new = [int(task_id) for task_id, _ in answers]
    old = dict.fromkeys(number for _, number in answers)
    assert len(old) == 20
    assert sorted([*new, *old]) == [*range(1, 61)]
    assert store.task_name("Train", "1", new[0]) == ("b", str(new[0]))
    assert store.task_name("Train", "1", answers[3][1]) == ("a", "3")
    assert store.task_name("Train", "1", 99) is None
    assert store.task_numbers("Train", "1", [("a", "3"), ("a", "new"), ("a", "3")]) == [
        answers[3][1],
        61,
        answers[3][1],
    ]
    with pytest.raises(NotFound):
        store.task_number("Train", "2", "a", "0")
    with pytest.raises(UnknownRun):
        store.new_task("Train", "2", "a")


# -- dropping -------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_run_that_was_deleted(store: ServiceStore) -> None:
    store.register([run("1", tags=("t",)), task("0"), output("0", "x=k", reads=("y=k",)), run("2")])
    store.new_task("Train", "1", "a")
    store.add_step("Train", "1", "a", {})
    store.add_fields("Train", "1", [Field(0, "a", "0", "n", "v", "t", "ada", (), 0)])
    store.put_facts("Train", "1", {"a": 1})
    last = store.last_event()
    assert store.delete_run("Train", "1")
    assert not store.delete_run("Train", "1")
    assert kinds(store.events_after(last)) == ["deleted/1"]
    assert store.run("Train", "1") is None
    store.register([run("1")])
    assert store.tasks("Train", "1") == [] == store.artifacts("Train", "1") == store.reads("Train", "1")
    assert store.attempts("Train", "1", "a", "0") == [] == store.fields("Train", "1")
    assert store.step_facts("Train", "1") == {} == store.facts("Train", "1")
    assert store.artifacts_by_key("k") == [] == store.readers("k")
    assert store.task_name("Train", "1", 1) is None
    assert store.about()["tasks"] == 0


def test_a_run_that_is_new_while_another_one_goes_keeps_its_tasks(store: ServiceStore) -> None:
    for turn in range(5):
        store.register([run("1"), *(task(str(n)) for n in range(300))])
        with ThreadPoolExecutor(2) as threads:
            going = threads.submit(store.delete_run, "Train", "1")
            threads.submit(store.register, [run(f"new{turn}"), task("0", run=f"new{turn}")]).result()
            assert going.result()
        assert len(store.tasks("Train", f"new{turn}")) == 1
        assert [flow.flow for flow in store.flows()] == ["Train"]


# -- what Metaflow's clients send -----------------------------------------------------------------------------------


def test_steps_before_their_tasks(store: ServiceStore) -> None:
    store.register([run()])
    assert store.add_step("Train", "1", "start", {"user_name": "ada", "created": 5.0})
    assert store.add_step("Train", "1", "a", {})
    assert not store.add_step("Train", "1", "start", {"user_name": "bob"})
    found = store.step_facts("Train", "1")
    assert [*found] == ["start", "a"]
    assert found["start"] == {"user_name": "ada", "created": 5.0}
    assert found["a"]["created"] >= NOW
    with pytest.raises(UnknownRun):
        store.add_step("Train", "2", "a", {})


def test_fields(store: ServiceStore) -> None:
    store.register([run()])
    given = [
        Field(0, "a", task_id, name, "v\0alue" if name == "odd" else f"{n}", "t", "ada", ("attempt_id:0",), 0)
        for n, (task_id, name) in enumerate([("1", "x"), ("0", "x"), ("0", "y"), ("0", "odd"), ("0", "x")])
    ]
    written = store.add_fields("Train", "1", given)
    assert [field.id for field in written] == sorted({field.id for field in written})
    assert all(field.created >= NOW for field in written)
    found = store.fields("Train", "1")
    assert [(f.id, f.task, f.name, f.tags) for f in found] == [(f.id, f.task, f.name, f.tags) for f in written]
    assert [f.value for f in store.fields("Train", "1", "a", "0", "x")] == ["1", "4"]
    assert [f.task for f in store.fields("Train", "1", name="x")] == ["1", "0", "0"]
    assert store.fields("Train", "1", "b") == [] == store.fields("Train", "2") == store.add_fields("Train", "1", [])
    with pytest.raises(UnknownRun):
        store.add_fields("Train", "2", given)


def test_artifacts_in_their_own_words_stay_as_they_were_first_told(store: ServiceStore) -> None:
    store.register([run(), output("1", "x=flowkits")])
    mine = ForeignArtifact("a", "0", 0, ArtifactRecord("x", "sha1"), {"ds_type": "s3", "é": 1})
    store.add_artifacts("Train", "1", [mine, mine._replace(attempt=1)])
    store.add_artifacts("Train", "1", [mine._replace(artifact=ArtifactRecord("x", "sha2"), words={})])
    found = store.foreign_artifacts("Train", "1")
    assert found[:2] == [mine, mine._replace(attempt=1)]
    assert found[2].words == {}
    assert store.foreign_artifacts("Train", "1", "a", "0", 1) == [mine._replace(attempt=1)]
    assert [place.attempt for place in store.artifacts("Train", "1", "a", "0")] == [1]
    assert store.output("Train", "1", "a", "0") == OutputRecord("Train", "1", "a", "0", 1, (mine.artifact,))
    store.add_artifacts("Train", "1", [])


def test_facts_are_replaced(store: ServiceStore) -> None:
    assert store.facts("Train", None) == {}
    store.put_facts("Train", None, {"a": [1]})
    store.put_facts("Train", "1", {"b": 2})
    store.put_facts("Train", None, {"c": None})
    assert store.facts("Train", None) == {"c": None}
    assert store.facts("Train", "1") == {"b": 2}


# -- events ---------------------------------------------------------------------------------------------------------


def test_each_change_is_one_event(store: ServiceStore) -> None:
    assert store.last_event() == 0 == store.first_event()
    store.register([run(system_tags=("project:p", "user:ada"), tags=("project:no",)), task("0", "running")])
    store.register([run(system_tags=("project:p",)), task("0", "running", 1), task("0", "running")])
    store.change_tags("Train", "1", ["x"], [])
    store.change_tags("Train", "1", ["x"], [])
    store.register([run(state="failed")])
    store.heartbeat("Train", "1", time.time())
    events = store.events_after(0)
    assert kinds(events) == ["run/1", "task/1/a/0", "task/1/a/0", "tags/1", "run/1"]
    assert {event.projects for event in events} == {("p",)}
    assert [event.id for event in events] == sorted({event.id for event in events})
    assert RunRecord.from_json(events[-1].data).state == "failed"
    assert TaskRecord.from_json(events[2].data).attempt == 1
    assert events[3].data["tags"] == ["project:no", "x"]
    assert store.events_after(events[1].id, 2) == events[2:4]
    assert (store.first_event(), store.last_event()) == (events[0].id, events[-1].id)
    assert store.events_after(events[-1].id) == []
    assert store.events_after(-5, 1) == events[:1]


def test_old_events_go_and_ids_go_on(store: ServiceStore) -> None:
    store.register([run()])
    last = store.last_event()
    assert store.trim_events(3600) == 0
    assert store.trim_events(-1) == 1
    assert store.events_after(0) == []
    store.register([run("2")])
    assert store.first_event() == store.last_event() > last


def test_the_newest_entries_of_the_audit_log_stay(store: ServiceStore) -> None:
    store.audit([{"what": str(number)} for number in range(10)])
    store.audit_kept = 3  # type: ignore[attr-defined]
    store.trim_events(3600)
    assert [entry["what"] for _, entry in store.audited()] == ["9", "8", "7"]
    store.audit([{"what": "10"}])
    assert store.audited(limit=1)[0][1]["what"] == "10"


def test_whoever_listens_is_told(store: ServiceStore, database: str) -> None:
    other = open_store(database)
    told = threading.Event()
    both = [store.listen(told.set), other.listen(lambda: None)]
    try:
        for writer in (store, other, store, other):
            told.clear()
            before = store.last_event()
            writer.register([run(str(time.time_ns()))])
            eventually(lambda: told.is_set() and store.last_event() > before)  # noqa: B023
    finally:
        for end in both:
            end()
        other.close()


def test_a_listener_that_fails_harms_no_other(store: ServiceStore, caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()

    def fail() -> None:
        raise ValueError("no")

    store.listen(fail)
    store.listen(told.set)
    store.register([run()])
    assert told.wait(30)


# -- many at once ---------------------------------------------------------------------------------------------------


def test_many_writers_lose_nothing(store: ServiceStore) -> None:
    """They write the same rows in opposite orders, runs that are new to all of them, and tags."""
    turns = 12

    def write(writer: int) -> None:
        order = [str(n) for n in range(20)]
        for turn in range(turns):
            if writer % 2:
                order.reverse()
            store.register([run(str(turn)), run("shared"), run(f"{turn}-{writer}")], f"{writer}-{turn}")
            store.register([record for n in order for record in (task(n, run="shared"), output(n, f"x={writer}"))][::2])
            store.register([task(f"{writer}-{turn}", run="shared")])
            store.change_tags("Train", "shared", [f"{writer}-{turn}"], [])
            store.heartbeats([Beat("Train", str(n)) for n in ((turn, 0) if writer % 2 else (0, turn))], time.time())

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(write, writer) for writer in range(4)]:
            done.result()
    found = store.run("Train", "shared")
    assert found is not None
    assert len(found.tags) == 4 * turns
    assert len(store.tasks("Train", "shared")) == 20 + 4 * turns
    assert len(store.runs("Train", RunFilter())) == turns + 1 + 4 * turns
    events = store.events_after(0, 100_000)
    assert len({event.id for event in events}) == len(events)
    assert {f"{w}-{t}" for w in range(4) for t in range(turns)} <= {event.task for event in events}


def test_a_reader_that_goes_on_by_id_misses_nothing_while_many_write(store: ServiceStore) -> None:
    store.register([run()])
    ended = threading.Event()
    seen: list[Event] = []

    def read() -> None:
        at = 0
        while True:
            done = ended.is_set()
            page = store.events_after(at, 7)
            seen.extend(page)
            if page:
                at = page[-1].id
            elif done:
                return

    def write(writer: int) -> None:
        for turn in range(25):
            store.register([task(f"{writer}-{turn}-{n}") for n in range(1 + turn % 4)])

    with ThreadPoolExecutor(5) as threads:
        reader = threads.submit(read)
        for done in [threads.submit(write, writer) for writer in range(4)]:
            done.result()
        ended.set()
        reader.result()
    assert seen == store.events_after(0, 100_000)
    assert len(seen) == 1 + 4 * sum(1 + turn % 4 for turn in range(25))


def test_a_failed_write_harms_none_beside_it(store: ServiceStore) -> None:
    store.register([run()])

    def write(turn: int) -> bool:
        try:
            return store.register([task(str(turn)), *([task("0", run="404")] if turn % 3 == 0 else [])])
        except UnknownRun:
            return False

    with ThreadPoolExecutor(8) as threads:
        written = [*threads.map(write, range(60))]
    assert written == [turn % 3 != 0 for turn in range(60)]
    assert {int(t.task) for t in store.tasks("Train", "1")} == {turn for turn in range(60) if turn % 3}


# -- tokens and audit -----------------------------------------------------------------------------------------------


def test_tokens(store: ServiceStore) -> None:
    one = Token("one", "CI", ("read", "write"), (), NOW, expires=NOW + 5)
    two = Token("two", "ä", ("admin",), ("p", "q"), NOW + 1)
    store.add_token(two, "hash2")
    store.add_token(one, "hash1")
    assert store.tokens() == [one, two]
    assert store.find_token("one") == (one, "hash1")
    assert store.find_token("' OR 1=1") is None
    with pytest.raises(UsageError, match="one"):
        store.add_token(one, "hash")
    assert store.revoke_token("one", NOW + 2)
    assert store.revoke_token("one", NOW + 9)
    assert not store.revoke_token("three", NOW)
    store.use_tokens({"two": NOW + 3, "three": NOW, "one": NOW + 4})
    store.use_tokens({"two": NOW})
    store.use_tokens({})
    assert store.tokens() == [one._replace(revoked=NOW + 2, used=NOW + 4), two._replace(used=NOW + 3)]


def test_the_log_of_writes(store: ServiceStore) -> None:
    store.audit([{"what": n} for n in range(5)])
    store.audit([])
    newest = store.audited(limit=3)
    assert [entry["what"] for _, entry in newest] == [4, 3, 2]
    assert [entry["what"] for _, entry in store.audited(before=newest[-1][0])] == [1, 0]


def test_a_store_that_was_closed_says_so(database: str) -> None:
    store = open_store(database)
    store.ping()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.ping()
    with pytest.raises(StoreError, match="closed"):
        store.register([run()])
