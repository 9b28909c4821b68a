"""State machines as documents: what they say, that they are valid, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from deployments import deployment_of, target_of
from statelint.linter import Linter

from flowkit.deployer.capabilities import refusals
from flowkit.deployer.target import Deployment, EventPlan, finish_event
from flowkit.plugins.aws.event_bridge import cron_problem, finish_pattern, machine_name, short_name, to_aws_cron
from flowkit.plugins.aws.machine_size import events, histories
from flowkit.plugins.aws.step_functions import StepFunctions, job_definitions_of
from flowkit.plugins.aws.step_functions_problems import place_of
from flowkit.settings import settings

GOLDEN = Path(__file__).parent / "golden"
SERVICE_FIELDS = '"InputType" not allowed'
"""What the language leaves to its interpreters, and AWS has: a validator of the language does not know it."""

EVERYTHING = """
    def told(run): ...

    @exit_hook(on_success=[told], on_error=[told])
    @schedule(cron="30 6 ? * MON-FRI *", timezone="Europe/Oslo")
    @trigger(event={"name": "data", "parameters": {"alpha": "size"}})
    class Everything(FlowSpec):
        alpha = Parameter("alpha", default=3)
        word = Parameter("word", type=str)

        @step
        def start(self):
            self.next(self.left, self.right)

        @step
        def left(self):
            self.widths = [2, 0]
            self.next(self.outer, foreach="widths")

        @step
        def outer(self):
            self.items = range(self.input)
            self.next(self.inner, foreach="items")

        @step
        def inner(self):
            self.way = "odd"
            self.next({"odd": self.odd, "even": self.even}, condition="way")

        @step
        def odd(self):
            self.next(self.inner_join)

        @timeout(minutes=5)
        @step
        def even(self):
            self.next(self.inner_join)

        @step
        def inner_join(self, inputs):
            self.next(self.outer_join)

        @step
        def outer_join(self, inputs):
            self.next(self.join)

        @retry(times=2, minutes_between_retries=1)
        @step
        def right(self):
            self.next(self.loop)

        @step
        def loop(self):
            self.go = "again"
            self.next({"again": self.loop, "done": self.after}, condition="go")

        @resources(cpu=4, memory=8000)
        @step
        def after(self):
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.crowd)

        @step
        def crowd(self):
            self.next(self.gang, num_parallel=2)

        @parallel
        @step
        def gang(self):
            self.next(self.gang_join)

        @step
        def gang_join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
"""


@pytest.fixture(autouse=True)
def configured(monkeypatch):
    """Settings of a user of AWS, and no others."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FLOWKIT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FLOWKIT_BATCH_QUEUE", "jobs")
    monkeypatch.setenv("FLOWKIT_CONTAINER_IMAGE", "python:3.11-slim")
    settings(reload=True)
    yield
    monkeypatch.undo()
    settings(reload=True)


