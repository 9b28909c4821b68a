"""What AWS Batch is sent: every request as botocore itself accepts it, and the service's limits."""

from __future__ import annotations

import json

import pytest
from botocore.session import Session
from botocore.validate import ParamValidator

from flowkit.decorators.contract import ExecutorRequest
from flowkit.plugins.aws.batch_jobs import (
    Defaults,
    Place,
    definition_name,
    efs_volume,
    fargate_problem,
    host_volume,
    problems,
    requests,
)
from flowkit.runtime.backend import RemoteRun, Submission
from flowkit.runtime.bootstrap import container_command, container_environment

RUN = RemoteRun("Train", "12", "jo@example.com", "s3://bucket/prefix")
MODEL = Session().get_service_model("batch")
EC2, FARGATE = Place("ec2"), Place("fargate", fargate=True, gangs=False)
ROLE = "arn:aws:iam::123456789012:role/run"


def submission(rows: int = 1, gang: int = 0, timeout: float | None = None, **resources) -> Submission:
    command = container_command(RUN.root, "a" * 64, "flow.py", "12", "b" * 64, install=True)
    environment = {**container_environment(RUN.root, user=RUN.user), **resources.pop("environment", {})}
    request = ExecutorRequest("batch", resources)
    return Submission("fk-train-12-0123456789abcdef", "train", rows, gang, request, command, environment, timeout)


def made(job: Submission, place: Place = EC2, defaults: Defaults | None = None):
    """The two requests; botocore has nothing to say against them."""
    found = requests(job, RUN, place, defaults or Defaults())
    for operation, sent in (
        ("RegisterJobDefinition", {"jobDefinitionName": definition_name(found.definition), **found.definition}),
        ("SubmitJob", {"jobDefinition": "arn", **found.submission}),
    ):
        report = ParamValidator().validate(sent, MODEL.operation_model(operation).input_shape)
        assert not report.has_errors(), report.generate_report()
        json.dumps(sent)
    return found


def needs(container) -> dict[str, str]:
    return {each["type"]: each["value"] for each in container["resourceRequirements"]}


def test_a_plain_job_is_tried_once_and_knows_whose_it_is() -> None:
    found = made(submission())
    assert found.definition["retryStrategy"] == found.submission["retryStrategy"] == {"attempts": 1}
    assert found.definition["platformCapabilities"] == ["EC2"]
    assert needs(found.definition["containerProperties"]) == {"VCPU": "1", "MEMORY": "4096"}
    assert found.definition["containerProperties"]["image"].startswith("python:3.")
    assert "arrayProperties" not in found.submission
    assert "timeout" not in found.submission
    assert found.submission["tags"] == {
        "flowkit.flow": "Train", "flowkit.run": "12", "flowkit.step": "train", "flowkit.user": "jo@example.com",
    }  # fmt: skip


def test_all_attributes_reach_the_definition() -> None:
    container = made(
        submission(
            cpu=2.5, memory=1000.5, gpu=2, image="registry/x:1", iam_role=ROLE, execution_role=ROLE,
            shared_memory=64, max_swap=0, swappiness=0, trainium=2, efa=1, host_volumes=["/a", "/b:/c"],
            efs_volumes="fs-12345678,fs-87654321:/d", use_tmpfs=True, tmpfs_size=99, privileged=True,
            log_options=["awslogs-group:/x:y"], aws_batch_tags={"team": "a"},
        )
    ).definition["containerProperties"]  # fmt: skip
    assert needs(container) == {"VCPU": "3", "MEMORY": "1001", "GPU": "2"}
    assert (container["image"], container["jobRoleArn"], container["executionRoleArn"]) == ("registry/x:1", ROLE, ROLE)
    linux = container["linuxParameters"]
    assert (linux["sharedMemorySize"], linux["maxSwap"], linux["swappiness"]) == (64, 0, 0)
    assert linux["tmpfs"] == [{"containerPath": "/flowkit_temp", "size": 99}]
    assert [each["hostPath"] for each in linux["devices"]] == [
        "/dev/neuron0", "/dev/neuron1", "/dev/infiniband/uverbs0",
    ]  # fmt: skip
    where = {mount["sourceVolume"]: mount["containerPath"] for mount in container["mountPoints"]}
    assert where == {"host0": "/a", "host1": "/c", "efs0": "/mnt/fs-12345678", "efs1": "/d"}
    assert [volume["name"] for volume in container["volumes"]] == list(where)
    assert container["volumes"][1]["host"] == {"sourcePath": "/b"}
    assert container["logConfiguration"] == {"logDriver": "awslogs", "options": {"awslogs-group": "/x:y"}}
    assert container["privileged"] is True


