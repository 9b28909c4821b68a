"""How a run is asked to stop: a note in the datastore, and a signal where its runtime is on this machine."""

from __future__ import annotations

import json
import os
import signal
import time

from flowkit.datastore.layout import cancel_file
from flowkit.datastore.storage import Storage
from flowkit.exceptions import Conflict
from flowkit.metadata.liveness import boot_id, host_name, process_start
from flowkit.metadata.records import FINAL, RunRecord
from flowkit.settings import user_name


def request_cancel(storage: Storage, record: RunRecord) -> None:
    """Ask a run to stop, and do not wait for it; asking again changes nothing.

    Raises
    ------
    Conflict
        If the run is over, or nobody works on it any more.
    """
    name = f"{record.flow}/{record.run}"
    if record.state in FINAL:
        raise Conflict(f"the run '{name}' is over already: it has {_ended(record.state)}", "there is nothing to cancel")
    if record.unattended:
        target = str(record.deployment).partition("/")[0]
        raise Conflict(
            f"the run '{name}' belongs to a scheduler, which alone can stop it ({record.deployment})",
            f"with the flow's file: cancel {record.run}, or {target} terminate {record.run}",
        )
    if record.state == "lost":
        raise Conflict(
            f"nobody works on the run '{name}' any more: {record.reason or 'its runtime is gone'}",
            f"there is nothing to cancel; to go on from where it stopped: resume --origin-run-id {record.run}",
        )
    note = {"by": user_name(), "host": host_name(), "when": time.time()}
    # A second signal would tell the runtime to kill its tasks at once.
    if storage.create(cancel_file(record.flow, record.run), [json.dumps(note).encode()]):
        _signal(record)


def _ended(state: str) -> str:
    return "been cancelled" if state == "cancelled" else state


def _signal(record: RunRecord) -> None:
    """Send SIGTERM to the run's runtime, if it certainly is a process here; else the note has to do."""
    if record.pid is None or record.process_start is None or record.boot_id is None:
        return
    if record.host != host_name() or record.boot_id != boot_id():
        return
    try:
        # The descriptor stands for this very process: its id cannot be given to another one between look and signal.
        descriptor = os.pidfd_open(record.pid)
    except (AttributeError, OSError):
        return
    try:
        if process_start(record.pid) == record.process_start:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        return
    finally:
        os.close(descriptor)
