"""What Argo Workflows refuses before anything runs: unknown fields, names, references to what is not there.

Fields are those that flowkit writes; a document is also checked against Argo's own schema where that is at hand
(`schema_problems`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from argo_expressions import Refused, evaluate, names_in, tags

SCHEMA = Path(__file__).resolve().parents[3] / "shared/schemas/argo-workflows.schema.json"
NAME = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9]*")
PARAMETER = re.compile(r"[a-zA-Z0-9_][-a-zA-Z0-9_]*")
_RESULT = re.compile(r"([a-zA-Z0-9][-a-zA-Z0-9]*)\.([A-Za-z]+)")
_RESULTS = {"Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned", "AnySucceeded", "AllFailed"}
_KINDS = {"CronWorkflow": "io.argoproj.workflow.v1alpha1.CronWorkflow",
          "Workflow": "io.argoproj.workflow.v1alpha1.Workflow",
          "WorkflowTemplate": "io.argoproj.workflow.v1alpha1.WorkflowTemplate",
          "Sensor": "github.com.argoproj.argo_events.pkg.apis.events.v1alpha1.Sensor"}  # fmt: skip
_FIELDS: dict[str, set[str]] = {
    "spec": {"entrypoint", "onExit", "arguments", "parallelism", "workflowMetadata", "podMetadata", "templates",
             "serviceAccountName", "imagePullSecrets", "priority", "activeDeadlineSeconds", "workflowTemplateRef",
             "shutdown", "suspend"},
    "template": {"name", "inputs", "outputs", "metadata", "container", "dag", "resource", "suspend", "retryStrategy",
                 "activeDeadlineSeconds", "serviceAccountName", "nodeSelector", "tolerations", "volumes"},
    "task": {"name", "template", "arguments", "depends", "when", "withSequence"},
    "withSequence": {"start", "count"},
    "retryStrategy": {"limit", "retryPolicy", "expression", "backoff"},
    "backoff": {"duration", "factor", "cap"},
    "resource": {"action", "manifest", "setOwnerReference", "successCondition", "failureCondition"},
    "input": {"name"},
    "argument": {"name", "value", "description"},
    "valueFrom": {"path", "default", "expression"},
    "output": {"name", "valueFrom"},
}  # fmt: skip


def check_fields(kind: str, value: Mapping[str, Any]) -> None:
    """Refuse a field that the interpreter does not know."""
    unknown = value.keys() - _FIELDS[kind]
    if unknown:
        raise Refused(f"{kind} has fields that the interpreter does not know: {', '.join(sorted(unknown))}")


def check_spec(spec: Mapping[str, Any]) -> None:
    """Check the specification of a WorkflowTemplate as Argo's admission does, and more strictly where it is lenient.

    Raises
    ------
    Refused
        With the first thing that is wrong.
    """
    check_fields("spec", spec)
    templates = {template["name"]: template for template in spec["templates"]}
    if len(templates) != len(spec["templates"]):
        raise Refused("two templates have one name")
    arguments = spec.get("arguments", {}).get("parameters", [])
    for argument in arguments:
        check_fields("argument", argument)
        if not PARAMETER.fullmatch(argument["name"]):
            raise Refused(f"the argument {argument['name']!r} has no good name")
    names = {f"workflow.parameters.{argument['name']}" for argument in arguments}
    for name in (spec["entrypoint"], spec.get("onExit", spec["entrypoint"])):
        if name not in templates:
            raise Refused(f"there is no template {name}")
    main = _used(templates, spec["entrypoint"])
    ending = _used(templates, spec["onExit"]) if "onExit" in spec else set()
    for template in templates.values():
        known = names | {"workflow.name", "workflow.uid", "workflow.namespace"}
        known |= {"workflow.annotations.flowkit/cancelled"}  # of the workflow itself, where somebody sets it
        if template["name"] in ending:
            known = known | {"workflow.status"}
        _check_template(template, templates, known)
    unused = templates.keys() - main - ending
    if unused:
        raise Refused(f"nobody uses the templates {', '.join(sorted(unused))}")


def _used(templates: Mapping[str, Any], first: str) -> set[str]:
    found, todo = set(), [first]
    while todo:
        name = todo.pop()
        if name not in found:
            if name not in templates:
                raise Refused(f"there is no template {name}")
            found.add(name)
            todo += [task["template"] for task in templates[name].get("dag", {}).get("tasks", [])]
    return found


def _check_template(template: Mapping[str, Any], templates: Mapping[str, Any], known: set[str]) -> None:
    check_fields("template", template)
    name = template["name"]
    if not NAME.fullmatch(name) or name != name.lower():
        raise Refused(f"{name!r} cannot be the name of a template whose pods are named after it")
    if sum(kind in template for kind in ("container", "dag", "resource", "suspend")) != 1:
        raise Refused(f"the template {name} must be of one kind")
    inputs = [each["name"] for each in template.get("inputs", {}).get("parameters", [])]
    for each in template.get("inputs", {}).get("parameters", []):
        check_fields("input", each)
    known = known | {f"inputs.parameters.{each}" for each in inputs}
    strategy = template.get("retryStrategy")
    if strategy is not None:
        _check_strategy(strategy, name)
        known = known | {"retries"}
    if "dag" in template:
        _check_dag(template, templates, known)
        return
    if "suspend" in template and template["suspend"] != {"duration": "0"}:
        raise Refused(f"the template {name} waits")
    if "resource" in template:
        check_fields("resource", template["resource"])
    for tag in tags(template):
        if tag not in known:
            raise Refused(f"the template {name} asks for {tag}, which it cannot know")
    for output in template.get("outputs", {}).get("parameters", []):
        check_fields("output", output)
        check_fields("valueFrom", output["valueFrom"])
        if "path" not in output["valueFrom"]:
            raise Refused(f"the output {output['name']} of {name} comes from nowhere")


def _check_strategy(strategy: Mapping[str, Any], name: str) -> None:
    check_fields("retryStrategy", strategy)
    check_fields("backoff", strategy.get("backoff", {}))
    if strategy.get("retryPolicy") != "Always" or not strategy["limit"].isdigit():
        raise Refused(f"the template {name} is tried again in a way that the interpreter does not know")
    if "backoff" in strategy and not re.fullmatch(r"\d+(s|ms)", strategy["backoff"]["duration"]):
        raise Refused(f"the template {name} has no base duration")
    if "expression" in strategy:
        evaluate(strategy["expression"], {"lastRetry": {"exitCode": "-1"}})


def _check_dag(template: Mapping[str, Any], templates: Mapping[str, Any], known: set[str]) -> None:
    tasks = {task["name"]: task for task in template["dag"]["tasks"]}
    where = f"the DAG {template['name']}"
    if len(tasks) != len(template["dag"]["tasks"]) or set(template["dag"]) != {"tasks"}:
        raise Refused(f"{where}: two tasks have one name, or it has unknown fields")
    before = {name: dependencies(task) for name, task in tasks.items()}
    for name, task in tasks.items():
        check_fields("task", task)
        if not NAME.fullmatch(name) or (task.get("depends") and name[0].isdigit()):
            raise Refused(f"{where}: {name!r} cannot be the name of a task")
        above = _ancestors(name, before, where)
        outputs = {f"tasks.{each}.status" for each in above}
        for each in above:
            made = templates[tasks[each]["template"]].get("outputs", {}).get("parameters", [])
            if "withSequence" not in tasks[each]:
                outputs |= {f"tasks.{each}.outputs.parameters.{output['name']}" for output in made}
        allowed = known | outputs | ({"item"} if "withSequence" in task else set())
        for tag in tags(task):
            if tag not in allowed:
                raise Refused(f"{where}: the task {name} asks for {tag}, which it cannot know")
        check_fields("withSequence", task.get("withSequence", {}))
        wanted = [each["name"] for each in templates[task["template"]].get("inputs", {}).get("parameters", [])]
        given = [each["name"] for each in task.get("arguments", {}).get("parameters", [])]
        if sorted(wanted) != sorted(given):
            raise Refused(f"{where}: the task {name} gives {given}, and its template takes {wanted}")
    for output in template.get("outputs", {}).get("parameters", []):
        check_fields("valueFrom", output["valueFrom"])
        for asked in names_in(output["valueFrom"]["expression"]):
            if asked.split(".")[1] not in tasks:
                raise Refused(f"{where}: its output asks for {asked}")


def _ancestors(name: str, before: Mapping[str, list[str]], where: str) -> set[str]:
    found: set[str] = set()
    todo = list(before[name])
    while todo:
        each = todo.pop()
        if each == name or each not in before:
            raise Refused(f"{where}: {name} depends on {each}, which is itself or nothing")
        if each not in found:
            found.add(each)
            todo += before[each]
    return found


def dependencies(task: Mapping[str, Any]) -> list[str]:
    """Return the tasks that ``depends`` names; every one with a result, as flowkit writes it."""
    depends = task.get("depends", "")
    found = _RESULT.findall(depends)
    if set(re.sub(_RESULT, "", depends)) - set(" ()|&") or any(result not in _RESULTS for _, result in found):
        raise Refused(f"depends {depends!r} has something unknown")
    return list(dict.fromkeys(name for name, _ in found))


# -- Argo's own schema -------------------------------------------------------------------------------------------------


@functools.cache
def _validators() -> Mapping[str, Any]:
    import jsonschema

    definitions = json.loads(SCHEMA.read_text(encoding="utf-8"))["definitions"]
    for name, definition in definitions.items():
        if name.endswith("K8SResource"):
            definition.pop("properties")  # any object; in Go it is the bytes of one
        elif "properties" in definition:
            definition["additionalProperties"] = False
            for each in ("apiVersion", "kind"):
                definition["properties"].setdefault(each, {"type": "string"})
    make = jsonschema.Draft7Validator
    return {kind: make({"$ref": f"#/definitions/{name}", "definitions": definitions}) for kind, name in _KINDS.items()}


def schema_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield what Argo's schema, read strictly, says against a document; nothing where the schema is not there."""
    if not SCHEMA.is_file():
        return
    for error in _validators()[document["kind"]].iter_errors(document):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"


def object_problems(item: Mapping[str, Any]) -> list[str]:
    """Return what the API server and Argo's admission say against one of its objects."""
    from kube_strict import SUBDOMAIN, metadata_problems

    wrong = [*schema_problems(item), *metadata_problems(item["metadata"], name=SUBDOMAIN)]
    if not wrong and item["kind"] == "WorkflowTemplate":
        try:
            check_spec(item["spec"])
        except Refused as error:
            wrong = [str(error)]
    if len(json.dumps(item).encode()) > 1_500_000:
        wrong.append("etcdserver: request is too large")
    return wrong
