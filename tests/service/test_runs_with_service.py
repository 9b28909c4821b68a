"""Runs that a metadata service records: the real command against the real service, which may be away, or no service."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata_service.databases import open_store

FLOW = """
from flowkit import FlowSpec, Parameter, step, current, Run


class SumFlow(FlowSpec):
    fail = Parameter("fail", default=False, type=bool)
    width = Parameter("width", default=3)
    look = Parameter("look", default=False, type=bool)

    @step
    def start(self):
        self.items = list(range(self.width))
        self.next(self.square, foreach="items")

    @step
    def square(self):
        if self.fail and self.input == 2:
            raise ValueError("not today")
        self.result = self.input ** 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.result for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        if self.look:
            print("own run:", Run(f"{current.flow_name}/{current.run_id}").id)


if __name__ == "__main__":
    SumFlow()
"""

GATED = """
import pathlib, time
from flowkit import FlowSpec, step


def wait(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)


class GatedFlow(FlowSpec):
    @step
    def start(self):
        self.items = list(range(20))
        self.next(self.first)

    @step
    def first(self):
        wait("first")
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.result = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        wait("join")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    GatedFlow()
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service for the tests that need one that works."""
    with ServiceProcess(tmp_path_factory.mktemp("service")) as made:
        yield made


@pytest.fixture
def use(workspace: Any) -> Callable[[str], None]:
    """Have what is run in the workspace recorded by a service."""

    def set_service(url: str) -> None:
        workspace.env.update(FLOWKIT_METADATA="service", FLOWKIT_SERVICE_URL=url)

    return set_service


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def queued(workspace: Any) -> str:
    """Everything that waits for a service."""
    files = (workspace.home / ".local/state/flowkit/service").glob("*/*/*.jsonl")
    return "".join(file.read_text() for file in files if file.exists())


def recorded(folder: Path, flow: str, run: str) -> dict[tuple[str, str], str]:
    """The tasks of a run, and their states, as the database of a service has them."""
    store = open_store(str(folder))
    try:
        return {(task.step, task.task): task.state for task in store.tasks(flow, run)}
    finally:
        store.close()


def gated_tasks() -> dict[tuple[str, str], str]:
    single = ("_parameters", "start", "first", "join", "end")
    names = [*((step, "0") for step in single), *(("work", str(place)) for place in range(20))]
    return dict.fromkeys(names, "succeeded")


def test_a_run_is_recorded_resumed_tagged_and_read(workspace: Any, service: ServiceProcess, use: Any) -> None:
    use(service.url)
    workspace.write("flow.py", FLOW)
    failed = workspace.run("run", "--fail", "true", "--look", "true", "--tag", "mine", check=1)
    assert "run-id 1" in failed.output
    resumed = workspace.run("resume", "--fail", "false", check=0)
    assert "own run: 2" in resumed.output
    assert not list(workspace.path.rglob("metadata.db"))
    listed = workspace.run("status", check=0)
    assert "succeeded" in listed.stdout
    assert "failed" in listed.stdout
    workspace.run("tag", "add", "--run-id", "2", "good", check=0)

    workspace.env.update(FLOWKIT_SERVICE_TOKEN="not-asked-for")
    shown = workspace.python(
        """
        from flowkit import Flow, Run, Task, get_metadata, metadata, namespace
        print(get_metadata().startswith("service@http://127.0.0.1:"))
        run = Flow("SumFlow").latest_run
        print(run.id, run.status, run.data.total, sorted(run.user_tags), run.origin_pathspec)
        print([step.id for step in run], [task.id for task in run["square"]])
        print(Task("SumFlow/2/square/1").data.result, Run("SumFlow/1").status)
        namespace("user:nobody")
        try:
            Flow("SumFlow")
        except Exception as error:
            print(type(error).__name__)
        """,
        check=0,
    )
    lines = shown.stdout.splitlines()
    assert lines[0] == "True"
    assert lines[1] == "2 succeeded 5 ['good'] SumFlow/1"
    assert lines[2] == "['end', 'join', 'square', 'start'] ['2', '1', '0']"
    assert lines[3:] == ["1 failed", "NamespaceMismatch"]
    # The datastore has its own copy of the tags, from which an index can be made anew.
    assert "good" in next(workspace.path.rglob("flows/SumFlow/2/tags.json")).read_text()


def test_what_tasks_made_and_read_is_indexed(workspace: Any, service: ServiceProcess, use: Any) -> None:
    use(service.url)
    workspace.write("flow.py", FLOW.replace("SumFlow", "LineageFlow"))
    workspace.run("run", check=0)
    workspace.run("resume", "join", check=0)
    import requests

    def ask(path: str) -> Any:
        return requests.get(f"{service.url}/v1{path}", timeout=DEADLINE).json()

    [total] = [
        each for each in ask("/flows/LineageFlow/runs/1/artifacts?step=join")["items"] if each["name"] == "total"
    ]
    assert total["type"] == "int"
    assert total["key"]
    items = ask("/flows/LineageFlow/runs/2/artifacts?limit=1000")["items"]
    assert {each["step"] for each in items} == {"_parameters", "start", "square", "join", "end"}
    results = {each["key"] for each in items if each["name"] == "result" and each["step"] == "square"}
    edges = ask("/flows/LineageFlow/runs/2/lineage")["items"]
    assert results == {edge["key"] for edge in edges if edge["step"] == "join" and edge["name"] == "result"}


def test_a_wide_foreach_is_a_handful_of_requests(workspace: Any, service: ServiceProcess, use: Any) -> None:
    use(service.url)
    workspace.write("flow.py", FLOW.replace("SumFlow", "WideFlow"))
    before = len(service.log)
    workspace.run("run", "--width", "100", check=0)

    def writes() -> list[Any]:
        lines = [line for line in service.log[before:] if line.get("method") == "POST"]
        return [line for line in lines if line.get("path") == "/v1/records"]

    # A few a second at most, however long a loaded machine takes.
    store_calls = len(writes())
    run = workspace.python(
        "from flowkit import Flow; r = Flow('WideFlow').latest_run; "
        "print((r.finished_at - r.created_at).total_seconds(), len(list(r['square'])))",
        check=0,
    )
    seconds, width = run.stdout.split()
    assert width == "100"
    assert store_calls <= 4 * float(seconds) + 4


def test_a_service_that_dies_meanwhile_gets_everything_once_and_in_order(workspace: Any, use: Any) -> None:
    folder = workspace.home / "service"
    folder.mkdir()
    port = free_port()
    workspace.write("flow.py", GATED)
    options = ("--port", port, "--database", folder / "database")
    with ServiceProcess(folder, *options) as first:
        use(first.url)
        run = workspace.start("run")
        wait_for(lambda: recorded(folder / "database", "GatedFlow", "1").get(("first", "0")) == "running")
        first.stop(signal.SIGKILL)
    (workspace.path / "first").touch()
    wait_for(lambda: len([line for line in queued(workspace).splitlines() if '"work"' in line]) >= 20)
    with ServiceProcess(folder, *options):
        (workspace.path / "join").touch()
        output = "".join(run.communicate(timeout=DEADLINE))
        assert run.returncode == 0, output
        if "flowkit metadata push" in output:  # it ended before it tried again
            workspace.flowkit("metadata", "push", check=0)
    assert "cannot be reached" in output
    assert recorded(folder / "database", "GatedFlow", "1") == gated_tasks()
    store = open_store(str(folder / "database"))
    try:
        record = store.run("GatedFlow", "1")
        assert record is not None
        assert record.state == "succeeded"
        events = store.events_after(0, 10_000)
    finally:
        store.close()
    ended = Counter((event.step, event.task) for event in events if event.data.get("state") == "succeeded")
    assert set(ended.values()) == {1}
    places = {(event.step, event.task): place for place, event in enumerate(events)}
    assert places["first", "0"] < places["work", "0"] < places["end", "0"]
    assert queued(workspace) == ""


def test_a_run_without_a_service_is_pushed_later(workspace: Any, use: Any) -> None:
    port = free_port()
    use(f"http://127.0.0.1:{port}")
    workspace.write("flow.py", FLOW)
    run = workspace.run("run", check=0)
    assert "cannot be reached" in run.output
    assert "flowkit metadata push" in run.output
    workspace.run("run", check=0)
    assert run.output.count("cannot be reached") == 1  # said once, though it is tried again and again
    nothing = workspace.flowkit("metadata", "push", check=5)
    assert "cannot be reached" in nothing.stderr

    folder = workspace.home / "service"
    folder.mkdir()
    with ServiceProcess(folder, "--port", port, "--database", folder / "database"):
        pushed = [workspace.start("metadata", "push", flow="-mflowkit") for _ in range(2)]
        outputs = [process.communicate(timeout=DEADLINE) for process in pushed]
        assert [process.returncode for process in pushed] == [0, 0], outputs
        told = "".join(stdout + stderr for stdout, stderr in outputs)
        assert "SumFlow/1: " in told
        assert "SumFlow/2: " in told
        again = workspace.flowkit("metadata", "push", check=0)
        assert "Nothing waits" in again.output
        third = workspace.run("run", check=0)
        assert "run-id 3" in third.output
    for number in ("1", "2", "3"):
        found = recorded(folder / "database", "SumFlow", number)
        assert len(found) == 7
        assert set(found.values()) == {"succeeded"}


def test_what_waits_for_an_address_that_was_a_mistake_can_be_dropped(
    workspace: Any, service: ServiceProcess, use: Any
) -> None:
    wrong = f"{service.url}/nowhere"
    use(wrong)
    workspace.write("flow.py", FLOW.replace("SumFlow", "LostFlow"))
    run = workspace.run("run", check=0)
    assert "is FLOWKIT_SERVICE_URL right" in run.output
    assert "flowkit metadata push" in run.output  # nothing was taken for something that the service refuses
    use(service.url)
    still = workspace.flowkit("metadata", "push", check=5)
    assert f"flowkit metadata push --forget {wrong}" in still.stderr
    workspace.flowkit("metadata", "rebuild", check=0)
    dropped = workspace.flowkit("metadata", "push", "--forget", wrong, check=0)
    assert "LostFlow/1: 1" in dropped.output
    assert "Nothing waits" in workspace.flowkit("metadata", "push", check=0).output
    assert "Nothing waits" in workspace.flowkit("metadata", "push", "--forget", wrong, check=0).output
    assert "succeeded" in workspace.run("status", "1", check=0).stdout


def test_what_waits_of_a_run_that_was_removed_does_not_come_back(workspace: Any, use: Any) -> None:
    port = free_port()
    use(f"http://127.0.0.1:{port}")
    workspace.write("flow.py", FLOW)
    for _ in range(2):
        workspace.run("run", check=0)
    elsewhere = {"FLOWKIT_DATASTORE": str(workspace.path / "elsewhere")}
    workspace.run("run", env=elsewhere, check=0)  # another run 1
    folder = workspace.home / "service"
    folder.mkdir()
    with ServiceProcess(folder, "--port", port, "--database", folder / "database"):
        workspace.flowkit("gc", "--keep", 1, "--yes", check=0)
        pushed = workspace.flowkit("metadata", "push", check=0).output
    assert pushed.count("SumFlow/1: ") == 1  # that of the other datastore
    assert pushed.count("SumFlow/2: ") == 1


def test_what_a_killed_runtime_left_is_pushed_and_rebuilt(workspace: Any, use: Any) -> None:
    port = free_port()
    use(f"http://127.0.0.1:{port}")
    workspace.write("flow.py", GATED)
    run = workspace.start("run")
    wait_for(lambda: '"step":"first"' in queued(workspace))
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=DEADLINE)
    folder = workspace.home / "service"
    folder.mkdir()
    with ServiceProcess(folder, "--port", port, "--database", folder / "database"):
        workspace.flowkit("metadata", "push", check=0)
        shown = workspace.run("status", "1", check=0)
        assert "lost" in shown.output
        assert recorded(folder / "database", "GatedFlow", "1")["start", "0"] == "succeeded"
        (workspace.path / "first").touch()
        (workspace.path / "join").touch()
        workspace.run("resume", check=0)
    # Another service, which has seen nothing: the datastore has it all.
    other = workspace.home / "other"
    other.mkdir()
    with ServiceProcess(other, "--port", port, "--database", other / "database"):
        rebuilt = workspace.flowkit("metadata", "rebuild", check=0)
        assert "2 runs" in rebuilt.output
        workspace.flowkit("metadata", "rebuild", check=0)
    assert recorded(other / "database", "GatedFlow", "2") == gated_tasks()


@pytest.mark.parametrize("answer", [b"", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"])
def test_what_is_no_service_stops_no_run(workspace: Any, use: Any, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                taken.append(connection)
                if answer:
                    connection.recv(65_536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            use(f"http://127.0.0.1:{listener.getsockname()[1]}")
            workspace.write("flow.py", FLOW)
            run = workspace.run("run", check=0)
            assert "flowkit metadata push" in run.output
            assert len(queued(workspace).splitlines()) > 7
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


def test_a_token_that_is_not_good_is_said_and_never_shown(workspace: Any, use: Any, tmp_path: Path) -> None:
    with ServiceProcess(tmp_path, "--authentication") as guarded:
        use(guarded.url)
        workspace.env["FLOWKIT_SERVICE_TOKEN"] = "fk_secret0_doNotShowThis"
        workspace.write("flow.py", FLOW)
        run = workspace.run("run", check=0)
        assert "refuses" in run.output
        status = workspace.run("status", check=5)
        pushed = workspace.flowkit("metadata", "push", check=5)
        told = run.output + status.output + pushed.output + guarded.stderr + queued(workspace)
        assert "doNotShowThis" not in told
        assert "FLOWKIT_SERVICE_TOKEN" in status.stderr or "token" in status.stderr


def test_runs_of_another_datastore_are_listed_and_say_where_their_artifacts_are(
    workspace: Any, service: ServiceProcess, use: Any
) -> None:
    use(service.url)
    workspace.write("there/flow.py", FLOW.replace("SumFlow", "FarFlow"))
    workspace.run(
        "run", flow="there/flow.py", check=0, env={"FLOWKIT_DATASTORE": str(workspace.path / "there/.flowkit")}
    )
    shown = workspace.python(
        """
        from flowkit import Flow
        run = Flow("FarFlow").latest_run
        print(run.status, run.successful, [(t.id, t.finished, t.finished_at is not None) for t in run["join"]])
        try:
            run["join"].task.data.total
        except Exception as error:
            print(type(error).__name__, "FLOWKIT_DATASTORE" in str(error))
        """,
        check=0,
    )
    assert shown.stdout.splitlines() == ["succeeded True [('0', True, True)]", "DataError True"]
    listed = workspace.flowkit("status", check=0)  # there is no datastore here at all
    assert "FarFlow" in listed.stdout
    assert "root: none" in listed.stdout


def test_a_run_that_the_service_numbers_apart_is_not_mixed_into_another(
    workspace: Any, service: ServiceProcess, use: Any
) -> None:
    workspace.write("flow.py", FLOW.replace("SumFlow", "MixFlow"))
    use(service.url)
    one, other = ({"FLOWKIT_DATASTORE": str(workspace.path / name)} for name in ("one", "other"))
    workspace.run("run", check=0, env=one)
    workspace.run("run", check=0, env={**other, "FLOWKIT_METADATA": "local"})
    rebuilt = workspace.flowkit("metadata", "rebuild", env=other)
    assert "another run of that number" in rebuilt.output
    again = workspace.run("run", check=0, env=other)
    assert "run-id 2" in again.output
