"""The commands and environment variables of a deployment's containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.decorators.contract import Attempts, ExecutorRequest
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.runtime.bootstrap import StoredPackage


class Facts(NamedTuple):
    """What of a deployment is not in the flow.

    Parameters
    ----------
    package : StoredPackage
        The code package.
    root : str
        The datastore as containers reach it.
    user, token : str
        Who deploys, and the production token.
    template : str
        The key of the blob from which runs begin.
    metadata : str
        The metadata store of its runs.
    created : float
        Seconds since the epoch.
    max_log_size : int
        Bytes kept of each attempt's log.
    """

    package: StoredPackage
    root: str
    user: str
    token: str
    template: str
    metadata: str
    created: float
    max_log_size: int


def fixed_environment(root: str, user: str, metadata: str = "local") -> dict[str, str]:
    """Return the environment of every container of a deployment; no secret is in it.

    The address of the metadata service is, its token is not: that is for the cluster's own secrets.
    """
    from flowkit.runtime.bootstrap import container_environment

    found = container_environment(root, user=user)
    if metadata != "local":
        found["FLOWKIT_METADATA"] = metadata
        url = settings().service_url
        if url:
            found["FLOWKIT_SERVICE_URL"] = _without_user(url)
    return found


def _without_user(url: str) -> str:
    """Return a URL without a user's name and password."""
    scheme, separator, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"


class Commands:
    """The commands of a deployment's containers.

    Parameters
    ----------
    start : str or None
        The step with which runs begin.
    facts : Facts
    """

    def __init__(self, start: str | None, facts: Facts) -> None:
        self._start = start
        self._facts = facts

    def step(self, step: str, request: ExecutorRequest, attempts: Attempts) -> tuple[str, ...]:
        """Return the command of a step's containers."""
        return self._command(
            step,
            python=str(request.resources.get("executable") or "python"),
            timeout=attempts.timeout,
            template=self._facts.template if step == self._start else None,
        )

    def end(self) -> tuple[str, ...]:
        """Return the command that ends a run."""
        return self._command(None, template=self._facts.template)

    def client(
        self, deployment: str, words: Mapping[str, Any], specs: tuple[str, ...], services: set[str]
    ) -> tuple[str, ...]:
        """Return the command of a container that is a run's client.

        Parameters
        ----------
        deployment : str
            ``target/name``.
        words : mapping
            ``top``, the words before ``run``, and ``run``, those after it.
        specs : tuple of str
            Further decorators for every step.
        services : set of str
            Who carries steps out.
        """
        from flowkit.runtime.bootstrap import client_command

        facts = self._facts
        return tuple(
            client_command(
                facts.root,
                facts.package.key,
                facts.package.program,
                deployment=deployment,
                top=list(words.get("top", ())),
                run=[*words.get("run", ()), *(word for spec in specs for word in ("--with", spec))],
                needs={facts.metadata, *services},
                install=not settings().skip_install,
            )
        )

    def _command(self, step: str | None, **more: Any) -> tuple[str, ...]:
        from flowkit.runtime.bootstrap import deployed_command

        facts = self._facts
        return tuple(
            deployed_command(
                facts.root,
                facts.package.key,
                facts.package.program,
                step=step,
                install=not settings().skip_install,
                max_log_size=facts.max_log_size,
                # On a folder the index is a file beside it; elsewhere who looks at the runs makes one for themselves.
                record=facts.metadata != "local" or not is_remote(facts.root),
                **more,
            )
        )


def is_remote(root: str) -> bool:
    """Whether a datastore is one that other machines reach."""
    from flowkit.datastore.root import scheme_of

    return scheme_of(root) is not None
