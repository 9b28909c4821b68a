"""Tell people that a deployed run is over: a message to the webhook of a chat (Slack's form, which others take, too).

Where to is a secret, since whoever knows the URL can write there: the process finds it in its environment, and it is in
no document and no log.
"""

from __future__ import annotations

import json

from flowkit.model.deployed import NOTIFY, NOTIFY_URL
from flowkit.settings import variable

_PATIENCE = 10.0
"""Seconds that the chat has to answer."""


def notify(pathspec: str, state: str, reason: str | None, about: str | None = None) -> str | None:
    """Tell that a run is over, where the environment says that people want to know; return what went wrong.

    Parameters
    ----------
    pathspec : str
        The run.
    state : str
        How it ended.
    reason : str or None
        Why.
    about : str, optional
        The ends that people want to know of: ``error``, ``success``, or both with a comma. Default: what the
        environment says.
    """
    wanted = (about or variable(NOTIFY) or "").split(",")
    if ("success" if state == "succeeded" else "error") not in wanted:
        return None
    url = variable(NOTIFY_URL)
    if not url:
        return f"nobody is told that {pathspec} {state}: {NOTIFY_URL} does not say where"
    if not url.startswith(("https://", "http://")):
        return f"nobody is told that {pathspec} {state}: {NOTIFY_URL} is no URL"
    text = f"{pathspec} {state}" + (f": {reason}" if reason else "")
    return _post(url, {"text": text})


def _post(url: str, message: dict[str, str]) -> str | None:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    body = json.dumps(message).encode()
    try:
        request = Request(url, body, {"Content-Type": "application/json", "User-Agent": "flowkit"}, method="POST")
        with urlopen(request, timeout=_PATIENCE):
            return None
    except HTTPError as error:
        with error:
            return f"the message to {NOTIFY_URL} was refused: status {error.code}"
    except (OSError, ValueError, HTTPException) as error:
        return f"the message to {NOTIFY_URL} could not be sent: {type(error).__name__}"
