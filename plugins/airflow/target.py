"""The target ``airflow``: a deployment is a DAG file in Airflow's DAG folder, or in the bucket that is one.

What runs is asked of Airflow's REST API (`flowkit.plugins.airflow.rest`), where the settings say where that is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from flowkit.deployer.target import CreateOption, Deployment, DeploymentRecord, Execution, Target
from flowkit.exceptions import Conflict, FlowInvalid, NotFound, Problem, UsageError
from flowkit.plugins.airflow import names
from flowkit.plugins.airflow.dag_file import dag_file, read_record
from flowkit.plugins.airflow.limits import problems
from flowkit.plugins.airflow.operators import DEFAULT_EXECUTOR, EXECUTORS, LOCAL, register
from flowkit.plugins.airflow.places import Place, files, normal, place
from flowkit.plugins.airflow.rest import Rest
from flowkit.settings import settings


class Airflow(Target):
    """Flows as DAGs of Airflow 2.9 and later, and 3."""

    name: ClassVar[str] = "airflow"
    label: ClassVar[str] = "Airflow"
    prefix: ClassVar[str] = "airflow"
    options: ClassVar[tuple[CreateOption, ...]] = (
        CreateOption(
            "file", "The DAG file to write: FILE.py, or the DAG folder or s3://bucket/prefix that it is put into."
        ),
        CreateOption(
            "executor",
            "What carries out the steps: kubernetes, batch, or local for processes on Airflow's own machine. "
            f"Default: {DEFAULT_EXECUTOR}.",
            default=DEFAULT_EXECUTOR,
            choices=EXECUTORS,
        ),
        CreateOption("is_paused_upon_creation", "The DAG is paused when Airflow first sees it.", bool, False),
        CreateOption("worker_pool", "The pool of Airflow that the tasks run in."),
        CreateOption(
            "max_map_length",
            "How many tasks Airflow lets a step have: its own setting core.max_map_length. Default: 1024.",
            int,
            1024,
        ),
        CreateOption("python", "With --executor local: the Python that runs the steps. Default: this one."),
    )

    def __init__(self, options: Mapping[str, Any]) -> None:
        given = options.get("file") or settings().airflow_dags
        python = options.get("python")
        super().__init__(
            {
                **options,
                "file": normal(str(given)) if given else None,
                # From a folder of Airflow's own, where tasks begin, a path has to mean the same.
                "python": os.path.abspath(str(python)) if python and os.sep in str(python) else python,
            }
        )
        wanted = str(options.get("executor") or DEFAULT_EXECUTOR)
        # Who carries steps out is chosen at Airflow, so these belong to the object.
        self.executor = None if wanted == LOCAL else wanted  # type: ignore[misc]
        self.needs_remote_root = wanted != LOCAL  # type: ignore[misc]

    @classmethod
    def default_name(cls, flow: str, project: str | None, branch: str | None) -> str:
        """Return the DAG's id."""
        return names.dag_id(flow, project, branch)

    def problems(self, deployment: Deployment) -> list[Problem]:
        """Return what Airflow cannot do of it."""
        return problems(deployment)

    def compile(self, deployment: Deployment) -> str:
        """Return the text of the DAG file."""
        return dag_file(deployment)

    def preflight(self, deployment: Deployment) -> list[Problem]:
        """Say where there is no place for the file. Airflow itself is not asked: it may be somewhere else."""
        if self._place(deployment.name) is None:
            hint = "airflow create FILE: a file, the DAG folder or s3://bucket/prefix; or the setting airflow_dags"
            return [Problem("it is not said where the DAG file goes", None, hint)]
        return []

    def apply(self, deployment: Deployment, document: Any) -> list[str]:
        """Write the file."""
        where = self._place(deployment.name)
        if where is None:
            raise FlowInvalid(self.preflight(deployment))
        self._look(where, deployment.name)
        register(deployment)
        where.write(str(document))
        lines = [f"The DAG '{deployment.name}' is in {where}: Airflow finds it when it next looks there."]
        if deployment.options.get("executor") == LOCAL:
            lines.append("Its tasks run on Airflow's own machine.")
        if deployment.options.get("is_paused_upon_creation"):
            lines.append(f"It begins paused: airflow dags unpause {deployment.name}")
        if deployment.finishes or deployment.events:
            lines.append("It starts when all that it waits for has happened: Airflow shows that as assets (datasets).")
        return lines

    def find(self, name: str) -> DeploymentRecord | None:
        """Return the record in the DAG file, as far as it is known where that is."""
        where = self._place(name)
        return self._look(where, name) if where is not None else None

    def deployed(self, flow: str | None = None) -> list[DeploymentRecord]:
        """Return the records in the DAG folder, as far as it is known where that is."""
        given = self.given.get("file")
        found = []
        for where in files(str(given)) if given else ():
            record = DeploymentRecord.from_json(read_record(where.read() or ""))
            if record is not None and record.target == self.name and flow in (None, record.flow):
                found.append(record)
        return found

    def trigger(self, record: DeploymentRecord, parameters: Mapping[str, str]) -> str:
        """Start a run now, by Airflow's REST API."""
        return Rest.of_settings(record, "trigger").trigger(record, parameters)

    def execution(self, record: DeploymentRecord, run: str) -> Execution | None:
        """Return how a run stands."""
        return Rest.of_settings(record, "status").execution(record, run)

    def executions(self, record: DeploymentRecord, limit: int = 100) -> list[Execution]:
        """Return the newest runs, the newest first."""
        return Rest.of_settings(record, "list-runs").executions(record, limit)

    def terminate(self, record: DeploymentRecord, run: str) -> None:
        """Stop a run: Airflow marks it failed and ends what runs."""
        Rest.of_settings(record, "terminate").terminate(record, run)

    def delete(self, record: DeploymentRecord) -> None:
        """Remove the DAG file. What Airflow remembers of its runs stays there."""
        where = self._place(record.name)
        if where is None:
            raise UsageError("it is not known where the DAG file is", "say it by the setting airflow_dags")
        if self._look(where, record.name) is None:
            raise NotFound(f"there is no {where}", "was it moved? Then remove it there")
        where.remove()

    def _place(self, name: str) -> Place | None:
        given = self.given.get("file")
        return place(str(given), name) if given else None

    def _look(self, where: Place, name: str) -> DeploymentRecord | None:
        """Return what is deployed by a file; None where there is no file.

        Raises
        ------
        Conflict
            If the file is of somebody else, or of another deployment.
        """
        text = where.read()
        if text is None:
            return None
        record = DeploymentRecord.from_json(read_record(text))
        if record is None or record.target != self.name:
            raise Conflict(f"{where} is there already, and flowkit has not made it", "give another file, or remove it")
        if record.name != name:
            raise Conflict(
                f"{where} has the DAG '{record.name}' of the flow {record.flow}", f"give '{name}' a file of its own"
            )
        return record
