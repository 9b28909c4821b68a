"""What of a flow goes into a deployment, and what is refused, each thing with its line."""

from __future__ import annotations

import json

import pytest
from deployments import PACKAGE_KEY, TEMPLATE_KEY, definition_of, deployment_of
from value_targets import Client, Cluster, Machine

from flowkit.deployer.target import DeploymentRecord, EventPlan, ParameterPlan, SchedulePlan
from flowkit.deployer.values import deploy_values
from flowkit.exceptions import FlowInvalid
from flowkit.settings import settings

RICH = '''
import enum

class Colour(enum.Enum):
    red = 1
    blue = 2

def tell(run):
    pass

def name_of_event(context):
    return f"landed-{context.user_name}"

def fields(context):
    return {"rate": "speed"}

@project(name="fraud", production=True)
@schedule(cron="0 6 ? * MON-FRI *", timezone="Europe/Oslo")
@trigger(events=[name_of_event, {"name": "b", "parameters": ["rate"]}, {"name": "c", "parameters": fields}],
         options={"reset_at": {"cron": "0 0 * * *"}})
@trigger_on_finish(flows=["Prepare", "other.test.b.Third",
                          {"name": "Fourth", "project": "p", "project_branch": "prod"}])
@exit_hook(on_error=[tell])
class Train(FlowSpec):
    """Trains a model.

    And more.
    """

    rate = Parameter("rate", default=lambda context: 0.5, type=float, help="How\\n fast")
    hue = Parameter("the-hue", default=Colour.red)
    size = Parameter("size", type=["s", "m"], default="m")
    parts = Parameter("parts", separator=",", default="a,b")
    table = Parameter("table", default={"x": [1]})
    many = Parameter("many", type=int)
    dry = Parameter("dry", default=False)

    @environment(vars={"MODE": "fast"})
    @retry(times=2, minutes_between_retries=0.5)
    @step
    def start(self):
        self.items = [1]
        self.next(self.body, foreach="items")

    @timeout(seconds=5)
    @catch(var="error")
    @resources(cpu=4)
    @kubernetes(image="mine:1", executable="python3.11")
    @step
    def body(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
'''


def test_a_deployment_says_all_that_a_compiler_needs(monkeypatch):
    monkeypatch.delenv("FLOWKIT_SERVICE_TOKEN", raising=False)
    made = deployment_of(
        RICH,
        Cluster,
        metadata="local",
        tags=("nightly",),
        max_workers=7,
        workflow_timeout=60.0,
        concurrency="forbid",
        priority=3,
        notify_on_success=True,
        title="Training",
    )
    assert (made.name, made.flow, made.project, made.branch) == ("fraud.prod.Train", "Train", "fraud", "prod")
    assert made.schedule == SchedulePlan("0 6 ? * MON-FRI *", "Europe/Oslo")
    assert made.events == (
        EventPlan("landed-ann"),
        EventPlan("b", (("rate", "rate"),)),
        EventPlan("c", (("rate", "speed"),)),
    )
    assert made.finishes == (
        EventPlan("flowkit.fraud.prod.Prepare.end", (), "Prepare", "fraud", "prod"),
        EventPlan("flowkit.other.test.b.Third.end", (), "Third", "other", "test.b"),
        EventPlan("flowkit.p.prod.Fourth.end", (), "Fourth", "p", "prod"),
    )
    assert made.event_options == {"reset_at": {"cron": "0 0 * * *"}}
    assert made.parameters == (
        ParameterPlan("rate", "rate", "number", "0.5", False, "How fast"),
        ParameterPlan("the-hue", "hue", "text", '"red"', False, "", ("red", "blue")),
        ParameterPlan("size", "size", "text", '"m"', False, "", ("s", "m")),
        ParameterPlan("parts", "parts", "json", '["a", "b"]', False),
        ParameterPlan("table", "table", "json", '{"x": [1]}', False),
        ParameterPlan("many", "many", "integer", None, False),
        ParameterPlan("dry", "dry", "boolean", "false", False),
    )
    assert (made.on_success, made.on_error, made.tags, made.namespace) == (
        True,
        True,
        ("nightly",),
        f"production:{made.token}",
    )
    assert (made.max_workers, made.workflow_timeout, made.concurrency, made.priority) == (7, 60.0, "forbid", 3)
    assert (made.title, made.description) == ("Training", "Trains a model.")

    start, body, end = made.steps["start"], made.steps["body"], made.steps["end"]
    assert {plan.request.name for plan in made.steps.values()} == {"kubernetes"}
    assert body.request.resources["cpu"] == 4
    more = settings().infrastructure_retries
    assert [plan.tries for plan in (start, body, end)] == [3 + more, 2 + more, 1 + more]
    assert start.attempts.delay == 30
    assert start.environment["MODE"] == "fast"
    assert "MODE" not in body.environment
    assert body.environment["FLOWKIT_DATASTORE"] == made.root
    assert body.command[:2] == ("python3.11", "-c")
    for plan in (start, body):
        assert plan.command[plan.command.index("--step") + 1] == plan.name
        assert PACKAGE_KEY in plan.command
    assert ("--template" in start.command, "--template" in body.command) == (True, False)
    assert TEMPLATE_KEY in made.end_command
    assert made.end_environment["FLOWKIT_NOTIFY"] == "success"

    assert json.loads(json.dumps(made.record)) == made.record
    record = DeploymentRecord.from_json(made.record)
    assert record.parameters == made.parameters
    assert record.events == made.events + made.finishes
    assert (record.token, record.template, record.package["key"]) == (made.token, TEMPLATE_KEY, PACKAGE_KEY)
    assert deployment_of(RICH, Cluster).record == deployment_of(RICH, Cluster).record


