"""The SQL of the service's own tables, beside those of `flowkit.metadata.sql`: migrations and queries.

Many rows go in one statement. A query of that kind names ``{given}``, a table of its rows, and comes with a `Shape`,
the names and types of the columns: SQLite gets the rows as ``VALUES``, PostgreSQL as arrays to unnest. What else the
two do not agree on is in `Words`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flowkit.exceptions import UsageError
from flowkit.metadata import sql
from flowkit.metadata.sql import Dialect, Value

Shape = tuple[tuple[str, str], ...]
"""Names and types (``text``, ``float``, ``int``) of the columns of given rows."""


class Words(NamedTuple):
    """How one database says it.

    Parameters
    ----------
    dialect : Dialect
        For the shared queries.
    event_key : str
        The type of an event's id: counted by SQLite, computed on PostgreSQL (see `ADD_EVENTS_POSTGRESQL`).
    clustered : str
        Keeps a table's rows in the order of its key.
    busy : str
        Leaves room in the pages of a table whose rows change often.
    share_lock : str
        What keeps a row from being deleted until the end of the transaction.
    """

    dialect: Dialect
    event_key: str
    clustered: str
    busy: str
    share_lock: str

    def statements(self, migration: Sequence[str]) -> list[str]:
        """Return the statements of a migration; some are for one of the databases only."""
        said = (
            statement.format(
                key=self.dialect.key,
                text=self.dialect.text,
                event_key=self.event_key,
                clustered=self.clustered,
                busy=self.busy,
            )
            for statement in migration
        )
        return [statement for statement in said if statement]


_COUNTED = "INTEGER PRIMARY KEY AUTOINCREMENT"
"""SQLite's keys are given out again otherwise: to a new run while rows of a dropped one are still being removed."""
SQLITE = Words(sql.SQLITE._replace(key=_COUNTED), _COUNTED, " WITHOUT ROWID", "", "")
POSTGRESQL = Words(sql.POSTGRESQL, "BIGINT PRIMARY KEY", "", "ALTER TABLE runs SET (fillfactor = 70)", " FOR KEY SHARE")

