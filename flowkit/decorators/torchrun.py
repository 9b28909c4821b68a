"""``@pytorch_parallel``: a gang whose nodes run PyTorch together, and `TorchRun`, which starts its launcher.

Nothing here imports PyTorch: the variables are what its ``env://`` rendezvous reads, and the launcher is a process.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowkit.context import current
from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import check_number, number
from flowkit.decorators.parallel import Parallel, ParallelInfo
from flowkit.exceptions import Problem, TaskError
from flowkit.settings import environment

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

_PORTS = range(20_000, 30_000)
"""Ports for gangs that name none: below those that systems give to outgoing connections."""
_LAUNCHER = "torch.distributed.run"


class TorchRun:
    """``current.torch``: starts PyTorch's launcher on this node of the gang.

    Parameters
    ----------
    gang : ParallelInfo
        This node in its gang.
    port : int
        Where the control node listens.
    """

    def __init__(self, gang: ParallelInfo, port: int) -> None:
        self.gang = gang
        self.port = port

    def command(
        self,
        entrypoint: str,
        args: Mapping[str, Any] | Sequence[Any] = (),
        *,
        nproc_per_node: int | str = 1,
        executable: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Return the command that `run` runs; parameters as there."""
        launch = {
            "nnodes": self.gang.num_nodes,
            "node-rank": self.gang.node_index,
            "master-addr": self.gang.main_ip,
            "master-port": self.port,
            "nproc-per-node": nproc_per_node,
            **{name.replace("_", "-"): value for name, value in (options or {}).items()},
        }
        script = [entrypoint] if entrypoint.endswith(".py") or "/" in entrypoint else ["--module", entrypoint]
        return [executable or sys.executable, "-m", _LAUNCHER, *_arguments(launch, "="), *script, *_arguments(args)]

    def run(
        self,
        entrypoint: str,
        args: Mapping[str, Any] | Sequence[Any] = (),
        *,
        nproc_per_node: int | str = 1,
        executable: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Run a script or module on all nodes together: each of them calls this with the same arguments.

        Parameters
        ----------
        entrypoint : str
            The path of a script (``train.py``), or the name of a module (``package.train``).
        args : mapping or sequence
            Its arguments: ``{"epochs": 3, "amp": True}`` is ``--epochs 3 --amp``, False and None are left out.
        nproc_per_node : int or str, default 1
            Processes on each node: a number, ``gpu`` or ``auto``.
        executable : str, optional
            Another Python than this one.
        options : mapping, optional
            Further options of the launcher, e.g. ``{"max_restarts": 0}``.

        Raises
        ------
        TaskError
            If PyTorch is not installed here, or the launcher did not succeed.
        """
        command = self.command(entrypoint, args, nproc_per_node=nproc_per_node, executable=executable, options=options)
        if executable is None and importlib.util.find_spec("torch") is None:
            raise TaskError(
                f"current.torch.run({entrypoint!r}): PyTorch is not installed where this step runs",
                "install torch there, or choose an image that has it",
            )
        try:
            status = subprocess.run(command, check=False).returncode
        except OSError as error:
            raise TaskError(f"current.torch.run({entrypoint!r}): {command[0]} cannot be started: {error}") from error
        if status:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
            raise TaskError(
                f"current.torch.run({entrypoint!r}): the launcher {how} on node {self.gang.node_index}",
                "its own messages stand in the task's log",
            )


class PytorchParallel(Parallel):
    """Mark a ``num_parallel`` step whose nodes run PyTorch together.

    In each node the environment has ``MASTER_ADDR``, ``MASTER_PORT``, ``NODE_RANK``, ``NUM_NODES`` and ``WORLD_SIZE``
    (one process on each node), and ``current.torch.run("train.py", {"epochs": 3})`` starts PyTorch's own launcher.

    Parameters
    ----------
    master_port : int, optional
        The port of the control node; default: one between 20,000 and 30,000 that follows from run and task.

    Examples
    --------
    >>> @pytorch_parallel
    ... @step
    ... def train(self):
    ...     current.torch.run("train.py", {"epochs": 3}, nproc_per_node="gpu")
    """

    name = "pytorch_parallel"
    defaults = {"master_port": None}

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check the port."""
        return check_number(self, "master_port", low=1, high=65_535, whole=True, optional=True)

    def setup_distributed_env(self, flow: Any) -> None:
        """Set the variables, and ``current.torch``."""
        gang: ParallelInfo = current.parallel
        given = number(self.attributes["master_port"])
        port = int(given) if given is not None else free_port(gang.control_task_id)
        environment().update(
            {
                "MASTER_ADDR": gang.main_ip,
                "MASTER_PORT": str(port),
                "NODE_RANK": str(gang.node_index),
                "NUM_NODES": str(gang.num_nodes),
                "WORLD_SIZE": str(gang.num_nodes),
                "RANK": str(gang.node_index),
                "LOCAL_RANK": "0",
            }
        )
        current.add({"torch": TorchRun(gang, port)})


def free_port(control_task: str) -> int:
    """Return a port for a gang, the same in all its nodes and different from that of most other gangs."""
    told = f"{current.flow_name}/{current.run_id}/{current.step_name}/{control_task}"
    return _PORTS[zlib.crc32(told.encode()) % len(_PORTS)]


def _arguments(given: Mapping[str, Any] | Sequence[Any], join: str | None = None) -> list[str]:
    if not isinstance(given, Mapping):
        return [str(item) for item in given]
    words: list[str] = []
    for name, value in given.items():
        if value is None or value is False:
            continue
        if value is True:
            words.append(f"--{name}")
        else:
            words += [f"--{name}{join}{value}"] if join else [f"--{name}", str(value)]
    return words


pytorch_parallel = step_decorator(PytorchParallel)
