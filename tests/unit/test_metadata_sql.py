"""The queries of the metadata store: which index each walks with a hundred thousand runs, and their dialects."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.metadata import sql
from flowkit.metadata.records import STATES, RunRecord
from flowkit.metadata.sqlite import SqliteMetadata
from flowkit.metadata.store import RunFilter

RUNS = 100_000
NOW = time.time()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteMetadata]:
    """100,000 runs of one flow by seven users, one in ten failed, one in five thousand tagged as rare."""
    made = SqliteMetadata(str(tmp_path_factory.mktemp("many")))
    db = made._connection
    assert db is not None
    users = [f"u{number}" for number in range(7)]
    rest = (None, NOW, NOW, "[]", "[]", None, None, None, None, None, 0)
    rows = [
        ("Big", str(n), users[n % 7], "succeeded" if n % 10 else "failed", NOW - RUNS + n, *rest, n, NOW - RUNS + n)
        for n in range(1, RUNS + 1)
    ]
    db.execute("BEGIN")
    db.executemany(sql.ADD_RUN, rows)
    tagged = "SELECT run_key, {}, flow, position, number, run, created FROM runs"
    into = "INSERT INTO run_tags (run_key, tag, flow, position, number, run, created) "
    db.execute(into + tagged.format("'user:' || user_name"))
    db.execute(into + tagged.format("'rare'") + " WHERE number % 5000 = 0")
    db.execute("COMMIT")
    yield made
    made.close()


def plan(store: SqliteMetadata, query: str, parameters: list[sql.Value]) -> str:
    assert store._connection is not None
    rows = store._connection.execute(f"EXPLAIN QUERY PLAN {query}", parameters).fetchall()
    return "\n".join(row[3] for row in rows)


@pytest.mark.parametrize(
    ("which", "index"),
    [
        (RunFilter(), "runs_by_time"),
        (RunFilter(since=NOW - 10), "runs_by_time"),
        (RunFilter(until=NOW - 10), "runs_by_time"),
        (RunFilter(user="u3"), "runs_by_user"),
        (RunFilter(status="failed"), "runs_by_state"),
        (RunFilter(status="running"), "runs_open"),
        (RunFilter(status="lost"), "runs_open"),
        (RunFilter(user="u3", status="failed"), "runs_by_"),
        (RunFilter(user="u3", since=1.0, until=2.0), "runs_by_user"),
        (RunFilter(tags=("rare",)), "run_tags_by_tag"),
        (RunFilter(tags=("rare", "user:u0"), user="u0", status="failed", since=1.0), "run_tags_by_tag"),
    ],
)
@pytest.mark.parametrize("page", [False, True])
def test_a_page_of_runs_is_one_walk_along_an_index(
    store: SqliteMetadata, which: RunFilter, index: str, page: bool
) -> None:
    before = (NOW - 5000, 5, "5") if page else None
    shown = plan(store, *sql.list_runs("Big", which, before, 50))
    assert index in shown.splitlines()[0]
    assert "SCAN" not in shown
    assert "TEMP B-TREE" not in shown, "the order must come from the index"


@pytest.mark.parametrize("step", [None, "train"])
@pytest.mark.parametrize("status", [None, "failed", "running", "succeeded"])
@pytest.mark.parametrize("page", [False, True])
def test_a_page_of_tasks_is_one_walk_along_an_index(
    store: SqliteMetadata, step: str | None, status: str | None, page: bool
) -> None:
    after = (NOW, "train", "a3") if page else None
    shown = plan(store, *sql.list_tasks(1, step, (status,) if status else None, after, 100))
    assert "SEARCH tasks USING INDEX tasks_" in shown
    assert "TEMP B-TREE" not in shown
    assert ("tasks_not_succeeded" in shown) == (status in ("failed", "running"))


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        (sql.RUN, ["Big", "5"]),
        (sql.RUN_KEY, ["Big", "5"]),
        (sql.HEARTBEAT, [1.0, "Big", "5"]),
        (sql.POSITION_BEFORE, ["Big", 5]),
        (sql.POSITION_AFTER, ["Big", 5]),
        (sql.RAISE_LATER, [1.0, "Big", 5, 1.0]),
        (sql.TASK, [1, "a", "0"]),
        (sql.NOT_SUCCEEDED, [1]),
        (sql.COUNT_TAG, ["rare", "Big", 10]),
        (sql.DROP_TASKS, [1]),
        (sql.DROP_TAGS, [1]),
    ],
)
def test_no_other_query_scans_a_table(store: SqliteMetadata, query: str, parameters: list[sql.Value]) -> None:
    shown = plan(store, query, parameters)
    assert "SEARCH" in shown
    assert "SCAN runs" not in shown
    assert "SCAN tasks" not in shown
    assert "SCAN run_tags" not in shown


def test_the_steps_of_a_run_are_summed_up_from_an_index_alone(store: SqliteMetadata) -> None:
    assert plan(store, sql.STEPS, [1]) == "SEARCH tasks USING COVERING INDEX tasks_by_step (run_key=?)"


def test_the_filters_find_what_is_there(store: SqliteMetadata) -> None:
    def first(**which: object) -> list[str]:
        return [record.run for record in store.runs("Big", RunFilter(limit=3, **which))]  # type: ignore[arg-type]

    assert first() == ["100000", "99999", "99998"]
    assert first(before="50000") == ["49999", "49998", "49997"]
    assert first(status="failed") == ["100000", "99990", "99980"]
    assert first(tags=("rare",)) == ["100000", "95000", "90000"]
    assert first(tags=("user:u0", "rare")) == ["70000", "35000"]
    assert first(tags=("rare", "user:u0")) == ["70000", "35000"]
    assert first(user="u0", status="failed") == ["99960", "99890", "99820"]
    assert first(until=NOW - RUNS + 3) == ["2", "1"]
    assert first(status="running") == []
    assert first(status="lost") == []


def test_every_state_has_a_literal() -> None:
    assert [sql.state_literal(state) for state in STATES] == [f"'{state}'" for state in STATES]
    with pytest.raises(ValueError, match="not a state"):
        sql.state_literal("' OR 1=1")


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 10**17), min_size=1, max_size=3), st.none() | st.integers(0, 10**17)),
        min_size=2,
    )
)
def test_places_sort_as_the_indices_do(ids: list[tuple[list[int], int | None]]) -> None:
    ids = [(indices[:2] + [0] * (2 - len(indices)), turn) for indices, turn in ids]
    texts = {
        ".".join(map(str, indices)) + ("" if turn is None else f"-{turn}"): (indices, -1 if turn is None else turn)
        for indices, turn in ids
    }
    assert sorted(texts, key=sql.task_place) == sorted(texts, key=lambda text: texts[text])


@given(st.text())
def test_any_text_has_a_place_and_a_number(text: str) -> None:
    assert isinstance(sql.task_place(text), str)
    assert (sql.run_number(text) >= 0) == (
        text.isascii() and text.isdigit() and str(int(text)) == text and len(text) < 19
    )


def test_both_dialects_say_the_same_in_their_own_words() -> None:
    queries = [value for name, value in vars(sql).items() if name.isupper() and isinstance(value, str) and " " in value]
    assert len(queries) > 25
    for query in queries:
        assert "%" not in query
        assert sql.SQLITE.write(query) == query
        assert sql.POSTGRESQL.write(query).count("%s") == query.count("?")
    for migration in sql.MIGRATIONS:
        for statement in sql.POSTGRESQL.statements(migration):
            assert "AUTOINCREMENT" not in statement
            assert "{" not in statement
            assert "WITHOUT ROWID" not in statement
        db = sqlite3.connect(":memory:")
        for statement in sql.SQLITE.statements(migration):
            db.execute(statement)
        db.close()


def test_runs_added_in_the_wrong_order_still_take_one_look_at_their_neighbours(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = SqliteMetadata(str(tmp_path_factory.mktemp("order")))
    for number in range(300, 0, -1):
        store.write([RunRecord("F", str(number), "u", "succeeded", NOW - 1000 + number)])
    assert [record.run for record in store.runs("F", RunFilter(limit=2))] == ["300", "299"]
    store.close()
