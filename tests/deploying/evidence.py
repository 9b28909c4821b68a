"""Which test shows a cell of the table of what runs where: feature by target, ``path::test``.

`test_capabilities` checks that every cell has one, and that it is there. What a random flow can hold is shown by the
random flows: those of a target have all of it together (`random_deployments.chosen`). Cells that say no are refused.
"""

from __future__ import annotations

from random_deployments import FEATURES as RANDOM

_RANDOM = "tests/deploying/test_random_flows.py"
_REFUSED = "tests/deploying/test_capabilities.py::test_what_a_target_cannot_do_is_refused_with_the_line"

OF_RANDOM_FLOWS = {
    "local": f"{_RANDOM}::test_in_the_box",
    "argo-workflows": f"{_RANDOM}::test_on_argo_workflows",
    "step-functions": f"{_RANDOM}::test_on_step_functions",
    "airflow": "tests/airflow/test_random_flows_on_airflow.py::test_on_airflow",
    "kubernetes": f"{_RANDOM}::test_as_a_cronjob",
}

OTHERS: dict[str, dict[str, str]] = {target: {} for target in OF_RANDOM_FLOWS}


def evidence(target: str, feature: str, support: str) -> str | None:
    """Return the test of a cell; None where there is none."""
    if support == "no":
        return _REFUSED
    return OF_RANDOM_FLOWS[target] if feature in RANDOM else OTHERS[target].get(feature)
