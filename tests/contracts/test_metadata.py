"""What every metadata store does. A new implementation joins the list `STORES`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_metadata import ServedMetadata, ServedService

from flowkit.exceptions import NotFound, StoreError, UsageError
from flowkit.metadata.liveness import HEARTBEAT_LIMIT, this_process
from flowkit.metadata.memory import MemoryMetadata
from flowkit.metadata.records import STATES, FlowRecord, RunRecord, TaskRecord
from flowkit.metadata.sqlite import SqliteMetadata
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.metadata_service.databases import open_store

Opener = Callable[[pytest.FixtureRequest], MetadataStore]


def _folder(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("tmp_path")
    return folder


CLIENT = "client of a service"


def _served(request: pytest.FixtureRequest) -> MetadataStore:
    served: ServedService = request.getfixturevalue("served_service")
    served.empty()
    return ServedMetadata(served)


STORES: dict[str, Opener] = {
    "memory": lambda request: MemoryMetadata(),
    "sqlite": lambda request: SqliteMetadata(str(_folder(request) / "root")),
    "service on sqlite": lambda request: open_store(str(_folder(request) / "service")),
    CLIENT: _served,
    "service on postgresql": lambda request: open_store(request.getfixturevalue("postgresql")),
}
"""Those of the service are the databases below it."""
NOW = time.time()


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Iterator[MetadataStore]:
    made = STORES[request.param](request)
    yield made
    made.close()


def run(name: str, flow: str = "Train", **values: Any) -> RunRecord:
    given = {"user": "ada", "state": "succeeded", "created": NOW - 100 + _age(name), **values}
    return RunRecord(flow=flow, run=name, **given)


def _age(name: str) -> float:
    return float(name) if name.isdigit() else 0.5


def task(step: str, name: str, state: str = "succeeded", attempt: int = 0, **values: Any) -> TaskRecord:
    values = {"started": NOW, **values}
    return TaskRecord("Train", values.pop("run", "1"), step, name, state, attempt, **values)  # type: ignore[arg-type]


def names(store: MetadataStore, **which: Any) -> list[str]:
    return [record.run for record in store.runs("Train", RunFilter(**which))]


# -- runs ---------------------------------------------------------------------------------------------------------


def test_a_run_comes_back_as_it_was_written(store: MetadataStore) -> None:
    record = run(
        "7",
        state="failed",
        reason="train/3: ValueError: no",
        finished=NOW,
        heartbeat=NOW,
        tags=("b", "ä/ü 🙂"),
        system_tags=("user:ada",),
        origin="Train/3",
        host="h",
        boot_id="b",
        pid=3,
        process_start=12345,
    )
    store.write([record])
    assert store.run("Train", "7") == record
    assert store.runs("Train", RunFilter()) == [record]
    assert store.run("Train", "8") is None
    assert store.run("Other", "7") is None
    assert store.runs("Other", RunFilter()) == []


def test_an_empty_store_has_nothing(store: MetadataStore) -> None:
    store.write([])
    assert store.flows() == []
    assert store.runs("Train", RunFilter()) == []
    assert store.steps("Train", "1") == []
    assert store.tasks("Train", "1") == []
    assert store.task("Train", "1", "a", "0") is None


def test_runs_are_listed_newest_first_numbers_as_numbers(store: MetadataStore) -> None:
    store.write([run(name) for name in ("2", "100", "9", "10")])
    store.write([run("argo-x7", created=NOW - 100 + 9.5), run("argo-b", created=NOW - 100 + 9.5)])
    assert names(store) == ["100", "10", "argo-x7", "argo-b", "9", "2"]


@pytest.mark.parametrize("order", [["1", "2", "3", "4"], ["4", "3", "2", "1"], ["3", "1", "4", "2"]])
def test_a_clock_that_was_set_back_does_not_change_the_order_of_numbers(store: MetadataStore, order: list[str]) -> None:
    created = {"1": NOW - 9000, "2": NOW, "3": NOW - 3600, "4": NOW - 3500}
    for name in order:
        store.write([run(name, created=created[name], tags=("t",))])
    assert names(store) == ["4", "3", "2", "1"]
    assert names(store, tags=("t",)) == ["4", "3", "2", "1"]
    assert names(store, since=NOW - 3550) == ["4", "2"]
    assert names(store, until=NOW - 3550) == ["3", "1"]
    assert names(store, tags=("t",), until=NOW - 3550, before="3") == ["1"]
    assert store.flows() == [FlowRecord("Train", NOW - 9000)]


def test_a_record_replaces_an_earlier_one_but_tags_and_creation_stay(store: MetadataStore) -> None:
    store.write([run("1", state="running", tags=("a",), system_tags=("s",), heartbeat=NOW)])
    store.change_tags("Train", "1", ["b"], [])
    store.write([run("1", state="failed", reason="why", finished=NOW, tags=("z",), system_tags=(), created=NOW)])
    found = store.run("Train", "1")
    assert found is not None
    assert (found.state, found.reason, found.finished, found.heartbeat) == ("failed", "why", NOW, NOW)
    assert (found.tags, found.system_tags, found.created) == (("a", "b"), ("s",), NOW - 99)


def test_pages_follow_each_other_without_gap_or_repeat(store: MetadataStore) -> None:
    store.write([run(str(number), created=NOW - 100) for number in range(1, 24)])
    store.write([run(f"named-{number}", created=NOW - 100) for number in range(7)])
    everything = names(store)
    assert len(everything) == 30
    pages: list[str] = []
    while page := names(store, limit=7, before=pages[-1] if pages else None):
        pages += page
    assert pages == everything
    assert names(store, limit=0) == []
    with pytest.raises(NotFound, match="999"):
        names(store, before="999")


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({"status": "failed"}, ["4", "2"]),
        ({"status": "cancelled"}, []),
        ({"user": "bob"}, ["4", "3"]),
        ({"user": "bob", "status": "failed"}, ["4"]),
        ({"tags": ("x",)}, ["3", "1"]),
        ({"tags": ("x", "user:ada")}, ["1"]),
        ({"tags": ("x", "nothing")}, []),
        ({"tags": ("x",), "user": "bob", "status": "succeeded"}, ["3"]),
        ({"since": NOW - 98}, ["4", "3", "2"]),
        ({"until": NOW - 98}, ["1"]),
        ({"since": NOW - 98, "until": NOW - 96}, ["3", "2"]),
        ({"tags": ("x",), "since": NOW - 98}, ["3"]),
        ({"user": "bob", "limit": 1}, ["4"]),
        ({"tags": ("x",), "before": "3"}, ["1"]),
        ({"tags": ("' OR 1=1 --",)}, []),
        ({"user": "%"}, []),
    ],
)
def test_filters(store: MetadataStore, which: dict[str, Any], expected: list[str]) -> None:
    store.write(
        [
            run("1", tags=("x",), system_tags=("user:ada",)),
            run("2", state="failed", system_tags=("user:ada",)),
            run("3", user="bob", tags=("x", "y"), system_tags=("user:bob",)),
            run("4", user="bob", state="failed", system_tags=("user:bob",)),
            run("5", flow="Other", tags=("x",)),
        ]
    )
    assert names(store, **which) == expected


def test_an_unknown_status_is_refused_with_the_nearest_one(store: MetadataStore) -> None:
    with pytest.raises(UsageError, match="did you mean 'failed'"):
        store.runs("Train", RunFilter(status="faild"))
    with pytest.raises(UsageError, match="status"):
        store.tasks("Train", "1", status="'; DROP TABLE runs; --")


def test_flows_newest_first_and_by_namespace(store: MetadataStore) -> None:
    store.write([run("3", system_tags=("user:ada",)), run("1", flow="Old", created=NOW - 500, tags=("mine",))])
    store.write([run("2", created=NOW - 400), run("2", flow="Old", created=NOW - 1)])
    assert store.flows() == [FlowRecord("Train", NOW - 400), FlowRecord("Old", NOW - 500)]
    assert [flow.flow for flow in store.flows("user:ada")] == ["Train"]
    assert [flow.flow for flow in store.flows("mine")] == ["Old"]
    assert store.flows("nobody") == []


# -- liveness -----------------------------------------------------------------------------------------------------


def test_a_run_without_a_sign_of_life_is_shown_as_lost(store: MetadataStore) -> None:
    store.write(
        [
            run("1", state="running", heartbeat=time.time(), host="elsewhere"),
            run("2", state="running", heartbeat=NOW - HEARTBEAT_LIMIT - 5, host="elsewhere"),
            run("3", state="pending", created=NOW - HEARTBEAT_LIMIT - 5),
            run("4", state="lost", reason="given up"),
            run("5", heartbeat=NOW - 9000),
        ]
    )
    states = {record.run: record.state for record in store.runs("Train", RunFilter())}
    assert states == {"1": "running", "2": "lost", "3": "lost", "4": "lost", "5": "succeeded"}
    assert names(store, status="lost") == ["4", "2", "3"] or names(store, status="lost") == ["4", "3", "2"]
    assert names(store, status="running") == ["1"]
    assert names(store, status="pending") == []
    found = store.run("Train", "2")
    assert found is not None
    assert "elsewhere" in str(found.reason)
    store.heartbeat("Train", "2", time.time())
    assert names(store, status="running") == ["2", "1"]
    store.heartbeat("Train", "404", time.time())


def test_many_open_runs_are_searched_for_the_status(store: MetadataStore) -> None:
    store.write([run(str(n), state="running", heartbeat=NOW - 900, created=NOW - 2000 + n) for n in range(1, 1203)])
    store.heartbeat("Train", "1", time.time())
    assert names(store, status="running") == ["1"]
    assert names(store, status="lost", limit=2) == ["1202", "1201"]
    assert len(names(store, status="lost")) == 1201


def test_the_tasks_of_a_lost_run_are_lost_if_they_ran(store: MetadataStore) -> None:
    store.write([run("1", state="running", heartbeat=NOW - 900), task("a", "0"), task("b", "0", "running")])
    store.write([task("b", "1", "pending", started=None), task("b", "2", "failed")])
    assert [t.state for t in store.tasks("Train", "1", "b")] == ["lost", "failed", "pending"]
    assert [t.task for t in store.tasks("Train", "1", status="lost")] == ["0"]
    assert store.tasks("Train", "1", status="running") == []
    assert store.tasks("Train", "1", status="lost")[0].reason is not None
    found = store.task("Train", "1", "b", "0")
    assert found is not None
    assert found.state == "lost"
    assert [dict(step.counts) for step in store.steps("Train", "1")] == [
        {"succeeded": 1},
        {"lost": 1, "failed": 1, "pending": 1},
    ]
    store.heartbeat("Train", "1", time.time())
    assert [t.task for t in store.tasks("Train", "1", status="running")] == ["0"]


def test_the_run_of_this_process_is_running_whatever_its_heartbeat(store: MetadataStore) -> None:
    store.write([run("1", state="running", heartbeat=NOW - 9000, **this_process()._asdict())])
    found = store.run("Train", "1")
    assert found is not None
    assert found.state == "running"


# -- tasks --------------------------------------------------------------------------------------------------------


def test_a_task_comes_back_as_it_was_written(store: MetadataStore) -> None:
    record = task("train", "3.1-2", "failed", 2, started=NOW, finished=NOW + 1, reason="ValueError: é", pid=9)
    cloned = task("train", "0-0", origin="Train/1/train/0-0")
    store.write([run("1"), record, cloned])
    assert store.task("Train", "1", "train", "3.1-2") == record
    assert store.task("Train", "1", "train", "0-0") == cloned
    assert store.task("Train", "1", "train", "9") is None
    assert store.task("Train", "2", "train", "3.1-2") is None


def test_a_run_and_its_tasks_may_come_in_one_batch_in_any_order(store: MetadataStore) -> None:
    store.write([task("a", "0"), run("1"), task("a", "0", "succeeded", finished=NOW + 1)])
    found = store.task("Train", "1", "a", "0")
    assert found is not None
    assert found.finished == NOW + 1


def test_a_batch_is_written_whole_or_not_at_all(store: MetadataStore) -> None:
    with pytest.raises(StoreError, match="Train/2"):
        store.write([run("1"), task("a", "0"), task("a", "0", run="2")])
    assert store.run("Train", "1") is None
    assert store.tasks("Train", "1") == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (("running", 0), ("succeeded", 0), ("succeeded", 0)),
        (("running", 0), ("pending", 0), ("pending", 0)),
        (("failed", 0), ("running", 1), ("running", 1)),
        (("running", 1), ("failed", 0), ("running", 1)),
        (("succeeded", 1), ("failed", 0), ("succeeded", 1)),
        (("succeeded", 1), ("running", 0), ("succeeded", 1)),
        (("succeeded", 0), ("running", 0), ("succeeded", 0)),
        (("succeeded", 0), ("failed", 0), ("succeeded", 0)),
        (("failed", 0), ("running", 0), ("failed", 0)),
        (("failed", 0), ("succeeded", 0), ("succeeded", 0)),
        (("running", 1), ("succeeded", 0), ("succeeded", 0)),
        (("failed", 1), ("succeeded", 0), ("succeeded", 0)),
        (("succeeded", 0), ("succeeded", 1), ("succeeded", 1)),
        (("succeeded", 1), ("succeeded", 0), ("succeeded", 1)),
        (("lost", 0), ("running", 0), ("running", 0)),
        (("cancelled", 0), ("failed", 0), ("failed", 0)),
    ],
)
def test_what_came_late_does_not_take_back_an_end(
    store: MetadataStore, before: tuple[str, int], after: tuple[str, int], expected: tuple[str, int]
) -> None:
    store.write([run("1", state="running", heartbeat=time.time()), task("a", "0", *before)])
    store.write([task("a", "0", *after)])
    found = store.task("Train", "1", "a", "0")
    assert found is not None
    assert (found.state, found.attempt) == expected


def test_tasks_are_listed_as_they_began_and_ties_by_index(store: MetadataStore) -> None:
    store.write([run("1"), task("start", "0", started=NOW - 2), task("end", "0", started=NOW + 2)])
    store.write([task("train", f"{outer}.{inner}") for outer in (10, 9) for inner in (11, 2)])
    store.write([task("train", "8.0", "pending", started=None), task("loop", "0-10", started=NOW - 1)])
    store.write([task("loop", "0-9", started=NOW - 1), task("odd", "x-y", started=NOW + 1)])
    listed = [f"{t.step}/{t.task}" for t in store.tasks("Train", "1")]
    train = ["train/9.2", "train/9.11", "train/10.2", "train/10.11"]
    assert listed == ["start/0", "loop/0-9", "loop/0-10", *train, "odd/x-y", "end/0", "train/8.0"]
    for size in (1, 3):
        pages: list[str] = []
        while page := store.tasks("Train", "1", limit=size, after=pages[-1] if pages else None):
            pages += [f"{t.step}/{t.task}" for t in page]
        assert pages == listed
    of_step = [t.task for t in store.tasks("Train", "1", "train", after="9.2", limit=2)]
    assert of_step == ["9.11", "10.2"]
    with pytest.raises(NotFound):
        store.tasks("Train", "1", "train", after="77")
    with pytest.raises(UsageError, match="step"):
        store.tasks("Train", "1", after="77")


def test_tasks_by_status_and_step(store: MetadataStore) -> None:
    store.write([run("1"), *(task("a", str(i), "failed" if i % 3 == 0 else "succeeded") for i in range(9))])
    store.write([task("b", "0", "failed")])
    assert [t.task for t in store.tasks("Train", "1", "a", status="failed")] == ["0", "3", "6"]
    assert [t.step for t in store.tasks("Train", "1", status="failed")] == ["a", "a", "a", "b"]
    assert [t.task for t in store.tasks("Train", "1", status="failed", after="a/3", limit=1)] == ["6"]
    assert len(store.tasks("Train", "1", status="succeeded", limit=4)) == 4


def test_steps_in_order_with_counts(store: MetadataStore) -> None:
    store.write([run("1", state="running", heartbeat=time.time()), task("z", "0", started=NOW - 9, finished=NOW - 8)])
    store.write([task("a", "0", started=NOW - 7, finished=NOW - 5), task("a", "1", "failed", finished=NOW - 1)])
    store.write([task("b", "0", "running"), task("b", "1", finished=NOW + 5), task("c", "0", "pending", started=None)])
    steps = store.steps("Train", "1")
    assert [step.step for step in steps] == ["z", "a", "b", "c"]
    assert [step.finished for step in steps] == [NOW - 8, NOW - 1, None, None]
    assert [step.created for step in steps] == [NOW - 9, NOW - 7, NOW, NOW - 99]
    assert dict(steps[1].counts) == {"succeeded": 1, "failed": 1}
    assert store.steps("Train", "2") == []


# -- tags ---------------------------------------------------------------------------------------------------------


def test_tags_change_at_once(store: MetadataStore) -> None:
    store.write([run("1", tags=("a", "b"), system_tags=("user:ada",))])
    assert store.change_tags("Train", "1", ["c", "user:ada"], ["a", "missing"]) == ("b", "c")
    assert names(store, tags=("c",)) == ["1"]
    assert names(store, tags=("a",)) == []
    assert store.change_tags("Train", "1", ["b"], ["b", "c"]) == ("b",)
    found = store.run("Train", "1")
    assert found is not None
    assert (found.tags, found.system_tags) == (("b",), ("user:ada",))


def test_tags_that_break_the_rules_change_nothing(store: MetadataStore) -> None:
    store.write([run("1", tags=("a",), system_tags=("user:ada",))])
    with pytest.raises(UsageError, match="user:ada"):
        store.change_tags("Train", "1", ["new"], ["user:ada"])
    with pytest.raises(UsageError):
        store.change_tags("Train", "1", [""], ["a"])
    with pytest.raises(UsageError, match="51"):
        store.change_tags("Train", "1", [f"t{i}" for i in range(50)], [])
    with pytest.raises(NotFound):
        store.change_tags("Train", "2", ["x"], [])
    found = store.run("Train", "1")
    assert found is not None
    assert found.tags == ("a",)


def test_tags_changed_by_many_at_once_are_all_there(store: MetadataStore) -> None:
    store.write([run("1", tags=("gone",))])

    def add(number: int) -> None:
        for turn in range(5):
            store.change_tags("Train", "1", [f"t{number}-{turn}"], ["gone"])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.run("Train", "1")
    assert found is not None
    assert set(found.tags) == {f"t{number}-{turn}" for number in range(8) for turn in range(5)}


# -- the rest -----------------------------------------------------------------------------------------------------


def test_forgetting(store: MetadataStore) -> None:
    store.write([run("1", tags=("x",)), run("2", tags=("x",)), run("1", flow="Other"), task("a", "0")])
    store.forget("Train", "1")
    assert names(store) == ["2"]
    assert names(store, tags=("x",)) == ["2"]
    assert store.tasks("Train", "1") == []
    assert {flow.flow: flow.created for flow in store.flows()} == {"Train": NOW - 98, "Other": NOW - 99}
    store.write([run("1", tags=("y",))])
    assert store.tasks("Train", "1") == []
    store.forget("Train")
    store.forget("Nothing")
    assert [flow.flow for flow in store.flows()] == ["Other"]
    assert store.about()["runs"] == 1


def test_text_that_is_no_unicode_is_stored_as_far_as_it_goes(store: MetadataStore) -> None:
    store.write([run("1", user="a\udcff", reason="x\udcffy" if store.name != "memory" else "x?y")])
    found = store.run("Train", "1")
    assert found is not None
    assert str(found.reason).startswith("x")


_TASKS = st.builds(
    task,
    st.sampled_from(["a", "b"]),
    st.sampled_from(["0", "1", "2", "10"]),
    st.sampled_from(STATES),
    st.integers(0, 3),
    started=st.sampled_from([None, NOW, NOW + 1]),
    finished=st.sampled_from([None, NOW + 2]),
    run=st.sampled_from(["1", "2"]),
)
_RUNS = st.builds(
    run,
    st.sampled_from(["1", "2", "3", "10", "named"]),
    state=st.sampled_from(STATES),
    created=st.sampled_from([NOW - 50, NOW - 40, NOW - 30]),
    heartbeat=st.sampled_from([None, NOW - 900, NOW + 900]),
    user=st.sampled_from(["ada", "bob"]),
    tags=st.sampled_from([(), ("x",), ("x", "y")]),
)
_FILTERS = st.builds(
    RunFilter,
    status=st.sampled_from([None, *STATES]),
    since=st.sampled_from([None, NOW - 40]),
    until=st.sampled_from([None, NOW - 40]),
    user=st.sampled_from([None, "ada"]),
    tags=st.sampled_from([(), ("x",), ("y", "x")]),
    before=st.none(),
    limit=st.sampled_from([None, 2]),
)


_BATCHES = st.lists(st.lists(st.one_of(_TASKS, _RUNS), max_size=8), max_size=6)
_SOME_FILTERS = st.lists(_FILTERS, max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=_BATCHES, filters=_SOME_FILTERS)
def test_both_local_stores_say_the_same(
    request: pytest.FixtureRequest, batches: list[list[RunRecord | TaskRecord]], filters: list[RunFilter]
) -> None:
    _say_the_same(STORES["sqlite"](request), batches, filters)


# What a client asks for is answered by one of the other stores: thousands of calls would tell nothing new.
@pytest.mark.parametrize("kind", ["service on sqlite", "service on postgresql"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=_BATCHES, filters=_SOME_FILTERS)
def test_the_databases_of_the_service_say_the_same(
    kind: str, request: pytest.FixtureRequest, batches: list[list[RunRecord | TaskRecord]], filters: list[RunFilter]
) -> None:
    _say_the_same(STORES[kind](request), batches, filters)


def _say_the_same(other: MetadataStore, batches: list[list[RunRecord | TaskRecord]], filters: list[RunFilter]) -> None:
    one = MemoryMetadata()
    try:
        for flow in ("Train", "Other"):
            other.forget(flow)
        for batch in batches:
            results = []
            for each in (one, other):
                try:
                    each.write(batch)
                    results.append(True)
                except StoreError:
                    results.append(False)
            assert results[0] == results[1]
        for which in filters:
            assert _bare(one.runs("Train", which)) == _bare(other.runs("Train", which))
        for name in ("1", "2"):
            assert _bare(one.tasks("Train", name)) == _bare(other.tasks("Train", name))
            assert [s._replace(counts={}) for s in one.steps("Train", name)] == [
                s._replace(counts={}) for s in other.steps("Train", name)
            ]
            assert [dict(s.counts) for s in one.steps("Train", name)] == [
                dict(s.counts) for s in other.steps("Train", name)
            ]
        assert one.flows() == other.flows()
        assert one.flows("x") == other.flows("x")
    finally:
        other.close()


def _bare(records: list[Any]) -> list[Any]:
    """Without the reasons, which tell how long ago."""
    return [record._replace(reason=None) for record in records]
