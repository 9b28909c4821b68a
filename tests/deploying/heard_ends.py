"""A flow whose end is heard of, by its hooks and in a chat: `heard` is whoever hears."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from random_runs import SECONDS

FLOW = """
    from flowkit import *


    def told(run):
        with open("@FILE@", "a") as file:
            file.write(f"{run.pathspec} {run.successful}\\n")


    @exit_hook(on_success=[told], on_error=[told])
    class Ends(FlowSpec):
        fail = Parameter("fail", default=False)

        @step
        def start(self):
            if self.fail:
                raise ValueError("asked for")
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Ends()
"""
NOTIFY = ("--notify-on-error", "--notify-on-success")


class _Chat(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.put(json.loads(body)["text"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Heard:
    """A chat's webhook, and the file into which hooks write."""

    def __init__(self, port: int, told: queue.Queue[str], file: Path) -> None:
        self.url = f"http://127.0.0.1:{port}/hook"
        self.told, self.file = told, file

    def check(self, well: str, badly: str) -> None:
        """Fail where these two runs, and how they ended, were not heard of once each."""
        messages = sorted(self.told.get(timeout=SECONDS) for _ in range(2))
        assert messages[0].startswith((f"{well} succeeded", f"{badly} failed: "))
        assert {message.split(":")[0] for message in messages} == {f"{well} succeeded", f"{badly} failed"}
        deadline = time.monotonic() + SECONDS
        while len(lines := self.file.read_text().splitlines() if self.file.exists() else []) < 2:
            assert time.monotonic() < deadline, lines
            time.sleep(0.05)
        assert sorted(lines) == sorted([f"{well} True", f"{badly} False"])
        assert self.told.empty()


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Heard]:
    """Listen while the context is open."""
    with HTTPServer(("127.0.0.1", 0), _Chat) as server:
        server.told = queue.Queue()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield Heard(server.server_port, server.told, file)  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def written(workspace: Any, heard: Heard) -> Any:
    """Return the workspace with the flow in it."""
    workspace.write("flow.py", FLOW.replace("@FILE@", str(heard.file)))
    return workspace


def started(workspace: Any, target: str, *words: str) -> str:
    """Trigger a run and return its pathspec."""
    file: Path = workspace.path / "run-id"
    workspace.run(target, "trigger", *words, "--run-id-file", file, check=True)
    return f"Ends/{file.read_text().strip().rpartition('/')[2]}"