METADATA_VERSION = "metadata_schema"
SERVICE_VERSION = "service_schema"
"""Names in ``facts`` of the numbers of the two lists of migrations."""
EVENT_BASE = "event_base"

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # runs of all flows
        "CREATE INDEX runs_by_creation ON runs (created, flow, run)",
        "CREATE INDEX run_tags_by_creation ON run_tags (tag, created, flow, run)",
        "{busy}",
        # the last number that was given out or dropped; no run of the index has a number that is given out later
        "CREATE TABLE run_numbers (flow {text} PRIMARY KEY, last BIGINT NOT NULL)",
        # numbers of named runs
        """CREATE TABLE run_ids (
            flow {text} NOT NULL, run {text} NOT NULL, number BIGINT NOT NULL, PRIMARY KEY (flow, run))""",
        "CREATE UNIQUE INDEX run_ids_by_number ON run_ids (flow, number)",
        # runs that are gone, until all of their rows are
        "CREATE TABLE dropped (run_key BIGINT PRIMARY KEY)",
        "CREATE TABLE request_keys (name {text} PRIMARY KEY, created DOUBLE PRECISION NOT NULL)",
        "CREATE INDEX request_keys_by_time ON request_keys (created)",
        """CREATE TABLE attempts (
            run_key BIGINT NOT NULL, step {text} NOT NULL, task {text} NOT NULL, attempt INTEGER NOT NULL,
            state {text} NOT NULL, started DOUBLE PRECISION, finished DOUBLE PRECISION, reason {text},
            PRIMARY KEY (run_key, step, task, attempt)){clustered}""",
        # the newest attempt with an output
        """CREATE TABLE outputs (
            run_key BIGINT NOT NULL, step {text} NOT NULL, task {text} NOT NULL, attempt INTEGER NOT NULL,
            PRIMARY KEY (run_key, step, task)){clustered}""",
        """CREATE TABLE artifacts (
            run_key BIGINT NOT NULL, step {text} NOT NULL, task {text} NOT NULL, attempt INTEGER NOT NULL,
            name {text} NOT NULL, content {text} NOT NULL, size BIGINT, type {text}, codec {text}, words {text},
            PRIMARY KEY (run_key, step, task, attempt, name)){clustered}""",
        "CREATE INDEX artifacts_by_content ON artifacts (content, run_key, step, task, attempt, name)",
        """CREATE TABLE artifact_reads (
            run_key BIGINT NOT NULL, step {text} NOT NULL, task {text} NOT NULL, name {text} NOT NULL,
            content {text} NOT NULL, PRIMARY KEY (run_key, step, task, name, content)){clustered}""",
        "CREATE INDEX artifact_reads_by_content ON artifact_reads (content, run_key, step, task, name)",
        # numbers of tasks within their run
        "CREATE TABLE task_counters (run_key BIGINT PRIMARY KEY, last BIGINT NOT NULL)",
        """CREATE TABLE task_numbers (
            run_key BIGINT NOT NULL, number BIGINT NOT NULL, step {text} NOT NULL, task {text} NOT NULL,
            PRIMARY KEY (run_key, number)){clustered}""",
        "CREATE UNIQUE INDEX task_numbers_by_task ON task_numbers (run_key, step, task)",
        """CREATE TABLE steps (
            step_key {key}, run_key BIGINT NOT NULL, step {text} NOT NULL, facts {text} NOT NULL,
            UNIQUE (run_key, step))""",
        """CREATE TABLE fields (
            field_key {key}, run_key BIGINT NOT NULL, step {text} NOT NULL, task {text} NOT NULL, name {text} NOT NULL,
            value {text} NOT NULL, type {text} NOT NULL, user_name {text} NOT NULL, tags {text} NOT NULL,
            created DOUBLE PRECISION NOT NULL)""",
        "CREATE INDEX fields_by_task ON fields (run_key, step, task, field_key)",
        "CREATE INDEX fields_by_name ON fields (run_key, name, step, field_key)",
        """CREATE TABLE client_facts (
            flow {text} NOT NULL, run {text} NOT NULL, facts {text} NOT NULL, PRIMARY KEY (flow, run))""",
        """CREATE TABLE events (
            event_id {event_key}, kind {text} NOT NULL, flow {text} NOT NULL, run {text}, step {text}, task {text},
            data {text} NOT NULL, projects {text} NOT NULL, created DOUBLE PRECISION NOT NULL)""",
        """CREATE TABLE tokens (
            token_id {text} PRIMARY KEY, name {text} NOT NULL, scopes {text} NOT NULL, projects {text} NOT NULL,
            created DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION, revoked DOUBLE PRECISION,
            used DOUBLE PRECISION, digest {text} NOT NULL)""",
        "CREATE TABLE audit_log (entry_key {key}, entry {text} NOT NULL)",
    ),
    (
        # events that start deployed flows; who adds one holds the counter's row until the end of the transaction, so
        # that none becomes visible before one with a smaller number
        """CREATE TABLE emitted (
            number BIGINT PRIMARY KEY, name {text} NOT NULL, event_id {text} NOT NULL,
            created DOUBLE PRECISION NOT NULL, data {text} NOT NULL, user_name {text} NOT NULL,
            UNIQUE (name, event_id))""",
        "CREATE TABLE counters (name {text} PRIMARY KEY, last BIGINT NOT NULL)",
    ),
)
"""Number n of the service's schema is the state after the first n; one that was released is never changed."""


# -- runs ----------------------------------------------------------------------------------------------------------

ADD_REQUEST_KEY = """INSERT INTO request_keys (name, created) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"""
DROP_REQUEST_KEYS = "DELETE FROM request_keys WHERE created < ?"

