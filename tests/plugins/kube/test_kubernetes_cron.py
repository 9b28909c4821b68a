"""Flows deployed as CronJobs: the document, and the story of runs whose client is a pod."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SOURCE = """
    import os
    import time

    from flowkit import FlowSpec, Parameter, current, kubernetes, schedule, step


    @schedule(cron="0 6 ? * MON-FRI *", timezone="Europe/Oslo")
    class NightlyFlow(FlowSpec):
        size = Parameter("size", default=2)
        word = Parameter("word", default="plain")
        gate = Parameter("gate", default="")

        @step
        def start(self):
            self.items = list(range(self.size))
            self.next(self.each, foreach="items")

        @step
        def each(self):
            print("waits", self.input, flush=True)
            while self.gate and not os.path.exists(self.gate):
                time.sleep(0.05)
            self.square = self.input**2
            self.next(self.join)

        @step
        def join(self, inputs):
            self.squares = [task.square for task in inputs]
            self.next(self.end)

        @step
        def end(self):
            self.run = current.run_id
            print("squares", self.squares, self.word, flush=True)


    if __name__ == "__main__":
        NightlyFlow()
"""


@pytest.fixture
def inside(cluster: Any, kubernetes_api: Any) -> Any:
    """A workspace with a cluster whose pods may talk to the cluster, too."""
    known = kubernetes_api.controller.knobs.node_environment
    kubernetes_api.set(node_environment={**known, "KUBECONFIG": cluster.env["KUBECONFIG"]})
    return cluster


def clients(api: Any) -> list[dict[str, Any]]:
    """Return the pods that are or were clients."""
    return list(api.pods("default", "app.kubernetes.io/component=client"))


def waiting(api: Any) -> int:
    """Return how many pods of the foreach have said that they wait."""
    return sum(b"waits" in api.words(pod) for pod in api.pods("default", "flowkit/step=each"))


def living(api: Any) -> list[str]:
    """Return the names of the clients that run."""
    return [pod["metadata"]["name"] for pod in clients(api) if pod["status"]["phase"] == "Running"]


def job(api: Any, run: str) -> dict[str, Any]:
    """Return the Job of a run."""
    found: dict[str, Any] = api.store.get("jobs", "default", run.removeprefix("kubernetes-"))
    return found


def conditions(api: Any, run: str) -> list[str]:
    """Return what a run's Job says about its end."""
    return [item["type"] for item in (job(api, run).get("status") or {}).get("conditions") or ()]


def test_a_client_that_is_killed_is_started_again_and_goes_on(
    inside: Any, kubernetes_api: Any, until: Any, tmp_path: Path
) -> None:
    inside.write("flow.py", SOURCE)
    api, gate = kubernetes_api, tmp_path / "gate"
    made = inside.run("kubernetes", "create", "--memory", 700, check=True)
    assert "CronJob nightlyflow" in made.output
    assert "0 6 * * 1-5 (Europe/Oslo)" in made.output
    odd = "$(HOME) $$ ä"
    begun = inside.run("kubernetes", "trigger", "--word", odd, "--gate", gate, check=True)
    run = next(word.strip(".") for word in begun.output.split() if word.startswith("kubernetes-nightlyflow-"))
    until(lambda: waiting(api) == 2)
    [first] = living(api)
    api.kill("default", first)
    until(lambda: living(api) and living(api) != [first])
    second = api.store.get("pods", "default", living(api)[0])
    until(lambda: b"goes on" in api.words(second))
    assert [item["spec"]["completions"] for item in api.store.items("jobs", "default", "flowkit/step=each")] == [2]
    gate.touch()
    until(lambda: conditions(api, run))
    assert conditions(api, run) == ["Complete"], [api.words(pod) for pod in clients(api)]
    assert job(api, run)["status"]["failed"] == 1
    assert f"squares [0, 1] {odd}".encode() in api.words(second)
    assert inside.run("kubernetes", "status", run, check=True).stdout.count("succeeded") >= 1


@pytest.mark.deploying
def test_a_client_whose_machine_is_drained_leaves_its_run_to_the_next(
    inside: Any, kubernetes_api: Any, until: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    inside.write("flow.py", SOURCE.replace('default=""', f'default="{gate}"'))
    api = kubernetes_api
    inside.run("kubernetes", "create", check=True)
    run = f"kubernetes-{api.fire('default', 'nightlyflow')}"
    until(lambda: waiting(api) == 2)
    [first] = living(api)
    api.evict("default", first)
    until(lambda: living(api) and living(api) != [first])
    second = api.store.get("pods", "default", living(api)[0])
    until(lambda: b"goes on" in api.words(second))
    assert len(api.store.items("jobs", "default", "flowkit/step=each")) == 1, "its jobs went on"
    gate.touch()
    until(lambda: conditions(api, run))
    assert conditions(api, run) == ["Complete"], [api.words(pod) for pod in clients(api)]
    assert job(api, run)["status"]["failed"] == 0, "who was drained has not failed"
    told = inside.python(
        f"""
        from flowkit import Run, namespace
        namespace(None)
        run = Run("NightlyFlow/{run}")
        print(run.successful, run.data.squares, run.data.run, len(list(run["each"])))
        """,
        check=True,
    )
    assert told.stdout.splitlines()[0] == f"True [0, 1] {run} 2"


@pytest.mark.deploying
def test_firings_replace_each_other_and_a_terminated_run_ends_with_its_jobs(
    inside: Any, kubernetes_api: Any, until: Any, tmp_path: Path
) -> None:
    inside.write("flow.py", SOURCE.replace('default=""', f'default="{tmp_path}/never"'))
    api = kubernetes_api
    inside.run("kubernetes", "create", "--concurrency", "replace", check=True)
    first = f"kubernetes-{api.fire('default', 'nightlyflow', at=1_800_000_000)}"
    until(lambda: waiting(api) == 2)
    second = f"kubernetes-{api.fire('default', 'nightlyflow', at=1_800_000_060)}"
    until(lambda: "cancelled" in inside.run("status", first).stdout)
    until(lambda: waiting(api) == 2 and len(living(api)) == 1)
    inside.run("kubernetes", "terminate", second, check=True)
    until(lambda: conditions(api, second)[-1:] == ["Failed"])
    listed = inside.run("kubernetes", "list-runs", check=True).stdout
    assert "cancelled" in next(line for line in listed.splitlines() if second in line)
    assert "cancelled" in inside.run("status", second, check=True).stdout
    running = [pod for pod in api.pods("default", "flowkit/step=each") if pod["status"]["phase"] == "Running"]
    assert running == []
    inside.run("kubernetes", "delete", check=True)
    assert api.store.items("cronjobs") == []
    assert job(api, second), "its runs stay where they are"


@pytest.mark.deploying
def test_a_run_that_fails_is_not_started_again(inside: Any, kubernetes_api: Any, until: Any) -> None:
    inside.write("flow.py", SOURCE.replace("self.input**2", "1 / self.input"))
    api = kubernetes_api
    inside.run("kubernetes", "create", check=True)
    run = f"kubernetes-{api.fire('default', 'nightlyflow')}"
    until(lambda: "Failed" in conditions(api, run))
    assert len(clients(api)) == 1
    assert "ZeroDivisionError" in inside.run("status", run).output
    told = inside.run("kubernetes", "list-runs", "--json", check=True)
    assert json.loads(told.stdout)
