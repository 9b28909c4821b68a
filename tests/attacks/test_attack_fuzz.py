"""Strange words at the command line, in the environment and as file names: no traceback of ours, nothing outside."""

from __future__ import annotations

import ast
import json
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attack_tools import SOAK, no_defect
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.datastore import layout
from flowkit.datastore.storage import check_path
from flowkit.exceptions import FlowkitError
from flowkit.model.coordinates import Coordinates
from flowkit.model.launch import parse_spans
from flowkit.model.pathspec import Pathspec

if TYPE_CHECKING:
    from conftest import Workspace

FLOW = """
    from flowkit import FlowSpec, IncludeFile, JSONType, Parameter, step

    class Fuzzed(FlowSpec):
        number = Parameter("number", type=int, default=1)
        ratio = Parameter("ratio", type=float, default=0.5)
        text = Parameter("text", default="")
        flag = Parameter("flag", type=bool, default=False)
        data = Parameter("data", type=JSONType, default="{}")
        content = IncludeFile("content", required=False)

        @step
        def start(self):
            self.seen = (self.number, self.ratio, self.text, self.flag)
            self.next(self.end)

        @step
        def end(self):
            print(self.text)

    if __name__ == "__main__":
        Fuzzed()
"""

DRIVER = r'''
"""Carries many command lines out in one process, by the real entry point, and tells which ended strangely."""
import contextlib, importlib.util, io, json, os, sys, traceback

codes = {}
arguments = json.loads(os.environ["COMMANDS"])
sys.argv = ["flow.py"]
source = open("flow.py").read().replace('if __name__ == "__main__":', "if False:")
spec = importlib.util.spec_from_loader("__main__", loader=None, origin="flow.py")
main = sys.modules["__main__"]
main.__file__ = os.path.abspath("flow.py")
exec(compile(source, main.__file__, "exec"), main.__dict__)
from flowkit.cli.main import execute
for command in arguments:
    out, err = io.StringIO(), io.StringIO()
    shown = ascii(command)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = execute(main.Fuzzed, list(command))
        except SystemExit as error:
            code = f"SystemExit {error.code}"
        except BaseException:
            code = traceback.format_exc()
    text = out.getvalue() + err.getvalue()
    ours = "defect in flowkit" in text or ("/flowkit/" in text and "Traceback" in text)
    if ours or code not in (0, 1, 2, 3, 4, 5, 6, 130):
        print("STRANGE", shown, code, text[-3000:], sep="\n")
    codes[str(code)] = codes.get(str(code), 0) + 1
print("DONE", len(arguments), codes)
'''

WORDS = [
    "", " ", ".", "..", "/", "//", "-", "--", "---x", "@", "@/etc/passwd", "@none", "~", "~/x", "*", "?",
    "%s%n", "${HOME}", "../../etc/passwd", "..\\..", "/etc/passwd", "1/../..", "1/start/../../..",
    "1/start/0/../../x", "Fuzzed/../1", "1", "0", "-1", "01", "1.5", "1e999", "nan", "inf", "0x10", "1_000",
    "٣", "²", "9" * 400, "1" * 5000, "None", "null", "true", "[]", "{}", '{"a": }', "[" * 3000, '"', "'",
    "'; DROP TABLE runs; --", "a=b", "=", ":", ",", ",,", "a,b", "retry:times=x", "retry:times=-1", "retry:",
    "retry:=", "nosuch:x=1", "timeout:seconds=1e400", "environment:vars={", "catch:var=..", "Fuzzed",
    "Fuzzed/1", "Fuzzed/1/start", "Fuzzed/1/start/0", "Fuzzed/1/start/0/seen", "Other/1/start", "1/start",
    "1/start/0", "1/start/0/seen", "1/start/99", "1/start/0.0.0.0", "1/start/0-7", "1/nosuch", "1//start", "/1",
    "start", "end", "user:", "user:x", "runtime:dev", "a\nb", "a\tb", "a\x1b[2Jb", "\u202e", "\ufeff", "ü/ö",
    "😀", "\x7f", "\udcff", "\udcff/\udcfe", "a" * 300, "ä" * 200, "con", "nul", ".flowkit", ".last",
    "_parameters", "run.json", "--help", "--plan", "--json", "--all", "local", "service", "s3://x", "s3://",
    "file://", "file:///etc", "http://[", "://", "C:\\x",
]  # fmt: skip

