"""What the local executor keeps of a launch while it runs, and the command line of a fresh interpreter for it."""

from __future__ import annotations

import os

from flowkit.model.launch import Launch, spans_text

_LONGEST_ARGUMENT = 64 << 10
"""Bytes; Linux takes twice as much in one argument."""


class LaunchState:
    """A launch and its processes: one, or the nodes of a gang."""

    __slots__ = ("ended", "failure", "launch", "left", "nodes", "reason", "started", "usage")

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.nodes: list[NodeState] = []
        self.left = max(1, launch.gang)
        self.started = False
        self.failure: int | None = 0
        self.reason: str | None = None
        self.ended = 0.0
        self.usage: tuple[float, int] | None = None


class NodeState:
    """One process of a launch."""

    __slots__ = (
        "asked",
        "deadline",
        "devices",
        "drained",
        "ended",
        "fresh",
        "group",
        "index",
        "kill",
        "log",
        "log_key",
        "marked",
        "number",
        "parents_file",
        "pid",
        "refusals",
    )

    def __init__(self, number: int, group: LaunchState, index: int) -> None:
        self.number = number
        self.asked = False
        self.devices: tuple[str, ...] = ()
        self.drained = False
        self.marked = False
        self.log = 0
        self.log_key: tuple[str, str, int] | None = None
        self.group = group
        self.index = index
        self.pid: int | None = None
        self.fresh = False
        self.kill: str | None = None
        self.ended: tuple[int | None, float] | None = None
        self.deadline: float | None = None
        self.parents_file: str | None = None
        self.refusals = 0


def step_arguments(launch: Launch, node: int | None, run_id: str) -> list[str]:
    """Return the arguments of the ``step`` command that carries out a launch.

    Parameters
    ----------
    launch : Launch
        What to do.
    node : int or None
        Which node of a gang; None for a plain task.
    run_id : str
        The run.
    """
    arguments = ["step", launch.step, str(launch.coordinates), "--run-id", run_id, "--attempt", str(launch.attempt)]
    if launch.parents:
        arguments += ["--parents", spans_text(launch.parents)]
    if launch.split is not None:
        arguments += ["--split", str(launch.split)]
    if launch.kind != "user":
        arguments += ["--kind", launch.kind]
    if launch.gang:
        arguments += ["--gang", str(launch.gang), "--node", str(node or 0)]
    return arguments


def fitting_arguments(node: NodeState, arguments: list[str], folder: str) -> list[str]:
    """Put an argument that is too long for a command line (a join's parents) into a file, as ``@`` and its path."""
    out = []
    for argument in arguments:
        if len(argument) > _LONGEST_ARGUMENT:
            os.makedirs(folder, exist_ok=True)
            node.parents_file = os.path.join(folder, "parents")
            with open(node.parents_file, "w", encoding="utf-8") as file:
                file.write(argument)
            argument = "@" + node.parents_file
        out.append(argument)
    return out


def remove_file(path: str | None) -> None:
    """Remove what `fitting_arguments` wrote."""
    if path is not None:
        try:
            os.unlink(path)
        except OSError:
            pass  # the folder is gone
