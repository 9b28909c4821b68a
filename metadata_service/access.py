"""Who calls, and what they may see and do."""

from __future__ import annotations

from typing import Literal, NamedTuple

from flowkit.metadata.records import RunRecord

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""Each one includes those before it."""
PROJECT_TAG = "project:"
"""A run belongs to a project by a system tag that begins so; user tags never count."""


class Caller(NamedTuple):
    """Who made a request.

    Parameters
    ----------
    name : str
        For the logs: ``token:<id>``, ``oidc:<subject>``, ``anonymous``.
    scope : str
        The highest one that was granted.
    projects : tuple of str or None
        The only projects whose runs exist for this caller; None for all.
    """

    name: str
    scope: Scope
    projects: tuple[str, ...] | None = None

    def may(self, scope: Scope) -> bool:
        """Whether something that needs a scope is allowed."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def sees(self, run: RunRecord) -> bool:
        """Whether a run exists for this caller."""
        return self.sees_any(projects_of(run))

    def sees_any(self, projects: tuple[str, ...]) -> bool:
        """Whether something of these projects exists for this caller."""
        return self.projects is None or not set(self.projects).isdisjoint(projects)


EVERYBODY = Caller("anonymous", "admin")
"""Who calls a service that does not ask."""


def projects_of(run: RunRecord) -> tuple[str, ...]:
    """Return the projects that a run belongs to."""
    return tuple(tag[len(PROJECT_TAG) :] for tag in run.system_tags if tag.startswith(PROJECT_TAG))
