"""The least scheduler that can run a deployed flow: it starts containers one after the other, and reads what follows.

It knows the graph's shape, as a compiled document does, and of the run nothing but what containers tell it. Their
commands are those of the deployment, started here as processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowkit.deployer import target as port
from flowkit.deployer.target import Deployment
from flowkit.model.coordinates import Coordinates


class TaskFailed(Exception):
    """A task failed for good."""


class PlainScheduler:
    """Runs a deployment once.

    Parameters
    ----------
    deployment : Deployment
        With commands that work on this machine.
    run : str
        The run's id.
    variables : mapping
        The environment of every container, besides what the deployment says.
    """

    def __init__(self, deployment: Deployment, run: str, variables: Mapping[str, str]) -> None:
        self.deployment = deployment
        self.run_id = run
        self.variables = dict(variables)
        self.started: list[tuple[str, str, int]] = []
        """Step, task and exit status of every container, in order."""
        self.output = ""

    def run(self, parameters: Mapping[str, str] | None = None, trigger: str = "") -> str:
        """Run the flow to its end, and return ``succeeded`` or ``failed``."""
        first = {f"{port.PARAMETER}{name}": text for name, text in (parameters or {}).items()}
        if trigger:
            first[port.TRIGGER] = trigger
        state = "succeeded"
        try:
            self._chain(self.deployment.graph.start, Coordinates(), None, first)
        except TaskFailed:
            state = "failed"
        if state == "failed" or self.deployment.on_success:
            self.container("_end", "", self.deployment.end_command, {port.STATE: state})
        return state

    def _chain(
        self, step: str | None, place: Coordinates, until: str | None, more: Mapping[str, str] | None = None
    ) -> None:
        """Carry out a step and what follows it, up to a join (which is not)."""
        while step is not None and step != until:
            node = self.deployment.graph[step]
            turn = 0
            while True:
                at = Coordinates(place.indices, turn if node.is_loop else None)
                follows = self._task(step, {port.TASK: str(at)}, more or {})
                if not node.is_loop or follows["step"] != step:
                    break
                turn += 1
            more = None
            if node.kind == "split":
                for target in node.targets:
                    self._chain(target, place, node.matching_join)
            elif node.kind == "foreach":
                for index in range(follows["width"]):
                    self._chain(node.targets[0], Coordinates((*place.indices, index)), node.matching_join)
            elif node.kind == "parallel":
                self._gang(node.targets[0], place, follows["width"])
            step = node.matching_join if node.opens else follows["step"] or None

    def _task(self, step: str, place: Mapping[str, str], more: Mapping[str, str]) -> dict[str, Any]:
        plan = self.deployment.steps[step]
        for attempt in range(plan.tries):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "next.json")
                told = {**plan.environment, port.ATTEMPT: str(attempt), port.NEXT: str(file), **place, **more}
                status = self.container(step, place.get(port.TASK, ""), plan.command, told)
                if status == 0:
                    follows: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                    return follows
                if status == port.FINAL:
                    break
        raise TaskFailed(step)

    def _gang(self, step: str, place: Coordinates, size: int) -> None:
        """Start all nodes of a gang, and all of them again where one has failed."""
        plan = self.deployment.steps[step]
        prefix = "".join(f"{index}." for index in place.indices)
        for attempt in range(plan.tries):
            nodes = []
            for index in range(size):
                told = {port.PREFIX: prefix, port.GANG: str(size), "JOB_COMPLETION_INDEX": str(index)}
                nodes.append(self._start(plan.command, {**plan.environment, port.ATTEMPT: str(attempt), **told}))
            ends = [(process.communicate(timeout=120)[0], process.returncode) for process in nodes]
            self.output += "".join(text for text, _ in ends)
            if not any(status for _, status in ends):
                return
            if any(status == port.FINAL for _, status in ends):
                break
        raise TaskFailed(step)

    def container(self, step: str, task: str, command: tuple[str, ...], told: Mapping[str, str]) -> int:
        """Start one container, wait for its end and return its exit status."""
        process = self._start(command, told)
        text, _ = process.communicate(timeout=120)
        self.output += text
        self.started.append((step, task, process.returncode))
        return process.returncode

    def _start(self, command: tuple[str, ...], told: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.variables, **told, port.RUN: self.run_id},
        )
