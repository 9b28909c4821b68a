"""What the operating system tells about a database file: the kind of its file system, and who holds a lock on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs"),
        *("ocfs2", "gfs2", "davfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone"),
        *("fuse.ceph-fuse", "fuse.davfs2", "fuse.beegfs", "fuse.mount-s3"),
    )
)


def network_file_system(folder: str, mounts: str = "/proc/mounts") -> str | None:
    """Return the kind of the network file system that a folder is on; None for a local one, or where none can tell."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split(" ") for line in file]
    except OSError:
        return None
    folder = os.path.realpath(folder)
    best, kind = -1, ""
    for fields in lines:
        if len(fields) < 3:
            continue
        point = _unescaped(fields[1])
        if len(point) >= best and (folder + "/").startswith(point.rstrip("/") + "/"):
            best, kind = len(point), fields[2]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def lock_holder(database: str) -> str | None:
    """Return the process that holds a write lock on an SQLite database, as text; None where nobody can tell."""
    files = set()
    for path in (database, f"{database}-shm"):
        try:
            found = os.stat(path)
            files.add(f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}")
        except OSError:
            pass
    try:
        with open("/proc/locks", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return None
    for row in rows:
        if "->" not in row and len(row) >= 6 and row[3] == "WRITE" and row[5] in files:
            return _process_text(row[4])
    return None


@contextmanager
def only_one(folder: str) -> Iterator[bool]:
    """Let one process at a time in (a lock on the folder itself leaves no file behind).

    Gives False where the file system cannot: some network file systems lock files only.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _process_text(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read(200).replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        command = ""
    return f"process {pid} ({command})" if command else f"process {pid}"


def _unescaped(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
