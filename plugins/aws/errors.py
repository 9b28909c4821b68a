"""What AWS and the way to it answer, told apart: worth another try, or an error that says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from flowkit.exceptions import StoreError

T = TypeVar("T")

PATIENT = 10
"""How often a call is tried in all."""
UNREACHED = 3
"""How often while nothing has answered yet: a wrong endpoint is told within seconds."""
LONGEST_PAUSE = 8.0
"""Seconds; pauses are random, up to a bound that doubles from `FIRST_PAUSE`: 15 s on average for all tries."""
FIRST_PAUSE = 0.05

_TRANSIENT_CODES = frozenset(
    (
        "SlowDown", "ServiceUnavailable", "InternalError", "InternalFailure", "RequestTimeout",
        "RequestTimeoutException", "Throttling", "ThrottlingException", "ThrottledException",
        "RequestThrottled", "RequestThrottledException", "TooManyRequestsException",
        "ConditionalRequestConflict", "RequestLimitExceeded", "BandwidthLimitExceeded",
        "PriorRequestNotComplete", "OperationAborted", "TransactionInProgressException",
        "EC2ThrottledException", "ServerException"
    )
)  # fmt: skip
_EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"))
_UNKNOWN = frozenset(
    (
        "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "UnrecognizedClientException",
        "InvalidToken", "AuthFailure", "InvalidSecurity", "MissingAuthenticationToken"
    )
)  # fmt: skip
_DENIED = frozenset(
    (
        "AccessDenied", "AccessDeniedException", "UnauthorizedAccess", "AllAccessDisabled", "AccountProblem",
        "403"
    )
)  # fmt: skip
_REGION = frozenset(
    (
        "PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException", "301", "307"
    )
)  # fmt: skip


class Interrupted(Exception):
    """An answer that broke off, or is not what was asked for: the call may be made again."""


def code_of(error: BaseException) -> str:
    """Return the service's code for an error (``NoSuchKey``, ``404``); empty where it did not answer."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an answer; 0 where there was none."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def transient(error: BaseException) -> bool:
    """Whether the same call may work a moment later: throttled, a fault of the service, or no whole answer."""
    if isinstance(error, Interrupted):
        return True
    if _response(error):
        return code_of(error) in _TRANSIENT_CODES or status_of(error) in (429, 500, 502, 503, 504)
    return isinstance(error, _connection_errors())


def unreachable(error: BaseException) -> bool:
    """Whether no connection came about."""
    from botocore import exceptions as known

    return isinstance(error, (known.EndpointConnectionError, known.ConnectTimeoutError, known.ProxyConnectionError))


def _refused(error: BaseException) -> bool:
    from botocore.exceptions import SSLError

    return isinstance(error, SSLError)


def expired(error: BaseException) -> bool:
    """Whether the credentials were good once and are no more."""
    return code_of(error) in _EXPIRED


def retried(call: Callable[[], T], *, answered: Callable[[], bool] = lambda: True) -> T:
    """Make a call again while its errors are transient, with random pauses; the last error is raised.

    Parameters
    ----------
    call : callable
        Without arguments.
    answered : callable
        Whether the service has answered anything yet; while it has not, an unreachable one is not waited for.
    """
    from tenacity import Retrying, retry_if_exception

    def enough(state: Any) -> bool:
        error = state.outcome.exception()
        hopeless = error is not None and (unreachable(error) or _refused(error)) and not answered()
        return bool(state.attempt_number >= (UNREACHED if hopeless else PATIENT))

    return Retrying(
        retry=retry_if_exception(transient),
        wait=_pause,
        stop=enough,
        reraise=True,
    )(call)


def _pause(state: Any) -> float:
    # Not by the generator of the module random: its state is the user's, and what a task draws must not depend on S3.
    longest: float = min(FIRST_PAUSE * 2.0 ** (state.attempt_number - 1), LONGEST_PAUSE)
    return longest * int.from_bytes(os.urandom(4), "big") / 2.0**32


