"""AWS Batch (moto's) whose jobs run in real containers: nothing but the datastore is shared with this machine."""

from __future__ import annotations

import uuid

import pytest

FAN = """
    import os, sys
    from flowkit import FlowSpec, batch, current, resources, retry, step

    class Fan(FlowSpec):
        @step
        def start(self):
            self.items = list(range(4))
            self.next(self.each, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @resources(memory=600)
        @batch
        @step
        def each(self):
            print("item", self.input, "in", os.environ["AWS_BATCH_JQ_NAME"])
            if self.input == 2 and current.retry_count == 0:
                raise ValueError("made to fail once")
            self.inside = sys.prefix
            self.large = bytes(20 << 20)
            self.square = self.input ** 2
            self.next(self.join)

        @batch(memory=600)
        @step
        def join(self, inputs):
            self.squares = [task.square for task in inputs]
            self.inside = [task.inside for task in inputs]
            self.sizes = {len(task.large) for task in inputs}
            self.next(self.end)

        @step
        def end(self):
            print("squares", self.squares, self.inside, self.sizes)

    if __name__ == "__main__":
        Fan()
"""


@pytest.fixture
def cloud(batch_in_containers, docker):
    import batch_account

    docker.env.update(
        batch_in_containers.environment,
        FLOWKIT_BATCH_QUEUE=batch_account.QUEUE,
        FLOWKIT_DATASTORE=f"s3://{batch_account.BUCKET}/{uuid.uuid4().hex}",
    )
    return docker


def test_a_foreach_on_batch_in_containers(cloud) -> None:
    cloud.write("flow.py", FAN)
    done = cloud.run("run", check=True, timeout=120)
    assert "squares [0, 1, 4, 9]" in done.stdout
    assert "['/usr', '/usr', '/usr', '/usr'] {20971520}" in done.stdout
    assert "item 3 in flowkit-queue" in done.stdout


def test_a_step_that_fails_on_batch_in_a_container(cloud) -> None:
    cloud.write("flow.py", FAN.replace("current.retry_count == 0", "True"))
    done = cloud.run("run", check=1, timeout=120)
    assert "made to fail once" in done.stdout + done.stderr
    resumed = cloud.write("flow.py", FAN)
    assert resumed
    done = cloud.run("resume", check=True, timeout=120)
    assert "squares [0, 1, 4, 9]" in done.stdout
