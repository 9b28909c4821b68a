"""A small scheduler that a package brings: deployments and runs are files of the folder ``$FOLDER_TARGET``.

A run of it is a file with its state, which whoever tests changes; nothing is carried out.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from flowkit.deployer.target import CreateOption, DeploymentRecord, Execution, Target
from flowkit.exceptions import Conflict, Problem, StoreError

MADE = "made by flowkit"


class FolderTarget(Target):
    """Keeps what is deployed in files."""

    name = "folder"
    label = "the folder"
    prefix = "folder"
    verbs = frozenset({"trigger", "status", "list-runs", "terminate", "delete", "suspend", "unsuspend"})
    options = (
        CreateOption("colour", "Of the file.", default="white", choices=("white", "red")),
        CreateOption("drawer", "Where it lies; may be repeated.", multiple=True, default=()),
        CreateOption("copies", "How many.", kind=int, default=1),
        CreateOption("sealed", "Whether it is closed.", kind=bool, default=False),
    )
    needs_remote_root = False

    @classmethod
    def default_name(cls, flow, project, branch):
        return ".".join(part for part in (project, branch, flow) if part).lower()

    @property
    def folder(self):
        return Path(os.environ["FOLDER_TARGET"])

    def problems(self, deployment):
        wrong = []
        if len(deployment.name) > 40:
            wrong.append(Problem(f"'{deployment.name}' is too long for a file", None, "40 characters are enough"))
        for plan in deployment.steps.values():
            if plan.attempts.timeout:
                where = deployment.graph[plan.name].location
                wrong.append(Problem(f"step '{plan.name}': a folder has no clock", where, "leave @timeout out"))
        return wrong

    def compile(self, deployment):
        return {
            "made": MADE,
            "name": deployment.name,
            "colour": deployment.options["colour"],
            "drawers": list(deployment.options["drawer"]),
            "copies": deployment.options["copies"],
            "steps": {name: list(plan.command[3:]) for name, plan in deployment.steps.items()},
            "namespace": deployment.namespace,
            "cron": deployment.schedule.cron if deployment.schedule else None,
            "record": dict(deployment.record),
        }

    def preflight(self, deployment):
        if not self.folder.is_dir():
            return [Problem(f"the folder {self.folder} is not there", None, "make it")]
        if (self.folder / "closed").exists():
            raise StoreError("the folder is closed today", "come back tomorrow")
        return []

    def apply(self, deployment, document):
        (self.folder / f"{deployment.name}.json").write_text(json.dumps(document))
        (self.folder / deployment.name).mkdir(exist_ok=True)
        return [f"It lies in {self.folder}."]

    def find(self, name):
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        document = json.loads(file.read_text())
        if document.get("made") != MADE:
            raise Conflict(f"{file} is something else", "give another --name")
        return DeploymentRecord.from_json(document["record"])

    def deployed(self, flow=None):
        found = [self.find(file.stem) for file in sorted(self.folder.glob("*.json"))]
        return [record for record in found if record is not None and flow in (None, record.flow)]

    def trigger(self, record, parameters):
        runs = self.folder / record.name
        run = f"folder-{record.name}-{len(list(runs.iterdir()))}"
        self._write(record, run, state="running", parameters=dict(parameters), started=time.time())
        return run

    def execution(self, record, run):
        file = self._file(record, run)
        if not file.exists():
            return None
        said = json.loads(file.read_text())
        return Execution(run, said["state"], said.get("reason"), said.get("started"), said.get("finished"))

    def executions(self, record, limit=100):
        files = sorted((self.folder / record.name).iterdir(), key=lambda file: int(file.stem.rpartition("-")[2]))
        return [self.execution(record, file.stem) for file in reversed(files)][:limit]

    def terminate(self, record, run):
        self._write(record, run, state="cancelled", reason="terminated", finished=time.time())

    def suspend(self, record, run):
        self._write(record, run, state="pending")

    def unsuspend(self, record, run):
        self._write(record, run, state="running")

    def delete(self, record):
        (self.folder / f"{record.name}.json").unlink(missing_ok=True)

    def _file(self, record, run):
        return self.folder / record.name / f"{run}.json"

    def _write(self, record, run, **said):
        file = self._file(record, run)
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, **said}))
