"""What a run has submitted to services: an intent before each job, its id after it.

Both are small objects in the run's ``.launches`` folder, written once: ``<name>.json`` before the job is
submitted, ``<name>.job.json`` when the service has told its id. Whoever takes the run over reads them: an intent
without an id is a job that may have been made, which the service finds by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flowkit.datastore.blobs import key_of
from flowkit.datastore.layout import launches_folder
from flowkit.datastore.sealed import Damaged, create_sealed, read_sealed
from flowkit.datastore.storage import Storage
from flowkit.decorators.contract import plain
from flowkit.exceptions import DataError

NAME_LENGTH = 52
"""The longest name: on Kubernetes it is a label and, with the index of a row behind it, a host name (63 at most)."""
_DIGEST = 16
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_JOB = ".job.json"
_INTENT = ".json"


class SubmittedJob(NamedTuple):
    """A job of a run, as it was recorded.

    Parameters
    ----------
    name : str
        Its deterministic name (`job_name`).
    backend : str
        The service: ``batch``, ``kubernetes``, …
    step : str
        Whose tasks its rows are.
    key : str
        The launch list (`flowkit.runtime.launch_list`).
    rows : int
        How many launches the list has.
    gang : int
        Nodes of a gang; 0 for none.
    tries : int
        How often its launches had been submitted before, because of failures that were not theirs.
    created : float
        When the intent was recorded, in seconds since the epoch.
    resources : mapping
        What was asked for; for people who look.
    job : str or None
        The id that the service gave; None where nobody knows whether there is a job.
    """

    name: str
    backend: str
    step: str
    key: str
    rows: int
    gang: int = 0
    tries: int = 0
    created: float = 0.0
    resources: Mapping[str, Any] = {}
    job: str | None = None


def job_name(flow: str, run: str, step: str, key: str, tries: int, salt: str) -> str:
    """Return the name of a job: the same for the same launches of the same run, and no other's.

    Parameters
    ----------
    flow, run, step : str
        What the name tells people, as far as there is room.
    key : str
        The launch list.
    tries : int
        How often its launches were submitted before.
    salt : str
        What tells this run from others of the same id: where its datastore is and when it was begun.

    Returns
    -------
    str
        Lower-case letters, digits and hyphens, at most `NAME_LENGTH`.
    """
    digest = key_of(["\0".join((flow, run, step, key, str(tries), salt)).encode()])[:_DIGEST]
    room = NAME_LENGTH - _DIGEST - len("fk-") - 1
    readable = "-".join(filter(None, (_plain(part) for part in (flow, run, step))))[:room].strip("-")
    return f"fk-{readable}-{digest}" if readable else f"fk-{digest}"


def record_intent(storage: Storage, flow: str, run: str, job: SubmittedJob) -> bool:
    """Record a job that is about to be submitted; False if it was recorded before, which stays.

    Raises
    ------
    StoreError
        If it cannot be written: then the job must not be submitted.
    """
    body = {**job._asdict(), "resources": plain(job.resources)}
    del body["job"]
    return create_sealed(storage, _file(flow, run, job.name, _INTENT), body)


def record_job(storage: Storage, flow: str, run: str, name: str, job: str) -> bool:
    """Record the id that a service gave to a job; False if one was recorded before, which stays."""
    return create_sealed(storage, _file(flow, run, name, _JOB), {"job": job})


def read_submissions(storage: Storage, flow: str, run: str) -> list[SubmittedJob]:
    """Return everything that a run has submitted, oldest first; what is damaged never happened."""
    found = list(_read(storage, flow, run))
    return sorted(found, key=lambda job: (job.created, job.name))


def _read(storage: Storage, flow: str, run: str) -> Iterator[SubmittedJob]:
    for child in storage.children(launches_folder(flow, run)):
        name = child.removesuffix(_INTENT)
        if name == child or not _NAME.fullmatch(name):
            continue  # an id, which is read with its intent; or nothing of ours
        try:
            body = read_sealed(storage, _file(flow, run, name, _INTENT))
            told = read_sealed(storage, _file(flow, run, name, _JOB))
        except Damaged:
            continue
        job = None if body is None else _parse(name, body, told)
        if job is not None:
            yield job


def _parse(name: str, body: Mapping[str, Any], told: Mapping[str, Any] | None) -> SubmittedJob | None:
    texts = [body.get(field) for field in ("backend", "step", "key")]
    numbers = [body.get(field) for field in ("rows", "gang", "tries")]
    created, resources = body.get("created"), body.get("resources")
    job = None if told is None else told.get("job")
    if body.get("name") != name or not all(isinstance(text, str) for text in texts):
        return None
    if not all(type(number) is int and 0 <= number <= 1_000_000 for number in numbers) or not numbers[0]:
        return None
    if not isinstance(created, int | float) or not isinstance(resources, dict) or not isinstance(job, str | None):
        return None
    backend, step, key = map(str, texts)
    rows, gang, tries = map(int, numbers)  # type: ignore[arg-type]
    return SubmittedJob(name, backend, step, key, rows, gang, tries, float(created), resources, job)


def _file(flow: str, run: str, name: str, ending: str) -> str:
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} is not the name of a job")
    return f"{launches_folder(flow, run)}/{name}{ending}"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