RUN_OWNER = "SELECT run_key, system_tags FROM runs WHERE flow = ? AND run = ?"
FLOW_ROW = "SELECT created FROM flows WHERE flow = ?"
DROPPED = "SELECT run_key FROM dropped LIMIT 100"
ADD_DROPPED = "INSERT INTO dropped (run_key) VALUES (?) ON CONFLICT (run_key) DO NOTHING"
END_DROPPED = "DELETE FROM dropped WHERE run_key = ?"
DROP_SOME: dict[str, str] = {
    table: f"DELETE FROM {table} WHERE run_key = ? AND ({key}) IN (SELECT {key} FROM {table} WHERE run_key = ? LIMIT ?)"
    for table, key in (
        ("tasks", "step, task"),
        ("attempts", "step, task, attempt"),
        ("outputs", "step, task"),
        ("artifacts", "step, task, attempt, name"),
        ("artifact_reads", "step, task, name, content"),
        ("task_numbers", "number"),
        ("task_counters", "run_key"),
        ("steps", "step_key"),
        ("fields", "field_key"),
    )
}
"""What goes with a run, table by table, some rows at a time."""

LAST_RUN_NUMBER = "SELECT number FROM runs WHERE flow = ? ORDER BY number DESC LIMIT 1"
RUN_NUMBER = "SELECT number FROM run_ids WHERE flow = ? AND run = ?"
RUN_OF_NUMBER = "SELECT run FROM run_ids WHERE flow = ? AND number = ?"
ADD_RUN_NUMBER = "INSERT INTO run_ids (flow, run, number) VALUES (?, ?, ?)"
DROP_RUN_NUMBER = "DELETE FROM run_ids WHERE flow = ? AND run = ?"
LOCK_RUN_COUNTER = """INSERT INTO run_numbers (flow, last) VALUES (?, 0)
    ON CONFLICT (flow) DO UPDATE SET last = run_numbers.last"""
RUN_COUNTER = "SELECT last FROM run_numbers WHERE flow = ?"
SET_RUN_COUNTER = "UPDATE run_numbers SET last = ? WHERE flow = ?"

BEAT_SHAPE: Shape = (("flow", "text"), ("run", "text"), ("beat", "float"))
BEAT = """WITH given (flow, run, beat) AS ({given}) UPDATE runs SET heartbeat = given.beat FROM given
    WHERE runs.flow = given.flow AND runs.run = given.run AND (runs.heartbeat IS NULL OR runs.heartbeat < given.beat)
    """
BEAT_LOCKS = """WITH given (flow, run, beat) AS ({given}) SELECT r.flow, r.run FROM runs r
    JOIN given ON r.flow = given.flow AND r.run = given.run ORDER BY r.run_key"""
TASK_SHAPE: Shape = (("flow", "text"), ("run", "text"), ("step", "text"), ("task", "text"))
TASKS_THERE = """WITH given (flow, run, step, task) AS ({given})
    SELECT given.flow, given.run, given.step, given.task FROM given
    JOIN runs r ON r.flow = given.flow AND r.run = given.run
    JOIN tasks t ON t.run_key = r.run_key AND t.step = given.step AND t.task = given.task"""


def recent_runs(before: tuple[float, str, str] | None, tag: str | None, limit: int) -> sql.Query:
    """Return the query for a page of runs of all flows, the newest by creation first."""
    source = "r" if tag is None else "t"
    where, parameters = ["1 = 1"], list[Value]()
    if tag is not None:
        where = ["t.tag = ?", "r.run_key = t.run_key"]
        parameters.append(tag)
    if before is not None:
        where.append(f"({source}.created, {source}.flow, {source}.run) < (?, ?, ?)")
        parameters += before
    columns = ", ".join(f"r.{name.strip()}" for name in sql.RUN_COLUMNS.split(","))
    tables = "runs r" if tag is None else "run_tags t CROSS JOIN runs r"
    order = ", ".join(f"{source}.{name} DESC" for name in ("created", "flow", "run"))
    query = f"SELECT {columns} FROM {tables} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ?"
    return query, [*parameters, limit]


