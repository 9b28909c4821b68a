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

_BOX = "tests/deploying/test_scheduler_stories.py::test"
_RULES = "tests/deploying/test_scheduler_rules.py::test"
_ARGO = "tests/plugins/argo/test_argo"
_MACHINES = "tests/plugins/step_functions/test_machine_stories.py::test"
_AIRFLOW = "tests/airflow/test_airflow"
_CRON = "tests/plugins/kube/test_kubernetes_cron.py::test"
_ENDS = "tests/deploying/test_ends.py::test"

OTHERS: dict[str, dict[str, str]] = {
    "local": {
        "schedule": f"{_BOX}_a_schedule_is_kept_through_kills_and_edits",
        "time_zone": f"{_RULES}_where_clocks_are_changed_nothing_is_lost_or_doubled",
        "events": f"{_BOX}_events_and_ends_start_flows_once_though_schedulers_are_killed",
        "on_finish": f"{_BOX}_events_and_ends_start_flows_once_though_schedulers_are_killed",
        "exit_hooks": f"{_ENDS}_in_the_box",
        "concurrency": f"{_BOX}_runs_are_started_by_hand_replaced_stopped_and_refused",
        "notifications": f"{_ENDS}_in_the_box",
    },
    "argo-workflows": {
        "schedule": f"{_ARGO}_client.py::test_a_schedule_does_as_its_policy_says",
        "time_zone": f"{_ARGO}_stories.py::test_a_run_that_fails_is_not_tried_in_vain_ended_and_told_of",
        "events": f"{_ARGO}_client.py::test_events_start_runs_when_all_have_come",
        "on_finish": f"{_ARGO}_client.py::test_events_start_runs_when_all_have_come",
        "exit_hooks": f"{_ENDS}_on_argo_workflows",
        "concurrency": f"{_ARGO}_client.py::test_a_schedule_does_as_its_policy_says",
        "priority": f"{_ARGO}_documents.py::test_what_a_run_as_a_whole_is_given",
        "notifications": f"{_ENDS}_on_argo_workflows",
        "suspend": f"{_ARGO}_stories.py::test_a_run_is_suspended_and_stopped",
    },
    "step-functions": {
        "schedule": "tests/deploying/test_starts.py::test_a_schedule_an_event_and_the_end_of_another_flow",
        "time_zone": f"{_MACHINES}_a_flow_is_deployed_runs_and_is_removed",
        "events": f"{_MACHINES}_events_start_a_flow",
        "on_finish": f"{_MACHINES}_events_start_a_flow",
        "exit_hooks": f"{_ENDS}_on_step_functions",
        "concurrency": f"{_MACHINES}_one_run_at_a_time",
        "notifications": f"{_ENDS}_on_step_functions",
    },
    "airflow": {
        "schedule": f"{_AIRFLOW}_ends.py::test_schedule_time_zone_policy_and_priority_are_as_airflow_reads_them",
        "time_zone": f"{_AIRFLOW}_ends.py::test_schedule_time_zone_policy_and_priority_are_as_airflow_reads_them",
        "events": f"{_AIRFLOW}_service.py::test_an_event_starts_a_flow_whose_run_is_stopped",
        "on_finish": f"{_AIRFLOW}_service.py::test_runs_are_started_found_and_start_others",
        "exit_hooks": f"{_AIRFLOW}_ends.py::test_hooks_are_called_and_people_are_told",
        "concurrency": f"{_AIRFLOW}_ends.py::test_schedule_time_zone_policy_and_priority_are_as_airflow_reads_them",
        "priority": f"{_AIRFLOW}_ends.py::test_schedule_time_zone_policy_and_priority_are_as_airflow_reads_them",
        "notifications": f"{_AIRFLOW}_ends.py::test_hooks_are_called_and_people_are_told",
    },
    "kubernetes": {
        "schedule": f"{_CRON}_a_run_that_fails_is_not_started_again",
        "time_zone": f"{_CRON}_a_client_that_is_killed_is_started_again_and_goes_on",
        "exit_hooks": f"{_ENDS}_as_a_cronjob",
        "concurrency": f"{_CRON}_firings_replace_each_other_and_a_terminated_run_ends_with_its_jobs",
        "notifications": f"{_ENDS}_as_a_cronjob",
    },
}


def evidence(target: str, feature: str, support: str) -> str | None:
    """Return the test of a cell; None where there is none."""
    if support == "no":
        return _REFUSED
    return OF_RANDOM_FLOWS[target] if feature in RANDOM else OTHERS[target].get(feature)
