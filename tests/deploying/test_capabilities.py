"""The table of what runs where is true: each cell has a test, what it refuses is refused, the page says the same."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from deployments import deployment_of, target_of
from evidence import OF_RANDOM_FLOWS, OTHERS, evidence

from flowkit import registry
from flowkit.deployer.capabilities import FEATURES, TABLE, TARGETS, YES, refusals

ROOT = Path(__file__).resolve().parents[2]
CELLS = [(target, feature) for target in TARGETS for feature in FEATURES]
REFUSED = [(target, feature) for target, feature in CELLS if TABLE[target].get(feature.name, YES).support == "no"]


def functions_of(path: str) -> set[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_cell_has_a_test_that_is_there() -> None:
    known: dict[str, set[str]] = {}
    missing = []
    for target, feature in CELLS:
        where = evidence(target, feature.name, TABLE[target].get(feature.name, YES).support)
        path, _, name = (where or "").partition("::")
        if path and path not in known:
            known[path] = functions_of(path) if (ROOT / path).is_file() else set()
        if not path or name not in known[path]:
            missing.append(f"{target} {feature.name}: {where}")
    assert missing == []


def test_no_test_is_named_for_what_is_not_there() -> None:
    names = {feature.name for feature in FEATURES}
    assert set(TABLE) == set(TARGETS) == set(OTHERS) == set(OF_RANDOM_FLOWS) == set(registry.TABLES["deployers"])
    for target, row in TABLE.items():
        assert row.keys() <= names
        assert OTHERS[target].keys() <= {name for name in names if row.get(name, YES).support != "no"}, target
        assert all(cell.note for cell in row.values() if cell.support != "yes"), "each says which part, or why not"


LINES = {
    "events": '@trigger(event="data")',
    "on_finish": '@trigger_on_finish(flow="Other")',
    "schedule": "@schedule(daily=True)",
    "time_zone": '@schedule(timezone="Europe/Oslo")',
    "exit_hooks": "@exit_hook(on_error=[print])",
}
STEPS = """
class Plain(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(("target", "feature"), REFUSED, ids=lambda each: getattr(each, "name", each))
def test_what_a_target_cannot_do_is_refused_with_the_line(target: str, feature: Any) -> None:
    cell = TABLE[target][feature.name]
    if feature.name == "suspend":  # a command, which is not there then
        assert not registry.load("deployers", target).verbs & {"suspend", "unsuspend"}
        return
    options = {"priority": 3} if feature.name == "priority" else {}
    line = LINES.get(feature.name, "")
    made = target_of(target, {"file": "dag.py"} if target == "airflow" else {})
    assert line or options, f"{feature.name}: nothing here uses it"
    deployment = deployment_of(
        f"{line}\n{STEPS.lstrip()}", made, client={"top": [], "run": []}, refused=True, **options
    )
    (problem,) = refusals(target, deployment)
    assert feature.label in problem.headline
    assert cell.note in problem.headline
    assert problem.where is not None or not line
    if problem.where is not None:
        assert problem.where.line == 2, "the file begins with the import"
    able = [name for name in TARGETS if TABLE[name].get(feature.name, YES).support != "no"]
    assert problem.hint == f"these can: {', '.join(able)}"


@pytest.mark.parametrize("target", [name for name in TARGETS if TABLE[name].get("suspend", YES).support == "yes"])
def test_who_can_suspend_has_the_commands(target: str) -> None:
    assert registry.load("deployers", target).verbs >= {"suspend", "unsuspend"}


def test_the_page_says_what_the_data_says() -> None:
    spec = importlib.util.spec_from_file_location("make_capabilities", ROOT / "docs/make_capabilities.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
    assert module.page(page) == page, "run python docs/make_capabilities.py"
