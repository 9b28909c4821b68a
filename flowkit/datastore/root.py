"""Finding, making and opening the root of a datastore."""

from __future__ import annotations

import os

from flowkit.datastore.storage import Storage
from flowkit.exceptions import NotFound, StoreError, UsageError, did_you_mean
from flowkit.settings import settings, variable, working_folder

FOLDER = ".flowkit"
"""The name of a root that nobody named otherwise."""
SERVICE_FOLDER = "service"
"""The name of the metadata service's folder in the one of that name at home."""

_NETWORK = ("9p afs beegfs ceph cifs fuse.gcsfuse fuse.glusterfs fuse.rclone fuse.s3fs fuse.sshfs gfs2 glusterfs gpfs "
            "lustre ncpfs nfs nfs4 ocfs2 orangefs pvfs2 smb3 smbfs virtiofs")  # fmt: skip


def find_root(start: str) -> str | None:
    """Return the nearest ``.flowkit`` folder, from a folder upwards; None where there is none.

    One that holds nothing but the metadata service's database is no datastore: else whoever once started a service
    would find the runs of all projects at home.
    """
    folder = os.path.abspath(start)
    while True:
        candidate = os.path.join(folder, FOLDER)
        if os.path.isdir(candidate) and not _is_service_only(candidate):
            return candidate
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent


def _is_service_only(folder: str) -> bool:
    try:
        return os.listdir(folder) == [SERVICE_FOLDER]
    except OSError:
        return False


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


def scheme_of(spec: str | None) -> str | None:
    """Return the name of the storage that a URL asks for (``s3`` of ``s3://bucket/prefix``); None for a folder."""
    scheme, separator, _ = (spec or "").partition(":")
    return scheme if separator and len(scheme) > 1 and scheme.isalnum() and scheme != "file" else None


def storage_class(scheme: str) -> type[Storage]:
    """Return the class of the storages behind a URL's scheme.

    Raises
    ------
    UsageError
        If there is none of that name; the hint gives the nearest one.
    MissingExtra
        If what it needs is not installed.
    """
    from flowkit.registry import load

    _check_kind(scheme)
    found = load("storages", scheme)
    assert isinstance(found, type)
    assert issubclass(found, Storage)
    return found


def _check_kind(kind: str) -> None:
    from flowkit.registry import TABLES, names

    if kind in TABLES["storages"]:
        return
    known = names("storages")
    if kind not in known:
        hint = did_you_mean(kind, known) or f"known: {', '.join(known)}"
        raise UsageError(f"there is no kind of datastore called '{kind}'", hint)


def chosen_root(kind: str | None, root: str | None) -> str | None:
    """Return the root that the options ``--datastore`` and ``--datastore-root`` name together, or the setting.

    Parameters
    ----------
    kind : str, optional
        ``local``, ``s3`` or another storage's name; or the root itself.
    root : str, optional
        A folder or a URL.

    Returns
    -------
    str or None
        None where nobody has named one: see `default_root`.

    Raises
    ------
    UsageError
        If there is no such kind, it needs a root that is not given, or the two contradict each other.
    """
    configured = settings().datastore
    if kind is None:
        return root or configured
    if "/" in kind or "." in kind or ":" in kind:
        if root is not None and root != kind:
            raise UsageError(f"--datastore {kind} and --datastore-root {root} name two roots", "give one of them")
        return kind
    _check_kind(kind)
    wanted = None if kind == "local" else kind
    chosen = root or (configured if scheme_of(configured) == wanted else None)
    if chosen is None and wanted is not None:
        raise UsageError(
            f"--datastore {kind} does not say where it is",
            f"add --datastore-root {kind}://bucket/prefix, or set FLOWKIT_DATASTORE",
        )
    if chosen is not None and scheme_of(chosen) != wanted:
        shown = f"{wanted}://bucket/prefix" if wanted else "a folder"
        raise UsageError(f"--datastore {kind} needs a root of that kind, not {chosen}", f"give {shown}")
    return chosen


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
    UsageError
        If a URL's scheme names no storage.
    StoreError
        If it cannot be made.
    """
    spec = spec or settings().datastore
    scheme = scheme_of(spec)
    if spec and scheme:
        kind = storage_class(scheme)
        opened: Storage = kind(spec)  # type: ignore[call-arg]
        return opened
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


def cache_folder() -> str:
    """Return the user's folder for what can be fetched or made again: the setting ``cache``, or the usual place."""
    configured = settings().cache
    if configured and configured != "off":
        return os.path.abspath(os.path.expanduser(configured))
    base = variable("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "flowkit")


def machine_folder(storage: Storage) -> str:
    """Return the folder of this machine for what belongs to a root and is no part of it: index, processes, spool.

    For a local root it is the root itself; for a remote one a folder in the user's cache, one for each root (and
    endpoint, since two services may have a bucket of the same name). It may not exist yet.
    """
    if not storage.remote:
        return storage.root
    import hashlib

    endpoint = settings().s3_endpoint_url or variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL") or ""
    digest = hashlib.sha256(f"{storage.root.rstrip('/')}\n{endpoint}".encode()).hexdigest()[:16]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in storage.root)
    return os.path.join(cache_folder(), "roots", f"{'-'.join(filter(None, name.split('-')))[:60]}-{digest}")


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
