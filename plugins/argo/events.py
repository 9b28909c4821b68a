"""Events: the Sensor of a flow that waits for them, and the news that a run has succeeded.

Events come through one webhook of Argo Events (an EventSource of the kind ``webhook``): whoever posts
``{"name": …, "payload": {…}}`` there makes an event. A sensor waits until all events of its flow have come and starts a
run, whose arguments are fields of the payloads. A run that has succeeded posts ``flowkit.<Flow>.end``.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from flowkit.deployer.target import Deployment, EventPlan, finish_event
from flowkit.plugins.argo.pods import RUN_ID, Pods, untemplated
from flowkit.plugins.kubernetes.syntax import digest

TOKEN = "FLOWKIT_ARGO_EVENTS_TOKEN"
"""The token of the webhook, where it wants one: a key of a secret of the end step (``@kubernetes(secrets=)``)."""
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
_TELL = """\
import json, os, sys, time, urllib.request
url, event = sys.argv[1], json.loads(sys.argv[2])
event["payload"]["timestamp"] = int(time.time())
token = os.environ.get("FLOWKIT_ARGO_EVENTS_TOKEN")
head = {"Content-Type": "application/json", **({"Authorization": "Bearer " + token} if token else {})}
urllib.request.urlopen(urllib.request.Request(url, json.dumps(event).encode(), head), timeout=30).read()
print("told", url, "of", event["name"])
"""


class Hearing(NamedTuple):
    """Where events come from and go to, as the settings say.

    Parameters
    ----------
    bus : str
        The EventBus.
    source, event : str
        The EventSource, and the event's name in it.
    service_account : str or None
        With which a sensor starts workflows.
    url : str or None
        Where the end of a run is told; None for not at all.
    """

    bus: str = "default"
    source: str = "flowkit-webhook"
    event: str = "flowkit-event"
    service_account: str | None = None
    url: str | None = None


def sensor_document(
    deployment: Deployment, metadata: dict[str, Any], run: dict[str, Any], hearing: Hearing
) -> dict[str, Any]:
    """Return the Sensor that starts a run when all events have come.

    Parameters
    ----------
    deployment : Deployment
        The flow.
    metadata : dict
        Of the sensor.
    run : dict
        The Workflow that it creates; fields of events become its arguments.
    hearing : Hearing
        Where events come from.
    """
    plans = [*deployment.events, *deployment.finishes]
    heard = [(f"event-{number}", plan) for number, plan in enumerate(plans)]
    arguments, parameters = _filled(deployment, heard)
    spec = {**run["spec"], "arguments": {"parameters": arguments}}
    trigger: dict[str, Any] = {
        "name": "run",  # without conditions: all events have to come
        "argoWorkflow": {
            "operation": "submit",
            "source": {"resource": {**run, "spec": spec}},
            "parameters": parameters,
        },
    }
    reset = deployment.event_options.get("reset_at")
    if isinstance(reset, dict) and reset.get("cron"):
        by = {"cron": str(reset["cron"]), **({"timezone": str(reset["timezone"])} if reset.get("timezone") else {})}
        trigger["conditionsReset"] = [{"byTime": by}]
    document: dict[str, Any] = {
        "eventBusName": hearing.bus,
        "dependencies": [_dependency(name, plan, hearing) for name, plan in heard],
        "triggers": [{"template": trigger, "retryStrategy": {"steps": 3}}],
    }
    if hearing.service_account:
        document["template"] = {"serviceAccountName": hearing.service_account}
    named = {**metadata, "name": sensor_name(deployment.name)}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Sensor", "metadata": named, "spec": document}


def _dependency(name: str, plan: EventPlan, hearing: Hearing) -> dict[str, Any]:
    # What stands here is a regular expression, which may fit anywhere in the text.
    wanted = {"path": "body.name", "type": "string", "value": [f"^{_SPECIAL.sub(_quoted, plan.name)}$"]}
    return {
        "name": name,
        "eventSourceName": hearing.source,
        "eventName": hearing.event,
        "filters": {"data": [wanted]},
    }


def _filled(
    deployment: Deployment, heard: list[tuple[str, EventPlan]]
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Return the run's arguments, and what of the events goes into which of them."""
    from flowkit.plugins.argo.dags import TRIGGER_ARGUMENT

    defaults = {plan.attribute: plan.default for plan in deployment.parameters}
    required = {plan.attribute for plan in deployment.parameters if plan.required}
    arguments: list[dict[str, str]] = []
    parameters: list[dict[str, Any]] = []
    for name, plan in heard:
        for attribute, key in plan.parameters:
            source: dict[str, Any] = {"dependencyName": name, "dataKey": f"body.payload.{_path(key)}"}
            default = defaults.get(attribute)
            if default is not None or attribute not in required:  # where the event does not have the field
                source["value"] = "null" if default is None else untemplated(default)
            parameters.append({"src": source, "dest": f"spec.arguments.parameters.{len(arguments)}.value"})
            arguments.append({"name": attribute, "value": ""})
    place = f"spec.arguments.parameters.{len(arguments)}.value"
    for number, (name, plan) in enumerate(heard):
        parameters.append(
            {
                "src": {"dependencyName": name, "dataTemplate": _told(plan, number, len(heard))},
                "dest": place,
                **({"operation": "append"} if number else {}),
            }
        )
    arguments.append({"name": TRIGGER_ARGUMENT, "value": ""})
    return arguments, parameters


def _quoted(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def sensor_name(name: str) -> str:
    """Return what the sensor of a deployment is called: without dots, which an EventBus cannot have in a name."""
    return f"{name.replace('.', '-')}-{digest(name, 6)}" if "." in name else name


def _path(key: str) -> str:
    """Return a field's name as a path: dots and stars are part of it."""
    return "".join(f"\\{char}" if char in ".*?|#@\\" else char for char in key)


def _told(plan: EventPlan, number: int, count: int) -> str:
    """Return the template (of Go) of one entry in the list of what started a run; all of them together are JSON."""
    kind = "run" if plan.flow is not None else "event"
    which = "id" if plan.flow is None else "pathspec"
    told = f'(default "" .Input.body.payload.{which} | toString) (default 0 .Input.body.payload.timestamp)'
    entry = f'{{{{ list .Input.body.name {told} "{kind}" | toJson }}}}'
    return f"{',' if number else '['}{entry}{']' if number == count - 1 else ''}"


def finish_template(deployment: Deployment, pods: Pods, name: str, url: str) -> dict[str, Any]:
    """Return the template of the container that tells others that a run has succeeded."""
    event = {
        "name": finish_event(deployment.flow, deployment.project, deployment.branch),
        "payload": {
            "id": "{{workflow.uid}}",
            "flow": deployment.flow,
            "run": RUN_ID,
            "pathspec": f"{deployment.flow}/{RUN_ID}",
            "project": deployment.project,
            "branch": deployment.branch,
        },
    }
    request = pods.end_request()
    command = ["python", "-c", _TELL, url, json.dumps(event)]
    template = pods.container(request, command, {}, name, None)
    template["retryStrategy"] = {"limit": "5", "retryPolicy": "Always", "backoff": {"duration": "5s", "factor": "2"}}
    return template
