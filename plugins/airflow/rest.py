"""Airflow's REST API, as far as runs need it: version 1 of Airflow 2, version 2 of Airflow 3."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from flowkit.deployer.target import DeploymentRecord, Execution
from flowkit.exceptions import NotFound, UsageError
from flowkit.metadata.records import State
from flowkit.runtime.backend import BackendError
from flowkit.settings import settings, variable

_SECONDS = 30
"""How long one call may take."""
_PAGE = 100
"""Runs of one answer: Airflow's own limit (``maximum_page_limit``)."""
_SEARCHED = 10_000
"""Runs looked at for one of a given id."""
_LARGEST = 32 * 1024 * 1024
"""Bytes of an answer."""
_TERMINATED = "terminated by flowkit"
"""Noted at a run that is stopped: Airflow has no other word for it than failed."""
_STATES: Mapping[str, State] = {
    "queued": "pending",
    "running": "running",
    "success": "succeeded",
    "failed": "failed",
}


def run_of(dag: str, dag_run: str) -> str:
    """Return the id that a run of Airflow has in flowkit: as the DAG file itself computes it."""
    return "airflow-" + hashlib.sha256(f"{dag}\n{dag_run}".encode()).hexdigest()[:20]


class Rest:
    """Airflow's web server.

    Parameters
    ----------
    url : str
        Where it is.
    user, password : str or None
        Who asks.
    token : str or None
        Instead of these: a bearer token.
    """

    def __init__(
        self, url: str, user: str | None = None, password: str | None = None, token: str | None = None
    ) -> None:
        scheme, _, rest = url.rstrip("/").partition("://")
        self._url = f"{scheme}://{rest.rpartition('@')[2]}"  # who asks is told by the environment, and never shown
        self._user, self._password, self._token = user, password, token
        self._version = ""

    @classmethod
    def of_settings(cls, record: DeploymentRecord, verb: str) -> Rest:
        """Return Airflow as the settings tell where it is.

        Raises
        ------
        UsageError
            If they do not; the hint says how Airflow's own command does it.
        """
        given = settings()
        if not given.airflow_url:
            raise UsageError(
                f"'{verb}' asks Airflow's web server, and it is not said where that is: FLOWKIT_AIRFLOW_URL",
                f"or ask Airflow on its own machine: {_by_hand(record, verb)}",
            )
        own = [variable(f"FLOWKIT_AIRFLOW_{name}") or None for name in ("USERNAME", "PASSWORD", "TOKEN")]
        return cls(given.airflow_url, *own)

    def trigger(self, record: DeploymentRecord, parameters: Mapping[str, str]) -> str:
        """Start a run and return its id in flowkit."""
        names = {item.attribute: item.name for item in record.parameters}
        body: dict[str, Any] = {
            "dag_run_id": f"flowkit__{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S}-{secrets.token_hex(4)}",
            "conf": {names.get(attribute, attribute): json.loads(text) for attribute, text in parameters.items()},
        }
        if self._api() == "v2":
            body["logical_date"] = None
        made = self._ask("POST", f"/dags/{_quoted(record.name)}/dagRuns", body)
        return run_of(record.name, str(made["dag_run_id"]))

    def execution(self, record: DeploymentRecord, run: str) -> Execution | None:
        """Return how a run stands; None where Airflow does not know it."""
        found = self._find(record, run)
        return None if found is None else _execution(record, found)

    def executions(self, record: DeploymentRecord, limit: int) -> list[Execution]:
        """Return the newest runs, the newest first."""
        return [_execution(record, each) for each in self._runs(record, limit)]

    def terminate(self, record: DeploymentRecord, run: str) -> None:
        """Stop a run."""
        found = self._find(record, run)
        if found is None:
            raise NotFound(f"Airflow knows no run {run} of {record.name}")
        path = f"/dags/{_quoted(record.name)}/dagRuns/{_quoted(found['dag_run_id'])}"
        note = {"note": _TERMINATED} if self._api() == "v2" else {}
        self._ask("PATCH", path, {"state": "failed", **note})

    def _find(self, record: DeploymentRecord, run: str) -> dict[str, Any] | None:
        for each in self._runs(record, _SEARCHED):
            if run_of(record.name, str(each["dag_run_id"])) == run:
                return each
        return None

    def _runs(self, record: DeploymentRecord, limit: int) -> Iterator[dict[str, Any]]:
        order = "-run_after" if self._api() == "v2" else "-execution_date"
        seen = 0
        while seen < limit:
            size = min(_PAGE, limit - seen)
            query = urllib.parse.urlencode({"limit": size, "offset": seen, "order_by": order})
            page = self._ask("GET", f"/dags/{_quoted(record.name)}/dagRuns?{query}")["dag_runs"]
            yield from page
            seen += len(page)
            if len(page) < size:
                return

    # -- the wire --------------------------------------------------------------------------------------------------

    def _api(self) -> str:
        """Find out once which of both versions is there."""
        if not self._version:
            status, _ = self._call("GET", "/api/v2/version", None, {})
            self._version = "v2" if status == 200 else "v1"
        return self._version

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        api = self._api()
        status, answer = self._call(method, f"/api/{api}{path}", body, self._authorization(api))
        if status == 404:
            raise NotFound(
                f"Airflow at {self._url} does not know it: {_detail(answer)}", "has it read the DAG file yet?"
            )
        if status in (401, 403):
            raise BackendError(
                f"Airflow at {self._url} refuses: {_detail(answer)}",
                "say who you are: FLOWKIT_AIRFLOW_USERNAME and FLOWKIT_AIRFLOW_PASSWORD, or FLOWKIT_AIRFLOW_TOKEN",
            )
        if not 200 <= status < 300:
            raise BackendError(f"Airflow at {self._url} answers {status}: {_detail(answer)}")
        return answer

    def _authorization(self, api: str) -> dict[str, str]:
        if self._token is None and self._user is not None and api == "v2":
            body = {"username": self._user, "password": self._password or ""}
            status, answer = self._call("POST", "/auth/token", body, {})
            if not 200 <= status < 300 or not isinstance(answer, dict) or "access_token" not in answer:
                raise BackendError(
                    f"Airflow at {self._url} gives no token to '{self._user}': {_detail(answer)}",
                    "check FLOWKIT_AIRFLOW_USERNAME and FLOWKIT_AIRFLOW_PASSWORD",
                )
            self._token = str(answer["access_token"])
        if self._token is not None:
            return {"Authorization": f"Bearer {self._token}"}
        if self._user is not None:
            pair = base64.b64encode(f"{self._user}:{self._password or ''}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}

    def _call(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, method=method, headers=dict(headers))
        request.add_header("Accept", "application/json")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with _opener().open(request, timeout=_SECONDS) as answer:
                return answer.status, _plain(answer.read(_LARGEST))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _plain(error.read(_LARGEST))
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise BackendError(
                f"Airflow at {self._url} cannot be reached: {reason}", "check the setting airflow_url"
            ) from error


class _Straight(urllib.request.HTTPRedirectHandler):
    """Credentials go to the server that was named, and to no other."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Straight())


def _plain(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content[:500].decode("utf-8", "replace")


def _detail(answer: Any) -> str:
    if isinstance(answer, dict):
        answer = answer.get("detail") or answer.get("title") or answer
    return " ".join(str(answer).split())[:300]


def _quoted(part: Any) -> str:
    return urllib.parse.quote(str(part), safe="")


def _execution(record: DeploymentRecord, run: Mapping[str, Any]) -> Execution:
    state = _STATES.get(str(run.get("state")), "pending")
    if state == "failed" and run.get("note") == _TERMINATED:
        state = "cancelled"
    started, finished = _moment(run.get("start_date")), _moment(run.get("end_date"))
    return Execution(run_of(record.name, str(run["dag_run_id"])), state, f"{run['dag_run_id']}", started, finished)


def _moment(text: Any) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _by_hand(record: DeploymentRecord, verb: str) -> str:
    if verb == "trigger":
        return f"airflow dags trigger {record.name} --conf '{{…}}'"
    if verb == "terminate":
        return "mark the run as failed in Airflow's web pages"
    return f"airflow dags list-runs {record.name}"
