"""A package of a stranger's, installed by pip: its decorator, codec, commands and parser; and what is broken in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parent.parent / "sample_plugin"
FLOW = """
from flowkit import Config, FlowSpec, step
from sample_plugin.points import Point
from sample_plugin.stamp import stamp

class PluginFlow(FlowSpec):
    @stamp(text="seen by")
    @step
    def start(self):
        self.where = Point(1.5, -2.0)
        self.next(self.end)

    @step
    def end(self):
        print("at", self.where.x, self.where.y)

if __name__ == "__main__":
    PluginFlow()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install the package into a folder by pip, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(SAMPLE, tmp_path_factory.mktemp("source") / "sample")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=120)
    return folder


@pytest.fixture
def flow(workspace, installed):
    workspace.env["PYTHONPATH"] = str(installed)
    workspace.write("flow.py", FLOW)
    return workspace


def test_decorator_and_codec_work_in_a_run_and_for_the_client(flow):
    flow.run("run", check=True)
    assert "at 1.5 -2.0" in flow.run("logs", "1/end", check=True).stdout
    flow.run("--with", "stamp:text=with", "run", check=True)
    looked = flow.python(
        """
        from flowkit import Run, namespace
        namespace(None)
        for run in (Run("PluginFlow/1"), Run("PluginFlow/2")):
            where = run["end"].task["where"]
            print(run.data.stamps, where.data.x, where.sha[:1].isalnum())
        """,
        check=True,
    )
    assert looked.stdout == "['seen by start'] 1.5 True\n['seen by start', 'with end'] 1.5 True\n"
    assert "has an empty text" in flow.run("--with", "stamp:text=", "check", check=3).stderr


def test_commands_are_found_listed_and_told_apart(flow):
    assert flow.run("steps", check=True).stdout == "start end\n"
    assert flow.flowkit("hello", "Ada", check=True).stdout == "Hello, Ada!\n"
    assert "(from sample-plugin)" in flow.run("help", check=True).stdout
    assert "did you mean 'steps'?" in flow.run("stepz", check=2).stderr
    assert "(from sample-plugin)" in flow.flowkit("help", check=True).stdout


def test_a_broken_plugin_is_named_and_harms_only_who_uses_it(flow):
    flow.run("run", check=True)
    told = flow.run("--with", "broken", "run", check=2).stderr
    assert "the plugin 'broken' of the package sample-plugin" in told
    assert "RuntimeError: this package is broken" in told
    assert "pip uninstall sample-plugin" in told
    told = flow.run("shattered", check=2).stderr
    assert "the plugin 'shattered' of the package sample-plugin" in told
    assert "Traceback" not in told


def test_a_parser_of_configs_is_found_by_the_ending_of_the_file(flow):
    flow.write("settings.pairs", "colour=green\nsize=3")
    flow.write(
        "flow.py", FLOW.replace("    @stamp", '    told = Config("told", default="settings.pairs")\n\n    @stamp', 1)
    )
    flow.run("run", check=True)
    assert "green" in flow.run("dump", "1/start", "--include", "told", check=True).stdout
