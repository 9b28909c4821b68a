"""What DAGs are called."""

from __future__ import annotations

import hashlib
import re

MAX_NAME = 250
"""Characters of a DAG's id (Airflow's ``dag_id`` column)."""


def dag_id(flow: str, project: str | None, branch: str | None) -> str:
    """Return the id of a flow's DAG: unique for flow, project and branch.

    Airflow takes letters, digits, ``-``, ``_`` and ``.``: where something else had to be replaced, a few digits of a
    hash keep names apart.
    """
    whole = ".".join(part for part in (project, branch, flow) if part)
    return fitted(whole, MAX_NAME)


def fitted(whole: str, most: int) -> str:
    """Return a name of the characters that Airflow takes."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", whole)
    if name == whole and len(name) <= most:
        return name
    return f"{name[: most - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def name_problem(name: str) -> str | None:
    """Return what is wrong with a DAG's id; None for a good one."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        return f"'{name}' is not the id of a DAG: letters, digits, -, _ and ."
    if len(name) > MAX_NAME:
        return f"'{name}' is too long: {len(name)} characters, and the id of a DAG has up to {MAX_NAME}"
    return None