TEMPLATES = [
    ["status", "X"], ["status", "--limit", "X"], ["status", "--json", "X"], ["logs", "X"],
    ["logs", "X", "--tail", "X"], ["dump", "X"], ["dump", "1/start", "--include", "X"],
    ["dump", "1/start", "--max-value-size", "X"], ["tag", "add", "X", "--run-id", "1"],
    ["tag", "add", "ok", "--run-id", "X"], ["tag", "remove", "X", "--run-id", "1"],
    ["tag", "replace", "--add", "X", "--remove", "X"], ["tag", "list", "X"], ["tag", "X"], ["cancel", "X"],
    ["resume", "X", "--plan"], ["resume", "--plan", "--origin-run-id", "X"],
    ["resume", "--origin-run-id", "X", "X"], ["run", "--number", "X"], ["run", "--ratio", "X"],
    ["run", "--flag", "X"], ["run", "--data", "X"], ["run", "--content", "X"], ["run", "--max-workers", "X"],
    ["run", "--with", "X"], ["run", "--tag", "X"], ["run", "--max-num-splits", "X"],
    ["run", "--task-start", "X"], ["run", "X"], ["--datastore-root", "X", "status"],
    ["--datastore", "X", "status"], ["--metadata", "X", "status"], ["--with", "X", "check"], ["show", "X"],
    ["check", "X"], ["output-dot", "X"], ["output-raw", "X"], ["help", "X"], ["version", "X"], ["X"],
    ["X", "X"], ["step", "X", "0", "--run-id", "1"], ["step", "start", "X", "--run-id", "1"],
    ["step", "start", "0", "--run-id", "X"], ["step", "end", "0", "--run-id", "1", "--parents", "X"],
    ["step", "end", "0", "--run-id", "1", "--split", "X"],
    ["step", "end", "0", "--run-id", "1", "--attempt", "X"],
    ["step", "end", "0", "--run-id", "1", "--node", "X"],
]  # fmt: skip


def outside(workspace: Workspace) -> set[str]:
    """Return every file near the workspace that is not in its datastore."""
    top = workspace.path.parent
    return {str(path) for path in top.rglob("*") if ".flowkit" not in path.parts and "__pycache__" not in path.parts}


@pytest.mark.rounds(2, 40)
def test_strange_words_at_the_command_line(workspace: Workspace, seed: int) -> None:
    workspace.write("flow.py", FLOW)
    workspace.write("driver.py", DRIVER)
    workspace.run("run", check=True)
    before = outside(workspace)
    chance = random.Random(seed)
    commands = []
    for template in TEMPLATES:
        for _ in range(6):
            commands.append([chance.choice(WORDS) if part == "X" else part for part in template])
    result = workspace.run(flow="driver.py", env={"COMMANDS": json.dumps(commands)}, timeout=300)
    assert result.returncode == 0, str(result)
    assert f"DONE {len(commands)}" in result.stdout, str(result)[-4000:]
    assert "STRANGE" not in result.stdout, result.stdout[:6000]
    codes = ast.literal_eval(result.stdout.rpartition("DONE ")[2].partition(" ")[2])
    assert codes.keys() >= {"0", "2", "4"}, codes  # they did reach what they were to reach
    # A datastore may be made where --datastore-root says; nothing else comes to be anywhere.
    assert not {path for path in outside(workspace) - before if not _named(path)}
    no_defect(workspace.run("status", check=True))


def _named(path: str) -> bool:
    return any(word and word.strip("/") and word.strip("/") in path for word in WORDS)


@pytest.mark.rounds(1, 6)
def test_strange_texts_are_parameters_like_any_other(workspace: Workspace, seed: int) -> None:
    """What a shell can pass as text arrives as it is, on every way that tasks start."""
    workspace.write("flow.py", FLOW)
    texts = [word for word in WORDS if word and len(word) < 1000]
    text = random.Random(seed + 3).choice([word for word in texts if not word.isascii()]) + "".join(texts[20:50])
    for start in ("fork", "spawn"):
        result = workspace.run("run", f"--text={text}", "--tag", "ok", "--task-start", start)
        no_defect(result)
        if result.returncode:
            assert "\udcff" in text, str(result)
            continue
        run = workspace.client().Flow("Fuzzed").latest_run
        assert run.data.seen[2] == text


