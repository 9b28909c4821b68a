"""The kubernetes client, imported on use: configuration, calls with plain dicts, and what their errors mean.

Answers are read as plain JSON: making the client's objects of 10,000 pods would take half a minute of processor time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from flowkit.exceptions import UsageError
from flowkit.runtime.backend import BackendError
from flowkit.settings import settings, variable

PAGE = 500
"""Objects of one page of a list, as kubectl asks for them."""
_CONNECT, _READ = 10.0, 60.0
_ACCOUNT_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


class Refused(BackendError):
    """The API server answered a call with an error.

    Attributes
    ----------
    status : int
        Its HTTP status.
    reason : str
        The machine-readable reason (``AlreadyExists``, ``Expired``).
    """

    def __init__(
        self, headline: str, hint: str | None, status: int, reason: str, *, transient: bool, answered: bool
    ) -> None:
        super().__init__(headline, hint, transient=transient, answered=answered)
        self.status = status
        self.reason = reason


class Cluster:
    """A connection to the API server. The constructor makes no call and imports nothing.

    Attributes
    ----------
    calls : int
        How many calls were made.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._apis: dict[str, Any] = {}
        self._client: Any = None
        self._namespace: str | None = None

    @property
    def namespace(self) -> str:
        """The namespace of jobs whose step names none: of the settings, the context or the account."""
        configured = settings().kubernetes_namespace
        if configured:
            return configured
        self._connected()
        return self._namespace or "default"

    def call(self, api: str, method: str, *args: Any, **options: Any) -> Any:
        """Make a call, and return what its JSON says.

        Parameters
        ----------
        api, method : str
            A class of the client, without its ``Api`` (``BatchV1``), and its method.
        *args, **options
            As the method takes them.

        Raises
        ------
        BackendError
            `Refused` where the server answered.
        """
        response = self.open(api, method, *args, **options)
        try:
            data = response.data
        except Exception as error:
            raise self._lost(error) from error
        finally:
            response.release_conn()
        return json.loads(data) if data else {}

    def text(self, api: str, method: str, *args: Any, **options: Any) -> str:
        """Make a call, and return the text that it answers (a log)."""
        response = self.open(api, method, *args, **options)
        try:
            data: bytes = response.data
        except Exception as error:
            raise self._lost(error) from error
        finally:
            response.release_conn()
        return data.decode("utf-8", "replace")

    def open(self, api: str, method: str, *args: Any, **options: Any) -> Any:
        """Make a call, and return its response unread."""
        options.setdefault("_request_timeout", (_CONNECT, _READ))
        try:
            return self._try(api, method, args, options)
        except Refused as error:
            if error.status != 401:
                raise
        # A token may have been renewed on disk, or by a login in another window.
        self.close()
        try:
            return self._try(api, method, args, options)
        except UsageError as error:  # just now, the configuration cannot be read
            raise BackendError(error.headline, error.hint, transient=True) from error

    def pages(self, api: str, method: str, *args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        """Yield the pages of a list; one that grew too old while it was read starts again from its beginning."""
        token, restarted = "", False
        while True:
            try:
                page = self.call(api, method, *args, limit=PAGE, **({"_continue": token} if token else {}), **options)
            except Refused as error:
                if error.status != 410 or not token or restarted:
                    raise
                token, restarted = "", True
                continue
            yield page
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return

    def close(self) -> None:
        """Release the connections."""
        client, self._client = self._client, None
        self._apis.clear()
        if client is not None:
            client.close()

    def _try(self, api: str, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        from kubernetes.client import ApiException

        self._connected()
        known = self._apis.get(api)
        if known is None:
            import kubernetes.client

            known = self._apis[api] = getattr(kubernetes.client, f"{api}Api")(self._client)
        self.calls += 1
        try:
            return getattr(known, method)(*args, _preload_content=False, **options)
        except ApiException as error:
            raise _refused(error) from error
        except Exception as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> BackendError:
        from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError

        if not isinstance(error, (HTTPError, OSError)):
            raise error
        cause: Any = error.reason if isinstance(error, MaxRetryError) else error
        never = isinstance(cause, (NewConnectionError, ConnectTimeoutError))
        where = self._client.configuration.host if self._client is not None else "the cluster"
        return BackendError(
            f"the Kubernetes cluster at {where} does not answer: {_short(cause)}",
            "look whether kubectl get pods works here; a VPN may be needed",
            transient=True,
            answered=never,
        )

    def _connected(self) -> None:
        if self._client is not None:
            return
        try:
            import kubernetes.client
            from kubernetes import config
        except ImportError as error:
            from flowkit.exceptions import MissingExtra

            raise MissingExtra(
                "@kubernetes needs a package that is not installed: kubernetes", "pip install 'flowkit[kubernetes]'"
            ) from error
        from urllib3.util.retry import Retry

        configuration = kubernetes.client.Configuration()
        # Only connecting is tried again here; whatever was sent may have been carried out.
        configuration.retries = Retry(total=None, connect=2, read=0, redirect=0, status=0, other=0)
        loading: Any = config  # it has no types
        context = settings().kubernetes_context
        # The client reads KUBECONFIG once, when it is imported.
        file = variable("KUBECONFIG") or None
        inside = variable("KUBERNETES_SERVICE_HOST") and not file and not context
        try:
            if inside:
                loading.load_incluster_config(client_configuration=configuration)
                self._namespace = _account_namespace()
            else:
                loading.load_kube_config(config_file=file, context=context, client_configuration=configuration)
                self._namespace = _context_namespace(file, context)
        except Exception as error:  # the client raises ConfigException, and YAML's or the login command's own errors
            raise UsageError(
                f"no Kubernetes cluster is configured: {_short(error)}",
                "look whether kubectl get pods works here; KUBECONFIG and the setting kubernetes_context name one",
            ) from error
        self._client = kubernetes.client.ApiClient(configuration)


def _context_namespace(file: str | None, context: str | None) -> str | None:
    from kubernetes import config

    loading: Any = config
    contexts, active = loading.list_kube_config_contexts(file)
    chosen = next((item for item in contexts if item["name"] == context), None) if context else active
    return ((chosen or {}).get("context") or {}).get("namespace")


def _account_namespace() -> str | None:
    if not os.path.isfile(_ACCOUNT_NAMESPACE):
        return None
    with open(_ACCOUNT_NAMESPACE, encoding="utf-8") as file:
        return file.read().strip() or None


def _refused(error: Any) -> BackendError:
    status = int(error.status or 0)
    try:
        said = json.loads(error.body or "{}")
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    message = _short(said.get("message") or error.reason or "no reason given")
    reason = str(said.get("reason") or "")
    if not status:  # the client's way to tell of a failed TLS handshake
        return BackendError(f"no safe connection to the Kubernetes cluster: {message}", transient=True)
    hint: str | None = None
    if status == 401:
        message = "the Kubernetes cluster does not accept the credentials: they are wrong or have expired"
        hint = "log in to the cluster again; jobs that run go on meanwhile"
    elif status == 403:
        message, hint = f"not allowed in the Kubernetes cluster: {message}", "docs/kubernetes.md lists what is needed"
    elif status == 429 or status >= 500:
        message = f"the Kubernetes cluster is overloaded or ill ({status}): {message}"
    else:
        message = f"the Kubernetes cluster refused a call ({status}): {message}"
    transient = status in (401, 408, 429) or status >= 500
    answered = status not in (408, 500, 502, 504)
    return Refused(message, hint, status, reason, transient=transient, answered=answered)


def _short(error: Any) -> str:
    return one_line(str(error) or type(error).__name__, 500)


def one_line(text: Any, longest: int = 300) -> str:
    """Return a text of the cluster as one line that does nothing to a terminal."""
    words = " ".join(str(text or "").split())
    return "".join(char if char.isprintable() else "\ufffd" for char in words)[:longest]
