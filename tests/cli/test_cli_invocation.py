"""The commands that messages tell the user to type work as they stand, where they were printed."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from flowkit import Parameter
from flowkit.exceptions import UsageError
from flowkit.model.parameters import YIELDING

FLOW = """
import os

from flowkit import FlowSpec, Parameter, project, step


@project(name="trials")
class OddFlow(FlowSpec):
    n = Parameter("n", default=1)

    @step
    def start(self):
        if not os.path.exists("mended"):
            raise ValueError("not yet")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OddFlow()
"""


def _told(result, after):
    """Return the words of the command that stands on the line after `after`."""
    lines = result.stderr.splitlines()
    [place] = [number for number, line in enumerate(lines) if line.startswith(after)]
    return shlex.split(lines[place + 1])


@pytest.mark.parametrize(
    "before",
    [
        ["../some where/o d'd.py"],
        ["-m", "plain", "--with", "retry:times=0"],
        ["plain.py", "--datastore-root", "my data", "--with", "retry:times=0", "--branch", "b"],
    ],
    ids=["path", "module", "options"],
)
def test_the_command_that_resumes_works_as_it_is_printed(workspace, before):
    workspace.write("some where/o d'd.py", FLOW)
    (workspace.path / "here").mkdir()
    workspace.write("here/plain.py", FLOW)

    def run(*words):
        return workspace.command("sh", "-c", f"cd here && exec {shlex.join([sys.executable, *words])}")

    # `command` runs in the workspace; the flow is started from a folder in it.
    failed = run(*before, "run", "--max-workers", "2", "--n", "7", "--tag", "a", "--fail-fast")
    assert failed.returncode == 1, failed
    words = _told(failed, "Mend it, then go on from there:")
    assert words == [
        *("python", *before),
        *("resume", "--origin-run-id", "1", "--max-workers", "2", "--fail-fast"),
    ]
    again = run(*words[1:])
    assert again.returncode == 1, again
    assert _told(again, "Mend it, then go on from there:")[-4:] == ["2", "--max-workers", "2", "--fail-fast"]
    (workspace.path / "here" / "mended").touch()
    done = run(*words[1:])
    assert done.returncode == 0, done
    status = run(*before, "status", "1")
    looked = run(*shlex.split(status.stderr.partition("What a task wrote: ")[2])[1:])
    assert "ValueError: not yet" in looked.stdout, str(status) + str(looked)


def test_the_help_names_the_program_as_it_was_started(workspace):
    workspace.write("some where/flow.py", FLOW)
    workspace.write("plain.py", FLOW)
    assert workspace.run("--help", flow="some where/flow.py").stdout.startswith("Usage: python 'some where/flow.py' ")
    assert workspace.command(sys.executable, "-m", "plain", "-h").stdout.startswith("Usage: python -m plain ")


def test_the_help_shows_defaults_as_they_are_typed(workspace):
    workspace.write(
        "flow.py",
        """
        import enum

        from flowkit import FlowSpec, JSONType, Parameter, step


        class Size(enum.Enum):
            SMALL = 1
            LARGE = 2


        class TypedFlow(FlowSpec):
            options = Parameter("options", type=JSONType, default={"depth": [1, None, True]})
            words = Parameter("words", separator=":", default=["a", "b"])
            size = Parameter("size", type=Size, default=Size.LARGE)

            @step
            def start(self):
                print(self.options, self.words, self.size)


        if __name__ == "__main__":
            TypedFlow()
        """,
    )
    text = workspace.run("run", "--help", check=True).stdout
    shown = ['{"depth": [1, null, true]}', "a:b", "LARGE"]
    for default in shown:
        assert f"[default: {default}]" in text
    workspace.run("run", check=True)
    workspace.run("run", "--options", shown[0], "--words", shown[1], "--size", shown[2], check=True)
    assert workspace.run("logs", "1/start").stdout == workspace.run("logs", "2/start").stdout


@pytest.mark.parametrize("command", ["run", "resume"])
def test_no_parameter_can_take_the_place_of_an_option(workspace, command):
    workspace.write("flow.py", FLOW)
    options = workspace.run(command, "--help", check=True).stdout.partition("Options:")[2]
    names = set(re.findall(r"^ +(?:-h, )?--([a-z-]+)", options, re.MULTILINE)) - {"n"} - YIELDING
    assert {"tag", "max-workers", "help"} < names
    for name in names:
        with pytest.raises(UsageError, match="an option of that name"):
            Parameter(name)


def test_an_option_that_flows_often_have_as_a_parameter_gives_way(workspace):
    with_debug = 'n = Parameter("n", default=1)\n    debug = Parameter("debug", default=False)'
    workspace.write("flow.py", FLOW.replace('n = Parameter("n", default=1)', with_debug))
    (workspace.path / "mended").touch()
    workspace.run("run", "--debug", "true", check=True)
    assert "True" in workspace.run("dump", "1/start", check=True).stdout
    assert "--pdb" in workspace.run("run", "--help", check=True).stdout
