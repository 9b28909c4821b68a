"""What a deployment may not have on Argo Workflows, told before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator

from flowkit.deployer.target import Deployment
from flowkit.exceptions import Location, Problem
from flowkit.model.cron import five_field_problems
from flowkit.plugins.argo.names import NAME_LIMIT, is_deployment_name
from flowkit.plugins.kubernetes.syntax import ANNOTATIONS_LIMIT

_OPENING = "{{"
_RECORD_LIMIT = ANNOTATIONS_LIMIT - 4096


def limit_problems(deployment: Deployment) -> list[Problem]:
    """Return everything that Argo Workflows would refuse or understand as something else."""
    problems = []
    if not is_deployment_name(deployment.name):
        problems.append(
            Problem(
                f"'{deployment.name}' cannot be a name in Argo Workflows",
                None,
                f"small letters, digits, '-' and '.', at most {NAME_LIMIT} characters",
            )
        )
    if deployment.schedule is not None:
        cron = deployment.schedule.cron
        hint = "name the days, for example cron='0 6 * * MON-FRI'"
        problems += [
            Problem(f"the schedule '{cron}' cannot be one of Argo Workflows: {text}", None, hint)
            for text in five_field_problems(cron)
        ]
    if deployment.concurrency != "allow" and (deployment.events or deployment.finishes):
        problems.append(
            Problem(
                f"--concurrency {deployment.concurrency}: in Argo Workflows an event starts a run whatever goes on",
                None,
                "only the firings of a schedule look at each other there: leave it out",
            )
        )
    record = len(json.dumps(dict(deployment.record)).encode())
    if record > _RECORD_LIMIT:
        headline = f"the deployment's record has {record:,} bytes, and {_RECORD_LIMIT:,} is what an annotation may have"
        problems.append(Problem(headline, None, "keep large defaults of parameters in files: IncludeFile"))
    for what, text, where in _texts(deployment):
        if _OPENING in text:
            headline = f"{what} has {_OPENING}, which Argo Workflows takes for the beginning of a variable"
            problems.append(Problem(headline, where, "write it in another way, or let the step put it together"))
    return problems


def _texts(deployment: Deployment) -> Iterator[tuple[str, str, Location | None]]:
    """Yield every text of a user's that stands in a template, what it is, and where it comes from."""
    for name, plan in deployment.steps.items():
        where = deployment.graph[name].location
        for key, value in plan.environment.items():
            yield f"step '{name}': the environment variable {key}", f"{key}{value}", where
        for word in plan.command:
            yield f"step '{name}': its command", word, where
        for key in ("labels", "annotations", "node_selector"):
            for label, value in (plan.request.resources.get(key) or {}).items():
                yield f"step '{name}': {key}", f"{label}{value}", where
