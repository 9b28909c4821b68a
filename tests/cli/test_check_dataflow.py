"""Warnings about artifacts that nothing sets, by the real command: in `check`, and when a run starts."""

from __future__ import annotations

import json
import re

import pytest

FLOW = """
    from flowkit import FlowSpec, Parameter, step
    from steps import Reporting

    class ScoreFlow(Reporting, FlowSpec):
        alpha = Parameter("alpha", default=0.5)
        broken = Parameter("broken", default=False)

        @step
        def start(self):
            self.rows = [1, 2, 3]
            self.next(self.end)

        @step
        def end(self):
            if self.broken:
                print(self.row, self.aplha)
            self.report()

    if __name__ == "__main__":
        ScoreFlow()
    """
STEPS = """
    class Reporting:
        def report(self):
            print("rows:", len(self.rows))
            if self.broken:
                print(self.title)
    """
CLEAN = FLOW.replace("self.row, self.aplha", "self.rows, self.alpha")


@pytest.fixture
def flow(workspace):
    workspace.write("flow.py", FLOW)
    workspace.write("steps.py", STEPS)
    return workspace


def test_check_tells_where_and_what_is_near(flow):
    result = flow.run("check", check=True)
    assert result.stdout == ""
    told = re.findall(r"^Warning: (\S+?):(\d+): (.*)\n(?:    (.*))?", result.stderr, re.MULTILINE)
    assert [(file.rpartition("/")[2], headline, hint) for file, _, headline, hint in told] == [
        ("flow.py", "step 'end' reads self.aplha, which no path sets before", "did you mean 'alpha'?"),
        ("flow.py", "step 'end' reads self.row, which no path sets before", "did you mean 'rows'?"),
        ("steps.py", "step 'end' reads self.title in report(), which no path sets before", ""),
    ]
    for file, line, headline, _ in told:
        with open(file) as source:
            assert headline.split()[3].strip(",") in source.read().splitlines()[int(line) - 1]
    assert "ScoreFlow can run, with 3 warnings: 2 steps." in result.stderr


def test_check_without_warnings_and_as_json(flow):
    assert "looks good" in flow.run("check", "--no-warnings", check=True).stderr
    told = json.loads(flow.run("check", "--json", check=True).stdout)
    assert told["valid"] is True
    assert told["problems"] == []
    assert [warning["hint"] for warning in told["warnings"]] == ["did you mean 'alpha'?", "did you mean 'rows'?", None]
    assert all(warning["line"] > 1 and warning["file"] for warning in told["warnings"])
    assert json.loads(flow.run("check", "--json", "--no-warnings").stdout)["warnings"] == []


def test_a_run_tells_each_in_one_line_and_runs(flow):
    result = flow.run("run", check=True)
    told = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(told) == 3
    assert told[1].endswith("step 'end' reads self.row, which no path sets before (did you mean 'rows'?)")
    assert "rows: 3" in result.stdout


def test_a_resumed_run_tells_them_too(flow):
    failed = flow.run("run", "--broken", "true", check=1)
    assert "row" in failed.stderr
    flow.write("flow.py", FLOW.replace("self.row,", "self.rows,"))
    result = flow.run("resume", "--broken", "false", check=True)
    assert "self.row," not in result.stderr
    assert result.stderr.count("Warning: ") == 3, str(result)  # two of the check, one of the parameter


def test_a_clean_flow_says_nothing(flow):
    flow.write("flow.py", CLEAN)
    flow.write("steps.py", STEPS.replace("self.title", "self.alpha"))
    assert "Warning" not in flow.run("run", check=True).stderr
    assert "looks good" in flow.run("check", check=True).stderr