# -- tasks and what they made ----------------------------------------------------------------------------------------


def _given(shape: Shape) -> str:
    return f"WITH given ({_names(shape)}) AS ({{given}})"


def _names(shape: Shape) -> str:
    return ", ".join(name for name, _ in shape)


def _insert(table: str, shape: Shape, rest: str) -> str:
    """Return the statement that inserts given rows; WHERE, since SQLite would take ON for a join's."""
    return f"{_given(shape)} INSERT INTO {table} ({_names(shape)}) SELECT {_names(shape)} FROM given WHERE 1 = 1 {rest}"


_OF_TASK: Shape = (("run_key", "int"), ("step", "text"), ("task", "text"))
_OF_ATTEMPT: Shape = (*_OF_TASK, ("attempt", "int"))

PUT_TASKS_SHAPE: Shape = (
    *(("run_key", "int"), ("step", "text"), ("task", "text"), ("state", "text"), ("attempt", "int")),
    *(("started", "float"), ("finished", "float"), ("reason", "text"), ("origin", "text"), ("pid", "int")),
    *(("began", "float"), ("place", "text")),
)
"""Of the rows of `flowkit.metadata.sql.task_row`."""
PUT_TASKS = _insert("tasks", PUT_TASKS_SHAPE, f"{sql.TASK_CONFLICT} RETURNING run_key, step, task")

ATTEMPT_SHAPE: Shape = (
    *_OF_ATTEMPT,
    *(("state", "text"), ("started", "float"), ("finished", "float"), ("reason", "text")),
)
PUT_ATTEMPTS = _insert(
    "attempts",
    ATTEMPT_SHAPE,
    """ON CONFLICT (run_key, step, task, attempt) DO UPDATE SET
        state = excluded.state, started = excluded.started, finished = excluded.finished, reason = excluded.reason
    WHERE excluded.state = 'succeeded' OR attempts.state IN ('pending', 'running', 'lost')
        OR (attempts.state <> 'succeeded' AND excluded.state IN ('failed', 'cancelled'))""",
)
ATTEMPTS = """SELECT attempt, state, started, finished, reason FROM attempts
    WHERE run_key = ? AND step = ? AND task = ? ORDER BY attempt"""

OUTPUT_SHAPE: Shape = _OF_ATTEMPT
PUT_OUTPUTS = _insert(
    "outputs",
    OUTPUT_SHAPE,
    """ON CONFLICT (run_key, step, task) DO UPDATE SET attempt = excluded.attempt
    WHERE excluded.attempt >= outputs.attempt RETURNING run_key, step, task, attempt""",
)
OUTPUT = "SELECT attempt FROM outputs WHERE run_key = ? AND step = ? AND task = ?"

ARTIFACT_SHAPE: Shape = (
    *_OF_ATTEMPT,
    *(("name", "text"), ("content", "text"), ("size", "int"), ("type", "text"), ("codec", "text"), ("words", "text")),
)
ADD_ARTIFACTS = _insert("artifacts", ARTIFACT_SHAPE, "ON CONFLICT (run_key, step, task, attempt, name) DO NOTHING")
PUT_ARTIFACTS = _insert(
    "artifacts",
    ARTIFACT_SHAPE,
    """ON CONFLICT (run_key, step, task, attempt, name) DO UPDATE SET
        content = excluded.content, size = excluded.size, type = excluded.type, codec = excluded.codec,
        words = excluded.words WHERE artifacts.content <> excluded.content""",
)
_ARTIFACT_COLUMNS = "a.step, a.task, a.attempt, a.name, a.content, a.size, a.type, a.codec"

READS_OF_SHAPE: Shape = _OF_TASK
DROP_READS = f"""{_given(_OF_TASK)} DELETE FROM artifact_reads WHERE (run_key, step, task) IN
    (SELECT run_key, step, task FROM given)"""
