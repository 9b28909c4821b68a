"""Where DAG files are put, found and removed; and Airflow's REST API of version 1, as far as it is used."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from deployments import deployment_of

from flowkit.deployer.target import DeploymentRecord, ParameterPlan
from flowkit.exceptions import Conflict, FlowkitError, NotFound, UsageError
from flowkit.plugins.airflow.places import place
from flowkit.plugins.airflow.rest import Rest, run_of
from flowkit.plugins.airflow.target import Airflow

FLOW = """
class Small(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def given(file: Path | str) -> dict[str, Any]:
    return {**{option.name: option.default for option in Airflow.options}, "executor": "local", "file": str(file)}


def test_a_file_of_its_own_or_one_in_the_dag_folder(tmp_path: Path) -> None:
    assert str(place(f"{tmp_path}/x/dag.py", "n")) == f"{tmp_path}/x/dag.py"
    assert str(place(f"{tmp_path}/x", "n")) == str(place(f"{tmp_path}/x/", "n")) == f"{tmp_path}/x/n.py"
    (tmp_path / "odd.py").mkdir()
    assert str(place(f"{tmp_path}/odd.py", "n")) == f"{tmp_path}/odd.py/n.py"
    assert str(place("s3://bucket/a/b", "n")) == "s3://bucket/a/b/n.py"
    assert str(place("s3://bucket/a/f.py", "n")) == "s3://bucket/a/f.py"
    assert str(place("s3://bucket", "n")) == "s3://bucket/n.py"
    with pytest.raises(UsageError):
        place("gs://bucket/a", "n")


def test_a_deployment_is_written_found_replaced_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "dags"
    target = Airflow(given(folder))
    first, second = (deployment_of(FLOW, target, root=str(tmp_path), name=name) for name in ("one", "two"))
    assert target.find("one") is None
    assert any(str(folder / "one.py") in line for line in target.apply(first, target.compile(first)))
    assert target.apply(second, target.compile(second))
    record = target.find("one")
    assert record is not None
    assert record.details["file"] == str(folder)
    (folder / "theirs.py").write_text("print('of somebody else')")
    (folder / "broken.py").write_bytes(b"# flowkit-deployment: [1]\n\xff")
    assert [each.name for each in target.deployed("Small")] == ["one", "two"]
    assert target.deployed("Other") == []
    assert sorted(os.listdir(folder)) == ["broken.py", "one.py", "theirs.py", "two.py"], "nothing is left of writing"
    with pytest.raises(Conflict, match="has not made it"):
        Airflow(given(folder / "theirs.py")).find("one")
    with pytest.raises(Conflict, match="the DAG 'two'"):
        Airflow(given(folder / "two.py")).apply(first, "")
    target.delete(record)
    assert target.find("one") is None
    with pytest.raises(NotFound):
        target.delete(record)


def test_where_nothing_says_where_the_file_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Airflow({**given(""), "file": None})
    deployment = deployment_of(FLOW, target, root="/tmp")
    (problem,) = target.preflight(deployment)
    assert "airflow create FILE" in str(problem.hint)
    assert target.find("Small") is None
    assert target.deployed() == []


RECORD = DeploymentRecord("airflow", "The.dag", "Flow", parameters=(ParameterPlan("a-b", "a_b", "text", None, False),))


class Version1(BaseHTTPRequestHandler):
    """Answers as Airflow 2 does."""

    seen: list[tuple[str, str, Any, str]] = []
    runs: list[dict[str, Any]] = []

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.seen.append((self.command, self.path, body, self.headers.get("Authorization", "")))
        status, answer = 200, {}
        path = self.path.partition("?")[0]
        if not path.startswith("/api/v1/dags/The.dag/dagRuns"):
            status, answer = 404, {"detail": "there is no such thing"}
        elif "secret" not in base64.b64decode(self.headers.get("Authorization", "Basic ")[6:]).decode():
            status, answer = 401, {"title": "Unauthorized"}
        elif self.command == "POST":
            answer = {"dag_run_id": body["dag_run_id"], "state": "queued"}
            self.runs.insert(0, answer)
        elif self.command == "GET":
            answer = {"dag_runs": self.runs, "total_entries": len(self.runs)}
        else:
            self.runs[0]["state"] = body["state"]
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = _answer

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Version1.seen, Version1.runs = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Version1)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_runs_on_airflow_2(url: str) -> None:
    rest = Rest(url, "ann", "secret")
    run = rest.trigger(RECORD, {"a_b": '"x"'})
    method, path, body, _ = Version1.seen[-1]
    assert (method, path, body["conf"]) == ("POST", "/api/v1/dags/The.dag/dagRuns", {"a-b": "x"})
    assert run == run_of("The.dag", body["dag_run_id"])
    found = rest.execution(RECORD, run)
    assert found is not None
    assert found.state == "pending"
    rest.terminate(RECORD, run)
    assert [each.state for each in rest.executions(RECORD, 5)] == ["failed"]
    assert rest.execution(RECORD, "airflow-another") is None
    with pytest.raises(NotFound):
        rest.terminate(RECORD, "airflow-another")


