"""Calls to AWS Batch: made with the process's client, their errors told as `BackendError`."""

from __future__ import annotations

from typing import Any

from flowkit.exceptions import StoreError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.errors import code_of, expired, status_of, transient, unreachable
from flowkit.runtime.backend import BackendError

_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
_UNKNOWN = ("UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch")
_THROTTLED = ("TooManyRequestsException", "ThrottlingException", "Throttling", "RequestLimitExceeded", "SlowDown")


def call(operation: str, **parameters: Any) -> dict[str, Any]:
    """Call an operation of AWS Batch once and return its answer.

    Parameters
    ----------
    operation : str
        As a method of boto3's client: ``describe_jobs``.
    **parameters
        Of the operation.

    Raises
    ------
    BackendError
        If it did not work. `BackendError.answered` is False where it may have worked all the same.
    """
    try:
        client = session.client("batch")
        answer: dict[str, Any] = getattr(client, operation)(**parameters)
    except StoreError as error:
        raise BackendError(error.headline, error.hint) from error
    except Exception as error:  # whatever botocore raises: its errors have no common base with the connection's
        known = explained(error, operation)
        if known is None:
            raise
        if expired(error):
            session.forget()
        raise known from error
    return answer


def explained(error: Exception, operation: str) -> BackendError | None:
    """Return what went wrong with a call; None for an error that is none of the service or of the way to it."""
    from botocore import exceptions as known

    where = f"AWS Batch ({operation})"
    code = code_of(error)
    if isinstance(error, known.NoCredentialsError):
        return BackendError(
            "there are no AWS credentials",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or sign in with aws configure or aws sso "
            "login",
        )
    if expired(error) or isinstance(error, known.SSOTokenLoadError | known.UnauthorizedSSOTokenError):
        # What runs goes on: with new credentials it is looked at again.
        return BackendError(
            "the AWS credentials have expired", "sign in again: aws sso login, or a new token", transient=True
        )
    if isinstance(error, known.CredentialRetrievalError | known.PartialCredentialsError | known.TokenRetrievalError):
        return BackendError(f"the AWS credentials cannot be had ({error})", "sign in again, or mend ~/.aws/config")
    if isinstance(error, known.NoRegionError):
        return BackendError("no AWS region is set", "set AWS_REGION, or region in ~/.aws/config")
    if isinstance(error, known.ParamValidationError):
        return BackendError(f"{where} cannot be called like this: {_short(error)}")
    if code in _UNKNOWN:
        return BackendError(
            f"AWS does not accept these credentials ({code})",
            "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE",
        )
    if code in _DENIED or status_of(error) == 403:
        return BackendError(
            f"{where}: permission denied: {_short(error)}", "docs/batch.md lists what the credentials have to allow"
        )
    if code in _THROTTLED:
        return BackendError(f"{where} asks to slow down ({code})", transient=True)
    if unreachable(error):
        return BackendError(
            f"{where} cannot be reached ({_short(error)})", "look at the network, and at AWS_REGION", transient=True
        )
    if transient(error):
        return BackendError(f"{where} did not answer as it should ({_short(error)})", transient=True, answered=False)
    if code:
        return BackendError(f"{where}: {_short(error)}")
    return None


def _short(error: Exception) -> str:
    response: Any = getattr(error, "response", None)
    told = response.get("Error", {}) if isinstance(response, dict) else {}
    text = str(told.get("Message") or error)
    return " ".join(text.split())[:400] or type(error).__name__