READ_SHAPE: Shape = (*_OF_TASK, ("name", "text"), ("content", "text"))
ADD_READS = _insert("artifact_reads", READ_SHAPE, "ON CONFLICT (run_key, step, task, name, content) DO NOTHING")


def list_artifacts(
    run_key: int,
    step: str | None,
    task: str | None,
    *,
    attempt: int | None,
    name: str | None,
    after: tuple[str, str, int, str] | None,
    limit: int | None,
    words: bool = False,
    every: bool = False,
) -> sql.Query:
    """Return the query for a page of a run's artifacts; those of the newest attempt that has any, unless `every`."""
    where, parameters = _within("a", run_key, step, task)
    if attempt is not None:
        where.append("a.attempt = ?")
        parameters.append(attempt)
    elif not every:
        where.append(
            "NOT EXISTS (SELECT 1 FROM artifacts n WHERE n.run_key = a.run_key AND n.step = a.step"
            " AND n.task = a.task AND n.attempt > a.attempt)"
        )
    if name is not None:
        where.append("a.name = ?")
        parameters.append(name)
    if after is not None:
        where.append("(a.step, a.task, a.attempt, a.name) > (?, ?, ?, ?)")
        parameters += after
    columns = _ARTIFACT_COLUMNS + (", a.words" if words else "")
    query = f"SELECT {columns} FROM artifacts a WHERE {' AND '.join(where)} ORDER BY a.step, a.task, a.attempt, a.name"
    return (query, parameters) if limit is None else (f"{query} LIMIT ?", [*parameters, limit])


def artifacts_by_content(content: str, after: Sequence[Value] | None, limit: int) -> sql.Query:
    """Return the query for a page of who has a content; `after` begins with a run's key."""
    more = "" if after is None else " AND (a.run_key, a.step, a.task, a.attempt, a.name) > (?, ?, ?, ?, ?)"
    query = f"""SELECT r.flow, r.run, {_ARTIFACT_COLUMNS} FROM artifacts a CROSS JOIN runs r
        WHERE a.content = ?{more} AND r.run_key = a.run_key
        ORDER BY a.run_key, a.step, a.task, a.attempt, a.name LIMIT ?"""
    return query, [content, *(after or ()), limit]


def list_reads(
    run_key: int,
    step: str | None,
    task: str | None,
    after: tuple[str, str, str, str] | None = None,
    limit: int | None = None,
) -> sql.Query:
    """Return the query for what the tasks of a run, a step, or one task read."""
    where, parameters = _within("a", run_key, step, task)
    if after is not None:
        where.append("(a.step, a.task, a.name, a.content) > (?, ?, ?, ?)")
        parameters += after
    query = f"SELECT a.step, a.task, a.name, a.content FROM artifact_reads a WHERE {' AND '.join(where)}"
    query += " ORDER BY a.step, a.task, a.name, a.content"
    return (query, parameters) if limit is None else (f"{query} LIMIT ?", [*parameters, limit])


def readers_of(content: str, after: Sequence[Value] | None, limit: int) -> sql.Query:
    """Return the query for a page of who read a content; `after` begins with a run's key."""
    more = "" if after is None else " AND (a.run_key, a.step, a.task, a.name) > (?, ?, ?, ?)"
    query = f"""SELECT r.flow, r.run, a.step, a.task, a.name, a.content FROM artifact_reads a CROSS JOIN runs r
        WHERE a.content = ?{more} AND r.run_key = a.run_key ORDER BY a.run_key, a.step, a.task, a.name LIMIT ?"""
    return query, [content, *(after or ()), limit]


def _within(table: str, run_key: int, step: str | None, task: str | None) -> tuple[list[str], list[Value]]:
    where, parameters = [f"{table}.run_key = ?"], list[Value]([run_key])
    for column, value in (("step", step), ("task", task)):
        if value is not None:
            where.append(f"{table}.{column} = ?")
            parameters.append(value)
    return where, parameters


# -- what Metaflow's clients send ------------------------------------------------------------------------------------

