"""``--debug`` and ``--pdb``: steps that run in the terminal's foreground, one task at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from flowkit.cli.session import Session
from flowkit.exceptions import UsageError, did_you_mean
from flowkit.settings import environment

if TYPE_CHECKING:
    from flowkit.decorators.contract import Attempts
    from flowkit.model.launch import Launch
    from flowkit.runtime.runtime import Runtime

ALL = "*"
"""What ``--debug`` means without a step."""


def check(session: Session, options: dict[str, Any], *, begins: bool) -> None:
    """Refuse what cannot be debugged; ``--pdb`` alone means every step.

    Raises
    ------
    UsageError
        If there is no such step, it is a gang, nobody is there to talk to, or the run does not begin now.
    """
    if options.get("pdb") and options.get("debug") is None:
        options["debug"] = ALL
    chosen = options.get("debug")
    if chosen is None:
        return
    if not begins:
        raise UsageError("--debug does not go with --reattach: what runs already has no keyboard")
    names = session.definition.steps
    if chosen != ALL and chosen not in names:
        raise UsageError(f"--debug: {session.definition.name} has no step '{chosen}'", did_you_mean(chosen, names))
    if chosen != ALL and not steps(session, options):
        raise UsageError(
            f"--debug: step '{chosen}' is a gang (num_parallel), whose nodes cannot share a keyboard",
            "debug another step, or run it with one node",
        )
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError("--debug needs a terminal: there is nobody to talk to", "run it in one, without redirection")
    session.console.say("Debugging: tasks run one at a time, are not retried, and what they print is not kept.")


def steps(session: Session, options: Mapping[str, Any]) -> Collection[str]:
    """Return the steps whose tasks run in the foreground; a gang's nodes must run at the same time and never do."""
    chosen = options.get("debug")
    if chosen is None:
        return ()
    definition = session.definition
    gangs = {to for node in definition.graph.nodes.values() if node.kind == "parallel" for to in node.targets}
    return [name for name in definition.steps if chosen in (ALL, name) and name not in gangs]


def without_retries(attempts: Mapping[str, Attempts], debugged: Collection[str]) -> dict[str, Attempts]:
    """Return how often each step is tried; once, where somebody looks on."""
    return {name: each._replace(retries=0) if name in debugged else each for name, each in attempts.items()}


def take_part(
    session: Session,
    options: Mapping[str, Any],
    runtime: Runtime,
    command: Callable[[Launch, int | None], list[str]],
) -> None:
    """Give a runtime the executor for the steps that are debugged."""
    chosen = steps(session, options)
    if not chosen:
        return
    from flowkit.decorators.attach import executor_request
    from flowkit.runtime.debug import DebugExecutor

    definition = session.definition
    variables = {name: executor_request(definition.steps[name]).environment for name in chosen}
    more = ["--debug", *(["--pdb"] if options.get("pdb") else [])]
    runtime.executors["debug"] = DebugExecutor(lambda launch: [*command(launch, None), *more], variables, environment())
