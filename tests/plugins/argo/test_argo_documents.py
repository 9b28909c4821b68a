"""What is compiled for Argo Workflows: golden documents, sizes, names, schedules, events, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from argo_expressions import replace
from argo_fields import SCHEMA, check_spec, object_problems, schema_problems
from deployments import deployment_of

from flowkit.exceptions import FlowInvalid
from flowkit.plugins.argo.names import NAME_LIMIT, Names, deployment_name, is_deployment_name
from flowkit.plugins.argo.target import ArgoWorkflows
from flowkit.runtime.bootstrap import stub
from flowkit.settings import settings
from flowkit.version import __version__

GOLDEN = Path(__file__).with_name("golden")

SHAPES = {
    "linear": """
        @schedule(cron="30 6 ? * MON-FRI *", timezone="Europe/Berlin")
        class Linear(FlowSpec):
            alpha = Parameter("alpha", default=0.5, help="How much.")
            table = Parameter("table", type=str, default=None)

            @step
            def start(self):
                self.next(self.train)

            @retry(times=2, minutes_between_retries=1)
            @timeout(minutes=10)
            @environment(vars={"MODE": "fast"})
            @kubernetes(cpu=2, memory=500, gpu=1, image="registry.example.com/train:3", secrets=["db"],
                        service_account="trainer", image_pull_secrets=["registry"], labels={"team": "digits"},
                        node_selector={"pool": "gpu"}, tolerations=[{"key": "gpu", "operator": "Exists"}],
                        use_tmpfs=True)
            @step
            def train(self):
                self.next(self.end)

            @step
            def end(self):
                pass
    """,
    "nested": """
        class Nested(FlowSpec):
            @step
            def start(self):
                self.rows = [[1], []]
                self.next(self.row, foreach="rows")

            @step
            def row(self):
                self.next(self.cell, foreach="input")

            @step
            def cell(self):
                self.kind = "odd"
                self.next({"odd": self.odd, "even": self.meet}, condition="kind")

            @step
            def odd(self):
                self.next(self.meet)

            @step
            def meet(self):
                self.next(self.join_cells)

            @step
            def join_cells(self, inputs):
                self.next(self.join_rows)

            @step
            def join_rows(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass
    """,
    "gang_and_loop": """
        @trigger(events=["data", {"name": "model", "parameters": {"table": "name"}}],
                 options={"reset_at": {"cron": "0 0 * * *", "timezone": "UTC"}})
        @trigger_on_finish(flow="Upstream")
        class GangAndLoop(FlowSpec):
            table = Parameter("table", default="t")

            @step
            def start(self):
                self.next(self.a, self.b)

            @step
            def a(self):
                self.way = "on"
                self.next({"on": self.a, "gang": self.muster, "off": self.lone}, condition="way")

            @step
            def muster(self):
                self.next(self.work, num_parallel=4)

            @parallel
            @step
            def work(self):
                self.next(self.dismiss)

            @step
            def dismiss(self, inputs):
                self.next(self.both)

            @step
            def lone(self):
                self.next(self.both)

            @step
            def b(self):
                self.next(self.both)

            @step
            def both(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass
    """,
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Compile as somebody does who has set nothing."""
    monkeypatch.setenv("FLOWKIT_HOME", str(tmp_path / "none"))
    for name in [name for name in os.environ if name.startswith("FLOWKIT_KUBERNETES") or "ARGO" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLOWKIT_CONTAINER_IMAGE", "python:3.12-slim")
    monkeypatch.setenv("FLOWKIT_ARGO_EVENTS_WEBHOOK_URL", "http://events.argo:12000/flowkit")
    monkeypatch.chdir(tmp_path)
    settings(reload=True)
    yield
    monkeypatch.undo()
    settings(reload=True)


def compiled(source: str, **options: Any) -> dict[str, Any]:
    """The documents of a flow, by kind; each is valid."""
    deployment = deployment_of(source, "argo-workflows", **options)
    target = ArgoWorkflows({})
    assert target.problems(deployment) == []
    document = target.compile(deployment)
    assert document == target.compile(deployment)
    found = {item["kind"]: item for item in document["items"]}
    for item in found.values():
        assert object_problems(item) == []
        assert item["metadata"]["annotations"]["flowkit/record"]
    return found


def tasks_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    """The tasks of a DAG template."""
    templates = {template["name"]: template for template in found["WorkflowTemplate"]["spec"]["templates"]}
    return {task["name"]: task for task in templates[name]["dag"]["tasks"]}


@pytest.mark.parametrize("name", SHAPES)
def test_documents_are_as_they_were(name: str) -> None:
    found = compiled(SHAPES[name])
    for item in found.values():
        item["metadata"]["annotations"]["flowkit/record"] = "RECORD"
    text = json.dumps(list(found.values()), ensure_ascii=False)
    program = json.dumps(stub().replace("$", "$$"))[1:-1]
    for long, short in (
        (program, "PROGRAM"),
        (json.dumps(program)[1:-1], "PROGRAM"),
        (f'"{__version__}"', '"VERSION"'),
    ):
        text = text.replace(long, short).replace(json.dumps(long)[1:-1], json.dumps(short)[1:-1])
    text = yaml.safe_dump_all(json.loads(text), sort_keys=False, width=120, allow_unicode=True)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("FLOWKIT_WRITE_GOLDEN") == "1":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.skipif(not SCHEMA.is_file(), reason="the schema of Argo Workflows is not beside this checkout")
def test_the_schema_refuses_what_argo_does_not_know() -> None:
    template = compiled(SHAPES["linear"])["WorkflowTemplate"]
    template["spec"]["templates"][0]["dag"]["tasks"][0]["whenever"] = "x"
    assert any("whenever" in problem for problem in schema_problems(template))


def long_flow(steps: int, splits: int) -> str:
    """A flow of many steps in a row, some of which are splits with a join."""
    names = ["start"]
    lines = ["class Long(FlowSpec):"]

    def add(name: str, body: str, join: bool = False) -> None:
        lines.append(f"    @step\n    def {name}(self{', inputs' if join else ''}):\n        {body}")

    for number in range(splits):
        parts = [f"left_{number}", f"right_{number}"]
        names.append(f"join_{number}")
        add(names[-2], f"self.next(self.{parts[0]}, self.{parts[1]})")
        for part in parts:
            add(part, f"self.next(self.{names[-1]})")
        names.append(f"after_{number}")
        add(names[-2], f"self.next(self.{names[-1]})", join=True)
    rest = [f"a_step_with_a_long_name_{number}" for number in range(steps - 4 * splits - 2)]
    for one, other in zip([names[-1], *rest], [*rest, "end"], strict=True):
        add(one, f"self.next(self.{other})")
    add("end", "pass")
    return "\n".join(lines)


def test_a_flow_of_three_hundred_steps_fits() -> None:
    found = compiled(long_flow(300, 60))
    size = len(json.dumps(found["WorkflowTemplate"]).encode())
    assert len(found["WorkflowTemplate"]["spec"]["templates"]) == 304
    assert size < 600_000, "a running workflow has the template within it, and its nodes"


def test_a_flow_that_is_too_large_is_told() -> None:
    deployment = deployment_of(long_flow(900, 0), "argo-workflows")
    problems = ArgoWorkflows({}).problems(deployment)
    assert "the WorkflowTemplate has" in problems[0].headline


@pytest.mark.parametrize(
    ("flow", "project", "branch", "name"),
    [
        ("TrainFlow", None, None, "train-flow"),
        ("TrainFlow", "digits", "prod", "digits.prod.train-flow"),
        ("TrainFlow", "digits", "user.ann", "digits.user.ann.train-flow"),
    ],
)
def test_names_that_people_can_read(flow: str, project: str | None, branch: str | None, name: str) -> None:
    assert deployment_name(flow, project, branch) == name


def test_every_name_is_valid_and_no_two_are_alike() -> None:
    flows = ["Train", "TRAIN", "train", "TrainFlow", "Train_Flow", "trainFlow", "A" * 300, "Ünïcode", "_", "T1", "T_1"]
    branches = [(None, None), ("a", "prod"), ("A", "prod"), ("a_b", "user.ann"), ("a-b", "user.ann"), ("a", "test.é")]
    names = [deployment_name(flow, *branch) for flow in flows for branch in branches]
    assert len(set(names)) == len(names)
    assert all(is_deployment_name(name) and len(name) <= NAME_LIMIT for name in names)
    given = Names()
    made = [given.give(step) for step in ("a_b", "A_b", "a__b", "in_", "nil", "len", "Ünï", "ü", "ö", "_1", "x" * 300)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", name) for name in made), made
    assert not {"nil", "len", "in"} & set(made)


def test_branches_of_a_switch_meet_and_join() -> None:
    found = compiled("""
        class Ways(FlowSpec):
            @step
            def start(self):
                self.next(self.one, self.other)

            @step
            def one(self):
                self.way = "x"
                self.next({"x": self.first, "y": self.second, "z": self.meet}, condition="way")

            @step
            def first(self):
                self.next(self.meet)

            @step
            def second(self):
                self.next(self.late)

            @step
            def meet(self):
                self.next(self.late)

            @step
            def late(self):
                self.next(self.both)

            @step
            def other(self):
                self.next(self.both)

            @step
            def both(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    tasks = tasks_of(found, "flow")
    chose = "'{{tasks.step-one.outputs.parameters.step}}' == "
    assert tasks["step-first"]["when"] == f"{chose}'first'"
    assert tasks["meet"]["depends"] == "step-one.Succeeded || step-first.Succeeded"
    assert tasks["meet"]["when"] == f"{chose}'meet' || '{{{{tasks.step-first.status}}}}' == 'Succeeded'"
    assert tasks["late"]["depends"] == "second.Succeeded || meet.Succeeded"
    assert "when" not in tasks["late"]
    assert tasks["both"]["depends"] == "late.Succeeded && other.Succeeded"


def test_a_foreach_over_one_step_needs_no_dag() -> None:
    source = (
        SHAPES["nested"]
        .replace('self.kind = "odd"', "")
        .replace('self.next({"odd": self.odd, "even": self.meet}, condition="kind")', "self.next(self.join_cells)")
    )
    source = re.sub(r" +@step\n +def (odd|meet)\(self\):\n.*\n", "", source)
    found = compiled(source)
    names = [template["name"] for template in found["WorkflowTemplate"]["spec"]["templates"]]
    assert names[:3] == ["flow", "start-each", "start"]
    assert [name for name in names if name.endswith("-each")] == ["start-each"]
    tasks = tasks_of(found, "start-each")
    assert tasks["cell"]["template"] == "cell"
    assert tasks["cell"]["withSequence"]["count"] == "{{tasks.row.outputs.parameters.width}}"
    assert tasks["join-cells"]["depends"] == "(cell.Succeeded || cell.Skipped)"


def test_the_end_of_a_run_is_told_and_hooks_run() -> None:
    found = compiled(SHAPES["linear"])
    tasks = tasks_of(found, "exit")
    assert tasks["end-of-run"]["when"] == "'{{workflow.status}}' != 'Succeeded'"
    assert tasks["tell-finished"]["when"] == "'{{workflow.status}}' == 'Succeeded'"
    hooked = SHAPES["linear"].replace(
        "        @schedule", "        @exit_hook(on_success=[print])\n        @schedule", 1
    )
    assert "when" not in tasks_of(compiled(hooked), "exit")["end-of-run"]


def test_what_a_run_as_a_whole_is_given() -> None:
    found = compiled(SHAPES["linear"], max_workers=7, workflow_timeout=3600.0, priority=5, concurrency="forbid")
    spec = found["WorkflowTemplate"]["spec"]
    assert (spec["parallelism"], spec["activeDeadlineSeconds"], spec["priority"]) == (7, 3600, 5)
    assert found["CronWorkflow"]["spec"]["concurrencyPolicy"] == "Forbid"
    assert found["CronWorkflow"]["spec"]["schedules"] == ["30 6 * * 1-5"]
    assert found["CronWorkflow"]["spec"]["workflowSpec"] == {"workflowTemplateRef": {"name": "linear"}}
    check_spec(spec)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('cron="30 6 ? * MON-FRI *"', 'cron="30 6 L * ? *"'), "cron of five fields has no L"),
        (('cron="30 6 ? * MON-FRI *"', 'cron="30 6 ? * MON-FRI 2030"'), "cron of five fields has no years"),
        (('"MODE": "fast"', '"MODE": "{{fast}}"'), "step 'train': the environment variable MODE has {{"),
        (("cpu=2,", 'cpu=2, namespace="there",'), None),
        (("        @schedule", '        @trigger(event="data")\n        @schedule'), "an event starts a run whatever"),
    ],
)  # fmt: skip
def test_what_argo_cannot_do_is_told(change: tuple[str, str], words: str | None) -> None:
    source = SHAPES["linear"].replace(*change)
    assert source != SHAPES["linear"]
    deployment = deployment_of(source, "argo-workflows", refused=True, concurrency="forbid")
    problems = ArgoWorkflows({"kubernetes_namespace": "here"}).problems(deployment)
    headlines = [problem.headline for problem in problems]
    if words is None:
        words = "step train: @kubernetes(namespace='there'), and all pods of a workflow are in its namespace"
    assert [headline for headline in headlines if words in headline], headlines


def test_a_record_that_is_too_large_is_told() -> None:
    deployment = deployment_of(SHAPES["linear"], "argo-workflows")
    large = dataclasses.replace(deployment, record={**deployment.record, "file": "x" * 300_000})
    (problem,) = ArgoWorkflows({}).problems(large)
    assert problem.headline.startswith("the deployment's record has 300,")


def test_a_bad_name_is_told() -> None:
    with pytest.raises(FlowInvalid) as info:
        raise FlowInvalid(ArgoWorkflows({}).problems(deployment_of(SHAPES["linear"], "argo-workflows", name="A b")))
    assert "'A b' cannot be a name in Argo Workflows" in str(info.value)


def test_what_tells_others_of_a_run_that_has_succeeded_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[Any, Any]] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append((body, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/flowkit"
        monkeypatch.setenv("FLOWKIT_ARGO_EVENTS_WEBHOOK_URL", url)
        settings(reload=True)
        source = SHAPES["linear"].replace("@schedule", '@project(name="digits")\n        @schedule', 1)
        templates = {each["name"]: each for each in compiled(source)["WorkflowTemplate"]["spec"]["templates"]}
        known = {"workflow.name": "linear-x7k2", "workflow.uid": "17"}
        container = replace(templates["tell-finished"], known, strict=True)["container"]
        env = {"PATH": os.environ["PATH"], "FLOWKIT_ARGO_EVENTS_TOKEN": "open-sesame"}
        command = [word.replace("$$", "$") for word in container["command"]]
        subprocess.run([sys.executable, *command[1:]], check=True, timeout=240, env=env)
        thread.join(240)
    ((body, authorization),) = heard
    assert authorization == "Bearer open-sesame"
    assert re.fullmatch(r"flowkit\.digits\.user\.\w+\.Linear\.end", body["name"])
    assert body["payload"].pop("timestamp") > 1_700_000_000
    assert body["payload"].pop("branch").startswith("user.")
    assert body["payload"] == {
        "id": "17",
        "flow": "Linear",
        "run": "argo-linear-x7k2",
        "pathspec": "Linear/argo-linear-x7k2",
        "project": "digits",
    }
