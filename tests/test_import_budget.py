"""flowkit loads what a command needs, and nothing that the user did not ask for.

``python -X importtime`` names every module that a process and its forked children import, whatever way they end.
"""

from __future__ import annotations

import json
import re

import pytest

THIRD_PARTY = {
    "boto3",
    "botocore",
    "kubernetes",
    "requests",
    "urllib3",
    "pyarrow",
    "numpy",
    "pandas",
    "polars",
    "sklearn",
    "torch",
    "yaml",
}
"""What flowkit may never load of its own accord."""

HEAVY = {
    "asyncio",
    "concurrent.futures",
    "email",
    "http.client",
    "multiprocessing",
    "ssl",
    "unittest",
    "urllib.request",
}
"""Parts of the standard library that no run on one machine needs: 5 to 50 ms each."""

HELLO = """
    import json
    import sys

    from flowkit import FlowSpec, step


    class Hello(FlowSpec):
        @step
        def start(self):
            self.words = ["a", "b"]
            self.next(self.each, foreach="words")

        @step
        def each(self):
            self.word = self.input
            self.next(self.join)

        @step
        def join(self, inputs):
            self.words = [task.word for task in inputs]
            self.next(self.end)

        @step
        def end(self):
            with open("modules.json", "w") as file:
                json.dump(sorted(sys.modules), file)


    if __name__ == "__main__":
        Hello()
"""


def _imported(report: str) -> list[str]:
    """The names in a report of -X importtime, also where a task's line stands behind the run's own words."""
    return re.findall(r"import time: +\d+ \| +\d+ \| +(\S+)$", report, re.MULTILINE)


def _among(modules: list[str], forbidden: set[str]) -> set[str]:
    return {name for name in modules for entry in forbidden if name == entry or name.startswith(entry + ".")}


REPORTING = {"PYTHONPROFILEIMPORTTIME": "1"}
"""As -X importtime, and inherited by fresh interpreters."""


def test_the_report_names_what_is_imported(workspace) -> None:
    done = workspace.python("import asyncio, numpy", env=REPORTING, check=True)
    assert _among(_imported(done.stderr), THIRD_PARTY | HEAVY) >= {"asyncio", "numpy"}


def test_importing_flowkit_loads_one_module(workspace) -> None:
    before = workspace.python("import __future__, types, typing", env=REPORTING, check=True)
    done = workspace.python("import flowkit", env=REPORTING, check=True)
    assert set(_imported(done.stderr)) - set(_imported(before.stderr)) == {"flowkit"}


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_run_loads_nothing_of_its_own_accord(workspace, start) -> None:
    workspace.write("flow.py", HELLO)
    done = workspace.run("run", env={**REPORTING, "FLOWKIT_TASK_START": start}, check=True)
    imported = _imported(done.output)
    assert "flowkit.model.graph" in imported  # what importlib.import_module loads itself is not in the report
    assert _among(imported, THIRD_PARTY | HEAVY) == set()
    in_the_task = json.loads((workspace.path / "modules.json").read_text())
    assert "flowkit.model.flowspec" in in_the_task
    assert _among(in_the_task, THIRD_PARTY | HEAVY) == set()


def test_a_run_does_not_load_the_client_or_any_plugin(workspace) -> None:
    workspace.write("flow.py", HELLO)
    done = workspace.run("run", env=REPORTING, check=True)
    strangers = {"flowkit.client", "flowkit.plugins", "flowkit.metadata_service", "flowkit.tutorials", "cloudpickle"}
    # What only runs need that have work elsewhere.
    strangers |= {"flowkit.datastore.lease", "flowkit.runtime.ownership", "flowkit.runtime.reattach"}
    strangers |= {"flowkit.runtime.remote", "flowkit.runtime.submissions", "flowkit.runtime.backend"}
    assert _among(_imported(done.output), strangers) == set()


ELSEWHERE = {
    "flowkit.cli.remote",
    "flowkit.package",
    "flowkit.runtime.backend",
    "flowkit.runtime.bootstrap",
    "flowkit.runtime.launch_list",
    "flowkit.runtime.remote",
    "flowkit.runtime.remote_jobs",
    "flowkit.runtime.submissions",
    "importlib.metadata",
}
"""What only runs need of which steps run elsewhere."""


def test_a_run_on_this_machine_loads_nothing_for_others(workspace) -> None:
    workspace.write("flow.py", HELLO)
    done = workspace.run("run", "--with", "retry", "--with", "resources:cpu=1", env=REPORTING, check=True)
    assert _among(_imported(done.output), ELSEWHERE) == set()


@pytest.mark.parametrize("command", ["show", "check", "status", "--help", "run --help"])
def test_a_command_that_runs_nothing_loads_no_runtime(workspace, command) -> None:
    workspace.write("flow.py", HELLO)
    imported = _imported(workspace.run(*command.split(), env=REPORTING, check=True).output)
    assert _among(imported, THIRD_PARTY | HEAVY) == set()
    assert _among(imported, {"flowkit.runtime.forkserver", "flowkit.runtime.local", "cloudpickle"}) == set()


def test_the_client_loads_no_library_to_list(workspace) -> None:
    workspace.write("flow.py", HELLO)
    workspace.run("run", check=True)
    done = workspace.python(
        """
        from flowkit import Flow
        run = Flow("Hello").latest_run
        print([task.pathspec for step in run for task in step], run["join"].task.data.words)
        """,
        env=REPORTING,
        check=True,
    )
    assert "Hello/1/each/1" in done.stdout
    assert _among(_imported(done.stderr), THIRD_PARTY | HEAVY) == set()
