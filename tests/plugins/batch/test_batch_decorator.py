"""``@batch``: its attributes, everything that is wrong with them at once, and what it asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowkit import FlowSpec, batch, resources, step
from flowkit.decorators.attach import configure_all, executor_request
from flowkit.model.definition import define


def flow_with(*decorators):
    class Decorated(FlowSpec):
        @step
        def start(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    for decorator in reversed(decorators):
        decorator(Decorated.start)
    return define(Decorated)


def wrong(**attributes) -> list[str]:
    return [problem.headline for problem in configure_all(flow_with(batch(**attributes)), {})]


def test_what_is_given_is_asked_for_and_the_larger_counts() -> None:
    definition = flow_with(batch(cpu="2", memory=1000, queue="q", host_volumes="/a,/b"), resources(cpu=4, memory=500))
    assert configure_all(definition, {}) == []
    request = executor_request(definition.steps["start"])
    assert request.name == "batch"
    assert request.resources == {"cpu": 4, "memory": 1000, "queue": "q", "host_volumes": ["/a", "/b"]}


def test_without_attributes_nothing_is_asked_for() -> None:
    definition = flow_with(batch)
    assert configure_all(definition, {}) == []
    assert executor_request(definition.steps["start"]).resources == {}


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ({"cpu": 0}, "above 0"),
        ({"memory": 3}, "at least 4"),
        ({"gpu": 0.5}, "whole number"),
        ({"swappiness": 101, "max_swap": 1}, "from 0 to 100"),
        ({"swappiness": 10}, "needs max_swap"),
        ({"inferentia": 1, "trainium": 1}, "exclude each other"),
        ({"image": "my image"}, "reference of an image"),
        ({"queue": "a b"}, "queue's name"),
        ({"iam_role": "admin"}, "role's ARN"),
        ({"execution_role": "arn:aws:iam::1:role/x"}, "role's ARN"),
        ({"host_volumes": ["data"]}, "/folder"),
        ({"efs_volumes": "efs-1"}, "fs-…"),
        ({"efs_volumes": "fs-12345678:/a", "host_volumes": "/a"}, "both mounted at /a"),
        ({"use_tmpfs": True, "tmpfs_path": "x"}, "whole path"),
        ({"use_tmpfs": "yes"}, "True or False"),
        ({"ephemeral_storage": 20}, "from 21 to 200"),
        ({"ephemeral_storage": 30, "cpu": 3}, "cpu=3"),
        ({"log_driver": "awslog"}, "did you mean 'awslogs'"),
        ({"log_options": ["x"]}, "awslogs-group"),
        ({"executable": ""}, "path of a Python"),
        ({"privileged": 1}, "True or False"),
        ({"aws_batch_tags": ["a"]}, "dict of texts"),
        ({"aws_batch_tags": {"a!": "b"}}, "tag's key"),
        ({"aws_batch_tags": {"a": "b" * 257}}, "wrong value"),
        ({"aws_batch_tags": {"flowkit.run": "b"}}, "prefix"),
        ({"aws_batch_tags": {"AWS:x": "b"}}, "prefix"),
        ({"aws_batch_tags": {f"t{number}": "" for number in range(47)}}, "46 are possible"),
    ],
)  # fmt: skip
def test_each_mistake_is_told(attributes, word) -> None:
    told = wrong(**attributes)
    assert len(told) == 1
    assert word in told[0]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(wrong(cpu=-1, image="a b", privileged=None, inferentia=1, trainium=1)) == 4


def test_the_decorator_imports_nothing_of_aws(tmp_path: Path) -> None:
    code = "import flowkit, sys; flowkit.batch; assert not {'boto3', 'botocore'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
