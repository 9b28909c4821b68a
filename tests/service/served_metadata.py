"""A metadata store as a client sees it: over HTTP, from a service that is served by a thread of the tests."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import uvicorn

from flowkit.metadata.records import Record, RunRecord
from flowkit.metadata.service import ServiceMetadata
from flowkit.metadata_service.app import make_app
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.server import Server

_KEPT = ("facts", "schema_version", "sqlite_sequence", "service_facts")


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    database.execute("PRAGMA synchronous = OFF")
    return database


class ServedService:
    """A service on SQLite in a folder, served by a thread."""

    def __init__(self, folder: Path) -> None:
        self._ends = ExitStack()
        listener = self._ends.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        configuration = Configuration(database=f"sqlite:///{folder}", port=port, access_log=False)
        self.service = self._ends.enter_context(Server(configuration).running())
        server = uvicorn.Server(uvicorn.Config(make_app(self.service), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join()

        self._ends.callback(end)
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.001)
        self.url = f"http://127.0.0.1:{port}"
        self.database = folder / "service.db"

    def empty(self) -> None:
        """Forget everything that tests have written."""
        with closing(_opened(self.database)) as database, database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                if name not in _KEPT:
                    database.execute(f"DELETE FROM {name}")

    def close(self) -> None:
        """End the service."""
        self._ends.close()


class ServedMetadata(ServiceMetadata):
    """A client of a service whose clock says what a test wants: heartbeats are as old as the test says."""

    def __init__(self, served: ServedService) -> None:
        super().__init__(served.url)
        self._database = served.database

    def write(self, records: Sequence[Record]) -> None:
        """Write records over HTTP, then set the heartbeats that they tell."""
        runs = [record for record in records if isinstance(record, RunRecord)]
        with closing(_opened(self._database)) as database:
            known = set(database.execute("SELECT flow, run FROM runs"))
        super().write(records)
        self._set(
            (record.heartbeat, record.flow, record.run)
            for record in runs
            if record.heartbeat is not None or (record.flow, record.run) not in known
        )

    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Send a heartbeat, then set it to when the test says."""
        super().heartbeat(flow, run, when)
        self._set([(when, flow, run)])

    def _set(self, heartbeats: Iterable[tuple[float | None, str, str]]) -> None:
        with closing(_opened(self._database)) as database, database:
            database.executemany("UPDATE runs SET heartbeat = ? WHERE flow = ? AND run = ?", heartbeats)


@pytest.fixture(scope="session", name="served_service")
def served_service_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedService]:
    """A service, served by a thread; to be emptied before it is used."""
    made = ServedService(tmp_path_factory.mktemp("served"))
    yield made
    made.close()
