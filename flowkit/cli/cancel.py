"""``python flow.py cancel``: stop a run from another terminal."""

from __future__ import annotations

import time

import click

from flowkit.cli.lookup import find_run
from flowkit.cli.session import Session
from flowkit.client.cancel import request_cancel
from flowkit.exceptions import Conflict
from flowkit.metadata.records import FINAL

_PAUSE = 0.1


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(run: str, wait: float, authorize: str | None, gone: bool) -> int:
        _cancel(session, run, wait, authorize, gone)
        return 0

    params: list[click.Parameter] = [
        click.Argument(["run"]),
        click.Option(
            ["--wait"],
            type=click.FloatRange(min=0),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait until the run has stopped.",
        ),
        click.Option(
            ["--authorize"], metavar="TOKEN", help="For a run of a scheduler: the deployment's production token."
        ),
        click.Option(
            ["--gone"],
            is_flag=True,
            help="Its scheduler does not know the run any more: only write down that it is over.",
        ),
    ]
    return click.Command(
        "cancel",
        callback=callback,
        params=params,
        help="Stop a run: its tasks are ended, nothing new starts, and it can be resumed later.",
    )


def _cancel(session: Session, path: str, wait: float, authorize: str | None, gone: bool) -> None:
    storage = session.storage()
    store = session.metadata_store(storage)
    try:
        record = find_run(session, store, path)
        run = record.run
        if record.unattended and record.state not in FINAL:
            from flowkit.cli.cancel_scheduled import stop

            if stop(session, storage, store, record, authorize, gone):
                state = getattr(store.run(record.flow, run), "state", "over")
                session.console.say(f"Run {run} was over, which nobody had written down: it is {state}.")
                return
        else:
            request_cancel(storage, record)
        if not wait:
            session.console.say(f"Run {run} has been asked to stop.")
            return
        deadline = time.monotonic() + wait
        while record.state not in FINAL and record.state != "lost":
            if time.monotonic() > deadline:
                raise Conflict(
                    f"run {run} has been asked to stop, and has not after {wait:g} s",
                    f"see how it stands: {session.program} status {run}",
                )
            time.sleep(_PAUSE)
            record = store.run(record.flow, run) or record
        if record.state == "failed" and record.unattended:  # what some schedulers call a run that was stopped
            session.console.say(f"Run {run} has ended: failed.")
            return
        if record.state != "cancelled":
            raise Conflict(f"run {run} came to its end before it could be stopped: {record.state}")
        session.console.say(f"Run {run} was stopped. Go on with: {session.program} resume --origin-run-id {run}")
    finally:
        store.close()