def test_a_tmpfs_takes_half_of_the_memory_and_the_temporary_files() -> None:
    found = made(submission(use_tmpfs=True, memory=8000))
    assert found.definition["containerProperties"]["linuxParameters"]["tmpfs"][0]["size"] == 4000
    variables = {one["name"]: one["value"] for one in found.submission["containerOverrides"]["environment"]}
    assert variables["TMPDIR"] == variables["FLOWKIT_TEMPDIR"] == "/flowkit_temp"
    elsewhere = made(submission(use_tmpfs=True, tmpfs_tempdir=False)).submission["containerOverrides"]["environment"]
    assert "TMPDIR" not in {one["name"] for one in elsewhere}


def test_the_same_content_is_the_same_definition_whatever_runs_in_it() -> None:
    one, other = made(submission(rows=2, cpu=4)), made(submission(rows=9, cpu=4, timeout=600))
    assert definition_name(one.definition) == definition_name(other.definition)
    assert definition_name(one.definition) != definition_name(made(submission(cpu=5)).definition)
    assert other.submission["arrayProperties"] == {"size": 9}
    assert other.submission["timeout"] == {"attemptDurationSeconds": 600}
    assert made(submission(timeout=1)).submission["timeout"] == {"attemptDurationSeconds": 60}


def test_a_gang_is_a_multi_node_job() -> None:
    found = made(submission(gang=3, gpu=1))
    nodes = found.definition["nodeProperties"]
    assert (found.definition["type"], nodes["numNodes"], nodes["mainNode"]) == ("multinode", 3, 0)
    assert "containerOverrides" not in found.submission
    assert found.submission["nodeOverrides"]["nodePropertyOverrides"][0]["containerOverrides"]["command"]
    with pytest.raises(ValueError, match="EC2 instances that are not spot"):
        requests(submission(gang=3), RUN, FARGATE._replace(fargate=False), Defaults())


def test_fargate_has_its_own_shape() -> None:
    found = made(submission(cpu=0.5, memory=1024, ephemeral_storage=50), FARGATE, Defaults(execution_role=ROLE))
    container = found.definition["containerProperties"]
    assert found.definition["platformCapabilities"] == ["FARGATE"]
    assert needs(container) == {"VCPU": "0.5", "MEMORY": "1024"}
    assert container["ephemeralStorage"] == {"sizeInGiB": 50}
    told = problems({"gpu": 1, "use_tmpfs": True, "cpu": 1, "memory": 1000}, FARGATE, Defaults())
    assert [text.split()[0] for text in told] == ["gpu", "use_tmpfs", "Fargate", "Fargate"]
    assert "2048" in told[2]
    assert "execution_role" in told[3]


@pytest.mark.parametrize(
    ("cpu", "memory", "word"),
    [(1, 2048, None), (16, 122880, None), (3, 4096, "cpu=3"), (4, 4096, "8192"), (1, 9000, "more processors")],
)
def test_pairs_of_processors_and_memory_on_fargate(cpu, memory, word) -> None:
    told = fargate_problem(cpu, memory)
    assert told is None if word is None else word in str(told)


def test_a_fair_share_queue_hears_whose_job_it_is() -> None:
    found = made(submission(), Place("fair", fair_share=True))
    assert found.submission["shareIdentifier"] == "joexamplecom"


def test_many_variables_move_to_the_definition_and_too_many_are_refused() -> None:
    small = made(submission(environment={"A": "x" * 100}))
    assert "environment" in small.submission["containerOverrides"]
    large = made(submission(environment={"A": "x" * 6000}))
    assert "environment" not in large.submission["containerOverrides"]
    assert {"name": "A", "value": "x" * 6000} in large.definition["containerProperties"]["environment"]
    with pytest.raises(ValueError, match="24,576"):
        requests(submission(environment={"A": "x" * 25_000}), RUN, EC2, Defaults())


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (submission(rows=10_001), "10,000"),
        (submission()._replace(name="x" * 129), "128"),
        (submission()._replace(name="a b"), "not a job's name"),
        (submission(gang=1001), "1,000 nodes"),
        (submission()._replace(command=["python", "-c", "x" * 9000]), "8,192"),
        (submission(aws_batch_tags={f"t{number}": "" for number in range(47)}), "47 tags"),
        (submission(ephemeral_storage=30), "for Fargate"),
    ],
)
def test_limits_are_told_before_the_service_is_asked(job, word) -> None:
    with pytest.raises(ValueError, match=word):
        requests(job, RUN, EC2, Defaults())


def test_what_is_odd_in_tags_becomes_an_underscore() -> None:
    odd = requests(submission(), RUN._replace(user="jo<script>\n" + "x" * 300), EC2, Defaults())
    assert odd.submission["tags"]["flowkit.user"] == ("jo_script__" + "x" * 300)[:256]


@pytest.mark.parametrize("text", ["a", "/", "/a:b", "/a:/b:/c", ""])
def test_volumes_that_are_none(text) -> None:
    assert host_volume(text) is None
    assert efs_volume(text) is None
