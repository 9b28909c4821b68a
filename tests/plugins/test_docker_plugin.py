"""What @docker checks and makes without a daemon; with one: tests/e2e."""

from __future__ import annotations

import os
import stat

import docker
import pytest

from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import UsageError
from flowkit.plugins.docker.backend import DockerBackend
from flowkit.plugins.docker.credentials import Credentials
from flowkit.plugins.docker.documents import Host, Secrets, container_options, image_of, run_key
from flowkit.runtime.backend import BackendError, RemoteRun, Submission

RUN = RemoteRun("Flow", "12", "me", "/data/.flowkit")


def options(resources=None, run=RUN, gang=0, index=1, host=None, environment=None, secrets=None):
    """The container of a submission."""
    request = ExecutorRequest("docker", resources or {}, False, {"MINE": "1", "FLOWKIT_USER": "mine"})
    given = {"FLOWKIT_USER": "me", **(environment or {})}
    submission = Submission("fk-name", "train", 3, gang, request, ["python", "-c", "x"], given, 60.0)
    api = docker.APIClient(version="1.41")
    try:
        return container_options(api, run, submission, index, 5.0, host or Host(), secrets or Secrets())
    finally:
        api.close()


def test_a_container_has_the_row_the_root_and_the_user() -> None:
    made = options({"image": "team/x:3", "executable": "python"})
    assert (made["image"], made["name"], made["entrypoint"]) == ("team/x:3", "fk-name-1", [])
    assert made["host_config"]["Binds"] == ["/data/.flowkit:/data/.flowkit"]
    assert made["user"] == f"{os.getuid()}:{os.getgid()}"
    assert made["environment"]["FLOWKIT_ROW"] == "1"
    assert made["environment"]["MINE"] == "1"
    assert made["environment"]["FLOWKIT_USER"] == "me"
    labels = made["labels"]
    assert labels["flowkit.run-key"] == run_key(RUN) != run_key(RUN._replace(root="/other"))
    assert (labels["flowkit.step"], labels["flowkit.count"], labels["flowkit.timeout"]) == ("train", "3", "60")
    assert all(name not in made["host_config"] for name in ("Memory", "NanoCpus", "ShmSize", "DeviceRequests"))


def test_what_is_asked_for_is_given() -> None:
    wanted = {"memory": 500, "cpu": 0.5, "shared_memory": 64, "gpu": 2, "volumes": ["/a:/b:ro"], "network": "mine"}
    host = options(wanted)["host_config"]
    assert (host["Memory"], host["NanoCpus"], host["ShmSize"]) == (500 << 20, 500_000_000, 64 << 20)
    assert host["DeviceRequests"][0]["Count"] == 2
    assert host["Binds"] == ["/a:/b:ro", "/data/.flowkit:/data/.flowkit"]
    assert host["NetworkMode"] == "mine"
    assert options({"cpu": 10_000})["host_config"]["NanoCpus"] == (os.cpu_count() or 1) * 1_000_000_000


def test_a_node_of_a_gang_is_on_this_machines_network() -> None:
    made = options(gang=4, index=3)
    assert made["environment"]["FLOWKIT_ROW"] == "0"
    assert made["environment"]["FLOWKIT_NODE"] == "3"
    assert made["host_config"]["NetworkMode"] == "host"
    assert made["labels"]["flowkit.count"] == "4"


def test_daemons_that_map_users_are_told_apart() -> None:
    assert options(host=Host(rootless=True))["user"] == "0:0"
    assert options(host=Host(remapped=True))["host_config"]["UsernsMode"] == "host"
    assert options({"user": "app"})["environment"]["HOME"] == "/tmp"
    assert "HOME" not in options({"user": "root"})["environment"]


def test_a_root_that_cannot_be_mounted_is_told() -> None:
    with pytest.raises(UsageError, match="colon"):
        options(run=RUN._replace(root="/with:colon"))
    assert options(run=RUN._replace(root="s3://bucket/x"))["host_config"].get("Binds", []) == []


def test_credentials_are_files_and_never_values(workspace, monkeypatch) -> None:
    workspace.client()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    credentials = Credentials("key")
    given = credentials.offer()
    assert "very-secret" not in repr(given)
    folder = given.binds[0].partition(":")[0]
    path = os.path.join(folder, "credentials")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    with open(path, encoding="utf-8") as file:
        assert "aws_secret_access_key = very-secret" in file.read()
    made = options(run=RUN._replace(root="s3://bucket/x"), secrets=given)
    assert "very-secret" not in repr(made)
    assert made["environment"]["AWS_SHARED_CREDENTIALS_FILE"] == "/run/flowkit-aws/credentials"
    credentials.withdraw()
    assert not os.path.exists(folder)


def test_the_users_own_files_are_mounted_as_they_are(workspace, monkeypatch) -> None:
    workspace.client()
    file = workspace.write("aws/credentials", "[work]\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "work")
    given = Credentials("key").offer()
    assert given.binds == (f"{file}:/run/flowkit-aws/credentials:ro",)
    assert dict(given.environment)["AWS_PROFILE"] == "work"


def test_no_daemon_is_one_problem_for_all_steps(monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    backend = DockerBackend(None)
    (problem,) = backend.preflight({"train": ExecutorRequest("docker"), "score": ExecutorRequest("docker")})
    assert problem.headline.startswith("'train', 'score': the Docker daemon does not answer")
    with pytest.raises(BackendError) as caught:
        backend.jobs()
    assert caught.value.transient
    backend.close()


def test_the_image_is_the_steps_or_the_settings(monkeypatch) -> None:
    from flowkit.settings import settings

    assert image_of({}).startswith("python:3.")
    monkeypatch.setenv("FLOWKIT_CONTAINER_IMAGE", "team/base:1")
    settings(reload=True)
    assert (image_of({}), image_of({"image": "other"})) == ("team/base:1", "other")
    monkeypatch.undo()
    settings(reload=True)


def test_attributes_are_checked_before_anything_starts(workspace) -> None:
    workspace.write(
        "flow.py",
        """
        from flowkit import FlowSpec, docker, step

        class Wrong(FlowSpec):
            @docker(cpu=0, memory=2, gpu=1.5, image="two words", volumes=["relative:/x", 7], user="")
            @step
            def start(self):
                self.next(self.end)

            @step
            def end(self):
                pass

        if __name__ == "__main__":
            Wrong()
        """,
    )
    said = workspace.run("check", check=3)
    text = said.stdout + said.stderr
    for part in ("cpu=0", "memory=2", "gpu=1.5", "image='two words'", "'relative:/x'", "7 must be a text", "user=''"):
        assert part in text
    assert "flow.py:" in text
