"""The DAG file of a flow: what it says, that no text of a flow becomes code, and what is refused."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments import deployment_of

from flowkit.deployer.target import Deployment, DeploymentRecord
from flowkit.exceptions import FlowInvalid
from flowkit.plugins.airflow.dag_file import dag_file, read_record
from flowkit.plugins.airflow.names import dag_id, name_problem
from flowkit.plugins.airflow.plan import plan
from flowkit.plugins.airflow.target import Airflow
from flowkit.settings import settings

GOLDEN = Path(__file__).with_name("golden")
RICH = '''
@schedule(cron="0 6 ? * MON-FRI *", timezone="Europe/Oslo")
@trigger_on_finish(flow="Before")
class Rich(FlowSpec):
    """Trains models."""

    size = Parameter("size", default=3, help="how many")
    ratio = Parameter("the-ratio", default=0.5)
    deep = Parameter("deep", default=False)
    extra = Parameter("extra", default={"a": [1, None]})
    maybe = Parameter("maybe", type=str)

    @step
    def start(self):
        self.items = [1]
        self.next(self.work, self.other)

    @resources(memory=512)
    @step
    def work(self):
        self.next(self.outer, foreach="items")

    @step
    def outer(self):
        self.next(self.inner, foreach="items")

    @environment(vars={"WORD": "$(HOME) {{ x }}"})
    @retry(times=2, minutes_between_retries=1, backoff=2)
    @step
    def inner(self):
        self.next({"a": self.one, "b": self.two}, condition="kind")

    @timeout(minutes=2)
    @step
    def one(self):
        self.next(self.two)

    @step
    def two(self):
        self.next(self.inner_join)

    @step
    def inner_join(self, inputs):
        self.next(self.outer_join)

    @step
    def outer_join(self, inputs):
        self.next(self.both)

    @step
    def other(self):
        self.next({"again": self.other, "left": self.left, "both": self.met}, condition="go")

    @step
    def left(self):
        self.next(self.met)

    @step
    def met(self):
        self.next(self.both)

    @step
    def both(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
'''


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Compile as somebody does who has set nothing."""
    for name in [name for name in os.environ if name.startswith("FLOWKIT_") and "TEST" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLOWKIT_HOME", str(tmp_path / "none"))
    settings(reload=True)
    yield
    monkeypatch.undo()
    settings(reload=True)


def made(source: str, executor: str = "local", **options: Any) -> Deployment:
    if executor == "local":
        options.setdefault("python", "/usr/bin/python3")
    return deployment_of(source, "airflow", executor=executor, **options)


@pytest.mark.parametrize("executor", ["local", "kubernetes", "batch"])
def test_the_tasks_of_a_rich_flow(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: ``UPDATE_GOLDEN=1`` writes them anew, to be looked at before they are committed."""
    monkeypatch.setenv("FLOWKIT_BATCH_QUEUE", "queue")
    monkeypatch.setenv("FLOWKIT_CONTAINER_IMAGE", "image:1")
    settings(reload=True)
    deployment = made(RICH, executor, priority=7, concurrency="forbid", max_workers=5, workflow_timeout=3600)
    text = dag_file(deployment)
    assert dag_file(deployment) == text
    compile(text, "dag.py", "exec")
    shown = text[text.index("with DAG(") :]
    file = GOLDEN / f"{executor}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")


def test_what_is_mapped_over_what() -> None:
    found = plan(made(RICH).graph)
    mapped = {name: task.mapped for name, task in found.steps.items() if task.mapped}
    assert mapped == {
        "outer": "outer", "inner": "inner", "one": "one", "two": "two", "inner_join": "outer",
    }  # fmt: skip
    assert found.lists["inner"].depth == 1
    assert found.lists["two"].sources == ((False, "inner"), (True, "one"))
    assert found.branches == {"other": {"left": "branch", "met": "empty"}}
    assert found.steps["outer_join"].after == ["work", "inner_join"], "an empty foreach still joins"
    assert found.steps["outer_join"].rule == found.steps["met"].rule == "none_failed_min_one_success"
    assert {name for name, task in found.steps.items() if task.tells} == {"work", "outer", "inner", "other"}
    assert found.steps["end"].rule == "none_failed", "a run whose end was left out is never a success"


NASTY = "\"\"\" ''' \\ \n # coding: utf-7 \r\x00\u2028 {{ 1/0 }} {% x %} $(HOME) \udcff ü \U0001f600 __import__('os')"


def test_texts_of_a_flow_stay_texts() -> None:
    """Whatever they are: the file has the same code as that of a flow with plain ones."""
    source = """
    class Plain(FlowSpec):
        a = Parameter("a", default=TEXT, help=TEXT)

        @environment(vars={"WORD": WORD})
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    word = NASTY.replace("\x00", "").replace("\udcff", "")
    files = []
    for text, variable in (("plain", "plain"), (NASTY, word)):
        told = source.replace("TEXT", repr(text.replace("\udcff", ""))).replace("WORD", repr(variable))
        told = told.replace(f'"{variable!r}"', '"WORD"')
        deployment = made(told, title=text, description=text, tags=(text.replace("\udcff", ""),), user=text)
        content = dag_file(deployment)
        content.encode("utf-8")
        assert read_record(content) == deployment.record
        files.append(ast.parse(content))
    kinds = [[type(node).__name__ for node in ast.walk(file) if not _text(node)] for file in files]
    assert kinds[0] == kinds[1]
    values = [{node.value for node in ast.walk(file) if isinstance(node, ast.Constant)} for file in files]
    assert word in values[1]


def _text(node: ast.AST) -> bool:
    """Whether a node is the text of the bootstrap or another: those of several lines are put together of pieces."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_the_record_is_not_where_a_comment_names_the_encoding() -> None:
    deployment = made(RICH)
    lines = dag_file(deployment).splitlines()
    assert [number for number, line in enumerate(lines) if line.startswith("# flowkit-deployment: ")] == [3]
    assert DeploymentRecord.from_json(read_record("\n".join(lines))) == DeploymentRecord.from_json(deployment.record)
    assert read_record("# flowkit-deployment: {") is None
    assert read_record("x = '# flowkit-deployment: {}'") is None


SIMPLE = """
{above}
class Simple(FlowSpec):
    {inside}
    @step
    def start(self):
        self.next(self.{next})

    @parallel
    @step
    def node(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_all_that_airflow_cannot_do_is_told_at_once() -> None:
    source = SIMPLE.format(
        above='@schedule(cron="0 6 L * ? 2030")', inside='need = Parameter("need", required=True)',
        next="node, num_parallel=2",
    )  # fmt: skip
    deployment = made(
        source, "kubernetes", refused=True, concurrency="replace", name="not a name", python="python3", max_map_length=0
    )
    said = [problem.headline for problem in Airflow({}).problems(deployment)]
    for part in (
        "'not a name' is not the id of a DAG", "'L' as a day of month", "the year 2030",
        "--concurrency replace", "--python is for", "--max-map-length", "step 'start'",
    ):  # fmt: skip
        assert any(part in text for text in said), (part, said)
    where = [problem.where for problem in Airflow({}).problems(deployment) if "step 'start'" in problem.headline]
    assert where[0] is not None


def test_pods_and_jobs_need_a_datastore_that_they_reach(tmp_path: Path) -> None:
    source = SIMPLE.format(above="", inside="", next="end")
    source = source[: source.index("    @parallel")] + source[source.index("    @step\n    def end") :]
    for executor in ("kubernetes", "batch"):
        with pytest.raises(FlowInvalid) as caught:
            made(source, executor, root=str(tmp_path))
        assert any("cannot reach" in problem.headline for problem in caught.value.problems)
    assert made(source, "local", root=str(tmp_path)).root == str(tmp_path)


def test_names() -> None:
    assert dag_id("Flow", None, None) == "Flow"
    assert dag_id("Flow", "proj", "user.ann") == "proj.user.ann.Flow"
    one, other = dag_id("Flow", "p", "user.a@b"), dag_id("Flow", "p", "user.a/b")
    assert one != other
    assert not name_problem(one)
    assert not name_problem(dag_id("F" * 300, None, None))
    assert name_problem("a b")
    assert name_problem("x" * 251)
