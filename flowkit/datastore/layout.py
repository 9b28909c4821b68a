"""Where everything is below a datastore's root: the only module that spells a path of the layout.

Every part comes from outside (a pathspec, a class name, a database) and is checked, so that no path leaves the root.
Names that begin with a dot are flowkit's own: no run, step or task can have one.
"""

from __future__ import annotations

from flowkit.exceptions import DataError, InvalidPathspec
from flowkit.model.pathspec import check_part

FLOWS = "flows"
BLOBS = "blobs"
DATA = "data"
"""Where ``flowkit.S3(run=…)`` keeps objects, unless it was told another place."""
UPKEEP = "gc"
"""The folder of `flowkit gc` and `flowkit fsck`: who is at work, what is to go, what was put aside."""
DEPLOYMENTS = "deployments"
"""The folder of what is deployed to schedulers: their runs begin from the code and templates that are named there."""
SCHEDULER = "scheduler"
"""The folder in which the scheduler in the box keeps what it has decided."""
EVENTS = "events"
"""The folder of the events that start deployed flows, where no metadata service keeps them."""
LAST_RUN = ".last"
"""Name of the hint object below a flow: the highest number claimed, give or take."""
KEY_LENGTH = 64
"""Length of a blob's key: BLAKE3 in hexadecimal."""
_LONGEST_NAME = 250
"""Of a deployment: with its ``.json`` it still is a file's name (255 bytes)."""
_HEX = frozenset("0123456789abcdef")
_checked: set[str] = set()


def flow_folder(flow: str) -> str:
    """Return the folder of a flow."""
    return f"{FLOWS}/{_part(flow)}"


def last_run_file(flow: str) -> str:
    """Return the hint that saves listing a flow's runs."""
    return f"{FLOWS}/{_part(flow)}/{LAST_RUN}"


def run_folder(flow: str, run: str) -> str:
    """Return the folder of a run."""
    return f"{FLOWS}/{_part(flow)}/{_part(run)}"


def run_file(flow: str, run: str) -> str:
    """Return the object that claims a run's id."""
    return f"{run_folder(flow, run)}/run.json"


def end_file(flow: str, run: str) -> str:
    """Return the object that says how a run ended."""
    return f"{run_folder(flow, run)}/end.json"


def round_file(flow: str, run: str) -> str:
    """Return the object that says when a scheduler last had a run that was over try again."""
    return f"{run_folder(flow, run)}/round.json"


def tags_file(flow: str, run: str) -> str:
    """Return the object with a run's user tags."""
    return f"{run_folder(flow, run)}/tags.json"


def step_folder(flow: str, run: str, step: str) -> str:
    """Return the folder of a step."""
    return f"{FLOWS}/{_part(flow)}/{_part(run)}/{_part(step)}"


def clones_file(flow: str, run: str, step: str) -> str:
    """Return the object that lists the tasks of a step taken from the origin run."""
    return f"{step_folder(flow, run, step)}/clones.json"


def task_folder(flow: str, run: str, step: str, task: str) -> str:
    """Return the folder of a task."""
    return f"{FLOWS}/{_part(flow)}/{_part(run)}/{_part(step)}/{_part(task)}"


def manifest_file(flow: str, run: str, step: str, task: str) -> str:
    """Return the commit of a task."""
    return f"{task_folder(flow, run, step, task)}/manifest.json"


def index_file(flow: str, run: str, step: str, task: str) -> str:
    """Return the JSON list of the task ids of a foreach's children: plain, for schedulers that read it themselves."""
    return f"{task_folder(flow, run, step, task)}/index.json"


def attempt_folder(flow: str, run: str, step: str, task: str, attempt: int) -> str:
    """Return the folder of one attempt."""
    return f"{task_folder(flow, run, step, task)}/{int(attempt)}"


def failed_file(flow: str, run: str, step: str, task: str, attempt: int) -> str:
    """Return the object that says how an unsuccessful attempt ended."""
    return f"{attempt_folder(flow, run, step, task, attempt)}/failed.json"


