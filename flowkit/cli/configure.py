"""``flowkit configure``: the user's settings, one file for each profile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from flowkit.cli.console import Console
from flowkit.cli.group import Group
from flowkit.exceptions import NotFound, StoreError, UsageError, did_you_mean
from flowkit.settings import checked, home, profiles, read_user_file, setting_names, user_file_path

_SECRET = ("key", "token", "secret", "password", "auth")


def command(console: Console) -> click.Command:
    """Make the group: ``show``, ``set``, ``unset``, ``reset``, ``profiles``."""

    def show(profile: str | None) -> int:
        return _show(console, profile)

    def change(name: str, value: str, profile: str | None) -> int:
        _check_name(name)
        path = user_file_path(profile)
        values = {**read_user_file(path), **checked({name: value}, "the command line")}
        _write(path, values)
        console.say(f"{path}: {name} = {_told(name, values[name])}")
        return 0

    def unset(name: str, profile: str | None) -> int:
        _check_name(name)
        path = user_file_path(profile)
        values = dict(read_user_file(path))
        if values.pop(name, None) is None:
            raise NotFound(f"{path} does not set '{name}'", "see flowkit configure show")
        _write(path, values)
        console.say(f"{path}: {name} is not set any more")
        return 0

    def reset(profile: str | None) -> int:
        path = user_file_path(profile)
        try:
            os.unlink(path)
        except FileNotFoundError:
            console.say(f"{path} is not there: everything has its default")
            return 0
        except OSError as error:
            raise StoreError(f"{path} cannot be removed: {error.strerror}") from error
        console.say(f"{path} was removed: everything has its default")
        return 0

    def list_profiles() -> int:
        for name in profiles():
            console.data(name)
        return 0

    which = click.Option(
        ["--profile", "-p"], help="The profile. Default: FLOWKIT_PROFILE, else the one without a name."
    )
    name = click.Argument(["name"])
    commands: dict[str, click.Command] = {
        "show": click.Command("show", callback=show, params=[which], help="Show what the file sets."),
        "set": click.Command(
            "set", callback=change, params=[name, click.Argument(["value"]), which], help="Change a setting."
        ),
        "unset": click.Command("unset", callback=unset, params=[name, which], help="Let a setting have its default."),
        "reset": click.Command("reset", callback=reset, params=[which], help="Remove the file."),
        "profiles": click.Command("profiles", callback=list_profiles, help="List the profiles that have a file."),
    }
    return Group(
        "configure",
        commands=commands,
        help=f"Your settings. They are: {', '.join(setting_names())}. The environment and a project's flowkit.toml "
        "go before them.",
    )


def _check_name(name: str) -> None:
    names = setting_names()
    if name not in names:
        raise UsageError(f"there is no setting '{name}'", did_you_mean(name, names) or f"settings: {', '.join(names)}")


def _show(console: Console, profile: str | None) -> int:
    path = user_file_path(profile)
    values = read_user_file(path)
    console.say(f"{path}:" if values else f"{path} sets nothing")
    for name, value in values.items():
        console.data(f"{name} = {_told(name, value)}")
    return 0


def _told(name: str, value: Any) -> str:
    """Return a value to be shown: nothing that could be a secret."""
    if any(word in name for word in _SECRET):
        return "********"
    text = _toml(value)
    if "://" in text and "@" in text:  # a user's name and password in a URL
        head, _, rest = text.partition("://")
        return f"{head}://********@{rest.rpartition('@')[2]}"
    return text


def _write(path: str, values: Mapping[str, Any]) -> None:
    """Write the whole file at once, readable by its owner only."""
    import tempfile

    content = "".join(f"{name} = {_toml(value)}\n" for name, value in sorted(values.items()))
    part = None
    try:
        content.encode()
    except UnicodeEncodeError:
        raise UsageError("the value is no text: it cannot be written as UTF-8") from None
    try:
        os.makedirs(home(), mode=0o700, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".config-", text=True)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:
        if part is not None and os.path.exists(part):
            os.unlink(part)
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


def _toml(value: Any) -> str:
    import json

    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
