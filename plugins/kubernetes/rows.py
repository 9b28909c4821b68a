"""From what is heard of pods and jobs to the states of rows: a book that tells each change once, and makes no calls."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flowkit.plugins.kubernetes.pods import PodState
from flowkit.runtime.backend import Cause, RowPhase, RowState

_PHASES: tuple[RowPhase, ...] = ("queued", "starting", "running")


class JobId(NamedTuple):
    """What the id of a job says: ``namespace/kind/nodes/name``.

    Parameters
    ----------
    namespace, name : str
    kind : str
        ``job`` or ``jobset``.
    nodes : int
        Of a gang; 0 for none.
    """

    namespace: str
    name: str
    kind: str = "job"
    nodes: int = 0

    def __str__(self) -> str:
        return f"{self.namespace}/{self.kind}/{self.nodes}/{self.name}"

    @classmethod
    def read(cls, text: str) -> JobId:
        """Read an id."""
        namespace, kind, nodes, name = text.split("/")
        return cls(namespace, name, kind, int(nodes))

    @property
    def key(self) -> str:
        """What its pods are known by."""
        return f"{self.namespace}/{self.name}"


class JobFacts(NamedTuple):
    """What a Job says of itself.

    Parameters
    ----------
    completed, failed : list of (int, int)
        Ranges of indexes.
    ended : str or None
        ``Complete`` or ``Failed`` once it is over.
    message : str
        Why it failed.
    cancelled : str or None
        Why we had its waiting rows removed.
    """

    completed: list[tuple[int, int]]
    failed: list[tuple[int, int]]
    ended: str | None
    message: str
    cancelled: str | None = None

    def has_completed(self, row: int) -> bool:
        """Whether a row is known to have succeeded."""
        return any(first <= row <= last for first, last in self.completed)


class RowBook:
    """What is known of the pods of a run's jobs.

    Attributes
    ----------
    doomed : dict of str to (str, str)
        Cause and message for the rows of jobs whose pods we have had removed, by `JobId.key`.
    unresolved : dict of str to set of int
        Pods that went away without an end, by job: the job itself has to be asked.
    troubled : dict of str to dict of int to float
        Pods whose containers cannot start, by job, and since when.
    """

    def __init__(self) -> None:
        self.doomed: dict[str, tuple[Cause, str]] = {}
        self.unresolved: dict[str, set[int]] = {}
        self.troubled: dict[str, dict[int, float]] = {}
        self._pods: dict[str, dict[int, PodState]] = {}
        self._dirty: dict[str, set[int]] = {}
        self._told: dict[str, dict[int, tuple[RowPhase, str]]] = {}
        self._forgotten: set[str] = set()

    def pod(self, key: str, index: int) -> PodState | None:
        """Return the pod of a row or node."""
        return self._pods.get(key, {}).get(index)

    def pods(self, key: str) -> Mapping[int, PodState]:
        """Return all pods of a job."""
        return self._pods.get(key, {})

    def changed(self, namespace: str, state: PodState) -> None:
        """Take note of a pod."""
        key = f"{namespace}/{state.job}"
        if key in self._forgotten:
            return
        known = self._pods.setdefault(key, {})
        before = known.get(state.row)
        if before is not None and before.ended:
            return
        if state.phase == "failed" and state.leaving and key in self.doomed:
            cause, message = self.doomed[key]
            state = state._replace(cause=cause, message=message)
        elif state.ended:
            self.unresolved.get(key, set()).discard(state.row)
        known[state.row] = state
        if state.trouble:
            self.troubled.setdefault(key, {}).setdefault(state.row, time.time())
        elif key in self.troubled:
            self.troubled[key].pop(state.row, None)
        # Why a pod waits changes with every look of the cluster's scheduler, for each of thousands: see `overdue`.
        if (
            before is None
            or before.phase != state.phase
            or (state.phase != "queued" and before.message != state.message)
        ):
            self._dirty.setdefault(key, set()).add(state.row)

    def vanished(self, namespace: str, state: PodState) -> None:
        """Take note that a pod was removed: where it had not ended, its row has failed."""
        key = f"{namespace}/{state.job}"
        self.changed(namespace, state)
        known = self._pods.get(key, {}).get(state.row)
        if known is None or known.ended or known.uid != state.uid:
            return
        if key in self.doomed:
            cause, message = self.doomed[key]
            self._end(key, known, cause, message)
        elif known.disrupted is not None:
            self._end(key, known, "evicted", known.disrupted)
        else:
            self.unresolved.setdefault(key, set()).add(state.row)

    def listed(self, namespace: str, states: Iterable[PodState]) -> None:
        """Take note of a fresh list: pods that are not in it any more are gone."""
        seen = set()
        for state in states:
            seen.add(state.uid)
            self.changed(namespace, state)
        for key, pods in list(self._pods.items()):
            if key.startswith(f"{namespace}/"):
                for state in list(pods.values()):
                    if state.uid not in seen and not state.ended:
                        self.vanished(namespace, state)

    def missing(self, job: JobId, rows: int) -> list[int]:
        """Return the rows or nodes of which no pod was ever seen."""
        pods = self.pods(job.key)
        size = job.nodes or rows
        return [] if len(pods) >= size else [index for index in range(size) if index not in pods]

    def settle(self, job: JobId, rows: int, facts: JobFacts | None, *, known: bool, unseen: bool) -> None:
        """Take note of what a job says of itself; that ends rows whose pods cannot be asked any more.

        Parameters
        ----------
        job : JobId
            Which one.
        rows : int
            How many it has.
        facts : JobFacts or None
            None: the job does not exist.
        known : bool
            Whether it was there before: then somebody deleted it.
        unseen : bool
            Whether rows of which no pod was ever seen are over as well, if the job is.
        """
        key = job.key
        pods = self._pods.setdefault(key, {})
        waiting = self.unresolved.pop(key, set())
        if unseen and (facts is None or facts.ended):
            waiting |= set(self.missing(job, rows))
        for index in sorted(waiting):
            state = pods.get(index) or PodState("", "", job.name, index, "queued", 0.0)
            if state.ended:
                continue
            if facts is not None and (facts.has_completed(index) or facts.ended == "Complete"):
                pods[index] = state._replace(phase="succeeded", when=time.time(), exit_status=0)
                self._dirty.setdefault(key, set()).add(index)
                continue
            cause, message = self._why(key, state, facts, known)
            self._end(key, state, cause, message)

    def _why(self, key: str, state: PodState, facts: JobFacts | None, known: bool) -> tuple[Cause, str]:
        if key in self.doomed:
            return self.doomed[key]
        if facts is None:
            return ("deleted", "somebody deleted the job") if known else ("lost", "the cluster does not know the job")
        if state.uid:
            return "deleted", "somebody deleted its pod"
        return "lost", facts.message or "its pod is gone"

    def _end(self, key: str, state: PodState, cause: Cause, message: str) -> None:
        ended = state._replace(phase="failed", cause=cause, message=message, when=time.time())
        self._pods[key][state.row] = ended
        self._dirty.setdefault(key, set()).add(state.row)

    def waiting(self, key: str, *, machine: bool) -> bool:
        """Whether a pod of a job waits: for a machine, or else also for its container."""
        phases = ("queued",) if machine else ("queued", "starting")
        return any(state.phase in phases and not state.leaving for state in self.pods(key).values())

    def overdue(self, job: JobId, before: float) -> str:
        """Return why a pod of a job that has waited for a machine since before a time still waits; empty for none."""
        for state in self.pods(job.key).values():
            if state.phase == "queued" and state.message and state.when < before:
                return state.message
        return ""

    def take(self, jobs: Iterable[tuple[str, JobId]]) -> list[RowState]:
        """Return what has changed of some jobs since it was told last."""
        news = []
        for text, job in jobs:
            dirty = self._dirty.pop(job.key, None)
            if not dirty:
                continue
            told = self._told.setdefault(job.key, {})
            for row in (0,) if job.nodes else sorted(dirty):
                state = self._gang(job) if job.nodes else self._row(text, row, self._pods[job.key][row])
                if state is not None and state.phase == "queued":
                    state = state._replace(message="")
                if state is None or told.get(row) == (state.phase, state.message):
                    continue
                if told.get(row, ("queued", ""))[0] in ("succeeded", "failed"):
                    continue
                told[row] = (state.phase, state.message)
                news.append(state._replace(job=text))
        return news

    def forget(self, kept: Iterable[str]) -> None:
        """Drop jobs that were told of and that nobody asks for any more; `kept` are keys."""
        for key in self._told.keys() - set(kept):
            self._forgotten.add(key)
            tables: tuple[dict[str, Any], ...] = (self._told, self._pods, self._dirty)
            for table in (*tables, self.unresolved, self.doomed, self.troubled):
                table.pop(key, None)

    @staticmethod
    def _row(text: str, row: int, state: PodState) -> RowState:
        return RowState(text, row, state.phase, state.when, state.cause, state.message, state.exit_status)

    def _gang(self, job: JobId) -> RowState | None:
        """Tell how a gang stands: as its slowest node, and failed when one has failed and no other is left."""
        nodes = self._pods[job.key]
        failed = [state for state in nodes.values() if state.phase == "failed"]
        if failed:
            if not all(state.ended for state in nodes.values()):
                return None  # the others are being ended: the next attempt must not meet them
            # Nodes that were ended because of another one say so by their cause.
            first = min(failed, key=lambda state: (state.cause in ("deleted", "cancelled"), state.when))
            label = f"node {first.row}: {first.message}"
            return RowState("", 0, "failed", max(s.when for s in failed), first.cause, label, first.exit_status)
        if len(nodes) < job.nodes:
            return RowState("", 0, "queued", max(state.when for state in nodes.values()))
        if all(state.phase == "succeeded" for state in nodes.values()):
            return RowState("", 0, "succeeded", max(state.when for state in nodes.values()), exit_status=0)
        waiting = [state for state in nodes.values() if not state.ended]
        slowest = min(waiting, key=lambda state: _PHASES.index(state.phase))
        return RowState("", 0, slowest.phase, slowest.when, message=slowest.message)