LOCK_TASK_COUNTER = """INSERT INTO task_counters (run_key, last) VALUES (?, 0)
    ON CONFLICT (run_key) DO UPDATE SET last = task_counters.last"""
TASK_COUNTER = "SELECT last FROM task_counters WHERE run_key = ?"
SET_TASK_COUNTER = "UPDATE task_counters SET last = ? WHERE run_key = ?"
TASK_NUMBERS = f"""{_given(_OF_TASK)} SELECT n.step, n.task, n.number FROM given
    JOIN task_numbers n ON n.run_key = given.run_key AND n.step = given.step AND n.task = given.task"""
TASK_NUMBERS_SHAPE: Shape = _OF_TASK
NUMBER_SHAPE: Shape = (("run_key", "int"), ("number", "int"), ("step", "text"), ("task", "text"))
ADD_NUMBERS = _insert("task_numbers", NUMBER_SHAPE, "")
TASK_OF_NUMBER = "SELECT step, task FROM task_numbers WHERE run_key = ? AND number = ?"

ADD_STEP = "INSERT INTO steps (run_key, step, facts) VALUES (?, ?, ?) ON CONFLICT (run_key, step) DO NOTHING"
STEP_FACTS = "SELECT step, facts FROM steps WHERE run_key = ? ORDER BY step_key"

FIELD_SHAPE: Shape = (
    *(*_OF_TASK, ("name", "text"), ("value", "text"), ("type", "text"), ("user_name", "text"), ("tags", "text")),
    ("created", "float"),
)
ADD_FIELDS = _insert("fields", FIELD_SHAPE, "RETURNING field_key")


def list_fields(run_key: int, step: str | None, task: str | None, name: str | None) -> sql.Query:
    """Return the query for metadata fields of a run, a step or a task, oldest first."""
    where, parameters = _within("f", run_key, step, task)
    if name is not None:
        where.append("f.name = ?")
        parameters.append(name)
    columns = "f.field_key, f.step, f.task, f.name, f.value, f.type, f.user_name, f.tags, f.created"
    return f"SELECT {columns} FROM fields f WHERE {' AND '.join(where)} ORDER BY f.field_key", parameters


PUT_FACTS = """INSERT INTO client_facts (flow, run, facts) VALUES (?, ?, ?)
    ON CONFLICT (flow, run) DO UPDATE SET facts = excluded.facts"""
FACTS = "SELECT facts FROM client_facts WHERE flow = ? AND run = ?"
DROP_FACTS = "DELETE FROM client_facts WHERE flow = ? AND run = ?"

# -- events ----------------------------------------------------------------------------------------------------------

EVENT_SHAPE: Shape = (
    *(("kind", "text"), ("flow", "text"), ("run", "text"), ("step", "text"), ("task", "text"), ("data", "text")),
    *(("projects", "text"), ("created", "float")),
)
NUMBERED_EVENT_SHAPE: Shape = (("turn", "int"), *EVENT_SHAPE)
EVENTS_OF_ONE_TRANSACTION = 1 << 20
ADD_EVENTS_SQLITE = _insert("events", EVENT_SHAPE, "")
_BASE = f"(SELECT value::bigint FROM facts WHERE name = '{EVENT_BASE}')"
ADD_EVENTS_POSTGRESQL = f"""{_given(NUMBERED_EVENT_SHAPE)} INSERT INTO events (event_id, {_names(EVENT_SHAPE)})
    SELECT (({_BASE} + pg_current_xact_id()::text::bigint) << 20) + turn, {_names(EVENT_SHAPE)} FROM given"""
