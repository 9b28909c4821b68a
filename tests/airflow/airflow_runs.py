"""Flows on a real Airflow: deployed by the real command, carried out by `dag_runner` in Airflow's own environment.

For the tests of the target, and for whoever compares schedulers: `run_on_airflow`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RUNNER = Path(__file__).with_name("dag_runner.py")
PYTHONS = tuple(filter(None, os.environ.get("FLOWKIT_TEST_AIRFLOW", "").split(os.pathsep)))
"""Interpreters with an Airflow each, as ``make test-airflow`` installs them; none otherwise."""


class Ended(NamedTuple):
    """How a run of a DAG ended.

    Parameters
    ----------
    run : str
        The run's id in flowkit.
    state : str
        Airflow's own word: ``success`` or ``failed``.
    tasks : dict of str to list of str
        The states of each of Airflow's tasks; of a mapped one those of all its instances.
    """

    run: str
    state: str
    tasks: dict[str, list[str]]


class AirflowMachine:
    """A machine with Airflow: its database and its DAG folder, empty at first.

    Parameters
    ----------
    python : str
        The interpreter that has it.
    folder : Path
        Where its database and DAGs are.
    """

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.dags = folder / "dags"
        self.dags.mkdir(parents=True, exist_ok=True)
        self._calls = 0
        home = folder / "home"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "FLOWKIT_"))},
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONWARNINGS": "ignore",
        }

    def migrate(self) -> None:
        """Make the database, unless it is there. Airflow takes ten seconds for it: an empty one is kept beside it."""
        database = self.folder / "home" / "airflow.db"
        if database.exists():
            return
        database.parent.mkdir(parents=True, exist_ok=True)
        kept = Path(self.python).parents[1] / "empty-airflow.db"
        if not kept.exists():
            self.airflow("db", "migrate")
            made = kept.with_suffix(f".{os.getpid()}")
            shutil.copy(database, made)
            made.replace(kept)
        else:
            shutil.copy(kept, database)

    def airflow(self, *words: str, timeout: float = 120) -> str:
        """Run Airflow's own command and return what it printed."""
        return self._call([str(Path(self.python).with_name("airflow")), *words], timeout)

    def run(
        self, orders: Sequence[tuple[Path, Mapping[str, Any] | None]], timeout: float = 900
    ) -> list[dict[str, Any]]:
        """Carry out DAG files, each with its configuration, or only look at those that have None; see `dag_runner`."""
        self.migrate()
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            given, told = Path(folder) / "orders.json", Path(folder) / "answers.json"
            given.write_text(json.dumps([[str(path), configuration] for path, configuration in orders]))
            said = self._call([self.python, str(RUNNER), str(given), str(told)], timeout)
            assert told.exists(), said[-4000:]
            answers: list[dict[str, Any]] = json.loads(told.read_text())
        for answer in answers:
            answer["said"] = said
        return answers

    def _call(self, command: list[str], timeout: float) -> str:
        self._calls += 1
        log = self.folder / f"said-{self._calls}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        try:
            status = process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        said = log.read_text(encoding="utf-8", errors="replace")
        assert status is not None, f"{command} is not finished after {timeout} s: {said[-4000:]}"
        assert status == 0, f"{command} ended with {status}: {said[-4000:]}"
        return said


def ended(answer: Mapping[str, Any]) -> Ended:
    """Return how a run ended, from what `AirflowMachine.run` told of it."""
    assert "errors" not in answer, "\n".join(answer["errors"]) + answer["said"][-4000:]
    name = "airflow-" + hashlib.sha256(f"{answer['dag']}\n{answer['run']}".encode()).hexdigest()[:20]
    tasks: dict[str, list[str]] = {}
    for task, _, state, _ in answer["tasks"]:
        tasks.setdefault(task, []).append(state)
    return Ended(name, str(answer["state"]), tasks)


def deploy(
    machine: AirflowMachine,
    flow: Path,
    root: Path | str,
    *options: str,
    executor: str = "local",
    env: Mapping[str, str] | None = None,
) -> Path:
    """Deploy a flow with the real command to the machine's DAG folder; return the DAG file.

    Parameters
    ----------
    machine : AirflowMachine
    flow : Path
        The flow's file.
    root : Path or str
        The datastore.
    *options : str
        Further options of ``airflow create``.
    executor : str
        What carries steps out.
    env : mapping, optional
        The environment of the command: default, that of this process without flowkit's own variables.
    """
    given = dict(machine.env if env is None else env)
    command = [sys.executable, flow.name, "--datastore-root", str(root), "airflow", "create"]
    command += [f"{machine.dags}/", "--executor", executor, *options]
    done = subprocess.run(command, cwd=flow.parent, env=given, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    made = [path for path in machine.dags.iterdir() if f"in {path}:" in said]
    assert len(made) == 1, said
    return made[0]


def run_on_airflow(
    machine: AirflowMachine,
    flow: Path,
    root: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 900,
) -> tuple[str, str]:
    """Deploy a flow, let Airflow carry it out, and return the run's pathspec and the state that Airflow tells.

    Parameters
    ----------
    machine : AirflowMachine
        The Airflow; made once, as ``AirflowMachine(PYTHONS[0], folder)``.
    flow : Path
        The flow's file.
    root : Path
        The datastore: a folder.
    parameters : mapping, optional
        The run's parameters, by their names on the command line.
    env : mapping, optional
        The environment of the command that deploys.
    timeout : float
        Seconds for the run.

    Returns
    -------
    tuple of str
        ``Flow/run`` and ``success`` or ``failed``.
    """
    file = deploy(machine, flow, root, env=env)
    (answer,) = machine.run([(file, dict(parameters or {}))], timeout)
    found = ended(answer)
    return f"{answer['dag'].rpartition('.')[2]}/{found.run}", found.state


def artifacts(root: Path | str, pathspec: str, env: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return what a run left: the values of all artifacts by ``step/task`` and name."""
    source = (
        "import json, sys\n"
        "from flowkit import Run, namespace\n"
        "namespace(None)\n"
        "run = Run(sys.argv[1])\n"
        "tasks = {f'{step.id}/{task.id}': task for step in run for task in step}\n"
        "found = {name: {each.id: repr(each.data) for each in task} for name, task in tasks.items()}\n"
        "print(json.dumps({'state': run.status, 'tasks': found}))\n"
    )
    given = {name: value for name, value in os.environ.items() if not name.startswith("FLOWKIT_")}
    given.update(env or {}, FLOWKIT_DATASTORE=str(root))
    done = subprocess.run(
        [sys.executable, "-c", source, pathspec],
        cwd=Path(__file__).parent,  # not the checkout, whose folders would be imported
        env=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found
