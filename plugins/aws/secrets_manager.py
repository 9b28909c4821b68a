"""Secrets of AWS Secrets Manager for ``@secrets(sources=["aws-secrets-manager.<id>"])``."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from flowkit.decorators.attributes import variable_problem
from flowkit.decorators.secrets import SecretsBackend
from flowkit.exceptions import StoreError, TaskError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.errors import code_of, expired, retried

_OPTIONS = ("json", "env_var_name", "keys", "prefix", "region", "version", "stage")
_ARN = re.compile(r"arn:[a-z0-9-]+:secretsmanager:([a-z0-9-]+):\d{12}:secret:.+")
_HINTS = {
    "ResourceNotFoundException": "look at its name and at the region",
    "AccessDeniedException": "the role needs secretsmanager:GetSecretValue for it (and kms:Decrypt for its key)",
    "DecryptionFailure": "the role needs kms:Decrypt for its key",
    "InvalidRequestException": "it may be marked for deletion: aws secretsmanager restore-secret",
}


class SecretsManager(SecretsBackend):
    """Secrets of AWS Secrets Manager.

    The id is a secret's name or ARN. A secret whose text is a JSON object gives a variable for each of its keys; any
    other text, and binary content (as base64), gives one variable, named as the secret with ``_`` for what is
    neither letter nor digit.

    Options: ``json`` (False: a JSON object is one text as well),
    ``env_var_name`` (of a secret that is one text), ``keys`` (which keys of the object, a list, or a dict to new
    names), ``prefix`` (before every name), ``region``, ``version`` and ``stage`` (of the secret; default: the current
    one).
    """

    type = "aws-secrets-manager"

    def check(self, identity: str, options: Mapping[str, Any]) -> list[str]:
        """Check the id and the options."""
        wrong = [] if identity else ["it has no id: the name or the ARN of a secret"]
        wrong += [f"it has no option '{key}': {', '.join(_OPTIONS)}" for key in options if key not in _OPTIONS]
        if not isinstance(options.get("json", True), bool):
            wrong.append("the option json must be True or False")
        for name in ("env_var_name", "prefix", "region", "version", "stage"):
            if not isinstance(options.get(name, ""), str):
                wrong.append(f"the option {name} must be a text")
        variable = options.get("env_var_name")
        if isinstance(variable, str) and (problem := variable_problem(variable)):
            wrong.append(problem)
        keys = options.get("keys")
        if keys is not None and not (
            isinstance(keys, list | tuple | Mapping) and all(isinstance(k, str) for k in keys)
        ):
            wrong.append("the option keys must be a list of keys, or a dict from keys to names of variables")
        return wrong

    def fetch(self, identity: str, options: Mapping[str, Any], role: str | None) -> Mapping[str, str]:
        """Return the variables that a secret stands for."""
        content = self._content(identity, options, role)
        prefix = str(options.get("prefix", ""))
        parts = _object(content) if _as_json(options) else None
        if parts is None:
            if options.get("keys") is not None:
                raise TaskError(f"the secret '{identity}' is no JSON object, and has no keys")
            return {str(options.get("env_var_name") or prefix + variable_name(identity)): content}
        keys = options.get("keys")
        if keys is not None:
            missing = [key for key in keys if key not in parts]
            if missing:
                raise TaskError(f"the secret '{identity}' has no key {', '.join(map(repr, missing))}")
            names = keys if isinstance(keys, Mapping) else {key: key for key in keys}
            parts = {names[key]: parts[key] for key in keys}
        found = {prefix + key: value for key, value in parts.items()}
        for key in found:
            if problem := variable_problem(key):
                raise TaskError(f"the secret '{identity}': {problem}", "choose keys by the option keys, or json=False")
        return found

    def _content(self, identity: str, options: Mapping[str, Any], role: str | None) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        asked: dict[str, Any] = {"SecretId": identity}
        if options.get("version"):
            asked["VersionId"] = options["version"]
        if options.get("stage"):
            asked["VersionStage"] = options["stage"]
        arn = _ARN.fullmatch(identity)
        region = options.get("region") or (arn.group(1) if arn else None)
        try:
            client = session.client("secretsmanager", region=region, role=role)
            answer = retried(lambda: client.get_secret_value(**asked))
        except (ClientError, BotoCoreError, StoreError) as error:
            raise _explained(identity, error, role) from error
        text = answer.get("SecretString")
        if isinstance(text, str):
            return text
        binary: bytes = answer.get("SecretBinary", b"")
        return base64.b64encode(binary).decode("ascii")


def variable_name(identity: str) -> str:
    """Return the name of the variable for a secret that is one text: ``prod/db-url`` is ``prod_db_url``."""
    name = identity.rpartition(":secret:")[2] if _ARN.fullmatch(identity) else identity
    if name != identity:
        name = re.sub(r"-[A-Za-z0-9]{6}$", "", name)  # six characters that the service appends in ARNs
    name = re.sub(r"[^A-Za-z0-9]", "_", name)
    return f"_{name}" if name[:1].isdigit() else name


def _as_json(options: Mapping[str, Any]) -> bool:
    return bool(options.get("json", True)) and not options.get("env_var_name")


def _object(content: str) -> dict[str, str] | None:
    """Return the values of a JSON object as texts; None for what is none."""
    try:
        read = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict):
        return None
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in read.items()}


def _explained(identity: str, error: Exception, role: str | None) -> TaskError:
    from botocore import exceptions as known

    code = code_of(error)
    acting = f" as {role}" if role else ""
    if isinstance(error, known.NoCredentialsError):
        return TaskError(
            f"the secret '{identity}' cannot be read: there are no AWS credentials", "a container needs a role"
        )
    if expired(error):
        return TaskError(f"the secret '{identity}' cannot be read: the AWS credentials have expired", "get new ones")
    if code == "ResourceNotFoundException":
        return TaskError(f"there is no secret '{identity}' in AWS Secrets Manager", _HINTS[code])
    if code:
        # The service's own text may quote what it was asked with, never a secret's value.
        return TaskError(f"the secret '{identity}' cannot be read{acting}: {code}", _HINTS.get(code))
    return TaskError(
        f"the secret '{identity}' cannot be read{acting}: {type(error).__name__}", str(error)[:300] or None
    )
