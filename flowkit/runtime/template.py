"""What a deployed run begins from: stored when the flow is deployed, filled in when a scheduler starts a run.

A template is a blob: the claim of a run (`run.json`) and the manifest of its ``_parameters`` task, with the values of
deploy time and without an id. So a run begins with two small writes and without asking for anything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs, key_of
from flowkit.datastore.layout import blob_file
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import DataError, UsageError, did_you_mean
from flowkit.model.definition import FlowDefinition
from flowkit.model.deployed import PARAMETER
from flowkit.model.manifest import Artifact, Manifest
from flowkit.model.parameters import Parameter
from flowkit.runtime.start import RunRequest, parameters_manifest, run_claim

FORMAT = 1
_NOBODY = "template"
"""The run's id in a template."""


class Template(NamedTuple):
    """What a run begins from.

    Parameters
    ----------
    claim : mapping
        What its ``run.json`` says, but for when it began.
    parameters : Manifest
        Of its ``_parameters`` task.
    required : tuple of str
        Attribute names of parameters that have no value yet and need one.
    """

    claim: Mapping[str, Any]
    parameters: Manifest
    required: tuple[str, ...]


def store_template(storage: Storage, definition: FlowDefinition, request: RunRequest, *, target: str, name: str) -> str:
    """Store what the runs of a deployment begin from; return the blob's key, the same for the same content.

    Parameters
    ----------
    storage : Storage
        The datastore of its runs.
    definition : FlowDefinition
        The flow, validated.
    request : RunRequest
        What a run of it is started with: parameters by attribute name (None where there is no value), tags, namespace,
        decorators, options, code package.
    target, name : str
        The deployment.

    Raises
    ------
    ArtifactError
        If a parameter or a constant cannot be stored.
    StoreError
        If the datastore cannot be written.
    """
    request = request._replace(deployment=f"{target}/{name}")
    manifest = parameters_manifest(storage, definition, request, _NOBODY, 0.0)._replace(ended=0.0)
    required = [
        attribute
        for attribute, parameter in definition.parameters.items()
        if parameter.required and request.parameters.get(attribute) is None
    ]
    body = {
        "format": FORMAT,
        "claim": run_claim(definition, request, 0.0),
        "parameters": manifest.to_json(),
        "required": required,
    }
    content = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    return Blobs(storage).put([content], len(content))


def read_template(storage: Storage, key: str) -> Template:
    """Return a template.

    Raises
    ------
    DataError
        If it is missing, damaged, or of a newer flowkit.
    """
    what = f"what runs of the deployment begin from ({key})"
    try:
        content = storage.read(blob_file(key))
    except Missing:
        raise DataError(f"{what} is not in {storage.root}", "deploy the flow again") from None
    if key_of([content]) != key:
        raise DataError(f"{what} is damaged in {storage.root}", "deploy the flow again")
    try:
        body = json.loads(content)
        if body["format"] > FORMAT:
            raise DataError(f"{what} was made by a newer flowkit", "install that one where the flow runs")
        return Template(dict(body["claim"]), Manifest.from_json(body["parameters"]), tuple(map(str, body["required"])))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{what} is malformed: {error!r}", "deploy the flow again") from error


def claim_of(template: Template) -> dict[str, Any]:
    """Return what ``run.json`` says of a run that begins now."""
    return {**template.claim, "created": time.time()}


def filled(
    storage: Storage,
    definition: FlowDefinition,
    template: Template,
    run: str,
    given: Mapping[str, Any],
    trigger: Sequence[Sequence[Any]] = (),
) -> Manifest:
    """Return the ``_parameters`` manifest of a run, and store the values that were given.

    Parameters
    ----------
    storage : Storage
        The datastore.
    definition : FlowDefinition
        The flow.
    template : Template
        Of its deployment.
    run : str
        The run's id.
    given : mapping
        Values by attribute name, in the place of those of the template.
    trigger : sequence
        What started it: `flowkit.model.deployed.TRIGGER`.

    Raises
    ------
    UsageError
        If a parameter that is required has no value.
    """
    missing = [name for name in template.required if given.get(name) is None]
    if missing:
        listed = ", ".join(definition.parameters[name].name for name in missing if name in definition.parameters)
        raise UsageError(f"the run needs a value for {listed}", "give it when the run is triggered")
    now = time.time()
    writer = ArtifactWriter(Blobs(storage))
    stored: dict[str, Artifact] = {
        name: writer.save(name, value, step=template.parameters.step) for name, value in given.items()
    }
    extra = {**template.parameters.extra, **({"trigger": [list(each) for each in trigger]} if trigger else {})}
    return template.parameters._replace(
        run=run,
        artifacts={**template.parameters.artifacts, **stored},
        started=now,
        ended=now,
        extra=extra,
    )


def given_parameters(definition: FlowDefinition, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that a scheduler gives, by attribute name: variables that begin with `PARAMETER`.

    A text is JSON, or as on the command line; ``null`` and an empty variable stand for no value.

    Raises
    ------
    UsageError
        If there is no such parameter, or a text is not a value of its type; all are told at once.
    """
    values: dict[str, Any] = {}
    wrong = []
    for name, text in sorted(variables.items()):
        if not name.startswith(PARAMETER):
            continue
        attribute = name[len(PARAMETER) :]
        parameter = definition.parameters.get(attribute)
        if parameter is None:
            hint = did_you_mean(attribute, definition.parameters)
            wrong.append(UsageError(f"{definition.name} has no parameter '{attribute}'", hint))
            continue
        try:
            value = parameter_value(parameter, text)
        except UsageError as error:
            wrong.append(error)
            continue
        if value is not None:
            values[attribute] = value
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise UsageError("several parameters are wrong:\n" + "\n".join(f"  {error}" for error in wrong))
    return values


def given_trigger(text: str | None) -> list[tuple[str, str, float, str]]:
    """Return the events that started a run, from the text of a scheduler (`flowkit.model.deployed.TRIGGER`).

    Raises
    ------
    UsageError
        If it is anything else.
    """
    if not text:
        return []
    try:
        found = json.loads(text)
        return [(str(name), str(which), float(when), _event_type(kind)) for name, which, when, kind in found or ()]
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"what started the run cannot be read: {error}", "a list of [name, id, time, type]") from None


def _event_type(kind: object) -> str:
    if kind not in ("event", "run"):
        raise ValueError(f"{kind!r} is no type of an event")
    return str(kind)


def parameter_value(parameter: Parameter, text: str) -> Any:
    """Return the value that a text of a scheduler stands for; None for no value.

    Parameters
    ----------
    parameter : Parameter
        Whose.
    text : str
        JSON, or as on the command line.

    Raises
    ------
    UsageError
        If it is not a value of the parameter's type.
    """
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return parameter.parse(text)
    if value is None:
        return None
    if parameter.type is str and parameter.separator is None and not isinstance(value, str):
        return text  # a number, or the like, that somebody means as a text
    try:
        return parameter.take(value)
    except UsageError:
        return parameter.parse(text)
