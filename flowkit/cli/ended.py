"""``python flow.py ended``: call the exit hooks of a deployed run that is over, and tell people of it.

The container that a scheduler starts for the end of a run calls it, when the end is written down already: whatever
happens here changes nothing about the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flowkit.cli.session import Session
from flowkit.exceptions import NotFound

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.model.manifest import Manifest


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(run_id: str, template: str | None) -> int:
        return _ended(session, run_id, template)

    params: list[click.Parameter] = [
        click.Option(["--run-id"], required=True),
        click.Option(["--template"], help="The key of what the run began from, where it did not come to begin."),
    ]
    return click.Command("ended", callback=callback, params=params, hidden=True, help="Call a run's exit hooks.")


def _ended(session: Session, run: str, template: str | None) -> int:
    from flowkit.datastore.runs import read_end
    from flowkit.decorators.attach import restore_flow
    from flowkit.runtime import streams
    from flowkit.runtime.notify import notify
    from flowkit.settings import environment

    streams.adopt(environment())
    storage = session.storage()
    flow = session.definition.name
    end = read_end(storage, flow, run)
    if end is None:
        raise NotFound(f"there is no run {flow}/{run} here that is over", f"the datastore is {storage.root}")
    manifest = _parameters(storage, flow, run, template)
    if manifest is not None:
        session.options = {**session.options, **manifest.extra.get("options", {})}
        if session.dynamic:
            from flowkit.cli.configs import values_of_run

            session.settle(values_of_run(session, storage, manifest) if session.definition.configs else {})
        session.prepare(tuple(manifest.extra.get("with", ())))
        restore_flow(session.definition, manifest.extra.get("decorators", {}))
    state, reason = str(end.get("state")), end.get("reason")
    for decorator in session.definition.decorators:
        for problem in decorator.run_ended(session.definition, f"{flow}/{run}", state):
            session.console.warn(str(problem))
    wrong = notify(f"{flow}/{run}", state, None if reason is None else str(reason))
    if wrong is not None:
        session.console.warn(wrong)
    return 0


def _parameters(storage: Storage, flow: str, run: str, template: str | None) -> Manifest | None:
    from flowkit.datastore.manifests import read_manifest
    from flowkit.runtime.start import PARAMETERS
    from flowkit.runtime.template import read_template

    manifest = read_manifest(storage, flow, run, *PARAMETERS)
    if manifest is None and template is not None:
        manifest = read_template(storage, template).parameters
    return manifest