def compiled(source: str, options: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the document of a flow that nothing stands against."""
    target = target_of(StepFunctions, options or {})
    deployment = deployment_of(source, target, **more)
    assert refusals("step-functions", deployment) == []
    assert target.problems(deployment) == []
    document = target.compile(deployment)
    assert document == target.compile(deployment)
    checked(document["definition"])
    return document


def checked(definition: dict[str, Any]) -> None:
    """Check a definition with a validator of the language, and the quotas."""
    text = json.dumps(definition)
    wrong = [problem for problem in Linter.validate(text) if SERVICE_FIELDS not in problem]
    assert not wrong, "\n".join(wrong)
    names = [name for name, _ in states_of(definition)]
    assert len(names) == len(set(names))
    assert all(len(name) <= 80 for name in names)
    assert histories(definition) <= 25_000
    for name, state in states_of(definition):
        for environment in environments(state):
            assert len({pair["Name"] for pair in environment}) == len(environment), name
            assert all(set(pair) in ({"Name", "Value"}, {"Name", "Value.$"}) for pair in environment), name


def states_of(scope: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return every state of a definition, however deep."""
    found = []
    for name, state in scope["States"].items():
        found.append((name, state))
        for inner in (*state.get("Branches", ()), *([state["ItemProcessor"]] if "ItemProcessor" in state else ())):
            found += states_of(inner)
    return found


def environments(state: dict[str, Any]) -> list[list[dict[str, str]]]:
    parameters = state.get("Parameters", {})
    if "ContainerOverrides" in parameters:
        return [parameters["ContainerOverrides"]["Environment"]]
    ranges = parameters.get("NodeOverrides", {}).get("NodePropertyOverrides", ())
    return [each["ContainerOverrides"]["Environment"] for each in ranges]


@pytest.mark.parametrize("concurrency", ["allow", "forbid", "replace"])
def test_the_document_of_the_whole_language(concurrency) -> None:
    document = compiled(EVERYTHING, concurrency=concurrency)
    del document["definition"]["Comment"]  # the record: a version is in it
    document["jobs"] = sorted(document["jobs"].values())
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    names = job_definitions_of(document["definition"])
    for number, name in enumerate(names):  # hashes of commands, which hold flowkit's version
        text = text.replace(name, f"job-definition-{number}")
    file = GOLDEN / f"{concurrency}.json"
    if os.environ.get("REGOLD"):
        file.write_text(f"{text}\n", encoding="utf-8")
    assert f"{text}\n" == file.read_text(encoding="utf-8"), "REGOLD=1 writes it anew: look at the difference"


def test_the_record_is_kept_with_the_machine() -> None:
    document = compiled(EVERYTHING)
    record = json.loads(document["definition"]["Comment"])["flowkit"]
    assert (record["target"], record["name"], record["flow"]) == ("step-functions", "Everything", "Everything")


def test_a_foreach_has_three_ways() -> None:
    document = compiled(EVERYTHING)
    states = dict(states_of(document["definition"]))
    assert states["left: how many"]["Choices"] == [
        {"Variable": "$.head.width", "NumericEquals": 0, "Next": "outer_join"}
    ]
    ways = states["outer: how many"]["Choices"]
    assert ways[0] == {"Variable": "$.head.width", "NumericEquals": 0, "Next": "inner_join"}
    assert (ways[1]["NumericLessThanEquals"], ways[1]["Next"]) == (40, "outer: indices")
    assert states["outer: how many"]["Default"] == "outer: many"
    assert states["outer: few"]["ItemProcessor"]["ProcessorConfig"] == {"Mode": "INLINE"}
    assert states["outer: many"]["ItemReader"]["Parameters"] == {
        "Bucket": "bucket",
        "Key.$": "States.Format('flowkit/flows/Everything/{}/outer/{}/index.json', $.run, $.task)",
    }
    # 100 workers, halved between the branches: seven children of the outer foreach, seven of the inner one in each.
    assert (states["left: many"]["MaxConcurrency"], states["outer: many"]["MaxConcurrency"]) == (7, 7)
    assert "inner (many)" in states

    states = dict(states_of(compiled(EVERYTHING, {"use_distributed_map": True})["definition"]))
    assert "outer: few" not in states
    assert "inner (many)" not in states


def test_what_a_job_is_told() -> None:
    definition = compiled(EVERYTHING)["definition"]
    states = dict(states_of(definition))
    variables = {pair["Name"]: pair.get("Value.$", pair.get("Value")) for pair in environments(states["start"])[0]}
    assert variables == {
        "FLOWKIT_DEPLOYED_RUN": "$.run",
        "FLOWKIT_DEPLOYED_TASK": "$.task",
        "FLOWKIT_DEPLOYED_TRIGGER": "$.trigger",
        "FLOWKIT_PARAMETER_alpha": "States.Format('{}', $.parameters.alpha)",
        "FLOWKIT_PARAMETER_word": "States.Format('{}', $.parameters.word)",
    }
    assert states["run begins"]["Parameters"]["defaults"] == {"alpha": "3", "word": ""}
    assert states["right"]["Retry"][1] == {
        "ErrorEquals": ["States.TaskFailed"],
        "IntervalSeconds": 60,
        "BackoffRate": 1.0,
        "MaxAttempts": 2,
    }
    assert len(states["left"]["Retry"]) == 1
    assert "command" not in json.dumps(definition), "the command is in the job definition"
    assert "x" * 200 not in json.dumps(definition)


def test_job_definitions_have_what_does_not_vary() -> None:
    from flowkit.plugins.aws.batch_jobs import Defaults, Place
    from flowkit.plugins.aws.step_functions_jobs import END, job_definition, step_jobs

    deployment = deployment_of(EVERYTHING, StepFunctions)
    jobs = step_jobs(deployment, Defaults(), {"team": "a"}, "me")
    made = {name: job_definition(job.submission, Place("jobs"), Defaults()) for name, job in jobs.items()}
    after = made["after"]["containerProperties"]
    assert "--step" in after["command"]
    assert {"type": "VCPU", "value": "4"} in after["resourceRequirements"]
    assert {"name": "FLOWKIT_USER", "value": "ann"} in after["environment"]
    assert made["after"]["retryStrategy"]["evaluateOnExit"] == [
        {"onStatusReason": "Host EC2*", "action": "RETRY"},
        {"onReason": "*", "action": "EXIT"},
    ]
    assert made["even"]["timeout"] == {"attemptDurationSeconds": 900}
    assert made["gang"]["type"] == "multinode"
    assert "retryStrategy" not in made["gang"] or made["gang"]["retryStrategy"] == {"attempts": 1}
    assert "--end" in made[END]["containerProperties"]["command"]
    assert jobs["after"].job.tags == {
        "team": "a",
        "flowkit.flow": "Everything",
        "flowkit.step": "after",
        "flowkit.user": "ann",
    }
    other = step_jobs(deployment_of(EVERYTHING, StepFunctions, name="other"), Defaults(), {}, None)
    assert other["after"].job.definition != jobs["after"].job.definition, "deleting one leaves the other alone"


def test_a_long_and_a_wide_flow() -> None:
    steps = [f"        @step\n        def s{n}(self):\n            self.next(self.s{n + 1})\n" for n in range(400)]
    long = "    class Long(FlowSpec):\n        @step\n        def start(self):\n            self.next(self.s0)\n"
    long += "".join(steps) + "        @step\n        def s400(self):\n            self.next(self.end)\n"
    long += "        @step\n        def end(self):\n            pass\n"
    definition = compiled(long)["definition"]
    assert len(json.dumps(definition)) < 500_000
    assert events(definition) < 3_000

    loops = "    class Loops(FlowSpec):\n        @step\n        def start(self):\n            self.next(self.l0)\n"
    for n in range(30):
        following = f"l{n + 1}" if n < 29 else "end"
        loops += f"        @step\n        def l{n}(self):\n            self.x = 1\n"
        loops += f"            self.next({{1: self.l{n}, 2: self.{following}}}, condition='x')\n"
    loops += "        @step\n        def end(self):\n            pass\n"
    states = dict(states_of(compiled(loops)["definition"]))
    turns = states["l3: many turns"]["Choices"][0]["NumericLessThan"]
    assert 10 <= turns < 400
    rest = environments(states["l3: all other turns"])[0]
    assert {"Name": "FLOWKIT_DEPLOYED_TURNS", "Value": "all"} in rest


def test_long_and_awkward_names() -> None:
    name = "x" * 100
    source = f"""
    class Awkward(FlowSpec):
        @step
        def start(self):
            self.items = [1]
            self.next(self.{name}, foreach="items")
        @step
        def {name}(self):
            self.next(self.{name}y)
        @step
        def {name}y(self, inputs):
            self.next(self.flow)
        @step
        def flow(self):
            self.next(self.end)
        @step
        def end(self):
            pass
    """
    document = compiled(source, root="s3://bucket/it's {mine}", name="n" * 80)
    states = dict(states_of(document["definition"]))
    key = states["start: what follows"]["Parameters"]["Key.$"]
    assert key.startswith("States.Format('it\\'s \\{mine\\}/flows/Awkward/{}/start/{}/manifest.json'")
    assert "flow" in states


def problems_of(source: str, options: dict[str, Any] | None = None, **more: Any) -> list[str]:
    target = target_of(StepFunctions, options or {})
    deployment = deployment_of(source, target, refused=True, **more)
    return [str(problem) for problem in target.problems(deployment)]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    source = """
    @trigger(events=["a", "b"])
    @trigger_on_finish(flows=["One", "Two"])
    @schedule(cron="0 6 1 * MON *")
    class Wrong(FlowSpec):
        big = Parameter("big", default="x")
        @batch(aws_batch_tags={})
        @step
        def start(self):
            self.next(self.end)
        @step
        def end(self):
            pass
    """
    told = "\n".join(problems_of(source, {"aws_batch_tag": ("no",)}, name="has a space", root="/tmp/here"))
    for part in (
        "'has a space' is not a state machine's name",
        "the datastore is /tmp/here",
        "@trigger waits for all of a, b",
        "@trigger_on_finish waits for all of One, Two",
        "the schedule '0 6 1 * MON *' is not to be had",
        "--aws-batch-tag: 'no' is not KEY=VALUE",
    ):
        assert part in told, told


def test_parameters_that_do_not_fit() -> None:
    parameters = "\n".join(f"        p{n} = Parameter('p{n}', default='{'x' * 200}')" for n in range(60))
    source = f"""
    class Big(FlowSpec):
{parameters}
        @step
        def start(self):
            self.next(self.end)
        @step
        def end(self):
            pass
    """
    (told,) = problems_of(source)
    assert "AWS Batch takes 8,192" in told


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 6 * * 1-5", "0 6 ? * MON-FRI *"),
        ("0 6 * * 0", "0 6 ? * SUN *"),
        ("0 6 * * 7", "0 6 ? * SUN *"),
        ("0 0 ? * SUN *", "0 0 ? * SUN *"),
        ("*/5 * * * *", "*/5 * * * ? *"),
        ("0 0 1 1 ? 2030", "0 0 1 1 ? 2030"),
        ("0 0 * * ? *", "0 0 * * ? *"),
        ("0 0 ? * * *", "0 0 * * ? *"),
        ("0 0 ? * 5L *", "0 0 ? * 6L *"),
        ("0 0 ? * 1#2 *", "0 0 ? * 2#2 *"),
        ("0 0 ? * mon#2 *", "0 0 ? * 2#2 *"),
        ("0 0 L * ? *", "0 0 L * ? *"),
        ("0 0 * * */2", "0 0 ? * SUN,TUE,THU,SAT *"),
        ("0 0 * * 1-5/2", "0 0 ? * MON,WED,FRI *"),
        ("0 0 * * 5-7", "0 0 ? * FRI,SAT,SUN *"),
        ("0 0 * * FRI-MON", "0 0 ? * FRI,SAT,SUN,MON *"),
    ],
)
def test_cron_as_eventbridge_has_it(cron, expected) -> None:
    assert to_aws_cron(cron) == expected
    assert cron_problem(cron) is None


def test_names_and_patterns() -> None:
    assert machine_name("Flow", None, None) == "Flow"
    assert machine_name("Flow", "project", "user.ann") == "project.user.ann.Flow"
    long = machine_name("Flow" * 30, "project", "prod")
    assert len(long) == 80
    assert long != machine_name("Flow" * 31, "project", "prod")
    assert short_name("a b", 64) != "a b"
    pattern = finish_pattern(EventPlan(finish_event("Other", "p", "prod"), flow="Other", project="p", branch="prod"))
    assert pattern["detail"]["stateMachineArn"] == [{"suffix": ":stateMachine:p.prod.Other"}]
    assert place_of("s3://bucket/a/b/") == ("bucket", "a/b")
    assert place_of("/tmp") is None
    assert isinstance(deployment_of(EVERYTHING, StepFunctions), Deployment)
