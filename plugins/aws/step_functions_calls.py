"""Calls to the services that a state machine takes (Step Functions, EventBridge, Batch, STS), errors explained."""

from __future__ import annotations

from typing import Any, NamedTuple

from flowkit.exceptions import FlowkitError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.batch_calls import explained
from flowkit.plugins.aws.errors import code_of, retried
from flowkit.runtime.backend import BackendError

LABELS = {
    "stepfunctions": "AWS Step Functions",
    "scheduler": "EventBridge Scheduler",
    "events": "EventBridge",
    "batch": "AWS Batch",
    "sts": "AWS STS",
}


class Account(NamedTuple):
    """Where calls go: parts of every ARN."""

    partition: str
    region: str
    number: str

    def arn(self, service: str, resource: str) -> str:
        """Return the ARN of a resource."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.number}:{resource}"


def call(service: str, operation: str, *, absent: tuple[str, ...] = (), **parameters: Any) -> dict[str, Any] | None:
    """Call an operation, again where that helps, and return its answer.

    Parameters
    ----------
    service, operation : str
        As boto3 names them: ``stepfunctions``, ``describe_state_machine``.
    absent : tuple of str
        Codes of errors that mean that there is no such thing: None is returned then.
    **parameters
        Of the operation.

    Raises
    ------
    BackendError
        If it did not work, with what to do about it.
    """
    try:
        client = session.client(service)
        answer: dict[str, Any] = retried(lambda: getattr(client, operation)(**parameters), answered=lambda: False)
    except FlowkitError:
        raise
    except Exception as error:  # whatever botocore raises: its errors have no common base with the connection's
        if code_of(error) in absent:
            return None
        known = explained(error, operation)
        if known is None:
            raise
        headline = known.headline.replace("AWS Batch (", f"{LABELS.get(service, service)} (")
        hint = known.hint
        if hint and "docs/batch.md" in hint:
            hint = "docs/step_functions.md lists what the credentials have to allow"
        raise BackendError(headline, hint) from error
    return answer


def wanted(service: str, operation: str, **parameters: Any) -> dict[str, Any]:
    """Call an operation whose answer is never nothing."""
    return call(service, operation, **parameters) or {}


def account() -> Account:
    """Return where calls go, as STS tells it."""
    arn = str(wanted("sts", "get_caller_identity").get("Arn", ""))
    parts = [*arn.split(":"), *[""] * 5]
    region = session.client("stepfunctions").meta.region_name
    return Account(parts[1] or "aws", region, parts[4])
