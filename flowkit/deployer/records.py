"""What is deployed, as the datastore remembers it: one sealed object for each deployment.

The scheduler has the same record with the object that it runs, and is the authority. This copy is found without a call
to it, names what a sweep of the datastore must keep, and tells a program that has no flow file all it needs.

A deployment that is replaced or removed may have begun a run a moment ago that has not come to its first task: what it
named counts as written now, so that a sweep spares it for a day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flowkit.datastore.layout import blob_file, deployment_file, deployments_folder
from flowkit.datastore.sealed import Damaged, create_sealed, read_sealed, seal, unseal
from flowkit.datastore.storage import Missing, Storage
from flowkit.deployer.target import DeploymentRecord
from flowkit.exceptions import Conflict, DataError, FlowkitError, InvalidPathspec
from flowkit.runtime.template import read_template

_TRIES = 20


def write_record(storage: Storage, record: DeploymentRecord) -> None:
    """Keep the record of a deployment, in the place of an older one.

    The one that is written last stays: clocks of two machines cannot tell which was made later.

    Raises
    ------
    Conflict
        If others write it without end.
    StoreError
        If it cannot be written.
    """
    path = deployment_file(record.target, record.name)
    body = record.to_json()
    for _ in range(_TRIES):
        try:
            there = storage.read_version(path)
        except Missing:
            if create_sealed(storage, path, body):
                return
            continue
        try:
            known = DeploymentRecord.from_json(unseal(there.content, path))
        except Damaged:
            known = None
        if storage.replace_version(path, seal(body), there.version):
            if known is not None:
                _spare(storage, known)
            return
    raise Conflict(f"the record of {record.target}/{record.name} is being written by others", "try again in a minute")


def read_record(storage: Storage, target: str, name: str) -> DeploymentRecord | None:
    """Return the record of a deployment; None where there is none, or a damaged one, or one of something else."""
    try:
        found = DeploymentRecord.from_json(read_sealed(storage, deployment_file(target, name)))
    except Damaged:
        return None
    return found if found is not None and (found.target, found.name) == (target, name) else None


def delete_record(storage: Storage, target: str, name: str) -> None:
    """Forget a deployment; nothing where there is none."""
    known = read_record(storage, target, name)
    storage.delete(deployment_file(target, name))
    if known is not None:
        _spare(storage, known)


def read_records(
    storage: Storage, target: str | None = None, damaged: Callable[[str], object] | None = None
) -> Iterator[DeploymentRecord]:
    """Yield the records of what is deployed, to one target or to all.

    Parameters
    ----------
    storage : Storage
    target : str, optional
    damaged : callable, optional
        Is given the name of each whose record cannot be read.
    """
    folder = deployments_folder()
    for each in [target] if target is not None else sorted(storage.children(folder)):
        for file in sorted(storage.children(f"{folder}/{each}")):
            name = file.removesuffix(".json")
            if name == file:
                continue
            try:
                record = read_record(storage, each, name)
            except InvalidPathspec:  # a stranger's file
                continue
            if record is not None:
                yield record
            elif (
                damaged is not None and storage.info(deployment_file(each, name)) is not None
            ):  # else removed meanwhile
                damaged(name)


def _spare(storage: Storage, record: DeploymentRecord) -> None:
    """Refresh the time of what a deployment named that is no more."""
    keys = [record.template, record.package.get("key")]
    try:
        keys += (artifact.key for artifact in read_template(storage, record.template).parameters.artifacts.values())
    except (FlowkitError, ValueError):  # whatever it names, no run can begin from it
        pass
    for key in keys:
        try:
            storage.touch(blob_file(str(key)))
        except DataError:  # no key, or an object that cannot be written any more
            continue
