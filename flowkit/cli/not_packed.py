"""What to do about a step that failed elsewhere because it found a file or a module there that is only here."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from flowkit.cli.session import Session

if TYPE_CHECKING:
    from flowkit.model.manifest import Failure

_FILE = re.compile(r"^FileNotFoundError: .*?(?P<quote>['\"])(?P<path>.+)(?P=quote)$")
_MODULE = re.compile(r"^ModuleNotFoundError: No module named '(?P<name>[\w.]+)'")
_UNPACKED = re.compile(r"^.*/flowkit-\w+/(?P<path>.+)$")
"""A path in the folder where a container has unpacked the package: what follows is the name in the package."""


def not_packed(session: Session, step: str, failure: Failure) -> str | None:
    """Return what to do about a failure by something that was not sent along; None where it is not such a one.

    Parameters
    ----------
    session : Session
        The command, whose folder has the file.
    step : str
        The step that failed.
    failure : Failure
        How. Its text comes from the container: the path in it is looked for, and nothing else is done with it.
    """
    from flowkit.decorators.attach import executor_request

    file, module = _FILE.match(failure.message), _MODULE.match(failure.message)
    if not (file or module) or not executor_request(session.definition.steps[step]).name:
        return None
    if module:
        return (
            f"The step ran in a container, whose image has no module '{module['name']}': name an image that has it "
            f"(image=…). What is sent along: {session.program} package list"
        )
    assert file is not None
    return _about_file(session, file["path"])


def _about_file(session: Session, path: str) -> str | None:
    folder = os.path.dirname(os.path.abspath(session.definition.file))
    unpacked = _UNPACKED.match(path)
    if unpacked and not os.path.exists(path):
        path = unpacked["path"]
    found = next((each for each in (os.path.join(folder, path), os.path.abspath(path)) if os.path.exists(each)), None)
    if found is None:
        return None
    inside = os.path.relpath(found, folder)
    ending = os.path.splitext(inside)[1]
    if inside.startswith(os.pardir):
        name = os.path.basename(found)
        what = f"@package(files=[({found!r}, {name!r})]) above the class brings it along, as {name!r}"
    elif ending:
        what = f"@package(files=[{inside!r}]) above the class, or --package-suffixes {ending}, brings it along"
    else:
        what = f"@package(files=[{inside!r}]) above the class brings it along"
    return f"The file is here, but was not sent along with the code: {what}. What is: {session.program} package list"
