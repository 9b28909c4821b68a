"""``/v1/`` for those who run flows: records in batches, heartbeats of many, numbers of runs, tags, deletion."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Response

from flowkit.exceptions import NotFound
from flowkit.metadata.records import OutputRecord, Record, RunRecord, TaskRecord
from flowkit.metadata.relational import UnknownRun
from flowkit.metadata_service import wire
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.audit import touched
from flowkit.metadata_service.problems import answers
from flowkit.metadata_service.service import Service
from flowkit.metadata_service.v1_access import check_writable, known_beats, visible_run
from flowkit.metadata_service.v1_answers import BeatsTaken, RecordsWritten, Reserved, Tags

_KINDS: dict[type[Record], str] = {RunRecord: "run", TaskRecord: "task", OutputRecord: "output"}

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="The same for a request that is sent again: its records are written once.",
    ),
]
FlowName = Annotated[str, Path(pattern=wire.NAME)]
RunName = Annotated[str, Path(pattern=wire.NAME)]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["writing"])
    store, guard, metrics = service.store, service.guard, service.metrics

    @routes.post(
        "/records",
        response_model=RecordsWritten,
        responses=answers(404, 409),
        openapi_extra=wire.expects(wire.Records),
    )
    def write_records(
        caller: Caller = Depends(guard.writer),
        raw: bytes = Depends(wire.raw_body),
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Write runs, tasks and what they made, all or nothing: a run before its tasks."""
        records = by_our_clock(wire.records_of(raw), time.time())
        for flow, run in dict.fromkeys((record.flow, record.run) for record in records):
            touched(flow, run)
        check_writable(store, caller, records)
        try:
            new = store.register(records, idempotency_key) if records else True
        except UnknownRun as error:
            raise NotFound(error.headline, "write the run's record first, or with them") from None
        if new:
            for kind, count in Counter(type(record) for record in records).items():
                metrics.written(_KINDS[kind], count)
        return wire.reply({"written": len(records) if new else 0, "repeated": not new})

    @routes.post("/heartbeats", response_model=BeatsTaken, responses=answers(), openapi_extra=wire.expects(wire.Beats))
    def beat(caller: Caller = Depends(guard.writer), raw: bytes = Depends(wire.raw_body)) -> Response:
        """Note that runs and tasks are alive, by the service's clock; tells when to beat again, and who is unknown."""
        beats, unseen = known_beats(store, caller, wire.beats_of(raw))
        metrics.written("heartbeat", len(beats))
        unknown = [*unseen, *(store.heartbeats(beats, time.time()) if beats else ())]
        told = [{name: value for name, value in beat._asdict().items() if value is not None} for beat in unknown]
        return wire.reply({"interval": service.configuration.heartbeat_interval, "unknown": told})

    @routes.post(
        "/flows/{flow}/reserve",
        response_model=Reserved,
        responses=answers(),
        openapi_extra=wire.expects(wire.Reservation),
    )
    def reserve(
        flow: FlowName, caller: Caller = Depends(guard.writer), raw: bytes = Depends(wire.raw_body)
    ) -> Response:
        """Take the next number for a run of a flow; nobody gets it again. The client claims it in its datastore."""
        wanted = wire.parsed(wire.Reservation, raw)
        return wire.reply({"run": str(store.reserve_run(flow, wanted.at_least))})

    @routes.patch(
        "/flows/{flow}/runs/{run}/tags",
        response_model=Tags,
        responses=answers(404),
        openapi_extra=wire.expects(wire.TagChange),
    )
    def change_tags(
        flow: FlowName, run: RunName, caller: Caller = Depends(guard.writer), raw: bytes = Depends(wire.raw_body)
    ) -> Response:
        """Remove, then add user tags at once; returns the new ones, sorted."""
        change = wire.parsed(wire.TagChange, raw)
        visible_run(store, caller, flow, run)
        return wire.reply({"tags": list(store.change_tags(flow, run, change.add, change.remove))})

    @routes.delete("/flows/{flow}/runs/{run}", status_code=204, responses=answers(404))
    def delete_run(flow: FlowName, run: RunName, caller: Caller = Depends(guard.admin)) -> Response:
        """Drop everything that is recorded of a run. The datastore is not touched; the number is never used again."""
        visible_run(store, caller, flow, run)
        if not store.delete_run(flow, run):
            raise NotFound(f"there is no run {flow}/{run}")
        return Response(status_code=204)

    return routes


def by_our_clock(records: list[Record], now: float) -> list[Record]:
    """Return records in which no client's clock can harm: nobody was alive or began later than the service's now.

    One run from the future would stay on top of every list, and seem alive for as long.
    """
    return [
        record._replace(heartbeat=None, created=min(record.created, now)) if isinstance(record, RunRecord) else record
        for record in records
    ]