"""The id is the number of the transaction, then the event's turn in it: events of a transaction that began early have
small ids, and readers stop at the oldest transaction that is still open (`EVENT_BOUND_POSTGRESQL`). Whatever is below
that bound is there for good, so that the order of ids is the order in which a reader can see events."""
EVENT_BOUND_POSTGRESQL = f" AND event_id < (({_BASE} + pg_snapshot_xmin(pg_current_snapshot())::text::bigint) << 20)"
SET_EVENT_BASE = f"""INSERT INTO facts (name, value) SELECT '{EVENT_BASE}', (CASE
        WHEN coalesce(max(event_id) >> 20, 0) < coalesce({_BASE}, 0) + pg_current_xact_id()::text::bigint
        THEN coalesce({_BASE}, 0) ELSE (max(event_id) >> 20) + 1 - pg_current_xact_id()::text::bigint END)::text
    FROM events ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE excluded.value <> facts.value"""
"""A database that was restored into another server counts its transactions anew: ids go on from the largest one."""
EVENTS_AFTER = f"SELECT event_id, {_names(EVENT_SHAPE)} FROM events WHERE event_id > ?"
LAST_EVENT = "SELECT event_id FROM events WHERE 1 = 1"
FIRST_EVENT = "SELECT event_id FROM events ORDER BY event_id LIMIT 1"
NEWEST_EVENT = "SELECT event_id FROM events ORDER BY event_id DESC LIMIT 1"
OLDEST_EVENTS = "SELECT event_id, created FROM events ORDER BY event_id LIMIT ?"
TRIM_EVENTS = "DELETE FROM events WHERE event_id <= ?"

# -- events that start flows ---------------------------------------------------------------------------------------

_EMITTED_COLUMNS = "number, name, event_id, created, data, user_name"
COUNT_EMITTED = """INSERT INTO counters (name, last) VALUES ('emitted', 1)
    ON CONFLICT (name) DO UPDATE SET last = counters.last + 1"""
UNCOUNT_EMITTED = "UPDATE counters SET last = last - 1 WHERE name = 'emitted'"
LAST_EMITTED = "SELECT coalesce(max(last), 0) FROM counters WHERE name = 'emitted'"
EMIT = f"INSERT INTO emitted ({_EMITTED_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"
EMITTED = f"SELECT {_EMITTED_COLUMNS} FROM emitted WHERE number > ? ORDER BY number LIMIT ?"
EMITTED_BEFORE = f"SELECT {_EMITTED_COLUMNS} FROM emitted WHERE name = ? AND event_id = ?"
TRIM_EMITTED = """DELETE FROM emitted WHERE created < ? AND number <
    (SELECT last FROM counters WHERE name = 'emitted')"""

# -- tokens and audit --------------------------------------------------------------------------------------------------

_TOKEN_COLUMNS = "token_id, name, scopes, projects, created, expires, revoked, used"
ADD_TOKEN = f"INSERT INTO tokens ({_TOKEN_COLUMNS}, digest) VALUES ({', '.join('?' * 9)})"
TOKENS = f"SELECT {_TOKEN_COLUMNS} FROM tokens ORDER BY created, token_id"
TOKEN = f"SELECT {_TOKEN_COLUMNS}, digest FROM tokens WHERE token_id = ?"
REVOKE_TOKEN = "UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE token_id = ?"
USE_TOKEN = "UPDATE tokens SET used = ? WHERE token_id = ? AND (used IS NULL OR used < ?)"
AUDIT_SHAPE: Shape = (("entry", "text"),)
AUDIT = _insert("audit_log", AUDIT_SHAPE, "")
AUDITED = "SELECT entry_key, entry FROM audit_log"
TRIM_AUDIT = "DELETE FROM audit_log WHERE entry_key <= (SELECT max(entry_key) FROM audit_log) - ?"


def in_columns(shape: Shape, rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Return given rows column by column, each number of its column's type.

    Raises
    ------
    UsageError
        If there is something else where a number should be.
    """
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in shape]
    for place, (name, kind) in enumerate(shape):
        if kind != "text":
            number = float if kind == "float" else int
            try:
                columns[place] = [None if value is None else number(value) for value in columns[place]]
            except (TypeError, ValueError) as error:
                raise UsageError(f"{name} is a number: {error}") from error
    return columns
