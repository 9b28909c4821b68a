"""Flows whose steps run on AWS Batch: moto's Batch and S3 over HTTP, its jobs executed as processes."""

from __future__ import annotations

import json
import signal
import time

import pytest
from batch_account import QUEUE

FAN = """
    import os
    from flowkit import FlowSpec, batch, current, resources, retry, step


    class Fan(FlowSpec):
        @step
        def start(self):
            self.items = list(range(5))
            self.next(self.each, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @resources(memory=3000)
        @batch(cpu=2, memory=1000)
        @step
        def each(self):
            print("item", self.input, "in", os.environ["AWS_BATCH_JQ_NAME"])
            if self.input == 2 and current.retry_count == 0:
                raise ValueError("made to fail once")
            self.square, self.tries = self.input**2, current.retry_count
            self.next(self.join)

        @step
        def join(self, inputs):
            self.squares = [task.square for task in inputs]
            self.tries = [task.tries for task in inputs]
            self.next(self.end)

        @step
        def end(self):
            print("squares", self.squares)
            print("tries", self.tries)


    if __name__ == "__main__":
        Fan()
"""


def wait_until(reached, what: str) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, f"not reached: {what}"
        time.sleep(0.05)


def finished(process) -> str:
    """What a process that was started printed, after its end."""
    out, err = process.communicate(timeout=90)
    return out + err


def test_hello_on_batch(cloud, service) -> None:
    cloud.write(
        "flow.py",
        """
        import os
        from flowkit import FlowSpec, step

        class Hello(FlowSpec):
            @step
            def start(self):
                self.where = os.environ["AWS_BATCH_JOB_ID"]
                self.next(self.end)

            @step
            def end(self):
                print("hello from", self.where)

        if __name__ == "__main__":
            Hello()
        """,
    )
    done = cloud.run("run", "--with", "batch:image=python,memory=512", check=True)
    first, second = service.started
    assert f"hello from {first}" in done.stdout
    sent = service.job(second).sent
    assert sent["tags"]["flowkit.step"] == "end"
    assert sent["jobQueue"] == QUEUE
    assert "testing" not in json.dumps(sent)  # the client's own keys stay with the client


def test_a_foreach_is_one_array_and_only_its_failed_row_is_submitted_again(cloud, service) -> None:
    cloud.write("flow.py", FAN)
    done = cloud.run("run", check=True)
    assert "squares [0, 1, 4, 9, 16]" in done.stdout
    assert "item 4 in flowkit-queue" in done.stdout
    array, single = (job.sent for job in service.jobs()[-2:])
    assert array["arrayProperties"] == {"size": 5}
    assert "arrayProperties" not in single
    needs = service.jobs()[-1].job_definition.container_properties["resourceRequirements"]
    assert {each["type"]: each["value"] for each in needs} == {"VCPU": "2", "MEMORY": "3000"}
    assert service.calls["RegisterJobDefinition"] <= 1
    assert "tries [0, 0, 1, 0, 0]" in done.stdout


ENDINGS = """
    import os, pathlib, signal, time
    from flowkit import FlowSpec, batch, catch, current, step


    class Endings(FlowSpec):
        @step
        def start(self):
            self.fates = ["reclaimed", "deleted", "memory", "timeout", "raise", "killed"]
            self.next(self.each, foreach="fates")

        @catch(var="why", print_exception=False)
        @batch
        @step
        def each(self):
            self.why = None
            folder = pathlib.Path(MARKS)
            mark = folder / f"{self.input}-{os.environ['AWS_BATCH_JOB_ID']}"
            before = len(list(folder.glob(f"{self.input}-*")))
            mark.touch()
            print("half way of", self.input, flush=True)
            if self.input == "raise":
                raise ValueError("the user's own")
            if self.input == "killed":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.input in ("memory", "timeout") or not before:
                time.sleep(60)
            self.done = current.retry_count
            self.next(self.join)

        @step
        def join(self, inputs):
            self.seen = {each.input: (str(each.why), getattr(each, "done", None)) for each in inputs}
            self.next(self.end)

        @step
        def end(self):
            for fate, (why, done) in self.seen.items():
                print("fate", fate, done, why.replace("\\n", " "))


    if __name__ == "__main__":
        Endings()
"""


def test_what_ends_jobs_is_told_apart(cloud, service, tmp_path) -> None:
    """A reclaimed machine and a deleted job are started again as the same attempt; the rest are the task's own ends."""
    marks = tmp_path / "marks"
    marks.mkdir()
    service.parallel = 8
    # Containers have the environment of the job only.
    cloud.write("flow.py", ENDINGS.replace("MARKS", repr(str(marks))))
    process = cloud.start("run")

    def row(fate: str) -> str:
        wait_until(lambda: list(marks.glob(f"{fate}-*")), f"{fate} begins")
        return next(iter(marks.glob(f"{fate}-*"))).name.removeprefix(f"{fate}-")

    service.evict(row("reclaimed"))
    service.client("batch").terminate_job(jobId=row("deleted"), reason="somebody needs the machine")
    service.out_of_memory(row("memory"))
    service.time_out(row("timeout"))
    out = finished(process)
    service.parallel = 4
    assert process.returncode == 0, out
    assert "fate reclaimed 0 None" in out
    assert "fate deleted 0 None" in out
    assert "the machine was reclaimed" in out
    assert "somebody deleted the job" in out
    assert "somebody needs the machine" in out
    for fate, word in (("memory", "memory"), ("timeout", "time"), ("raise", "the user's own"), ("killed", "SIGSEGV")):
        (line,) = (line for line in out.splitlines() if f"fate {fate}" in line)
        assert word in line, line
    assert len(list(marks.glob("reclaimed-*"))) == len(list(marks.glob("deleted-*"))) == 2


