"""``Flow/run/step/task/artifact``: how people name what a run made."""

from __future__ import annotations

import re
from typing import NamedTuple

from flowkit.exceptions import InvalidPathspec

LEVELS = ("flow", "run", "step", "task", "artifact")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-+@:]{0,254}")


class Pathspec(NamedTuple):
    """The parts of a path, from the flow down; what is not named is None."""

    flow: str
    run: str | None = None
    step: str | None = None
    task: str | None = None
    artifact: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in self if part is not None)

    @classmethod
    def parse(cls, text: str, depth: int | None = None) -> Pathspec:
        """Read a path.

        Parameters
        ----------
        text : str
            For example ``TrainFlow/12/train/3``.
        depth : int, optional
            How many parts there must be; any number from 1 to 5 where it is None.

        Raises
        ------
        InvalidPathspec
            If there are too many or too few parts, or one holds characters that no name has (so that no path
            ever leaves the datastore's root).
        """
        parts = text.split("/") if isinstance(text, str) else []
        wanted = "/".join(LEVELS[:depth] if depth else LEVELS)
        if not 1 <= len(parts) <= 5 or (depth is not None and len(parts) != depth):
            raise InvalidPathspec(f"{text!r} is not a path of the form {wanted}")
        for part in parts:
            check_part(part, text)
        return cls(*parts)


def check_part(part: str, whole: str | None = None) -> str:
    """Return the part if it can be one part of a path.

    Raises
    ------
    InvalidPathspec
        If it is empty, too long, begins with a dot or holds a character other than letters, digits and ``_.-+@:``.
    """
    if not _PART.fullmatch(part):
        shown = f"{part!r} in {whole!r}" if whole and whole != part else repr(part)
        raise InvalidPathspec(f"{shown} is not a name that flowkit gives", "a path looks like MyFlow/3/train/0/model")
    return part
