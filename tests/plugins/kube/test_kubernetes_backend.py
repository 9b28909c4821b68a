"""The Kubernetes backend, by the real client, against a loopback API whose pods are processes."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from kube_server import KubernetesApi

from flowkit.decorators.contract import ExecutorRequest
from flowkit.plugins.kubernetes.backend import KubernetesBackend
from flowkit.runtime.backend import BackendError, RemoteRun, RowState, Submission

RUN = RemoteRun("TrainFlow", "7", "Ann Miller", "s3://bucket/root")
SOON = 20.0
"""Seconds after which a test gives up waiting; none waits for that long."""


@pytest.fixture
def backend(kubeconfig: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesBackend]:
    monkeypatch.setattr(KubernetesBackend, "unseen_patience", 0.3)
    made = KubernetesBackend(RUN)
    yield made
    made.close()


def submission(
    *script: str,
    name: str = "fk-train-1",
    rows: int = 1,
    gang: int = 0,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    **resources: Any,
) -> Submission:
    """A job whose rows run a shell script."""
    wanted = {"image": "python:3.11-slim", **resources}
    request = ExecutorRequest("kubernetes", wanted)
    return Submission(name, "train", rows, gang, request, ["/bin/sh", "-c", *script], environment or {}, timeout)


class Seen:
    """What a backend tells of jobs, over time."""

    def __init__(self, backend: KubernetesBackend, jobs: Mapping[str, int]) -> None:
        self.backend = backend
        self.jobs = jobs
        self.told: list[RowState] = []
        self.last: dict[tuple[str, int], RowState] = {}

    def look(self) -> None:
        for state in self.backend.states(self.jobs):
            self.told.append(state)
            self.last[(state.job, state.row)] = state

    def until(self, done: Callable[[Seen], bool]) -> Seen:
        deadline = time.monotonic() + SOON
        while not done(self):
            assert time.monotonic() < deadline, f"it never came to that: {self.told}"
            self.look()
            time.sleep(0.02)
        return self

    def ended(self) -> Seen:
        return self.until(
            lambda seen: (
                sum(state.phase in ("succeeded", "failed") for state in seen.last.values()) >= sum(seen.jobs.values())
            )
        )

    def phases(self, row: int = 0) -> list[str]:
        return [state.phase for state in self.told if state.row == row]

    def only(self) -> RowState:
        (state,) = self.last.values()
        return state


def running(count: int) -> Callable[[Seen], bool]:
    return lambda seen: sum(state.phase == "running" for state in seen.last.values()) >= count


# -- how rows end -----------------------------------------------------------------------------------------------------


def test_a_single_row_runs_with_its_environment(backend, kubernetes_api) -> None:
    job = backend.submit(submission('echo "hello $WHO"', environment={"WHO": "Ada"}))
    seen = Seen(backend, {job: 1}).ended()
    assert seen.only().phase == "succeeded"
    assert seen.phases()[-1:] == ["succeeded"]
    assert backend.last_lines(job, 0) == ["hello Ada"]
    (made,) = kubernetes_api.store.items("jobs")
    assert "completionMode" not in made["spec"]
    assert made["metadata"]["annotations"]["flowkit/user"] == "Ann Miller"


def test_the_rows_of_a_fan_out_know_their_index_and_fail_alone(backend, kubernetes_api) -> None:
    job = backend.submit(submission("echo row $JOB_COMPLETION_INDEX; exit $((JOB_COMPLETION_INDEX % 2 * 3))", rows=5))
    seen = Seen(backend, {job: 5}).ended()
    states = [seen.last[(job, row)] for row in range(5)]
    assert [state.phase for state in states] == ["succeeded", "failed", "succeeded", "failed", "succeeded"]
    assert [state.exit_status for state in states] == [0, 3, 0, 3, 0]
    assert {state.cause for state in states} == {None, "exit"}
    assert backend.last_lines(job, 3) == ["row 3"]
    assert kubernetes_api.requests["POST jobs"] == 1
    assert len(kubernetes_api.pods()) == 5, "nothing is started again by Kubernetes itself"


def test_a_signal_is_told_as_the_exit_status_of_a_shell(backend) -> None:
    seen = Seen(backend, {backend.submit(submission("kill -SEGV $$")): 1}).ended()
    assert (seen.only().cause, seen.only().exit_status) == ("exit", 139)


def test_too_much_memory(backend) -> None:
    eats = "python -c \"data = b'x' * 200_000_000; import time; time.sleep(30)\""
    job = backend.submit(submission(eats, memory=100, qos="guaranteed"))
    assert Seen(backend, {job: 1}).ended().only().cause == "oom"


def test_a_pod_that_takes_too_long(backend) -> None:
    seen = Seen(backend, {backend.submit(submission("sleep 30", timeout=0.5)): 1}).ended()
    assert seen.only().cause == "timeout"


def test_an_image_that_does_not_exist_ends_all_rows_with_what_the_registry_said(backend, kubernetes_api) -> None:
    kubernetes_api.set(missing_images="^no/such")
    job = backend.submit(submission("true", rows=3, image="no/such:1"))
    seen = Seen(backend, {job: 3}).ended()
    assert {state.cause for state in seen.last.values()} == {"image"}
    assert 'Failed to pull image "no/such:1": not found' in seen.last[(job, 0)].message
    assert kubernetes_api.requests["DELETE pods"] <= 3, "in bulk"


def test_what_the_registry_said_is_looked_up_where_it_was_missed(backend, kubernetes_api) -> None:
    kubernetes_api.set(missing_images="^no/such")
    job = backend.submit(submission("true", image="no/such:1"))
    until = time.monotonic() + SOON
    while not any("BackOff" in str(pod["status"]) for pod in kubernetes_api.pods()):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert "not found" in Seen(backend, {job: 1}).ended().only().message


def test_an_image_that_is_slow_to_come_is_waited_for(backend, kubernetes_api) -> None:
    kubernetes_api.set(slow_images="^slow")
    job = backend.submit(submission("true", image="slow:1"))
    seen = Seen(backend, {job: 1}).until(lambda seen: any("i/o timeout" in state.message for state in seen.told))
    assert seen.only().phase == "starting"
    kubernetes_api.set(slow_images="$^")
    assert seen.ended().only().phase == "succeeded"


def test_an_image_that_never_comes_ends_when_patience_does(backend, kubernetes_api) -> None:
    kubernetes_api.set(slow_images="^slow")
    backend.image_patience = 0.2
    seen = Seen(backend, {backend.submit(submission("true", image="slow:1")): 1}).ended()
    assert seen.only().cause == "image"


def test_a_program_that_the_image_lacks(backend) -> None:
    job = backend.submit(submission("true")._replace(command=["/no/such/python"]))
    state = Seen(backend, {job: 1}).ended().only()
    assert state.cause == "image"
    assert "/no/such/python" in state.message


@pytest.mark.parametrize(
    ("how", "cause", "word"),
    [
        ("evict", "evicted", "EvictionByEvictionAPI"),
        ("shut_down", "evicted", "node shutdown"),
        ("lose", "evicted", "node lost"),
        ("delete_pod", "deleted", "pod"),
    ],
)
def test_a_machine_that_goes_takes_only_its_own_row(backend, kubernetes_api, how, cause, word) -> None:
    job = backend.submit(submission("sleep $((JOB_COMPLETION_INDEX * 30 + 1))", rows=2))
    seen = Seen(backend, {job: 2}).until(running(2))
    target = kubernetes_api if hasattr(kubernetes_api, how) else kubernetes_api.controller
    pod = next(pod for pod in kubernetes_api.pods() if pod["metadata"]["name"].startswith("fk-train-1-1-"))
    getattr(target, how)("default", pod["metadata"]["name"])
    seen.ended()
    assert seen.last[(job, 1)].cause == cause
    assert word in seen.last[(job, 1)].message
    assert seen.last[(job, 0)].phase == "succeeded"


def test_a_node_without_memory_evicts_who_took_more_than_asked(backend, kubernetes_api) -> None:
    seen = Seen(backend, {backend.submit(submission("sleep 30")): 1}).until(running(1))
    (pod,) = kubernetes_api.pods()
    message = "The node was low on resource: memory. Container main was using 9Gi, which exceeds its request of 4Gi."
    kubernetes_api.pressure("default", pod["metadata"]["name"], message)
    assert seen.ended().only().cause == "oom"


def test_a_job_that_somebody_deletes(backend, kubernetes_api) -> None:
    job = backend.submit(submission("sleep 30", rows=2))
    seen = Seen(backend, {job: 2}).until(running(2))
    with kubernetes_api.store.changed:
        (made,) = kubernetes_api.store.items("jobs")
        kubernetes_api.store.remove("jobs", "default", made["metadata"]["name"])
        kubernetes_api.controller.delete_owned(made["metadata"]["uid"])
    seen.ended()
    assert {state.cause for state in seen.last.values()} == {"deleted"}


def test_a_job_that_the_cluster_does_not_know(backend) -> None:
    assert Seen(backend, {"default/job/0/fk-never": 2}).ended().last[("default/job/0/fk-never", 1)].cause == "lost"


# -- submitting once --------------------------------------------------------------------------------------------------


def test_the_same_submission_twice_is_one_job(backend, kubernetes_api) -> None:
    first = backend.submit(submission("true"))
    assert backend.submit(submission("true")) == first
    assert backend.find("fk-train-1") == first
    assert backend.find("fk-other") is None
    assert len(kubernetes_api.store.items("jobs")) == 1


def test_a_lost_answer_is_found_by_name(backend, kubernetes_api) -> None:
    kubernetes_api.fault("^POST jobs", after=True)
    with pytest.raises(BackendError) as caught:
        backend.submit(submission("true"))
    assert caught.value.transient
    assert not caught.value.answered
    assert backend.find("fk-train-1") is not None


def test_a_job_of_the_name_that_is_not_ours_is_left_alone(backend, kubernetes_api) -> None:
    other = KubernetesBackend(RUN._replace(root="s3://elsewhere"))
    other.submit(submission("true"))
    with pytest.raises(BackendError, match="another job of the name"):
        backend.submit(submission("true"))
    other.close()


@pytest.mark.parametrize(
    ("status", "transient", "answered"),
    [(429, True, True), (500, True, False), (503, True, True), (403, False, True), (422, False, True)],
)
def test_what_errors_of_the_api_mean(backend, kubernetes_api, status, transient, answered) -> None:
    kubernetes_api.fault("^POST jobs", status=status)
    with pytest.raises(BackendError) as caught:
        backend.submit(submission("true"))
    assert (caught.value.transient, caught.value.answered) == (transient, answered)
    assert "Kubernetes" in caught.value.headline


def test_an_expired_token_is_read_again_and_else_told(backend, kubernetes_api, kubeconfig) -> None:
    kubernetes_api.set(token="a-token")
    job = backend.submit(submission("true"))
    kubernetes_api.set(token="a-new-token")
    with pytest.raises(BackendError, match="expired") as caught:
        backend.find("fk-train-1")
    assert "log in" in str(caught.value.hint)
    assert caught.value.transient, "a login in another window mends it"
    kubernetes_api.kubeconfig(kubeconfig, token="a-new-token")
    assert backend.find("fk-train-1") == job


def test_a_token_that_expires_while_jobs_run_is_told_until_there_is_another(
    backend, kubernetes_api, kubeconfig
) -> None:
    kubernetes_api.set(token="a-token", longest_watch=0.2)
    job = backend.submit(submission("sleep 1; exit 5"))
    seen = Seen(backend, {job: 1}).until(running(1))
    kubernetes_api.set(token="a-new-token")
    until, errors = time.monotonic() + SOON, []
    while len(errors) < 3:
        assert time.monotonic() < until
        try:
            seen.look()
        except BackendError as error:
            errors.append(error)
        time.sleep(0.02)
    assert all("expired" in error.headline and error.transient for error in errors)
    kubernetes_api.kubeconfig(kubeconfig, token="a-new-token")
    while seen.only().phase != "failed":
        assert time.monotonic() < until
        try:
            seen.look()
        except BackendError:
            time.sleep(0.02)
    assert seen.only().exit_status == 5


# -- following --------------------------------------------------------------------------------------------------------


def test_following_survives_versions_that_are_too_old(backend, kubernetes_api) -> None:
    job = backend.submit(submission("sleep 2", rows=3))
    seen = Seen(backend, {job: 3}).until(running(3))
    lists = kubernetes_api.requests["GET pods"]
    kubernetes_api.compact()
    seen.ended()
    assert {state.phase for state in seen.last.values()} == {"succeeded"}
    assert kubernetes_api.requests["GET pods"] > lists, "it listed afresh"


def test_following_survives_faults_of_the_api(backend, kubernetes_api) -> None:
    kubernetes_api.set(longest_watch=0.3)
    job = backend.submit(submission("sleep 1; exit 4", rows=2))
    for status in (410, 0, 500, 429):
        kubernetes_api.fault("^WATCH pods", status=status)
    kubernetes_api.fault("^GET pods", status=503)
    seen, errors = Seen(backend, {job: 2}), []
    deadline = time.monotonic() + SOON
    while len([state for state in seen.last.values() if state.phase == "failed"]) < 2:
        assert time.monotonic() < deadline
        try:
            seen.look()
        except BackendError as error:
            errors.append(error)
        time.sleep(0.02)
    assert errors
    assert all(error.transient for error in errors)
    assert {state.exit_status for state in seen.last.values()} == {4}


def test_following_costs_no_calls(backend, kubernetes_api) -> None:
    kubernetes_api.set(execute=False, simulated=0.5)
    job = backend.submit(submission("true", rows=300))
    Seen(backend, {job: 300}).ended()
    assert sum(kubernetes_api.count().values()) <= 6, kubernetes_api.count()
    assert kubernetes_api.requests["POST jobs"] == 1


def test_another_process_takes_a_run_over_with_the_ids_alone(backend, kubernetes_api) -> None:
    job = backend.submit(submission("exit $JOB_COMPLETION_INDEX", rows=3))
    Seen(backend, {job: 3}).ended()
    for pod in kubernetes_api.pods():
        if pod["metadata"]["name"].startswith("fk-train-1-0-"):
            kubernetes_api.controller.delete_pod("default", pod["metadata"]["name"])
    again = KubernetesBackend(RUN)
    seen = Seen(again, {job: 3}).ended()
    assert [seen.last[(job, row)].phase for row in range(3)] == ["succeeded", "failed", "failed"]
    assert seen.last[(job, 2)].exit_status == 2
    assert backend.last_lines(job, 1) == []
    again.close()


def test_a_pod_that_came_and_went_unheard_of_is_found_out_by_its_job(backend, kubernetes_api) -> None:
    kubernetes_api.fault("^GET pods", delay=1.5, status=1)
    job = backend.submit(submission("sleep 30"))
    list(backend.states({job: 1}))
    deadline = time.monotonic() + SOON
    while not any(pod["status"]["phase"] == "Running" for pod in kubernetes_api.pods()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kubernetes_api.lose("default", kubernetes_api.pods()[0]["metadata"]["name"])
    assert Seen(backend, {job: 1}).ended().only().cause == "lost"


def test_a_change_wakes_who_waits_for_the_descriptor(backend) -> None:
    import select

    job = backend.submit(submission("true"))
    list(backend.states({job: 1}))
    descriptor = backend.wait_descriptor()
    assert select.select([descriptor], [], [], SOON)[0] == [descriptor]
    Seen(backend, {job: 1}).ended()


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_why_a_row_waits_is_told_after_a_while_and_once(backend, kubernetes_api) -> None:
    kubernetes_api.set(slots=1)
    backend.queue_patience, backend.hints_interval = -5.0, 0.1
    job = backend.submit(submission("sleep 30", rows=3))
    seen = Seen(backend, {job: 3}).until(lambda seen: any("Insufficient" in state.message for state in seen.told))
    for _ in range(10):
        seen.look()
        time.sleep(0.03)
    assert len([state for state in seen.told if "Insufficient" in state.message]) == 1


def test_why_a_job_has_no_pods_is_told(backend, kubernetes_api) -> None:
    kubernetes_api.set(creating="exceeded quota: team")
    backend.hints_interval = 0.1
    job = backend.submit(submission("true"))
    seen = Seen(backend, {job: 1}).until(lambda seen: any("exceeded quota" in state.message for state in seen.told))
    assert seen.only().phase == "queued"


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancelling_what_waits_spares_what_runs(backend, kubernetes_api) -> None:
    kubernetes_api.set(slots=2)
    job = backend.submit(submission("sleep 2", rows=5))
    seen = Seen(backend, {job: 5}).until(running(2))
    backend.cancel([job], "the run has failed", running=False)
    seen.ended()
    phases = [seen.last[(job, row)].phase for row in range(5)]
    assert phases.count("succeeded") == 2
    cancelled = [state for state in seen.last.values() if state.phase == "failed"]
    assert {(state.cause, state.message) for state in cancelled} == {("cancelled", "the run has failed")}
    again = KubernetesBackend(RUN)
    told = Seen(again, {job: 5}).ended()
    assert [told.last[(job, row)].phase for row in range(5)] == phases
    assert {state.cause for state in told.last.values()} == {None, "cancelled"}, "whoever looks next knows why"
    again.close()


def test_cancelling_everything(backend, kubernetes_api) -> None:
    jobs = {backend.submit(submission("sleep 30", rows=2)): 2, backend.submit(submission("sleep 30", name="fk-b")): 1}
    seen = Seen(backend, jobs).until(running(3))
    backend.cancel(jobs, "cancelled by its user", running=True)
    backend.cancel(jobs, "cancelled by its user", running=True)
    seen.ended()
    assert {state.cause for state in seen.last.values()} == {"cancelled"}
    assert kubernetes_api.store.items("jobs") == []


def test_pods_that_come_after_the_cancellation_are_removed_too(backend, kubernetes_api) -> None:
    kubernetes_api.set(slots=0, creating="not yet")
    job = backend.submit(submission("sleep 30", rows=3))
    seen = Seen(backend, {job: 3})
    seen.look()
    backend.cancel([job], "stop", running=False)
    kubernetes_api.set(creating="")
    assert {state.cause for state in seen.ended().last.values()} == {"cancelled"}


# -- gangs ------------------------------------------------------------------------------------------------------------

GANG = 'echo "node $JOB_COMPLETION_INDEX of $FLOWKIT_MAIN_HOST"; '


def test_a_gang_is_one_row_whose_nodes_find_each_other(backend, kubernetes_api) -> None:
    job = backend.submit(submission(GANG + "sleep 1", gang=3))
    seen = Seen(backend, {job: 1}).until(running(1))
    assert len(kubernetes_api.pods()) == 3
    host = next(
        item["value"]
        for item in kubernetes_api.pods()[0]["spec"]["containers"][0]["env"]
        if item["name"] == "FLOWKIT_MAIN_HOST"
    )
    main = kubernetes_api.resolve(host)
    assert main is not None
    assert main["metadata"]["name"].startswith("fk-train-1-0-")
    assert seen.ended().only().phase == "succeeded"
    assert backend.last_lines(job, 0) == ["node 0 of localhost"], "the name has an address"


def test_a_gang_fails_with_its_first_node_when_all_are_over(backend, kubernetes_api) -> None:
    job = backend.submit(submission(GANG + "[ $JOB_COMPLETION_INDEX = 2 ] && exit 9; sleep 30", gang=3))
    state = Seen(backend, {job: 1}).ended().only()
    assert (state.cause, state.exit_status) == ("exit", 9)
    assert "node 2" in state.message
    assert all(pod["status"]["phase"] == "Failed" for pod in kubernetes_api.pods())
    assert backend.last_lines(job, 0)[-1].startswith("node 2 of")


def test_a_gang_whose_service_is_refused_leaves_nothing_behind(backend, kubernetes_api) -> None:
    kubernetes_api.set(denied={"create services"})
    with pytest.raises(BackendError, match="not allowed"):
        backend.submit(submission("sleep 30", gang=3))
    assert kubernetes_api.store.items("jobs") == []


def test_a_gang_whose_service_was_not_made_gets_it_at_the_next_try(backend, kubernetes_api) -> None:
    kubernetes_api.fault("^POST services", status=503)
    with pytest.raises(BackendError):
        backend.submit(submission(GANG, gang=2))
    job = backend.submit(submission(GANG, gang=2))
    assert Seen(backend, {job: 1}).ended().only().phase == "succeeded"


def test_jobsets_that_may_only_be_looked_at_are_not_used(backend, kubernetes_api) -> None:
    kubernetes_api.set(jobsets=True, denied={"create jobsets"})
    job = backend.submit(submission(GANG, gang=2))
    assert Seen(backend, {job: 1}).ended().only().phase == "succeeded"


def test_a_gang_waits_until_every_node_has_a_machine_and_is_cancelled_as_one(backend, kubernetes_api) -> None:
    kubernetes_api.set(slots=2)
    job = backend.submit(submission("sleep 30", gang=3))
    seen = Seen(backend, {job: 1}).until(
        lambda _: sum(pod["status"]["phase"] == "Running" for pod in kubernetes_api.pods()) == 2
    )
    seen.look()
    assert "running" not in seen.phases()
    backend.cancel([job], "stop", running=False)
    assert seen.ended().only().cause == "cancelled"


def test_a_cluster_with_jobsets_gets_one(backend, kubernetes_api) -> None:
    kubernetes_api.set(jobsets=True)
    job = backend.submit(submission(GANG + "sleep 0.5", gang=2))
    assert backend.find("fk-train-1") == job
    (made,) = kubernetes_api.store.items("jobsets")
    seen = Seen(backend, {job: 1}).until(running(1))
    (pod, _) = kubernetes_api.pods()
    env = {item["name"]: item["value"] for item in pod["spec"]["containers"][0]["env"]}
    main = kubernetes_api.resolve(env["FLOWKIT_MAIN_HOST"])
    assert main is not None
    assert main["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] == "0"
    assert seen.ended().only().phase == "succeeded"


# -- secrets, listing, preflight --------------------------------------------------------------------------------------


def test_secrets_come_by_reference(backend, kubernetes_api) -> None:
    value = base64.b64encode(b"s3cret").decode()
    kubernetes_api.put("secrets", {"metadata": {"name": "db", "namespace": "default"}, "data": {"TOKEN": value}})
    job = backend.submit(submission("test $(echo $TOKEN | tr a-z A-Z) = S3CRET", secrets=["db"]))
    assert Seen(backend, {job: 1}).ended().only().phase == "succeeded"
    assert "s3cret" not in str(kubernetes_api.store.items("jobs"))


def test_jobs_that_run_are_listed_with_what_they_are(backend, kubernetes_api) -> None:
    job = backend.submit(submission("sleep 30", rows=2))
    Seen(backend, {job: 2}).until(running(2))
    backend.submit(submission("true", name="fk-done"))
    Seen(backend, {"default/job/0/fk-done": 1}).ended()
    everyone = KubernetesBackend(None)
    (found,) = everyone.jobs(flow="TrainFlow", user="Ann Miller")
    assert (found.job, found.run, found.step, found.rows) == (job, "7", "train", 2)
    assert everyone.jobs(user="Ann.Miller") == []
    assert everyone.jobs(run="8") == []
    everyone.cancel([job], "killed", running=True)
    assert everyone.jobs() == []
    everyone.close()


def preflight(**requests: dict[str, Any]) -> list[str]:
    backend = KubernetesBackend(RUN)
    problems = backend.preflight({step: ExecutorRequest("kubernetes", wanted) for step, wanted in requests.items()})
    backend.close()
    return [f"{problem.headline} | {problem.hint}" for problem in problems]


def test_preflight_of_a_cluster_in_order(kubeconfig) -> None:
    assert preflight(train={}) == []


def test_preflight_tells_everything_that_is_missing(kubeconfig, kubernetes_api) -> None:
    kubernetes_api.set(denied={"create jobs", "watch pods"})
    told = preflight(
        train={"secrets": ["db"], "service_account": "robot", "persistent_volume_claims": {"data": "/data"}},
        test={"namespace": "nowhere"},
    )
    text = "\n".join(told)
    assert len(told) == 5, text
    for words in (
        "namespace 'nowhere'",
        "create jobs, watch pods",
        "account 'robot' (step train)",
        "secret 'db'",
        "claim 'data'",
    ):
        assert words in text


def test_preflight_of_an_old_cluster(kubeconfig, kubernetes_api) -> None:
    kubernetes_api.set(version=("1", "27+"))
    assert "1.29 or later" in preflight(train={})[0]


def test_preflight_without_a_cluster(kubeconfig, kubernetes_api) -> None:
    kubeconfig.write_text(kubeconfig.read_text().replace(kubernetes_api.url, "http://127.0.0.1:1"))
    (told,) = preflight(train={})
    assert "does not answer" in told
    assert "127.0.0.1:1" in told


def test_preflight_without_any_configuration(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (told,) = preflight(train={})
    assert "no Kubernetes cluster is configured" in told


def test_preflight_with_an_expired_token(kubeconfig, kubernetes_api) -> None:
    kubernetes_api.set(token="another")
    (told,) = preflight(train={})
    assert "expired" in told


def test_preflight_refuses_a_datastore_that_pods_cannot_reach(kubeconfig) -> None:
    backend = KubernetesBackend(RUN._replace(root="/home/ann/.flowkit"))
    (problem,) = backend.preflight({"train": ExecutorRequest("kubernetes")})
    assert "/home/ann/.flowkit" in problem.headline
    backend.close()


def test_the_loopback_api_refuses_what_a_strict_one_would(kubernetes_api: KubernetesApi) -> None:
    from kube_strict import job_problems

    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "m", "image": "i", "bogus": 1}]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x" * 62}, "spec": {"template": template}}
    assert any('unknown field "spec.template.spec.containers[0].bogus"' in text for text in job_problems(job))
    del template["spec"]["containers"][0]["bogus"]
    job["spec"].update(completionMode="Indexed", completions=10)
    assert any("is no name of a host" in text for text in job_problems(job))
    job["metadata"] = {"name": "x", "labels": {"a": "-"}}
    job["spec"]["completions"] = "3"
    assert job_problems(job) == ["spec.completions: must be of type int, not '3'"]
    job["spec"]["completions"] = 3
    assert job_problems(job) == ["metadata.labels: Invalid value: '-'"]
