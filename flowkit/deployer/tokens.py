"""Production tokens: who may change what is deployed.

A token keeps colleagues from replacing each other's deployments by accident; it is no secret from those who may read
the scheduler. The first to deploy under a name gets one. It is kept in that user's own folder, and with the deployment;
who has it, or gives it with ``--authorize``, may deploy again, and may delete or stop. Flows of one project and branch
share one.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from typing import NamedTuple

from flowkit.deployer.target import DeploymentRecord
from flowkit.exceptions import Conflict, UsageError
from flowkit.settings import state_folder

_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_RANDOM = 8
_LONGEST_PREFIX = 60


class Wish(NamedTuple):
    """What the user says about the token.

    Parameters
    ----------
    authorize : str or None
        The token of what is deployed.
    new : str or None
        The token that it is to have from now on.
    generate : bool
        Whether it is to have another one, made up.
    """

    authorize: str | None = None
    new: str | None = None
    generate: bool = False


class Decision(NamedTuple):
    """The token of a deployment, and whether it is told to the user: it is not the one that it had."""

    token: str
    told: bool


def token_key(name: str, project: str | None, branch: str | None) -> str:
    """Return what a token is for: a name at a target, or a branch of a project."""
    return f"{project}.{branch}" if project and branch else name


def kept_token(target: str, key: str) -> str | None:
    """Return the token that this user has for something; None for none."""
    try:
        with open(_file(target, key), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    token = found.get("token") if isinstance(found, dict) else None
    return token if isinstance(token, str) and _TOKEN.fullmatch(token) else None


def keep_token(target: str, key: str, token: str) -> None:
    """Keep a token in this user's folder, where nobody else can read it.

    Raises
    ------
    UsageError
        If the folder cannot be written.
    """
    path = _file(target, key)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor, written = tempfile.mkstemp(dir=folder)  # 0600
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({"target": target, "for": key, "token": token}, file)
        os.replace(written, path)
    except OSError as error:
        raise UsageError(
            f"the production token cannot be kept: {error}", f"give it next time: --authorize {token}"
        ) from None


def new_token(key: str, previous: str | None = None) -> str:
    """Return a token that nobody has: what it is for, its generation, and eight letters and digits.

    Examples
    --------
    >>> new_token("train", "train-0-k2x81mqa")
    'train-1-p05ct7wz'
    """
    prefix = re.sub(r"[^a-z0-9.]+", "-", key.lower()).strip("-.")[:_LONGEST_PREFIX].strip("-.") or "flow"
    generation = 0
    if previous is not None and (past := re.fullmatch(r".*-([0-9]{1,6})-[a-z0-9]+", previous)):
        generation = int(past[1]) + 1
    return f"{prefix}-{generation}-{''.join(secrets.choice(_LETTERS) for _ in range(_RANDOM))}"


def decide(
    target: str,
    label: str,
    name: str,
    flow: str,
    found: DeploymentRecord | None,
    wish: Wish,
    *,
    project: str | None = None,
    branch: str | None = None,
) -> Decision:
    """Find out under which token a flow may be deployed.

    Parameters
    ----------
    target, label : str
        The target, and what people call it.
    name, flow : str
        What is to be deployed.
    found : DeploymentRecord or None
        What is deployed there by now, as the target says.
    wish : Wish
        What the user says.
    project, branch : str, optional

    Raises
    ------
    Conflict
        If something is deployed there that the user has not the token of, or another flow.
    UsageError
        If the wishes contradict each other, or are no tokens.
    """
    key = token_key(name, project, branch)
    check_wish(wish)
    kept = kept_token(target, key)
    if found is None or (not found.token and found.flow == flow):  # what has lost its token is nobody's
        token = wish.new or (new_token(key, kept) if wish.generate else None) or wish.authorize or kept
        return Decision(token, token != kept) if token is not None else Decision(new_token(key), True)
    if found.token not in (wish.authorize, kept) or (found.flow != flow and found.token != wish.authorize):
        raise refusal(label, name, found, flow, wish)
    token = wish.new or (new_token(key, found.token) if wish.generate else found.token)
    return Decision(token, token != found.token)


def check_wish(wish: Wish) -> None:
    """Refuse wishes that contradict each other, and texts that cannot be tokens.

    Raises
    ------
    UsageError
        With what is wrong.
    """
    if wish.new is not None and wish.generate:
        raise UsageError("--new-token and --generate-new-token exclude each other")
    for option, token in (("--authorize", wish.authorize), ("--new-token", wish.new)):
        if token is not None and not _TOKEN.fullmatch(token):
            raise UsageError(
                f"{option}: {token!r} cannot be a production token", "letters, digits, '.', '_' and '-', at most 100"
            )


def check_token(target: str, label: str, found: DeploymentRecord, authorize: str | None) -> None:
    """Refuse to change something deployed to who has not its token.

    Raises
    ------
    Conflict
        If neither this user's folder nor ``--authorize`` has it.
    """
    wish = Wish(authorize)
    check_wish(wish)
    kept = kept_token(target, token_key(found.name, found.project, found.branch))
    if found.token and found.token not in (authorize, kept):
        raise refusal(label, found.name, found, found.flow, wish)


def refusal(label: str, name: str, found: DeploymentRecord, flow: str, wish: Wish) -> Conflict:
    """Return why something deployed is not touched; the token itself is not told."""
    by = f" by {found.user}" if found.user else ""
    if found.flow != flow:
        return Conflict(
            f"'{name}' at {label} is another flow, {found.flow}, deployed{by}",
            f"give {flow} another name (--name), or that one's token: --authorize TOKEN",
        )
    if wish.authorize is not None:
        return Conflict(
            f"--authorize: that is not the production token of '{name}' at {label}", "it may be an older one"
        )
    return Conflict(
        f"'{name}' at {label} was deployed{by}, with a production token that you do not have",
        "ask for it, and give it: --authorize TOKEN",
    )


def _file(target: str, key: str) -> str:
    from urllib.parse import quote

    # A name may be longer than a file's may be: what is left out of it is told by its length.
    text = quote(key, safe="")
    named = text if len(text) <= 200 else f"{text[:190]}~{len(text)}"
    return os.path.join(state_folder(), "tokens", quote(target, safe=""), f"{named}.json")
