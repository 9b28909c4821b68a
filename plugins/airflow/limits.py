"""What Airflow cannot do of a deployment, besides what `flowkit.deployer.capabilities` says; all of it at once."""

from __future__ import annotations

from flowkit.deployer.target import Deployment
from flowkit.exceptions import Problem
from flowkit.model.cron import five_field_problems
from flowkit.plugins.airflow import names
from flowkit.plugins.airflow.operators import LOCAL


def problems(deployment: Deployment) -> list[Problem]:
    """Return what is wrong. No call is made."""
    found = []
    wrong = names.name_problem(deployment.name)
    if wrong is not None:
        found.append(Problem(wrong, None, "give it another one with --name"))
    local = deployment.options.get("executor") == LOCAL
    if deployment.schedule is not None:
        for text in five_field_problems(deployment.schedule.cron):
            found.append(Problem(f"@schedule: {text}", None, "for example cron='0 6 * * MON-FRI'"))
    if deployment.concurrency == "replace":
        hint = "forbid (at most one run, and one that waits) or allow"
        found.append(Problem("Airflow cannot end a run because the next one is due: --concurrency replace", None, hint))
    most = deployment.options.get("max_map_length")
    if most is not None and int(most) < 1:
        found.append(Problem("--max-map-length must be at least 1"))
    if deployment.options.get("python") and not local:
        found.append(Problem("--python is for --executor local: elsewhere the image says which Python there is"))
    for node in deployment.graph.nodes.values():
        if node.kind == "parallel" and not local:
            found.append(
                Problem(
                    f"step '{node.name}': Airflow starts no pods or jobs that know each other (num_parallel)",
                    node.next_location or node.location,
                    "deploy it with --executor local, or to argo-workflows or step-functions",
                )
            )
    return found