def log_file(flow: str, run: str, step: str, task: str, attempt: int) -> str:
    """Return the log of one attempt."""
    return f"{attempt_folder(flow, run, step, task, attempt)}/log"


def log_piece(flow: str, run: str, step: str, task: str, attempt: int, number: int) -> str:
    """Return a piece of the log of an attempt, counted from 1, where the storage cannot append to an object."""
    return f"{attempt_folder(flow, run, step, task, attempt)}/log.{int(number):06d}"


def heartbeat_file(flow: str, run: str) -> str:
    """Return the object that the runtime of a run without a lease writes now and then, where others may look on."""
    return f"{run_folder(flow, run)}/heartbeat.json"


def lease_file(flow: str, run: str) -> str:
    """Return the object that says which runtime owns a run."""
    return f"{run_folder(flow, run)}/lease.json"


def launches_folder(flow: str, run: str) -> str:
    """Return the folder of what was submitted to services; no step can have a name with a dot."""
    return f"{run_folder(flow, run)}/.launches"


def blob_file(key: str) -> str:
    """Return where content is kept by its key.

    Raises
    ------
    DataError
        If the key is not one (a damaged or forged manifest).
    """
    if not isinstance(key, str) or len(key) != KEY_LENGTH or not _HEX.issuperset(key):
        raise DataError(f"{key!r} is not the key of a blob", "the manifest that names it is damaged")
    return f"{BLOBS}/{key[:2]}/{key}"


def _part(part: str) -> str:
    # A process names the same few parts again and again: a set is faster than the pattern.
    if part not in _checked:
        check_part(part)
        if len(_checked) > 10_000:
            _checked.clear()
        _checked.add(part)
    return part


def cancel_file(flow: str, run: str) -> str:
    """Return the object that asks a run to stop; its runtime looks for it now and then."""
    return f"{run_folder(flow, run)}/cancel.json"


def data_folder(flow: str, run: str) -> str:
    """Return the folder of the objects that steps of a run kept with ``flowkit.S3(run=self)``."""
    return f"{DATA}/{_part(flow)}/{_part(run)}"


def upkeep_lease() -> str:
    """Return the object that says which sweep of the datastore is at work."""
    return f"{UPKEEP}/lease.json"


def sweep_file() -> str:
    """Return the object by which a sweep announces what it is about to remove."""
    return f"{UPKEEP}/sweep.json"


def candidates_file(prefix: str) -> str:
    """Return the list of the blobs with a prefix of two digits that a sweep found unused."""
    return f"{UPKEEP}/candidates/{prefix}.json"


def aside_file(path: str) -> str:
    """Return where a damaged object is put, out of the way of a new one."""
    return f"{UPKEEP}/aside/{path}"


def event_file(number: int) -> str:
    """Return the object of an event that was emitted; they are numbered from 1."""
    return f"{EVENTS}/{int(number):015d}.json"


def last_event_file() -> str:
    """Return the hint that saves listing the events."""
    return f"{EVENTS}/{LAST_RUN}"


def deployments_folder() -> str:
    """Return the folder of the records of what is deployed, by target."""
    return DEPLOYMENTS


def deployment_file(target: str, name: str) -> str:
    """Return the record of what is deployed to a target under a name.

    Raises
    ------
    InvalidPathspec
        If one of them is no part of a path (see `flowkit.model.pathspec.check_part`), or the name is too long for a
        file's.
    """
    if len(name) > _LONGEST_NAME:
        raise InvalidPathspec(f"the name of a deployment has at most {_LONGEST_NAME} characters, not {len(name)}")
    return f"{DEPLOYMENTS}/{_part(target)}/{_part(name)}.json"


def schedule_file(name: str) -> str:
    """Return the object in which the scheduler in the box keeps what it has decided for a deployment.

    Raises
    ------
    InvalidPathspec
        As for `deployment_file`.
    """
    return f"{SCHEDULER}/{deployment_file('local', name).rpartition('/')[2]}"


def scheduler_lease() -> str:
    """Return the object that says which scheduler is at work; no deployment has a name that begins with a dot."""
    return f"{SCHEDULER}/.lease.json"
