"""``@project``: a name shared by flows, and branches in which colleagues do not disturb each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import flow_decorator
from flowkit.decorators.attributes import check_flag
from flowkit.decorators.contract import FlowDecorator, Option
from flowkit.exceptions import Problem

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition

_NAME = r"[a-z0-9_]{1,128}"
_BRANCH = r"[a-z0-9_.-]{1,128}"


class Project(FlowDecorator):
    """Put the flow into a project, and its runs into a branch of it.

    The branch is ``user.<name>`` unless something else is said: ``--branch B`` gives ``test.B``, ``--production``
    gives ``prod``, both give ``prod.B``. Runs are tagged ``project:<name>`` and ``project_branch:<branch>``.

    Parameters
    ----------
    name : str
        The project: lower-case letters, digits and ``_``, at most 128.
    branch : str, optional
        The branch; ``--branch`` on the command line wins.
    production : bool, optional
        Whether the branch is a production branch; ``--production`` on the command line switches it on.

    Examples
    --------
    >>> @project(name="fraud_detection")
    ... class TrainFlow(FlowSpec): ...
    """

    name = "project"
    defaults = {"name": None, "branch": None, "production": None}
    options = (
        Option("branch", "The branch of the project (@project)."),
        Option("production", "Use the project's production branch (@project).", flag=True),
    )

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._current: dict[str, Any] = {}

    def configure_flow(self, flow: FlowDefinition, options: Mapping[str, Any]) -> list[Problem]:
        """Check the names and settle the branch."""
        from flowkit.settings import user_name

        problems = check_flag(self, "production", optional=True)
        name = self.attributes["name"]
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            headline = "@project needs a name" if name is None else f"@project(name={name!r}): not a project's name"
            problems.append(self.problem(headline, "lower-case letters, digits and _, at most 128: name='my_project'"))
        given = options.get("branch")
        branch = given if given is not None else self.attributes["branch"]
        if branch is not None and (not isinstance(branch, str) or not re.fullmatch(_BRANCH, branch)):
            hint = "lower-case letters, digits, _, . and -, at most 128"
            # What comes from the command line stands nowhere in the file.
            where = None if given is not None else self.location
            problems.append(Problem(f"{branch!r} is not the name of a branch", where, hint))
        if problems:
            return problems
        production = bool(options.get("production") or self.attributes["production"])
        if branch:
            full = f"prod.{branch}" if production else f"test.{branch}"
        else:
            full = "prod" if production else f"user.{user_name()}"
        self._current = {
            "project_name": name,
            "branch_name": full,
            "project_flow_name": f"{name}.{full}.{flow.name}",
            "is_user_branch": not branch and not production,
            "is_production": production,
        }
        return []

    def system_tags(self) -> list[str]:
        """Return the project's and the branch's tag."""
        if not self._current:
            return []
        return [f"project:{self._current['project_name']}", f"project_branch:{self._current['branch_name']}"]

    def current(self) -> Mapping[str, Any]:
        """Return the project's attributes of ``current``."""
        return self._current

    def record(self) -> Any:
        """Return the settled branch with the attributes."""
        return {**super().record(), **self._current}

    def restore(self, recorded: Any) -> None:
        """Take over the branch that the run was started with."""
        if isinstance(recorded, Mapping) and "branch_name" in recorded:
            keys = ("project_name", "branch_name", "project_flow_name", "is_user_branch", "is_production")
            self._current = {key: recorded[key] for key in keys}


project = flow_decorator(Project)
