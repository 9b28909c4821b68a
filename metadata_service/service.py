"""What the routes of one service share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.store import ServiceStore

if TYPE_CHECKING:
    from flowkit.metadata_service.broadcast import Broadcaster
    from flowkit.metadata_service.guard import Guard
    from flowkit.metadata_service.metaflow_settling import Settling
    from flowkit.metadata_service.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Service:
    """A service that is being served.

    Parameters
    ----------
    configuration : Configuration
    store : ServiceStore
        The database.
    guard : Guard
        Says who calls (`Caller`), counts what they do, writes the audit log.
    broadcaster : Broadcaster
        Hands events on to listeners.
    metrics : Metrics
        Counts for ``/metrics``.
    settling : Settling, optional
        Tells when runs of Metaflow's have failed.
    """

    configuration: Configuration
    store: ServiceStore
    guard: Guard
    broadcaster: Broadcaster
    metrics: Metrics
    settling: Settling | None = None