def test_the_address_of_a_metadata_service_goes_along_and_its_token_does_not(monkeypatch):
    monkeypatch.setenv("FLOWKIT_SERVICE_URL", "https://ann:pass-word@meta.example.com:8443/base")
    monkeypatch.setenv("FLOWKIT_SERVICE_TOKEN", "fk_very_secret")
    settings(reload=True)
    try:
        made = deployment_of(PLAIN.format(lines=""), Cluster, metadata="service")
    finally:
        monkeypatch.undo()
        settings(reload=True)
    said = made.steps["start"].environment
    assert said["FLOWKIT_METADATA"] == "service"
    assert said["FLOWKIT_SERVICE_URL"] == "https://meta.example.com:8443/base"
    assert "--record" in made.steps["start"].command
    everything = repr(made)
    assert "fk_very" not in everything
    assert "pass-word" not in everything


PLAIN = """
{lines}
class Plain(FlowSpec):
    needed = Parameter("needed", required=True, type=int)

    @step
    def start(self):
        self.next(self.end)

    @batch
    @step
    def end(self):
        pass
""".replace("@batch\n    ", "")


def _problems(source, target, **options):
    with pytest.raises(FlowInvalid) as told:
        deployment_of(source, target, **options)
    return {(problem.headline, problem.where.line if problem.where else None) for problem in told.value.problems}


def test_what_starts_a_flow_by_itself_has_to_fill_its_parameters():
    assert _problems(PLAIN.format(lines="@schedule(daily=True)"), Client) == {
        ("the parameter 'needed' is required, and @schedule cannot give it a value", 4)
    }
    lines = '@trigger(event={"name": "landed", "parameters": {"needed": "rows"}})'
    assert deployment_of(PLAIN.format(lines=lines), Client).events[0].parameters == (("needed", "rows"),)
    lines = '@trigger_on_finish(flow="Other")'
    assert _problems(PLAIN.format(lines=lines), Client) == {
        ("the parameter 'needed' is required, and @trigger_on_finish cannot give it a value", 4)
    }
    assert deployment_of(PLAIN.format(lines="@schedule(daily=False)"), Client).schedule is None


def test_a_service_that_the_target_cannot_start_is_refused_with_its_line():
    source = """
        class Mixed(FlowSpec):
            @batch()
            @step
            def start(self):
                self.next(self.end)

            @kubernetes
            @step
            def end(self):
                pass
        """
    headline = "step 'start' asks for @batch, which the cluster cannot start: it starts @kubernetes only"
    assert _problems(source, Cluster) == {(headline, 3)}
    assert len(_problems(source, Machine)) == 2
    assert {plan.request.name for plan in deployment_of(source, Client).steps.values()} == {"batch", "kubernetes"}
    assert _problems("class Flow(FlowSpec):\n  @step\n  def start(self): self.next(self.end)\n  @step\n"
                     "  def end(self): pass\n", Cluster, root="/data") == {
        ("the cluster starts containers, which cannot reach the datastore /data", None)
    }  # fmt: skip


ODD = """
def boom(context):
    raise RuntimeError("no such table")

@trigger(events=[{events}])
@trigger_on_finish(flows=[{flows}])
class Odd(FlowSpec):
    good = Parameter("good", default=1)
    broken = Parameter("broken", default=boom)
    odd = Parameter("odd", type=JSONType, default=lambda context: {{1}})
    text = IncludeFile("text", required=True)

    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_functions_of_deploy_time_that_fail_are_told_each_with_its_place():
    source = ODD.format(
        events='boom, lambda: 7, {"name": lambda: ""}, {"name": "a", "parameters": lambda: {"bad": "x"}}, '
        '{"name": "twice"}, "twice", {"name": "b", "parameters": lambda: 3}',
        flows='boom, lambda: {"name": "not a flow"}, {"name": "Other", "project": "p"}',
    )
    definition = definition_of(source)
    found = deploy_values(definition, user="ann").problems
    told = sorted(problem.headline for problem in found)
    assert told == sorted(
        [
            "the default of parameter 'broken' cannot be computed: RuntimeError: no such table",
            "the default of parameter 'odd' cannot be kept with a deployment: "
            "Object of type set is not JSON serializable",
            "the parameter 'text' needs a file, and where a deployed run starts there is none",
            "@trigger: the function 'boom' failed: RuntimeError: no such table",
            "@trigger: the function '<lambda>' returned 7, which is not the name of an event, or a dict with it",
            "@trigger: the function '<lambda>' returned '', which is not the name of an event",
            "@trigger: the flow has no parameter 'bad'",
            "@trigger: the parameters of an event are not names",
            "@trigger waits for 'twice' twice",
            "@trigger_on_finish: the function 'boom' failed: RuntimeError: no such table",
            "@trigger_on_finish: 'not a flow', which is not the name of a flow",
            "@trigger_on_finish: of the flow Other only one of project and branch is known",
        ]
    )
    assert all(problem.where is not None for problem in found)
