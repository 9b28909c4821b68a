"""Flows whose steps run on Kubernetes: the real client, a loopback API whose pods are processes, S3 by moto."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

FAN = """
    import os

    from flowkit import FlowSpec, kubernetes, retry, step


    class Fan(FlowSpec):
        @step
        def start(self):
            self.items = list(range(5))
            self.next(self.each, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @kubernetes(secrets=["db"], memory=500, image="registry.example.com/fan:3")
        @step
        def each(self):
            from flowkit import current

            print("item", self.input)
            if self.input == 3 and current.retry_count == 0:
                raise ValueError("made to fail")
            self.square = self.input**2
            self.known = len(os.environ["TOKEN"])
            self.next(self.join)

        @step
        def join(self, inputs):
            self.squares = [task.square for task in inputs]
            self.known = {task.known for task in inputs}
            self.next(self.end)

        @step
        def end(self):
            print("squares", self.squares, self.known)


    if __name__ == "__main__":
        Fan()
"""


def test_a_foreach_of_five_is_one_indexed_job(cluster, kubernetes_api) -> None:
    token = base64.b64encode(b"open-sesame-1").decode()
    kubernetes_api.put("secrets", {"metadata": {"name": "db", "namespace": "default"}, "data": {"TOKEN": token}})
    cluster.write("flow.py", FAN)
    done = cluster.run("run", "--with", "kubernetes", check=True)
    assert "squares [0, 1, 4, 9, 16] {13}" in done.stdout
    assert "made to fail" in done.output
    jobs = kubernetes_api.store.items("jobs")
    assert sorted(job["spec"]["completions"] for job in jobs) == [1, 1, 1, 1, 5], "only what failed was submitted again"
    assert kubernetes_api.requests["POST jobs"] == 5
    assert {job["metadata"]["labels"]["flowkit/user"] for job in jobs} == {"tester"}
    assert "open-sesame" not in str(jobs)
    assert cluster.run("logs", "1/each/4", check=True).stdout == "item 4\n"
    assert "4/each" not in cluster.run("kubernetes", "list", check=True).stdout


ONE = """
    import os
    import time

    from flowkit import FlowSpec, current, kubernetes, step


    class One(FlowSpec):
        @kubernetes({attributes})
        @step
        def start(self):
            print("begun", flush=True)
            {body}
            self.attempt = current.retry_count
            self.next(self.end)

        @step
        def end(self):
            print("attempt", self.attempt)


    if __name__ == "__main__":
        One()
"""


def test_the_digits_of_the_tutorial_are_read_on_kubernetes(cluster, kubernetes_api) -> None:
    pytest.importorskip("sklearn")
    flow = (Path(__file__).resolve().parents[3] / "tutorials/08-cloud/flow.py").read_text(encoding="utf-8")
    assert flow.count("    @resources(") == 1
    # The whole flow is carried out there by the foreach of five.
    flow = flow.replace("    @resources(", "    @kubernetes\n    @resources(")
    cluster.write("flow.py", flow.replace("import FlowSpec,", "import FlowSpec, kubernetes,"))
    cluster.run("run", check=True)
    look = """
        import json
        from flowkit import Flow
        data = Flow("CloudFlow").latest_successful_run.data
        print(json.dumps([data.scores, data.places]))
    """
    scores, places = json.loads(cluster.python(look, check=True).stdout)
    assert max(scores.values()) > 0.95
    assert scores.keys() == places.keys()
    assert all(place.startswith("Kubernetes, pod ") for place in places.values())
    completions = sorted(job["spec"]["completions"] for job in kubernetes_api.store.items("jobs"))
    assert completions == [4], "the foreach is one Indexed Job"


def test_a_step_that_takes_too_much_memory(cluster) -> None:
    eat = 'data = [bytes(50_000_000) and b"x" * 50_000_000 for _ in range(40)]; time.sleep(30)'
    cluster.write("flow.py", ONE.format(attributes='memory=400, qos="guaranteed"', body=eat))
    failed = cluster.run("run", check=1)
    assert "memory" in failed.output


def test_an_image_that_does_not_exist(cluster, kubernetes_api) -> None:
    kubernetes_api.set(missing_images="^no/such")
    cluster.write("flow.py", ONE.format(attributes='image="no/such:1"', body="pass"))
    failed = cluster.run("run", check=1)
    assert 'Failed to pull image "no/such:1": not found' in failed.output
    assert kubernetes_api.requests["POST jobs"] == 1, "no retry mends that"


def test_a_task_that_is_evicted_is_started_again_in_the_same_attempt(cluster, kubernetes_api, until) -> None:
    wait = 'time.sleep(0 if os.environ.get("AGAIN") else 60)'
    cluster.write("flow.py", ONE.format(attributes="", body=wait))
    process = cluster.start("run")
    pod = until(lambda: [pod for pod in kubernetes_api.pods() if b"begun" in kubernetes_api.words(pod)])[0]
    kubernetes_api.set(node_environment={**kubernetes_api.controller.knobs.node_environment, "AGAIN": "1"})
    kubernetes_api.evict("default", pod["metadata"]["name"])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "attempt 0" in out
    assert "the machine was reclaimed" in out + err


GANG = """
    from flowkit import FlowSpec, current, kubernetes, parallel, step


    class Gang(FlowSpec):
        @step
        def start(self):
            self.next(self.work, num_parallel=3)

        @kubernetes
        @parallel
        @step
        def work(self):
            gang = current.parallel
            self.seen = (gang.node_index, gang.num_nodes, gang.main_ip)
            self.next(self.join)

        @step
        def join(self, inputs):
            print("nodes", sorted(task.seen[:2] for task in inputs))
            print("main", {task.seen[2] for task in inputs})
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Gang()
"""


def test_a_gang_is_one_job_of_three_nodes(cluster, kubernetes_api) -> None:
    cluster.write("flow.py", GANG)
    done = cluster.run("run", check=True)
    assert "nodes [(0, 3), (1, 3), (2, 3)]" in done.stdout
    assert "main {'127.0.0.1'}" in done.stdout.replace("::1", "127.0.0.1")
    assert len(kubernetes_api.store.items("jobs")) == 1


def test_a_killed_job_is_told_as_deleted_by_somebody(cluster, kubernetes_api, until) -> None:
    cluster.env["FLOWKIT_INFRASTRUCTURE_RETRIES"] = "0"
    cluster.write("flow.py", ONE.format(attributes="", body="time.sleep(60)"))
    process = cluster.start("run")
    until(lambda: [pod for pod in kubernetes_api.pods() if b"begun" in kubernetes_api.words(pod)])
    listed = cluster.run("kubernetes", "list", check=True).stdout
    assert "start" in listed
    cluster.run("kubernetes", "kill", check=True)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, out + err
    assert "deleted" in out + err


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"namespace": "nowhere"}, "the cluster has no namespace 'nowhere'"),
        ({"denied": {"create jobs"}}, "not allowed in the namespace default: create jobs"),
        ({"token": "renewed"}, "does not accept the credentials"),
        ({"unreachable": True}, "does not answer"),
        ({"local": True}, "cannot reach the datastore"),
    ],
)
def test_what_is_wrong_is_told_before_a_run_begins(cluster, kubernetes_api, trouble, words) -> None:
    attributes = f'namespace="{trouble.pop("namespace")}"' if "namespace" in trouble else ""
    cluster.write("flow.py", ONE.format(attributes=attributes, body="pass"))
    if trouble.pop("unreachable", False):
        path = cluster.home / "kubeconfig"
        path.write_text(path.read_text().replace(kubernetes_api.url, "http://127.0.0.1:1"))
    if trouble.pop("local", False):
        del cluster.env["FLOWKIT_DATASTORE"]
    kubernetes_api.set(**trouble)
    failed = cluster.run("run", check=3)
    assert words in failed.output
    assert "Traceback" not in failed.output
    assert kubernetes_api.requests["POST jobs"] == 0


SLOW = """
    import time

    from flowkit import FlowSpec, kubernetes, step


    class Slow(FlowSpec):
        @step
        def start(self):
            self.items = list(range(4))
            self.next(self.each, foreach="items")

        @kubernetes
        @step
        def each(self):
            print("begun", flush=True)
            time.sleep(0 if self.input < 2 else 8)
            self.square = self.input**2
            self.next(self.join)

        @step
        def join(self, inputs):
            print("squares", [task.square for task in inputs])
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Slow()
"""


def test_a_run_whose_client_was_killed_is_taken_over_and_nothing_is_submitted_twice(
    cluster, kubernetes_api, until
) -> None:
    cluster.env["FLOWKIT_LEASE_SECONDS"] = "3"
    cluster.write("flow.py", SLOW)
    process = cluster.start("run")
    until(lambda: sum(pod["status"]["phase"] == "Succeeded" for pod in kubernetes_api.pods()) == 2)
    process.kill()
    process.communicate()
    done = cluster.run("resume", "--reattach", check=True)
    assert "squares [0, 1, 4, 9]" in done.stdout
    assert kubernetes_api.requests["POST jobs"] == 1
    assert len(kubernetes_api.pods()) == 4