def test_refusals_tell_what_to_do_and_no_secret(url: str) -> None:
    with pytest.raises(FlowkitError, match="Unauthorized") as caught:
        Rest(url.replace("//", "//someone:hidden@"), "ann", "wrong").trigger(RECORD, {})
    assert "hidden" not in str(caught.value)
    assert "wrong" not in str(caught.value)
    with pytest.raises(NotFound):
        Rest(url, "ann", "secret").executions(DeploymentRecord("airflow", "another", "Flow"), 5)
    with pytest.raises(FlowkitError, match="cannot be reached"):
        Rest("http://127.0.0.1:9", "ann", "secret").executions(RECORD, 5)


def test_without_an_address_airflows_own_command_is_told() -> None:
    with pytest.raises(UsageError) as caught:
        Airflow(given("dag.py")).trigger(RECORD, {})
    assert "airflow dags trigger The.dag" in str(caught.value.hint)


NIGHTLY = """
    from flowkit import FlowSpec, step


    class Nightly(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Nightly()
"""


def test_a_dag_is_put_into_a_bucket_found_there_and_removed(workspace: Any, moto_endpoint: str) -> None:
    boto3 = pytest.importorskip("boto3")
    account = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
    keys = {"aws_access_key_id": "id", "aws_secret_access_key": "key", "region_name": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=moto_endpoint, **keys)
    bucket = f"dags-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    for name in ("XDG_CACHE_HOME", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        workspace.env.pop(name, None)
    workspace.env.update(account, FLOWKIT_S3_ENDPOINT_URL=moto_endpoint, FLOWKIT_DATASTORE=f"s3://{bucket}/flowkit")
    workspace.write("flow.py", NIGHTLY)

    def dags() -> list[str]:
        return [each["Key"] for each in s3.list_objects_v2(Bucket=bucket, Prefix="dags/").get("Contents", ())]

    workspace.run("airflow", "create", f"s3://{bucket}/dags", check=True)
    assert dags() == ["dags/Nightly.py"]
    compile(s3.get_object(Bucket=bucket, Key=dags()[0])["Body"].read(), "Nightly.py", "exec")
    # No setting says where Airflow's DAGs are: the datastore remembers where this one went.
    (listed,) = json.loads(workspace.run("airflow", "list", "--json", check=True).stdout)
    assert (listed["name"], listed["details"]["file"]) == ("Nightly", f"s3://{bucket}/dags")
    told = workspace.run("airflow", "trigger", "--name", "Nightli")
    assert told.returncode == 4
    assert "Nightly" in told.stderr
    workspace.run("airflow", "delete", check=True)
    assert dags() == []
    assert json.loads(workspace.run("airflow", "list", "--json", check=True).stdout) == []
    s3.close()


def test_an_airflow_that_does_not_answer_is_no_failed_run(workspace: Any, unused_url: str) -> None:
    workspace.write("flow.py", NIGHTLY)
    file = workspace.path / "dags" / "nightly.py"
    workspace.run("airflow", "create", file, "--executor", "local", check=True)
    told = workspace.run("airflow", "trigger", env={"FLOWKIT_AIRFLOW_URL": unused_url})
    assert told.returncode == 5
    assert "cannot be reached" in told.stderr
    # What somebody has removed by hand is not listed, though the datastore remembers it.
    assert [each["name"] for each in json.loads(workspace.run("airflow", "list", "--json").stdout)] == ["Nightly"]
    file.unlink()
    assert json.loads(workspace.run("airflow", "list", "--json", check=True).stdout) == []


@pytest.fixture
def unused_url() -> Iterator[str]:
    """A port that is taken and answers nothing: nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