ONE = """
    from flowkit import FlowSpec, batch, step


    class One(FlowSpec):
        @step
        def start(self):
            self.next(self.work)

        @batch(image="missing/image:1")
        @step
        def work(self):
            print("never")
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        One()
"""


def test_an_image_that_does_not_exist_fails_the_run_and_is_named(cloud, service) -> None:
    cloud.write("flow.py", ONE)
    done = cloud.run("run", check=1)
    assert "CannotPullContainerError" in done.output
    assert service.calls["SubmitJob"] == 1  # nothing mends it
    assert service.started == []


def test_what_a_job_waits_for_is_told(cloud, service) -> None:
    cloud.write("flow.py", ONE.replace('image="missing/image:1"', ""))
    service.hold = True
    before = len(service.jobs())
    process = cloud.start("run")
    wait_until(lambda: len(service.jobs()) > before, "the job is submitted")
    service.set(service.jobs()[-1].job_id, "RUNNABLE", statusReason="CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - none")
    looks = service.calls["DescribeJobs"]
    wait_until(lambda: service.calls["DescribeJobs"] >= looks + 3, "the job is looked at")
    service.hold = False
    out = finished(process)
    assert process.returncode == 0, out
    assert out.count("work/0 waits for a machine: CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY") == 1


def test_secrets_reach_the_task_and_nothing_else(cloud, service) -> None:
    value = "s3cr3t-w0rd"
    secret = service.client("secretsmanager")
    secret.create_secret(Name="stories/db", SecretString=json.dumps({"DB_PASSWORD": value, "DB_USER": "jo"}))
    cloud.write(
        "flow.py",
        """
        import os
        from flowkit import FlowSpec, batch, secrets, step

        class Secret(FlowSpec):
            @secrets(sources=["aws-secrets-manager.stories/db"])
            @batch
            @step
            def start(self):
                print("password", os.environ["DB_PASSWORD"], "of", os.environ["DB_USER"] + "hn")
                self.length = len(os.environ["DB_PASSWORD"])
                self.next(self.end)

            @step
            def end(self):
                print("length", self.length)

        if __name__ == "__main__":
            Secret()
        """,
    )
    done = cloud.run("run", check=True)
    assert f"length {len(value)}" in done.stdout
    assert value not in done.output
    (job,) = service.jobs()[-1:]
    assert value not in json.dumps([job.sent, job.job_definition.container_properties])


def test_a_gang_is_a_multi_node_job(cloud, service) -> None:
    cloud.write(
        "flow.py",
        """
        import os
        from flowkit import FlowSpec, batch, current, parallel, step

        class Gang(FlowSpec):
            @step
            def start(self):
                self.next(self.train, num_parallel=3)

            @parallel
            @batch
            @step
            def train(self):
                self.node = current.parallel.node_index
                self.job = os.environ["AWS_BATCH_JOB_ID"].partition("#")[0]
                self.size = current.parallel.num_nodes
                self.next(self.join)

            @step
            def join(self, inputs):
                self.nodes = [each.node for each in inputs]
                self.jobs = {each.job for each in inputs}
                assert {each.size for each in inputs} == {3}
                self.next(self.end)

            @step
            def end(self):
                print("nodes", self.nodes, len(self.jobs))

        if __name__ == "__main__":
            Gang()
        """,
    )
    done = cloud.run("run", check=True)
    assert "nodes [0, 1, 2] 1" in done.stdout
    assert service.calls["SubmitJob"] == 1
    assert len(service.started) == 3


def test_jobs_are_listed_and_killed_from_the_command_line(cloud, service) -> None:
    cloud.write(
        "flow.py", FAN.replace("if self.input == 2", "__import__('time').sleep(60)\n            if self.input == 2")
    )
    process = cloud.start("run")
    wait_until(lambda: len(service.started) >= 4, "the array runs")
    listed = cloud.run("batch", "list", check=True)
    assert "each" in listed.stdout
    cloud.run("batch", "kill", check=True)
    wait_until(lambda: not service.running(), "the array has ended")
    process.send_signal(signal.SIGTERM)
    finished(process)
    assert "no" in cloud.run("batch", "list").output.lower()


@pytest.mark.parametrize(
    ("env", "option", "word"),
    [
        ({"FLOWKIT_BATCH_QUEUE": "nowhere"}, "batch", "there is no queue 'nowhere' in us-east-1"),
        ({"FLOWKIT_BATCH_QUEUE": None}, "batch", "no queue is named"),
        ({}, "batch:queue=flowkit-off", "is disabled"),
        ({}, "batch:cpu=1000", "64 processors at the most"),
        ({"FLOWKIT_DATASTORE": None}, "batch", "s3://"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "batch", "no AWS credentials"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(cloud, service, env, option, word) -> None:
    cloud.write("flow.py", ONE.replace('@batch(image="missing/image:1")', ""))
    done = cloud.run("run", "--with", option, env=env)
    assert done.returncode in (2, 3, 5)
    assert word in done.output
    assert "Traceback" not in done.output
    assert service.calls["SubmitJob"] == 0
