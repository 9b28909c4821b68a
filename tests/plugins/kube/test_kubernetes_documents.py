"""What @kubernetes says of its attributes, and the documents that become of a submission."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube_strict import job_problems, jobset_problems, service_problems

from flowkit import FlowSpec, batch, kubernetes, resources, step
from flowkit.decorators.attach import configure_all, executor_request
from flowkit.decorators.contract import ExecutorRequest
from flowkit.model.definition import FlowDefinition, define
from flowkit.plugins.kubernetes import manifests
from flowkit.plugins.kubernetes.manifests import Defaults
from flowkit.plugins.kubernetes.pods import indexes
from flowkit.plugins.kubernetes.syntax import is_image, label_value, object_name
from flowkit.runtime.backend import RemoteRun, Submission

RUN = RemoteRun("TrainFlow", "7", "Ann Miller", "s3://bucket/root")
DEFAULTS = Defaults("research", "python:3.12-slim", "robot")


def one_step(*decorators: Any) -> FlowDefinition:
    """A flow whose step `work` has the decorators, outermost first."""

    class Decorated(FlowSpec):
        @step
        def start(self) -> None:
            self.next(self.work)

        @step
        def work(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    for decorator in reversed(decorators):
        decorator(Decorated.work)
    return define(Decorated)


def told(*decorators: Any) -> str:
    """Everything that is wrong."""
    return "\n".join(str(problem) for problem in configure_all(one_step(*decorators), {}))


def asked(*decorators: Any) -> ExecutorRequest:
    """What the step `work` asks for."""
    definition = one_step(*decorators)
    assert configure_all(definition, {}) == []
    return executor_request(definition.steps["work"])


def submission(request: ExecutorRequest | None = None, **changes: Any) -> Submission:
    made = Submission(
        "fk-train-1", "train", 1, 0, request or ExecutorRequest("kubernetes"), ["python", "-c", "1"], {}, None
    )
    return made._replace(**changes)


def job_of(*decorators: Any, **changes: Any) -> dict[str, Any]:
    """The Job of a step with the decorators, after every check that we have."""
    return checked(manifests.job_document(RUN, submission(asked(*decorators), **changes), DEFAULTS))


def checked(document: dict[str, Any]) -> dict[str, Any]:
    assert job_problems(document) == []
    kubernetes_validate.validate(document, "1.31", strict=True)
    return document


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return found


EVERYTHING = kubernetes(
    cpu="2.5",
    memory=8000,
    disk=20_000,
    image="registry.example.com:5000/team/train:3@sha256:" + "a" * 64,
    image_pull_policy="Always",
    image_pull_secrets=["registry"],
    service_account="trainer",
    secrets="db, api",
    node_selector="pool=big,zone=a",
    namespace="team-a",
    gpu=2,
    gpu_vendor="amd",
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "toleration_seconds": 60}],
    labels={"team": "a", "example.com/cost": "42"},
    annotations={"note": "a sentence, with anything: in it"},
    use_tmpfs=True,
    tmpfs_size=500,
    tmpfs_path="/scratch",
    persistent_volume_claims={"data": "/data", "models": "/models"},
    shared_memory=64,
    port=8080,
    compute_pool="gpu",
    qos="guaranteed",
    extended_resources={"example.com/fpga": 1},
    security_context={"run_as_user": 1000, "run_as_non_root": True, "capabilities": {"drop": ["ALL"]}},
)


def test_every_attribute_has_its_place_in_the_job() -> None:
    job = job_of(EVERYTHING)
    pod, main = job["spec"]["template"]["spec"], container(job)
    amounts = {
        "cpu": "2500m", "memory": "8000M", "ephemeral-storage": "20000M", "amd.com/gpu": "2", "example.com/fpga": "1",
    }  # fmt: skip
    assert main["resources"] == {"requests": amounts, "limits": amounts}
    assert main["image"].startswith("registry.example.com:5000/team/train:3@")
    assert main["imagePullPolicy"] == "Always"
    assert main["envFrom"] == [{"secretRef": {"name": "db"}}, {"secretRef": {"name": "api"}}]
    assert main["ports"] == [{"containerPort": 8080}]
    assert main["securityContext"] == {"runAsUser": 1000, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
    assert {"name": "FLOWKIT_TEMPDIR", "value": "/scratch"} in main["env"]
    mounts = {mount["mountPath"]: mount["name"] for mount in main["volumeMounts"]}
    assert list(mounts) == ["/scratch", "/dev/shm", "/data", "/models"]
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "500M"}
    assert pod["volumes"][2]["persistentVolumeClaim"] == {"claimName": "data"}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"] == {"pool": "big", "zone": "a", "outerbounds.co/compute-pool": "gpu"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]
    assert job["metadata"]["namespace"] == "team-a"
    assert job["metadata"]["labels"]["team"] == "a"
    assert job["metadata"]["annotations"]["note"] == "a sentence, with anything: in it"


def test_a_bare_step_gets_the_defaults_and_may_use_what_is_free() -> None:
    job = job_of(kubernetes, timeout=90.2, environment={"B": "2", "A": "1"})
    main, pod = container(job), job["spec"]["template"]["spec"]
    assert main["resources"] == {"requests": {"cpu": "1", "memory": "4096M", "ephemeral-storage": "10240M"}}
    assert main["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert (job["metadata"]["namespace"], main["image"], pod["serviceAccountName"]) == tuple(DEFAULTS)
    assert pod["restartPolicy"] == "Never"
    assert pod["activeDeadlineSeconds"] == 91
    assert job["spec"]["backoffLimit"] == 0
    assert "completionMode" not in job["spec"]
    assert "volumes" not in pod


def test_the_larger_of_what_decorators_ask_for_counts() -> None:
    request = asked(resources(cpu=4, memory=1000, gpu=1), kubernetes(cpu=2, memory=2000))
    amounts = manifests.resource_requirements(request.resources)
    assert amounts["requests"]["cpu"] == "4"
    assert amounts["requests"]["memory"] == "2000M"
    assert amounts["limits"] == {"nvidia.com/gpu": "1"}, "devices are limits, whatever the quality of service"


def test_rows_are_indexes_that_fail_alone_and_start_once() -> None:
    spec = job_of(kubernetes, rows=10_000)["spec"]
    assert spec["completionMode"] == "Indexed"
    assert (spec["completions"], spec["parallelism"], spec["backoffLimitPerIndex"]) == (10_000, 10_000, 0)
    assert "backoffLimit" not in spec
    assert "maxFailedIndexes" not in spec


def test_a_gang_is_an_indexed_job_with_a_service() -> None:
    document = job_of(kubernetes(hostname_resolution_timeout=30), gang=4)
    name = document["metadata"]["name"]
    assert document["spec"]["backoffLimit"] == 0
    assert document["spec"]["completions"] == 4
    assert document["spec"]["template"]["spec"]["subdomain"] == name
    env = {item["name"]: item["value"] for item in container(document)["env"]}
    assert env == {"FLOWKIT_MAIN_HOST": f"{name}-0.{name}", "FLOWKIT_HOSTNAME_TIMEOUT": "30"}
    service = manifests.service_document(RUN, submission(gang=4), DEFAULTS, "a-uid")
    assert service_problems(service) == []
    kubernetes_validate.validate(service, "1.31", strict=True)
    assert service["spec"]["selector"].items() <= document["spec"]["template"]["metadata"]["labels"].items()
    assert service["metadata"]["ownerReferences"][0]["uid"] == "a-uid"


def test_a_jobset_carries_the_same_job() -> None:
    document = manifests.jobset_document(RUN, submission(asked(kubernetes), gang=3), DEFAULTS)
    assert jobset_problems(document) == []
    (part,) = document["spec"]["replicatedJobs"]
    name = document["metadata"]["name"]
    inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": part["template"]["spec"]}
    checked(inner)
    env = {item["name"]: item["value"] for item in container(inner)["env"]}
    assert env["FLOWKIT_MAIN_HOST"] == f"{name}-n-0-0.{name}"


def test_names_that_labels_cannot_hold_stand_in_annotations() -> None:
    run = RemoteRun("Fl\u00e4che" + "x" * 80, "a/b c", "anna@example.com", "s3://bucket/root")
    document = manifests.job_document(run, submission(), DEFAULTS)
    assert job_problems(document) == []
    assert document["metadata"]["annotations"]["flowkit/user"] == "anna@example.com"
    assert document["metadata"]["labels"]["flowkit/user"].startswith("anna-example.com-")


@given(st.text(max_size=200))
def test_any_text_becomes_the_value_of_a_label(text: str) -> None:
    from kube_strict import QUALIFIED

    value = label_value(text)
    assert value == "" or QUALIFIED.fullmatch(value)


def test_different_texts_stay_different_labels() -> None:
    assert len({label_value(text) for text in ("a b", "a.b", "a-b", "a/b", "x" * 70, "x" * 71)}) == 6


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True), st.integers(1, 10_000))
def test_any_name_leaves_room_for_an_index(name: str, rows: int) -> None:
    document = manifests.job_document(RUN, submission(name=name, rows=rows), DEFAULTS)
    assert job_problems(document) == []
    assert jobset_problems(manifests.jobset_document(RUN, submission(name=name, gang=max(2, rows)), DEFAULTS)) == []
    service = manifests.service_document(RUN, submission(name=name, gang=2), DEFAULTS, "u")
    assert service_problems(service) == []


def test_two_names_that_begin_alike_stay_different() -> None:
    assert object_name("a" * 60) != object_name("a" * 61)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"cpu": "much"}, "cpu must be a number above 0"),
        ({"memory": "4Gi"}, "memory must be a number of megabytes above 0"),
        ({"gpu": 1.5}, "gpu must be a whole number"),
        ({"gpu_vendor": "nvidea"}, "gpu_vendor='nvidea' must be one of nvidia, amd"),
        ({"qos": "Guaranteed!"}, "qos='Guaranteed!' must be one of guaranteed, burstable"),
        ({"image": "My Image"}, "image='My Image' is not a reference of an image"),
        ({"image_pull_policy": "Sometimes"}, "Always, IfNotPresent, Never"),
        ({"namespace": "Team_A"}, "namespace='Team_A': lower-case"),
        ({"service_account": "robot!"}, "service_account='robot!'"),
        ({"secrets": ["db", "My Secret"]}, "secrets: 'My Secret'"),
        ({"image_pull_secrets": [3]}, "image_pull_secrets: 3"),
        ({"labels": {"team": "a b"}}, "labels: 'a b' must have up to 63"),
        ({"labels": {"flowkit/run": "8"}}, "flowkit's own"),
        ({"labels": "team"}, "labels must be a dict"),
        ({"annotations": {"x": 3}}, "the value of 'x' must be a text"),
        ({"annotations": {"x": "y" * 300_000}}, "256 KB"),
        ({"node_selector": {"-x": "y"}}, "node_selector: '-x'"),
        ({"tolerations": {"key": "gpu"}}, "tolerations: it must be a list"),
        ({"tolerations": [{"kee": "gpu"}]}, "has no 'kee' (did you mean 'key'"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "with Exists has no value"),
        ({"tolerations": [{"key": "a", "effect": "Never"}]}, "has the effect 'Never'"),
        ({"use_tmpfs": "yes"}, "use_tmpfs must be True or False"),
        ({"tmpfs_size": 10, "tmpfs_path": "scratch"}, "tmpfs_path: 'scratch' must be a folder's whole path"),
        ({"persistent_volume_claims": {"data": "/x", "more": "/x/"}}, "are both mounted at /x/"),
        ({"persistent_volume_claims": ["data"]}, "must be a dict"),
        ({"shared_memory": -1}, "shared_memory must be a number of megabytes of at least 0"),
        ({"port": 70_000}, "port must be a whole number from 1 to 65535"),
        ({"compute_pool": "a b"}, "compute_pool: 'a b'"),
        ({"executable": ""}, "executable=''"),
        ({"hostname_resolution_timeout": "soon"}, "hostname_resolution_timeout must be a number of seconds"),
        ({"extended_resources": {"fpga": 1}}, "needs the prefix of its vendor"),
        ({"extended_resources": {"example.com/fpga": "1.5"}}, "must be a whole number, not '1.5'"),
        ({"security_context": {"run_as_usr": 1}}, "it has no 'run_as_usr' (did you mean"),
        ({"security_context": {"privileged": "yes"}}, "privileged='yes' must be of type bool"),
        ({"security_context": {"capabilities": {"plus": []}}}, "capabilities has no 'plus'"),
    ],
)
def test_a_wrong_attribute_is_told_before_anything_runs(attributes: dict[str, Any], words: str) -> None:
    assert words in told(kubernetes(**attributes)), told(kubernetes(**attributes))


def test_everything_that_is_wrong_is_told_at_once() -> None:
    text = told(kubernetes(cpu=0, image="X Y", qos="best", labels={"": ""}, tolerations=3))
    assert len(text.splitlines()) >= 5
    assert "test_kubernetes_documents.py" in text


def test_a_step_has_one_place_to_run() -> None:
    assert "@batch" in told(kubernetes, batch)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("python:3.12-slim", True),
        ("localhost:5000/x", True),
        ("a/b/c:TAG@sha256:" + "0" * 64, True),
        ("ghcr.io/Owner/x", False),
        ("x:", False),
        ("https://x/y", False),
        ("-x", False),
    ],
)
def test_references_of_images(text: str, good: bool) -> None:
    assert is_image(text) is good


def test_decorating_imports_no_client(workspace) -> None:
    source = """
        import sys

        from flowkit import FlowSpec, kubernetes, step

        class One(FlowSpec):
            @kubernetes(cpu=2)
            @step
            def start(self):
                pass

        print(sorted({name.split(".")[0] for name in sys.modules} & {"kubernetes", "urllib3", "yaml"}))
        """
    assert workspace.python(source, check=True).stdout == "[]\n"


def test_ranges_of_indexes() -> None:
    assert indexes("1,3-5,7") == [(1, 1), (3, 5), (7, 7)]
    assert indexes(None) == indexes("") == indexes("x-1,-") == []


def test_no_value_of_a_secret_is_in_a_document() -> None:
    assert "envFrom" in json.dumps(job_of(kubernetes(secrets=["db"])))
