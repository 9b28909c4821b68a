"""Random flows of the whole language leave the same tasks and artifacts wherever they run.

Few and small ones here, on the least scheduler that there can be; ``make test-deploying`` has many more, on every one.
Those on a real Airflow are with its suite (``make test-airflow``).
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest
from deployments import deployment_of, target_of
from plain_scheduler import PlainScheduler
from plain_target import deploy_here
from random_deployments import FEATURES, RandomProgram, chosen
from random_runs import SECONDS, as_texts, begin, compare, over, triggered

from flowkit.deployer.capabilities import TARGETS, refusals

MORE = int(os.environ.get("RANDOM_FLOWS", "4"))
"""Flows for each scheduler under ``make test-deploying``, besides those that have everything in them together."""


def flows_for(target: str, more: int = MORE) -> Any:
    """Return the mark that gives a test one flow after the other."""
    return pytest.mark.parametrize("program", [pytest.param(each, id=each.name) for each in chosen(target, more)])


def test_random_flows_have_everything_in_them() -> None:
    found = set().union(*(RandomProgram(seed).features for seed in range(60)))
    assert found == FEATURES
    for target in TARGETS:
        assert set().union(*(program.features for program in chosen(target, 0))) == FEATURES


AIRFLOW = ({"file": "dag.py"}, {"file": "dag.py", "executor": "local"})
"""Its pods cannot know each other: gangs are for the machine of a local one."""


@pytest.mark.parametrize(
    ("target", "options"),
    [(name, options) for name in TARGETS for options in (AIRFLOW if name == "airflow" else ({},))],
)
def test_random_flows_compile_for_every_target(target: str, options: dict[str, Any]) -> None:
    made = target_of(target, options)
    for seed in range(5):
        program = RandomProgram(seed, gangs=options != AIRFLOW[0])
        deployment = deployment_of(program.source, made, client={"top": [], "run": []})
        assert refusals(target, deployment) == []
        assert made.problems(deployment) == []
        document = made.compile(deployment)
        assert document == made.compile(deployment), "the same document each time"
        text = document if isinstance(document, str) else json.dumps(document)
        assert len(text) < 900_000
        if isinstance(document, str):
            compile(document, "dag.py", "exec")


def on_the_plain_scheduler(workspace: Any, program: RandomProgram) -> None:
    here = begin(workspace, program)
    root = str(workspace.path / "deployed")
    workspace.env["FLOWKIT_DATASTORE"] = root
    scheduler = PlainScheduler(
        deploy_here(workspace.path / "flow.py", root), "plain-1", {**workspace.env, "FLOWKIT_SKIP_INSTALL": "true"}
    )
    state = scheduler.run({name: json.dumps(value) for name, value in program.parameters.items()})
    assert state == "succeeded", f"{scheduler.output}\n{program.source}"
    compare(workspace, program, here, f"{program.flow}/plain-1")


def test_a_random_flow_by_coordinates_alone(workspace: Any) -> None:
    on_the_plain_scheduler(workspace, RandomProgram(9, size=2, most=7))


@pytest.mark.deploying
@flows_for("plain")
def test_on_the_plain_scheduler(workspace: Any, program: RandomProgram) -> None:
    on_the_plain_scheduler(workspace, program)


@pytest.mark.deploying
@flows_for("local")
def test_in_the_box(workspace: Any, program: RandomProgram) -> None:
    here = begin(workspace, program)
    run = triggered(workspace, "local", program)
    assert over(workspace, run) == "succeeded"
    compare(workspace, program, here, run)


@pytest.mark.deploying
@flows_for("argo-workflows")
def test_on_argo_workflows(folder_user: Any, argo: Any, program: RandomProgram) -> None:
    from argo_fixtures import run_on_argo

    here = begin(folder_user, program)
    done = run_on_argo(folder_user, argo, parameters=program.parameters, target="argo-on-folder")
    assert done.state == "succeeded", f"{argo.tell(done.workflow)}\n{program.source}"
    compare(folder_user, program, here, done.pathspec)


@pytest.mark.deploying
@flows_for("step-functions")
def test_on_step_functions(cloud: Any, machines: Any, program: RandomProgram) -> None:
    from machine_service import execution_of, run_through_step_functions, story

    here = begin(cloud, program)
    run, state = run_through_step_functions(machines, cloud, parameters=as_texts(program.parameters))
    told = story(machines, execution_of(machines, run)["executionArn"]) if state != "succeeded" else ""
    assert state == "succeeded", f"{told}\n{program.source}"
    compare(cloud, program, here, run)


@pytest.mark.deploying
@flows_for("kubernetes", MORE // 2)
def test_as_a_cronjob(argo_user: Any, kubernetes_api: Any, program: RandomProgram) -> None:
    known = kubernetes_api.controller.knobs.node_environment
    kubernetes_api.set(node_environment={**known, "KUBECONFIG": argo_user.env["KUBECONFIG"]})
    here = begin(argo_user, program)
    run = triggered(argo_user, "kubernetes", program)
    name = run.partition("/kubernetes-")[2]
    deadline = time.monotonic() + SECONDS
    while not (told := (kubernetes_api.store.get("jobs", "default", name)["status"] or {}).get("conditions")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    words = [kubernetes_api.words(pod) for pod in kubernetes_api.pods("default", "app.kubernetes.io/component=client")]
    assert told[-1]["type"] == "Complete", f"{words}\n{program.source}"
    compare(argo_user, program, here, run)
