"""``@parallel``: the step of a gang (``self.next(self.train, num_parallel=4)``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.context import current
from flowkit.decorators.attach import step_decorator
from flowkit.decorators.contract import StepDecorator, TaskContext
from flowkit.exceptions import TaskError
from flowkit.settings import variable

if TYPE_CHECKING:
    from flowkit.model.graph import Node

_TIMEOUT = 600.0
"""Seconds that nodes wait for the name of their control node, where nobody says otherwise."""


class ParallelInfo(NamedTuple):
    """``current.parallel``: this node in its gang.

    Parameters
    ----------
    main_ip : str
        The address of the control node (index 0).
    num_nodes : int
        How many nodes there are.
    node_index : int
        Which one this is, counted from 0.
    control_task_id : str
        The id of the control node's task.
    """

    main_ip: str
    num_nodes: int
    node_index: int
    control_task_id: str


class Parallel(StepDecorator):
    """Mark the step that ``num_parallel`` leads to: its nodes run at the same time, and know of each other.

    Each node has ``current.parallel`` with ``main_ip``, ``num_nodes``, ``node_index`` and ``control_task_id``. The gang
    is one unit: it is tried again as a whole and resumed as a whole. Subclasses for a framework
    override `setup_distributed_env`.
    """

    name = "parallel"
    gang = True

    @classmethod
    def fits(cls, node: Node) -> bool:
        """Only by hand: a step is a gang because something leads to it by ``num_parallel``."""
        return False

    def setup_distributed_env(self, flow: Any) -> None:
        """Prepare the framework of a subclass; called in every node before the step's code."""

    def around(self, task: TaskContext, proceed: Callable[[], None]) -> None:
        """Tell the step about its gang."""
        gang = task.gang
        if gang is not None:
            address = resolved(gang["main_ip"], float(variable("FLOWKIT_HOSTNAME_TIMEOUT") or _TIMEOUT))
            info = ParallelInfo(address, gang["size"], gang["node"], gang["control_task"])
            current.add({"parallel": info, "is_parallel": True})
            if not task.fallback:
                self.setup_distributed_env(task.flow)
        proceed()


def resolved(host: str, timeout: float) -> str:
    """Return the address of a host, which may only get its name when its container starts.

    Parameters
    ----------
    host : str
        A name or an address.
    timeout : float
        Seconds to wait for it.

    Raises
    ------
    TaskError
        If there is no such host by then.
    """
    import socket
    import time

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return host
        except OSError:
            continue
    deadline, pause = time.monotonic() + timeout, 0.1
    while True:
        try:
            return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TaskError(
                    f"the control node of the gang is not found: {host} has no address after {timeout:g} s ({error})",
                    "its container did not start in time; hostname_resolution_timeout gives it longer",
                ) from error
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, 5.0)


parallel = step_decorator(Parallel)
