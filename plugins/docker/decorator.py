"""``@docker``: carry a step out in a container on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import check_number, items, number
from flowkit.decorators.contract import ExecutorRequest, StepDecorator
from flowkit.exceptions import Problem

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

_NUMBERS = ("cpu", "memory", "gpu", "shared_memory")
_TEXTS = ("image", "network", "executable", "user")
_ELSEWHERE = ("batch", "kubernetes")


class Docker(StepDecorator):
    """Carry the step out in a container of the Docker daemon on this machine.

    The folder of the datastore is mounted in it, and files there belong to you. What is given here and what
    ``@resources`` says are merged: the larger counts.

    Parameters
    ----------
    image : str, optional
        Default: the setting ``container_image``, else ``python:<this version>-slim``. It is pulled where it is missing.
    cpu : float, optional
        Processors that the container may use; default: all.
    memory, shared_memory : int, optional
        Megabytes that it may use (a step that takes more is killed), and of ``/dev/shm``.
    gpu : int, optional
        How many graphics processors it sees.
    volumes : list of str, optional
        Further folders, ``"/folder/here:/folder/there"``, with ``:ro`` at the end for reading only.
    network : str, optional
        ``host`` for this machine's own, or a network's name; default: Docker's bridge, and ``host`` for gangs.
    user : str, optional
        Who its processes are: ``uid:gid``, or a name that the image knows; default: you.
    executable : str, optional
        The Python of the image; default ``python``.

    Examples
    --------
    >>> @docker(image="pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime", gpu=1)
    ... @step
    ... def train(self): ...
    """

    name = "docker"
    defaults = {
        "image": None,
        "cpu": None,
        "memory": None,
        "shared_memory": None,
        "gpu": None,
        "volumes": None,
        "network": None,
        "user": None,
        "executable": None,
    }

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check every attribute, and that the step has no other place to run."""
        problems = [
            *check_number(self, "cpu", low=0, above=True, optional=True),
            *check_number(self, "memory", low=6, optional=True, unit="megabytes"),
            *check_number(self, "shared_memory", low=0, above=True, optional=True, unit="megabytes"),
            *check_number(self, "gpu", low=0, whole=True, optional=True),
        ]
        for name in _TEXTS:
            value = self.attributes[name]
            if value is not None and (not isinstance(value, str) or not value or set(value) & set(" \t\n")):
                problems.append(self.problem(f"@docker: {name}={value!r} must be a text without spaces"))
        for volume in items(self.attributes["volumes"]):
            wrong = volume_problem(volume)
            if wrong:
                problems.append(self.problem(f"@docker: {wrong}", 'write volumes=["/folder/here:/folder/there:ro"]'))
        for other in flow.steps[node.name].decorators:
            if other.name in _ELSEWHERE:
                problems.append(
                    self.problem(f"step '{node.name}' has @docker and @{other.name}", "it can run in one place only")
                )
        return problems

    def executor(self) -> ExecutorRequest | None:
        """Return what was given."""
        wanted: dict[str, Any] = {}
        for name, value in self.attributes.items():
            if name not in self.given or value is None:
                continue
            if name in _NUMBERS:
                read = number(value)
                wanted[name] = int(read) if read is not None and read.is_integer() else read
            else:
                wanted[name] = items(value) if name == "volumes" else value
        return ExecutorRequest("docker", wanted)


def volume_problem(volume: Any) -> str | None:
    """Return what is wrong with a volume; None for a good one."""
    if isinstance(volume, Mapping) or not isinstance(volume, str):
        return f"volumes: {volume!r} must be a text"
    here, _, rest = volume.partition(":")
    there, _, mode = rest.partition(":")
    if not os.path.isabs(here) or not there.startswith("/") or mode not in ("", "ro", "rw"):
        return f"volumes: {volume!r} does not name two whole paths"
    return None


docker = step_decorator(Docker)
