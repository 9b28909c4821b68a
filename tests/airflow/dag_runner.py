"""Runs DAGs in the Airflow of the interpreter that runs this file (2 or 3), and tells how they ended.

``python dag_runner.py ORDERS ANSWERS``: ORDERS is a JSON file with ``[[dag file, configuration], …]``; into ANSWERS
goes a JSON list with an object for each: ``dag``, ``run`` (Airflow's id), ``state``, ``tasks`` (each ``[id, map index,
state, tries]``) or ``errors`` where the file cannot be imported. ``dag.test()`` carries tasks out one after the other,
as Airflow's scheduler would start them: with trigger rules, mapping, branches and retries.
"""

import json
import os
import sys
import traceback

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # Airflow 2
    from airflow.models.dagbag import DagBag


def hurry():
    """Look at jobs of AWS Batch often: the provider waits up to ten seconds before each look; jobs take one here."""
    import time

    from airflow.providers.amazon.aws.hooks.batch_client import BatchClientHook

    BatchClientHook.delay = staticmethod(lambda delay=None: time.sleep(0.1))


def carried_out(path, configuration):
    bag = DagBag(path)
    if bag.import_errors:
        return {"errors": list(bag.import_errors.values())}
    answers = []
    for name, dag in sorted(bag.dags.items()):
        if configuration is None:  # only looked at
            answers.append({"dag": name, "tasks": sorted(dag.task_ids)})
            continue
        try:
            run = dag.test(run_conf=configuration)
            tasks = [
                [each.task_id, each.map_index, str(each.state), each.try_number] for each in run.get_task_instances()
            ]
            answers.append({"dag": name, "run": run.run_id, "state": run.state, "tasks": sorted(tasks)})
        except BaseException as error:  # told to the test, whatever it is
            answers.append({"dag": name, "errors": ["".join(traceback.format_exception(error))]})
            if isinstance(error, KeyboardInterrupt):
                raise
    return answers[0] if answers else {"errors": [f"{path} has no DAG"]}


if __name__ == "__main__":
    if "AWS_ENDPOINT_URL" in os.environ:
        hurry()
    with open(sys.argv[1], encoding="utf-8") as file:
        orders = json.load(file)
    told = [carried_out(path, configuration) for path, configuration in orders]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(told, file)
