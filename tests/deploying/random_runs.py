"""Carrying random flows out twice: by ``python flow.py run``, and by a scheduler; and what each run left."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from random_deployments import LOOK, RandomProgram, differences

SECONDS = 240.0
"""How long a run may take; it is never measured."""


def as_texts(parameters: dict[str, Any]) -> dict[str, str]:
    """Return values of parameters as they are given on the command line."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}


def words_of(parameters: dict[str, Any]) -> list[str]:
    """Return the words that give parameters on the command line."""
    return [word for name, text in as_texts(parameters).items() for word in (f"--{name}", text)]


def begin(workspace: Any, program: RandomProgram) -> dict[str, Any]:
    """Write a program into a workspace, run it there with a datastore of its own, and return what the run left."""
    workspace.write("flow.py", program.source)
    workspace.write("look.py", LOOK)
    apart = {"FLOWKIT_DATASTORE": str(workspace.path / "compared")}
    done = workspace.run("run", *words_of(program.parameters), env=apart, timeout=SECONDS)
    assert done.returncode == 0, f"{done}\n{program.source}"
    return left(workspace, f"{program.flow}/1", env=apart)


def left(workspace: Any, pathspec: str, **options: Any) -> dict[str, Any]:
    """Return what a run left."""
    found: dict[str, Any] = json.loads(workspace.run(pathspec, flow="look.py", check=True, **options).stdout)
    return found


def compare(workspace: Any, program: RandomProgram, here: dict[str, Any], pathspec: str) -> None:
    """Fail where a run left anything else than the one of `begin`."""
    wrong = differences(here, left(workspace, pathspec))
    assert not wrong, "\n".join([*wrong, program.source])


def triggered(workspace: Any, target: str, program: RandomProgram, *create: str) -> str:
    """Deploy a program by the real command, trigger a run of it, and return the run's pathspec."""
    workspace.run(target, "create", *create, check=True)
    file: Path = workspace.path / "run-id"
    words = words_of(program.parameters)
    workspace.run(target, "trigger", *words, "--run-id-file", file, check=True)
    return f"{program.flow}/{file.read_text().strip().rpartition('/')[2]}"


def over(workspace: Any, pathspec: str) -> str:
    """Wait until a run is over, as the client tells, and return its state."""
    deadline = time.monotonic() + SECONDS
    while (state := left(workspace, pathspec)["state"]) not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, f"{pathspec} is still {state}"
        time.sleep(0.2)
    return str(state)
