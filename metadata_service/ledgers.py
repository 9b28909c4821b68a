"""Events, tokens and the log of writes: what the service keeps about itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.exceptions import UsageError
from flowkit.metadata.sql import plain_text
from flowkit.metadata_service import sql
from flowkit.metadata_service.store import Event, Token
from flowkit.metadata_service.tables import ServiceTables, Session
from flowkit.model.event import EmittedEvent, check_event

REQUEST_KEYS_KEPT = 86_400.0
"""Seconds for which a request that comes again is known."""
EMITTED_KEPT = 30 * 86_400.0
"""Seconds for which events that start flows are kept."""
_CHUNK = 5_000


class LedgerTables(ServiceTables):
    """The part of the port that is about the service itself."""

    audit_kept = 500_000
    """Entries of the audit log that stay when old things are trimmed: the newest ones, some 150 MB."""
    _event_bound = ""
    """What keeps readers from events that an open transaction could still precede."""

    # -- events ----------------------------------------------------------------------------------------------------

    def events_after(self, event_id: int, limit: int = 1000) -> list[Event]:
        """Return events after an id, oldest first."""
        query = f"{sql.EVENTS_AFTER}{self._event_bound} ORDER BY event_id LIMIT ?"
        with self._snapshot() as db:
            rows = db.select(self._sql(query), (max(event_id, -1), max(0, limit)))
        return [_event(row) for row in rows]

    def last_event(self) -> int:
        """Return the id of the newest event that `events_after` would return; 0 where there is none."""
        query = f"{sql.LAST_EVENT}{self._event_bound} ORDER BY event_id DESC LIMIT 1"
        with self._snapshot() as db:
            rows = db.select(self._sql(query))
        return int(rows[0][0]) if rows else 0

    def first_event(self) -> int:
        """Return the id of the oldest event that is kept; 0 where there is none."""
        with self._snapshot() as db:
            rows = db.select(sql.FIRST_EVENT)
        return int(rows[0][0]) if rows else 0

    def trim_events(self, keep_seconds: float) -> int:
        """Drop old events, keys and audit entries, and what is left of dropped runs; returns how many events."""
        now = time.time()
        trimmed = 0
        while True:
            some = self._carry_out(lambda db: self._trim(db, now - keep_seconds))
            trimmed += some
            if some < _CHUNK:
                break
        self._carry_out(lambda db: db.execute(self._sql(sql.DROP_REQUEST_KEYS), (now - REQUEST_KEYS_KEPT,)))
        self._carry_out(lambda db: db.execute(self._sql(sql.TRIM_EMITTED), (now - EMITTED_KEPT,)))
        self._carry_out(lambda db: db.execute(self._sql(sql.TRIM_AUDIT), (self.audit_kept,)))
        self._sweep_left()
        return trimmed

    def _trim(self, db: Session, until: float) -> int:
        rows = db.select(self._sql(sql.OLDEST_EVENTS), (_CHUNK,))
        old = 0
        while old < len(rows) and rows[old][1] < until:
            old += 1
        return db.execute(self._sql(sql.TRIM_EVENTS), (rows[old - 1][0],)) if old else 0

    def _sweep_left(self) -> None:
        """Remove what is left of dropped runs."""

    # -- events that start flows ---------------------------------------------------------------------------------------

    @property
    def place_of_events(self) -> str:
        """What tells one place of events from another."""
        return "service"

    def emit(
        self, name: str, data: Mapping[str, Any] | None = None, *, id: str | None = None, user: str = ""
    ) -> EmittedEvent:
        """Add an event and return it; see `MetadataStore.emit`."""
        fields = check_event(name, data, id)
        event_id = id or os.urandom(12).hex()

        def work(db: Session) -> EmittedEvent:
            db.execute(sql.COUNT_EMITTED)  # whoever emits one holds the counter: the look below is at what is there
            known = db.select(self._sql(sql.EMITTED_BEFORE), (name, event_id))
            number = int(db.select(sql.LAST_EMITTED)[0][0])
            if known:
                db.execute(sql.UNCOUNT_EMITTED)
                return _emitted(known[0])
            event = EmittedEvent(number, name, event_id, time.time(), fields, plain_text(user) or "")
            db.execute(self._sql(sql.EMIT), (number, name, event_id, event.created, json.dumps(fields), event.user))
            return event

        return self._carry_out(work)

    def emitted(self, after: int, limit: int = 1_000) -> list[EmittedEvent]:
        """Return events after a number, the oldest first."""
        with self._snapshot() as db:
            rows = db.select(self._sql(sql.EMITTED), (max(after, 0), max(0, limit)))
        return [_emitted(row) for row in rows]

    def last_emitted(self) -> int:
        """Return the number of the newest event; 0 where there never was one."""
        with self._snapshot() as db:
            return int(db.select(sql.LAST_EMITTED)[0][0])

    # -- tokens ----------------------------------------------------------------------------------------------------

    def add_token(self, token: Token, digest: str) -> None:
        """Store a token with the hash of its secret.

        Raises
        ------
        UsageError
            If there is a token of that id.
        """

        def work(db: Session) -> None:
            if db.select(self._sql(sql.TOKEN), (token.id,)):
                raise UsageError(f"there is a token {token.id} already")
            row = (token.id, token.name, json.dumps(token.scopes), json.dumps(token.projects), *token[4:], digest)
            db.execute(self._sql(sql.ADD_TOKEN), row)

        self._carry_out(work)

    def tokens(self) -> list[Token]:
        """Return all tokens, the oldest first."""
        with self._snapshot() as db:
            return [_token(row) for row in db.select(sql.TOKENS)]

    def find_token(self, token_id: str) -> tuple[Token, str] | None:
        """Return a token and the hash of its secret."""
        with self._snapshot() as db:
            rows = db.select(self._sql(sql.TOKEN), (token_id,))
        return (_token(rows[0][:-1]), str(rows[0][-1])) if rows else None

    def revoke_token(self, token_id: str, when: float) -> bool:
        """Note that a token is not good any more; False where there is none. The first time counts."""
        return self._carry_out(lambda db: bool(db.execute(self._sql(sql.REVOKE_TOKEN), (when, token_id))))

    def use_tokens(self, used: Mapping[str, float]) -> None:
        """Note when tokens were last used."""
        rows = [(when, token_id, when) for token_id, when in sorted(used.items())]
        if rows:
            self._carry_out(lambda db: db.execute_many(self._sql(sql.USE_TOKEN), rows))

    # -- audit -----------------------------------------------------------------------------------------------------

    def audit(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append entries to the log of writes."""
        rows = [(json.dumps(dict(entry)),) for entry in entries]
        if rows:
            self._carry_out(lambda db: db.given(sql.AUDIT, sql.AUDIT_SHAPE, rows))

    def audited(self, *, limit: int = 100, before: int | None = None) -> list[tuple[int, Mapping[str, Any]]]:
        """Return the newest entries with their ids, newest first."""
        where, parameters = ("", [limit]) if before is None else (" WHERE entry_key < ?", [before, limit])
        with self._snapshot() as db:
            rows = db.select(self._sql(f"{sql.AUDITED}{where} ORDER BY entry_key DESC LIMIT ?"), parameters)
        return [(int(key), json.loads(entry)) for key, entry in rows]

    # -- the service itself ------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Ask the database something trivial."""
        with self._snapshot() as db:
            db.select("SELECT 1")


def _event(row: Sequence[Any]) -> Event:
    event_id, kind, flow, run, step, task, data, projects, created = row
    return Event(event_id, kind, flow, run, step, task, json.loads(data), tuple(json.loads(projects)), created)


def _emitted(row: Sequence[Any]) -> EmittedEvent:
    number, name, event_id, created, data, user = row
    return EmittedEvent(int(number), name, event_id, created, json.loads(data), user)


def _token(row: Sequence[Any]) -> Token:
    return Token(row[0], row[1], tuple(json.loads(row[2])), tuple(json.loads(row[3])), *row[4:])
