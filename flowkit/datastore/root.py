"""Finding, making and opening the root of a datastore."""

from __future__ import annotations

import os

from flowkit.datastore.storage import Storage
from flowkit.exceptions import NotFound, StoreError
from flowkit.settings import settings, working_folder

FOLDER = ".flowkit"
"""The name of a root that nobody named otherwise."""

_NETWORK = ("9p afs beegfs ceph cifs fuse.gcsfuse fuse.glusterfs fuse.rclone fuse.s3fs fuse.sshfs gfs2 glusterfs gpfs "
            "lustre ncpfs nfs nfs4 ocfs2 orangefs pvfs2 smb3 smbfs virtiofs")  # fmt: skip


def find_root(start: str) -> str | None:
    """Return the nearest ``.flowkit`` folder, from a folder upwards; None where there is none."""
    folder = os.path.abspath(start)
    while True:
        candidate = os.path.join(folder, FOLDER)
        if os.path.isdir(candidate):
            return candidate
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent


def default_root() -> str:
    """Return the nearest ``.flowkit`` from the working directory upwards, or the one to be made there.

    Raises
    ------
    NotFound
        If the working directory has been deleted.
    """
    folder = working_folder()
    if folder is None:
        raise NotFound(
            "the working directory does not exist any more",
            "somebody has deleted it: go to one that exists, or set FLOWKIT_DATASTORE",
        )
    return find_root(folder) or os.path.join(folder, FOLDER)


def make_root(path: str) -> str:
    """Make a folder the root of a datastore, unless it is one, and return its absolute path.

    It gets a ``.gitignore`` that leaves all of it out of the user's repository.

    Raises
    ------
    StoreError
        If the folder cannot be made.
    """
    path = os.path.abspath(path)
    try:
        os.makedirs(path, exist_ok=True)
        ignore = os.path.join(path, ".gitignore")
        if not os.path.lexists(ignore):
            with open(ignore, "w", encoding="ascii") as file:
                file.write("*\n")
    except FileExistsError:
        raise StoreError(
            f"the datastore's folder {path} is a file", "remove it, or set FLOWKIT_DATASTORE to a folder"
        ) from None
    except OSError as error:
        raise StoreError(
            f"cannot make the datastore's folder {path}: {error.strerror}",
            "set FLOWKIT_DATASTORE to a folder that can be written",
        ) from error
    return path


def open_storage(spec: str | None = None, *, create: bool = False) -> Storage:
    """Open the storage that holds a datastore.

    Parameters
    ----------
    spec : str, optional
        A folder, or a URL such as ``s3://bucket/prefix`` whose scheme names a storage of the registry. Default: the
        setting ``datastore``, else the nearest ``.flowkit`` from the working directory upwards, else one there.
    create : bool, default False
        Whether a local root is made where there is none.

    Raises
    ------
    NotFound
        If there is no datastore, and none is to be made.
    StoreError
        If it cannot be made.
    """
    spec = spec or settings().datastore
    scheme, separator, _ = (spec or "").partition(":")
    if spec and separator and len(scheme) > 1 and scheme.isalnum() and scheme != "file":
        from flowkit.registry import load

        storage = load("storages", scheme)(spec)
        assert isinstance(storage, Storage)
        return storage
    from flowkit.datastore.local import LocalStorage

    if spec:
        path = os.path.abspath(os.path.expanduser(spec.removeprefix("file://")))
    else:
        path = default_root()
    if os.path.isdir(path):
        storage = LocalStorage(path)
        if create:
            storage.sweep()
        return storage
    if not create:
        raise NotFound(
            f"there is no datastore at {path}",
            "run a flow first, go to the folder where one has run, or set FLOWKIT_DATASTORE",
        )
    return LocalStorage(make_root(path))


def network_file_system(path: str) -> str | None:
    """Return the kind of network file system that holds a path (``nfs4``, ``cifs``, …), or None for a local one.

    Known on Linux only, from the mounts of this process.
    """
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = file.read().splitlines()
    except OSError:
        return None
    path = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        if len(parts) < 5 or not rest:
            continue
        point = parts[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later mount on the same point hides the earlier one
            best, kind = point, rest.split(" ", 1)[0]
    return kind if kind and kind in _NETWORK.split() else None
