"""The application that answers requests: all routes of the service behind its guard."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Response
from pydantic.json_schema import models_json_schema

from flowkit.metadata_service import (
    events,
    metaflow_routes,
    metaflow_wire,
    operations,
    v1_artifacts,
    v1_audit,
    v1_emitted,
    v1_records,
    v1_runs,
    wire,
)
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.problems import tell_problems
from flowkit.metadata_service.service import Service
from flowkit.version import __version__

_DESCRIPTION = """Runs, tasks and artifacts of a team's flows.

Lists come in pages: `items` and `next`, the `cursor` of the next page, null where the list is over. Errors are
`{"error": …, "hint": …}`."""


def make_app(service: Service) -> FastAPI:
    """Return the application of a service."""
    app = FastAPI(
        title="flowkit metadata service",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    tell_problems(app, service.metrics.database_failed)
    for part in (operations, v1_records, v1_runs, v1_artifacts, v1_audit, v1_emitted, events, metaflow_routes):
        app.include_router(part.router(service))
    _describe(app, service)
    app.add_middleware(service.guard.middleware)
    app.add_middleware(service.metrics.middleware)
    return app


def _describe(app: FastAPI, service: Service) -> None:
    """Serve the OpenAPI document, behind the guard like everything else."""
    generate = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            told = generate()
            parts = told.setdefault("components", {})
            _, bodies = models_json_schema(
                [(model, "validation") for model in (*wire.BODIES, *metaflow_wire.BODIES)],
                ref_template="#/components/schemas/{model}",
            )
            parts.setdefault("schemas", {}).update(bodies["$defs"])
            parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            # {}: a service on loopback does not ask
            told["security"] = [{"bearer": []}] if service.configuration.guarded else [{"bearer": []}, {}]
            app.openapi_schema = told
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    def openapi(caller: Caller = Depends(service.guard.reader)) -> Response:
        return wire.reply(document())