def explained(error: BaseException, action: str, bucket: str, key: str | None = None, endpoint: str = "") -> StoreError:
    """Return the error to raise for a call to S3 that failed for good.

    Parameters
    ----------
    error : BaseException
        What botocore, or the connection, raised.
    action : str
        What was tried: ``read``, ``write``, ``list``, ``delete``.
    bucket, key : str
        Of what.
    endpoint : str
        Where the service is.
    """
    place = f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
    reason, hint = _reason(error, bucket, endpoint)
    return StoreError(f"cannot {action} {place}: {reason}{_request(error)}", hint)


def _reason(error: BaseException, bucket: str, endpoint: str) -> tuple[str, str | None]:
    from botocore import exceptions as known

    code = code_of(error)
    if isinstance(error, known.NoCredentialsError):
        return "there are no AWS credentials", (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or sign in with aws configure or aws sso "
            "login; a container needs a role"
        )
    if isinstance(error, known.CredentialRetrievalError | known.PartialCredentialsError | known.TokenRetrievalError):
        return f"the AWS credentials cannot be had ({error})", "sign in again, or mend ~/.aws/config"
    if code in _EXPIRED or isinstance(error, known.SSOTokenLoadError | known.UnauthorizedSSOTokenError):
        return "the AWS credentials have expired", (
            "get new ones (aws sso login, or a new AWS_SESSION_TOKEN), then resume: what was committed is kept"
        )
    if code in _UNKNOWN:
        return f"the service does not accept these credentials ({code})", (
            "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE"
        )
    if code == "RequestTimeTooSkewed":
        return "this machine's clock is wrong", "set the clock: requests are signed with the time"
    if code == "NoSuchBucket":
        return f"there is no bucket '{bucket}'" + (f" at {endpoint}" if endpoint else ""), (
            "make the bucket, or correct FLOWKIT_DATASTORE; is the endpoint (FLOWKIT_S3_ENDPOINT_URL) the right one?"
        )
    if code in _REGION or status_of(error) in (301, 307):
        return _wrong_region(error)
    if code in _DENIED or status_of(error) == 403:
        return "permission denied", (
            "the credentials need s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, s3:DeleteObject and "
            "s3:AbortMultipartUpload on what is below the prefix; with aws:kms also the use of the key"
        )
    if unreachable(error):
        return f"the service cannot be reached ({_short(error)})", (
            "look at the network, AWS_REGION and FLOWKIT_S3_ENDPOINT_URL (or AWS_ENDPOINT_URL)"
        )
    if isinstance(error, known.SSLError):
        return f"the service's certificate is not accepted ({_short(error)})", (
            "is it http instead of https? A certificate of one's own is named by AWS_CA_BUNDLE"
        )
    if transient(error):
        what = "asks to slow down" if code == "SlowDown" or status_of(error) in (429, 503) else "fails"
        return f"the service {what}, also at the last of several tries ({code or _short(error)})", "try again later"
    return f"{_short(error)}", None


def _wrong_region(error: BaseException) -> tuple[str, str]:
    response = _response(error)
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    where = f"it is in {region}" if region else "it is in another one"
    return f"the bucket is not in this region: {where}", f"set AWS_REGION={region or '…'}"


def _request(error: BaseException) -> str:
    metadata = _response(error).get("ResponseMetadata", {})
    number = metadata.get("RequestId") or metadata.get("HTTPHeaders", {}).get("x-amz-request-id")
    return f" (request {number})" if number else ""


def _short(error: BaseException) -> str:
    told = _response(error).get("Error", {})
    if told:
        return ": ".join(str(part) for part in (told.get("Code"), told.get("Message")) if part)
    return " ".join(str(error).split())[:300] or type(error).__name__


def _response(error: BaseException) -> dict[str, Any]:
    found = getattr(error, "response", None)
    return found if isinstance(found, dict) else {}


def _connection_errors() -> tuple[type[BaseException], ...]:
    import http.client

    from botocore import exceptions as known
    from botocore.parsers import ResponseParserError

    return (
        known.ConnectionError,
        known.HTTPClientError,
        known.IncompleteReadError,
        known.ResponseStreamingError,
        ResponseParserError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    )