ENVIRONMENT = [
    "DATASTORE", "METADATA", "USER", "NAMESPACE", "DECOSPECS", "MAX_WORKERS", "TASK_START", "VERIFY", "DURABLE",
    "TEMPDIR", "PROFILE", "HOME", "TASK_STREAM", "RUN_TAG", "RUN_MAX_WORKERS", "QUIET", "LOCAL_GPUS", "NOSUCH",
]  # fmt: skip


@pytest.mark.rounds(12, 300)
def test_strange_values_in_the_environment(workspace: Workspace, seed: int) -> None:
    workspace.write("flow.py", FLOW)
    chance = random.Random(seed)
    words = [word for word in WORDS if "\0" not in word]
    names = chance.sample(ENVIRONMENT, 2) if seed >= len(ENVIRONMENT) else [ENVIRONMENT[seed]]
    env = {f"FLOWKIT_{name}": chance.choice(words) for name in names}
    before = outside(workspace)
    result = workspace.run(chance.choice(["run", "status"]), env=env)
    no_defect(result)
    assert result.returncode in range(7), str(result)
    roots = (env.get("FLOWKIT_DATASTORE", ".flowkit"), env.get("FLOWKIT_HOME", ".flowkit"))
    top = (workspace.path / roots[0]).resolve()
    new = {path for path in outside(workspace) - before if not Path(path).resolve().is_relative_to(top)}
    assert not {path for path in new if not os.path.isdir(path)}, new


NAMES = [
    "with space.py", "ünï.py", "quote'.py", 'double".py', "line\nbreak.py", "$(touch evil).py",
    ";touch evil;.py", "-dash.py", "noextension", "random.py", "flowkit_flow.v2.py",
    "a" * 200 + ".py", "\udcff.py", "%s.py",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES if SOAK else NAMES[:4] + NAMES[5:11:2])
def test_strange_names_of_the_flow_file(workspace: Workspace, name: str) -> None:
    source = workspace.write("plain.py", FLOW.replace("print(self.text)", "assert not FAIL"))
    text = "FAIL = __import__('os').path.exists('fail')\n" + source.read_text()
    (workspace.path / name).write_text(text)
    (workspace.path / "fail").write_text("")
    path = f"./{name}"
    for start in ("fork", "spawn"):
        failed = workspace.command(sys.executable, path, "run", "--task-start", start)
        no_defect(failed)
        assert failed.returncode == 1, str(failed)
        assert "AssertionError" in failed.stderr, str(failed)
    (workspace.path / "fail").unlink()
    # What the message tells to type works in a shell as it stands.
    command = failed.stderr.rstrip().rpartition("\n    ")[2]
    if "\n" not in name and "\udcff" not in name:
        resumed = workspace.command("sh", "-c", command.replace("python ", f"{sys.executable} ", 1))
        assert resumed.returncode == 0, f"{command}\n{resumed}"
    assert not (workspace.path / "evil").exists()


ANY_TEXT = st.one_of(st.text(max_size=40), st.sampled_from(WORDS), st.text(alphabet="./\\~:@+-_aA0\0\n", max_size=30))


@settings(max_examples=3000 if SOAK else 300, derandomize=True, database=None, deadline=None)
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_no_path_leaves_the_root(flow: str, run: str, step: str, task: str) -> None:
    root = "/the/root"
    for make in (
        lambda: layout.manifest_file(flow, run, step, task),
        lambda: layout.log_file(flow, run, step, task, 0),
        lambda: layout.clones_file(flow, run, step),
        lambda: layout.run_file(flow, run),
        lambda: layout.blob_file(flow),
        lambda: "/".join(part for part in Pathspec.parse("/".join((flow, run, step, task)))[:4] if part),
        lambda: check_path(f"{flow}/{run}"),
    ):
        try:
            path = make()
        except (FlowkitError, ValueError):
            continue
        assert "\0" not in path
        assert os.path.normpath(f"{root}/{path}") == f"{root}/{path}", path
    for parse in (
        lambda: Coordinates.parse(task, 1),
        lambda: Coordinates.parse(task, 3),
        lambda: parse_spans(f"{step}/{task}", {step: 1}),
        lambda: parse_spans(f"start/{task}", {"start": 1}),
        lambda: parse_spans(f"start/1+{task}", {"start": 1}),
        lambda: parse_spans(task, {"start": 0}),
    ):
        try:
            parse()
        except FlowkitError:
            continue
