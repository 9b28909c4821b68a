"""The backend for Docker: rows are containers of the daemon on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import MissingExtra, Problem
from flowkit.plugins.docker.credentials import Credentials
from flowkit.plugins.docker.daemon import Daemon, Refused
from flowkit.plugins.docker.documents import LABEL, Host, Secrets, container_options, count_of, image_of, run_key
from flowkit.runtime.backend import Backend, BackendError, Cause, FoundJob, RemoteRun, RowPhase, RowState, Submission

T = TypeVar("T")

STOP_SECONDS = 15
"""How long a container has after SIGTERM."""
_LINES = 50
_AT_ONCE = 4
"""Calls of the daemon at once, where each is for another container."""
_PHASES: dict[str, RowPhase] = {
    "created": "starting", "running": "running", "paused": "running", "restarting": "running", "removing": "running",
}  # fmt: skip


class DockerBackend(Backend):
    """Runs rows as containers.

    A job of N rows is N containers, ``<name>-0`` and so on, found again by their labels. A gang's nodes are containers
    on this machine's own network.

    Parameters
    ----------
    run : RemoteRun or None
        The run whose jobs these are.
    """

    name = "docker"
    max_rows = 50
    poll_interval = 0.2
    on_this_machine = True

    def __init__(self, run: RemoteRun | None) -> None:
        self._run = run
        self._daemon = Daemon()
        self._host: Host | None = None
        self._credentials: Credentials | None = None
        self._pulls: dict[str, _Pull] = {}
        self._waiting: dict[str, Submission] = {}
        self._told: dict[tuple[str, int], tuple[RowPhase, str]] = {}
        self._since: dict[str, float] = {}
        self._late: set[str] = set()
        self._cancelled: dict[str, str] = {}
        self._asked: set[str] = set()
        self._used = False
        self._remover: ThreadPoolExecutor | None = None

    # -- before a run -----------------------------------------------------------------------------------------------

    def preflight(self, requests: Mapping[str, ExecutorRequest]) -> list[Problem]:
        """Ask whether there is a daemon, and whether each image is there or can be pulled."""
        try:
            self._daemon.call("ping")
        except (BackendError, MissingExtra) as error:
            return [Problem(f"{', '.join(map(repr, requests))}: {error.headline}", None, error.hint)]
        images: dict[str, list[str]] = {}
        for step, request in requests.items():
            images.setdefault(image_of(request.resources), []).append(step)
        problems = []
        for image, steps in images.items():
            why = self._unavailable(image)
            if why:
                label = f"step{'s' if len(steps) > 1 else ''} {', '.join(map(repr, steps))}"
                problems.append(Problem(f"{label}: the image '{image}' cannot be had: {why}", None, _IMAGE_HINT))
        return problems

    def _unavailable(self, image: str) -> str:
        """Return why an image can neither be found here nor pulled; empty where it can."""
        if self._present(image):
            return ""
        try:
            self._daemon.call("inspect_distribution", image)
        except BackendError as error:
            return error.headline.removeprefix("Docker: ")
        return ""

    def _present(self, image: str) -> bool:
        try:
            self._daemon.call("inspect_image", image)
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    # -- jobs -------------------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> str:
        """Make and start the containers; where their image is missing, once it has been pulled."""
        run = self._owner()
        if "://" not in run.root and not self._daemon.is_local:
            raise BackendError(
                f"the Docker daemon is on another machine, which cannot mount the datastore {run.root}",
                "unset DOCKER_HOST, or keep the datastore on S3",
            )
        self._used = True
        image = image_of(submission.request.resources)
        if self._present(image):
            self._start(submission)
        else:
            self._waiting[submission.name] = submission
            if image not in self._pulls:
                self._pulls[image] = _Pull(image)
        return submission.name

    def find(self, name: str) -> str | None:
        """Look for the containers of a job, all of them and started; a job without some is submitted again."""
        found = self._containers(f"{LABEL}job={name}")
        complete = found and len(found) == int(found[0].labels["count"])
        return name if complete and all(item.state != "created" for item in found) else None

    def states(self, jobs: Mapping[str, int]) -> Iterable[RowState]:
        """List the run's containers, and look at those that have ended."""
        yield from self._pulled()
        by_job: dict[str, dict[int, _Container]] = {}
        for container in self._containers(f"{LABEL}run-key={run_key(self._owner())}"):
            by_job.setdefault(container.labels["job"], {})[int(container.labels["index"])] = container
        for job, rows in jobs.items():
            if job not in self._waiting:
                yield from self._news(job, rows, by_job.get(job, {}))
        over = self._asked - jobs.keys()
        self._asked = set(jobs)
        for job in over:
            self._forget(job, by_job.get(job, {}).values())

    def cancel(self, jobs: Iterable[str], reason: str, *, running: bool) -> None:
        """Stop containers; only those that wait for their image, or with `running` every one."""
        names = list(jobs)
        for name in names:
            if name in self._waiting:
                self._cancelled[name] = reason
        if not running:
            return
        self._cancelled |= dict.fromkeys(names, reason)
        alive = [item for name in names for item in self._containers(f"{LABEL}job={name}") if item.alive]
        _each(alive, _stop)

    def last_lines(self, job: str, row: int) -> list[str]:
        """Return the end of a container's log; of a gang that of the node that failed."""
        found = sorted(self._containers(f"{LABEL}job={job}"), key=lambda item: int(item.labels["index"]))
        if found and int(found[0].labels["gang"]):
            failed = [item for item in found if not item.alive and self._state(item.id).get("ExitCode")]
            chosen = failed or found
        else:
            chosen = [item for item in found if item.labels["index"] == str(row)]
        if not chosen:
            return []
        text: bytes = self._daemon.call("logs", chosen[0].id, tail=_LINES)
        return text.decode("utf-8", "replace").splitlines()

    def jobs(self, *, flow: str | None = None, run: str | None = None, user: str | None = None) -> list[FoundJob]:
        """List the jobs with containers that have not ended."""
        wanted = {"flow": flow, "run": run, "user": user}
        found: dict[str, list[_Container]] = {}
        for item in self._containers(f"{LABEL}job", all=False):
            if all(value in (None, item.labels.get(name)) for name, value in wanted.items()):
                found.setdefault(item.labels["job"], []).append(item)
        made = []
        for name, items in found.items():
            first = items[0].labels
            phase: RowPhase = "running" if any(item.state == "running" for item in items) else "starting"
            made.append(
                FoundJob(
                    name,
                    name,
                    first["flow"],
                    first["run"],
                    first["step"],
                    first["user"],
                    phase,
                    int(first["gang"]) or int(first["count"]),
                    float(first["created"]),
                )
            )
        return made

    def close(self) -> None:
        """Remove what has ended, and the credentials once nobody needs them; what runs goes on."""
        try:
            if self._used:
                left = self._containers(f"{LABEL}run-key={run_key(self._owner())}")
                self._remove(left)
                if self._credentials is not None and not any(item.alive for item in left):
                    self._credentials.withdraw()
        except BackendError:
            # The daemon is gone, and what ran with it; the next run finds what it left.
            pass
        finally:
            if self._remover is not None:
                self._remover.shutdown()
            self._daemon.close()

    # -- making containers ------------------------------------------------------------------------------------------

    def _start(self, submission: Submission) -> None:
        """Make and start the containers that are not there yet."""
        created, host, secrets = time.time(), self._described(), self._secrets()
        made = [
            container_options(self._daemon.api, self._owner(), submission, index, created, host, secrets)
            for index in range(count_of(submission))
        ]
        _each(made, _make)

    def _pulled(self) -> Iterator[RowState]:
        """Start what has waited for its image, or tell why it never will."""
        for name, submission in list(self._waiting.items()):
            pull = self._pulls[image_of(submission.request.resources)]
            cause: Cause | None = None
            message = f"pulling the image {pull.image}"
            if name in self._cancelled:
                cause, message = "cancelled", self._cancelled[name]
            elif pull.done:
                try:
                    if pull.error is not None:
                        raise pull.error
                    self._start(submission)
                except BackendError as error:
                    if error.transient and pull.error is None:
                        raise
                    cause, message = "image", error.headline.removeprefix("Docker: ")
            rows = range(submission.rows)
            if cause is not None:
                yield from (RowState(name, row, "failed", time.time(), cause, message) for row in rows)
            elif not pull.done:
                yield from self._changes(
                    name, [RowState(name, row, "queued", time.time(), None, message) for row in rows]
                )
                continue
            del self._waiting[name]

    # -- looking at them --------------------------------------------------------------------------------------------

    def _containers(self, label: str, *, all: bool = True) -> list[_Container]:
        found = self._daemon.call("containers", all=all, filters={"label": label})
        return [_Container.of(item) for item in found]

    def _news(self, job: str, rows: int, found: Mapping[int, _Container]) -> Iterator[RowState]:
        """Return the states of a job's rows that have changed."""
        gang = int(next(iter(found.values())).labels["gang"]) if found else 0
        states = [self._row(job, index, found.get(index)) for index in range(gang or rows)]
        yield from self._changes(job, [self._gang(job, states, found)] if gang else states)

    def _changes(self, job: str, states: Iterable[RowState]) -> Iterator[RowState]:
        for state in states:
            told = state.phase, state.message if state.phase == "queued" else ""
            if self._told.get((job, state.row)) != told:
                self._told[job, state.row] = told
                yield state

    def _row(self, job: str, index: int, container: _Container | None) -> RowState:
        if container is None:
            cause: Cause = "cancelled" if job in self._cancelled else "deleted"
            return RowState(job, index, "failed", time.time(), cause, self._cancelled.get(job, "its container is gone"))
        known = self._told.get((job, index), ("", ""))[0]
        if known in ("succeeded", "failed"):
            return RowState(job, index, known, 0.0)  # type: ignore[arg-type]
        if container.state in _PHASES and container.state != "created":
            since = self._since.get(container.id)
            if since is None:
                since = self._since[container.id] = _seconds(self._state(container.id).get("StartedAt"))
            self._bound(container, since)
            return RowState(job, index, _PHASES[container.state], since)
        state = self._state(container.id)
        if container.state == "created" and not state.get("Error"):
            return RowState(job, index, "starting", time.time())
        return self._end(job, index, container, state)

    def _end(self, job: str, index: int, container: _Container, state: Mapping[str, Any]) -> RowState:
        status, said = int(state.get("ExitCode") or 0), str(state.get("Error") or "")
        when = _seconds(state.get("FinishedAt"))
        if not status and not said:
            return RowState(job, index, "succeeded", when, None, "", 0)
        cause: Cause = "exit"
        message = " ".join(said.split())[:500]
        if job in self._cancelled:
            cause, message = "cancelled", self._cancelled[job]
        elif container.id in self._late:
            cause, message = "timeout", f"the container ran longer than {container.labels['timeout']} s"
        elif state.get("OOMKilled"):
            cause, message = "oom", "it needed more memory than the container has"
        elif said:
            cause = "image"
        return RowState(job, index, "failed", when, cause, message, status)

    def _gang(self, job: str, nodes: list[RowState], found: Mapping[int, _Container]) -> RowState:
        """Return the state of a gang: it is one, and one node that fails ends the others."""
        failed = next((state for state in nodes if state.phase == "failed"), None)
        if failed is not None:
            _each([item for item in found.values() if item.alive], _stop)
            return failed._replace(row=0)
        for phase in ("starting", "running", "succeeded"):
            chosen = [state for state in nodes if state.phase == phase]
            if chosen:
                return chosen[-1]._replace(row=0)
        return nodes[0]._replace(row=0)

    def _bound(self, container: _Container, since: float) -> None:
        """Kill a container that has run longer than its job may."""
        limit = float(container.labels.get("timeout") or 0)
        if limit and container.id not in self._late and time.time() - since > limit:
            self._late.add(container.id)
            try:
                self._daemon.call("kill", container.id)
            except Refused:  # it ended by itself meanwhile
                self._late.discard(container.id)

    def _state(self, container: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._daemon.call("inspect_container", container)["State"]
        except Refused as error:
            if error.status != 404:
                raise
            return {}
        return found

    def _forget(self, job: str, containers: Iterable[_Container]) -> None:
        """Remove the containers of a job whose rows have all been told of."""
        self._remove(containers)
        for key in [key for key in self._told if key[0] == job]:
            del self._told[key]

    def _remove(self, containers: Iterable[_Container]) -> None:
        """Remove what has ended, in the background: the daemon takes a good part of a second for each."""
        for item in containers:
            if item.alive:
                continue
            self._since.pop(item.id, None)
            self._late.discard(item.id)
            if self._remover is None:
                self._remover = ThreadPoolExecutor(2, "flowkit-docker-remove")
            self._remover.submit(_remove, item)

    def _described(self) -> Host:
        if self._host is None:
            options = " ".join(self._daemon.call("info").get("SecurityOptions") or ())
            self._host = Host("name=rootless" in options, "name=userns" in options)
        return self._host

    def _secrets(self) -> Secrets:
        run = self._owner()
        if not run.root.startswith("s3://"):
            return Secrets()
        if self._credentials is None:
            self._credentials = Credentials(run_key(run))
        return self._credentials.offer()

    def _owner(self) -> RemoteRun:
        if self._run is None:
            raise BackendError("containers are started for a run")
        return self._run


_IMAGE_HINT = "look at its name, at your login (docker login) and at the network; or build it here with docker build"


class _Container(NamedTuple):
    """A container as the daemon lists it."""

    id: str
    state: str
    labels: Mapping[str, str]

    @classmethod
    def of(cls, listed: Mapping[str, Any]) -> _Container:
        start = len(LABEL)
        labels = {name[start:]: value for name, value in listed["Labels"].items() if name.startswith(LABEL)}
        return cls(str(listed["Id"]), str(listed["State"]), labels)

    @property
    def alive(self) -> bool:
        return self.state not in ("exited", "dead", "created")


class _Pull:
    """An image on its way, pulled in a thread of its own."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.error: BackendError | None = None
        self._thread = threading.Thread(target=self._pull, name="flowkit-docker-pull", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def _pull(self) -> None:
        daemon = Daemon()
        try:
            daemon.pull(self.image)
        except BackendError as error:
            self.error = error
        finally:
            daemon.close()


def _each(items: Sequence[T], act: Callable[[Daemon, T], None]) -> None:
    """Act on each of some things, a few at once, each with a client of its own: a client is for one thread."""

    def one(item: T) -> None:
        daemon = Daemon()
        try:
            act(daemon, item)
        finally:
            daemon.close()

    if items:
        with ThreadPoolExecutor(min(_AT_ONCE, len(items)), "flowkit-docker") as pool:
            list(pool.map(one, items))


def _make(daemon: Daemon, options: dict[str, Any]) -> None:
    try:
        daemon.call("create_container", **options)
    except Refused as error:
        if error.status != 409:  # an earlier try made it
            raise
    try:
        daemon.call("start", options["name"])
    except Refused:
        # Where the image lacks the program, or a folder cannot be mounted, that is how the container ended.
        if not daemon.call("inspect_container", options["name"])["State"].get("Error"):
            raise


def _stop(daemon: Daemon, container: _Container) -> None:
    try:
        daemon.call("stop", container.id, timeout=STOP_SECONDS)
    except Refused as error:
        if error.status not in (304, 404, 409):  # it has ended, or is gone
            raise


def _remove(container: _Container) -> None:
    daemon = Daemon()
    try:
        daemon.call("remove_container", container.id, v=True)
    except BackendError:
        # Somebody else removes it, or the daemon is gone: it costs nothing but some bytes of disk.
        pass
    finally:
        daemon.close()


def _seconds(text: Any) -> float:
    """Return a time of the daemon's (``2026-01-31T12:00:00.123456789Z``) in seconds since the epoch."""
    try:
        whole, _, rest = str(text).rstrip("Z").partition(".")
        return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")
    except ValueError:
        return time.time()
