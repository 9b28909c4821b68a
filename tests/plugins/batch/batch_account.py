"""The account in which the tests run jobs: what docs/batch.md tells people to make."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from moto.core import DEFAULT_ACCOUNT_ID

if TYPE_CHECKING:
    from batch_service import BatchService

BUCKET = "flowkit-batch"
QUEUE, FARGATE_QUEUE, DISABLED_QUEUE = "flowkit-queue", "flowkit-fargate", "flowkit-off"
ROLE = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/flowkit-job"


def prepare(service: BatchService) -> None:
    """Make a bucket, compute environments and queues."""
    service.client("s3").create_bucket(Bucket=BUCKET)
    iam, ec2, batch = service.client("iam"), service.client("ec2"), service.client("batch")
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    role = iam.create_role(RoleName="flowkit-batch-service", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    iam.create_instance_profile(InstanceProfileName="flowkit-instances")
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    network = {"subnets": [subnet], "securityGroupIds": [group]}
    machines = {
        "type": "EC2", "minvCpus": 0, "desiredvCpus": 0, "maxvCpus": 64, "instanceRole": "flowkit-instances",
        "instanceTypes": ["m5.large", "m5.4xlarge"], **network,
    }  # fmt: skip
    for name, resources in (
        ("flowkit-ec2", machines),
        ("flowkit-fargate", {"type": "FARGATE", "maxvCpus": 64, **network}),
    ):
        batch.create_compute_environment(
            computeEnvironmentName=name, type="MANAGED", state="ENABLED", serviceRole=role, computeResources=resources
        )
    for name, environment, state in (
        (QUEUE, "flowkit-ec2", "ENABLED"),
        (FARGATE_QUEUE, "flowkit-fargate", "ENABLED"),
        (DISABLED_QUEUE, "flowkit-ec2", "DISABLED"),
    ):
        batch.create_job_queue(
            jobQueueName=name,
            state=state,
            priority=1,
            computeEnvironmentOrder=[{"order": 1, "computeEnvironment": environment}],
        )
