"""``.gitignore`` and ``.flowkitignore``: which files are left out of the code package.

The rules are git's own: the last pattern that fits decides, ``!`` takes a file back, what is inside a folder that is
left out stays out. Files of a ``.flowkitignore`` have the last word over every ``.gitignore``. The rules of
the folders above the flow's count for what is below it, never for the flow's folder itself: a flow in a scratch
folder that git does not see has a package all the same.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

FILES = (".gitignore", ".flowkitignore")
_MOST_BYTES = 1 << 20
_CLASS_END = re.compile(r"\[(?:!|\^)?\]?(?:\\.|\[:[a-z]+:\]|[^\]\\])*\]")
_POSIX = {
    "alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "blank": r" \t", "cntrl": r"\x00-\x1f\x7f", "digit": "0-9",
    "graph": r"\x21-\x7e", "lower": "a-z", "print": r"\x20-\x7e", "punct": r"!-/:-@\[-`{-~", "space": r"\s",
    "upper": "A-Z", "xdigit": "0-9a-fA-F",
}  # fmt: skip


class Rule(NamedTuple):
    """One line of an ignore file.

    Parameters
    ----------
    base : str
        The folder of the file that it stands in, absolute, without a slash at its end.
    pattern : re.Pattern
        Fits paths relative to `base`.
    leaves_out : bool
        False for a line with ``!``.
    folders_only : bool
        The line ends in a slash.
    """

    base: str
    pattern: re.Pattern[str]
    leaves_out: bool
    folders_only: bool


class Ignored:
    """The rules that hold in a folder; `below` gives those of a folder inside it."""

    def __init__(self, rules: tuple[tuple[Rule, ...], tuple[Rule, ...]] = ((), ())) -> None:
        self._rules = rules

    @classmethod
    def above(cls, folder: str) -> Ignored:
        """Return the rules that hold in a folder because of those above it, up to the repository's own."""
        chain: list[str] = []
        current = folder
        while not os.path.lexists(os.path.join(current, ".git")):
            parent = os.path.dirname(current)
            if parent == current:
                return cls()  # in no repository: what lies further up is not about this folder
            chain.append(parent)
            current = parent
        found = cls()
        for each in reversed(chain):
            found = found.below(each)
        return found

    def below(self, folder: str) -> Ignored:
        """Return the rules that hold in a folder: these and its own."""
        own = tuple(read(os.path.join(folder, name)) for name in FILES)
        if not any(own):
            return self
        return Ignored((self._rules[0] + own[0], self._rules[1] + own[1]))

    def leaves_out(self, path: str, *, folder: bool) -> bool:
        """Whether a file or folder directly in the folder that these rules are of is left out.

        Parameters
        ----------
        path : str
            Absolute.
        folder : bool
            Whether it is one.
        """
        for rules in reversed(self._rules):
            for rule in reversed(rules):
                if rule.folders_only and not folder:
                    continue
                if rule.pattern.fullmatch(path[len(rule.base) + 1 :]):
                    return rule.leaves_out
        return False


def read(path: str) -> tuple[Rule, ...]:
    """Return the rules of an ignore file; none where there is no file.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_MOST_BYTES)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return ()
    base = os.path.dirname(path).rstrip("/")
    rules = (parse(line, base) for line in text.removeprefix("\ufeff").split("\n"))
    return tuple(rule for rule in rules if rule is not None)


def parse(line: str, base: str) -> Rule | None:
    """Return the rule of one line; None for a comment, an empty line and a pattern that can fit nothing."""
    line = _without_spaces(line.removesuffix("\r"))
    if not line or line.startswith("#"):
        return None
    leaves_out = not line.startswith("!")
    if not leaves_out:
        line = line[1:]
    folders_only = line.endswith("/")
    if folders_only:
        line = line[:-1]
    if not line or line.endswith("/"):
        return None
    anchored = "/" in line
    line = line.removeprefix("/")
    try:
        pattern = re.compile(("" if anchored else "(?:.*/)?") + _expression(line), re.DOTALL)
    except re.error:
        return None
    return Rule(base, pattern, leaves_out, folders_only)


def _without_spaces(line: str) -> str:
    """Drop the spaces at the end that no backslash stands before."""
    bare = line.rstrip(" ")
    if len(bare) < len(line) and (len(bare) - len(bare.rstrip("\\"))) % 2:
        return bare + " "
    return bare


def _expression(glob: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(glob):
        if glob[at] == "*":
            start, at = at, at + len(glob[at:]) - len(glob[at:].lstrip("*"))
            alone = at - start > 1 and (start == 0 or glob[start - 1] == "/")
            if alone and at == len(glob):
                out.append(".*" if start == 0 else ".+")
            elif alone and glob[at] == "/":
                out.append("(?:.*/)?")
                at += 1
            else:
                out.append("[^/]*")
        elif glob[at] == "?":
            out.append("[^/]")
            at += 1
        elif glob[at] == "[":
            text, at = _class(glob, at)
            out.append(text)
        elif glob[at] == "\\":
            if at + 1 == len(glob):
                raise re.error("a backslash at the end fits nothing")
            out.append(re.escape(glob[at + 1]))
            at += 2
        else:
            out.append(re.escape(glob[at]))
            at += 1
    return "".join(out)


def _class(glob: str, at: int) -> tuple[str, int]:
    """Translate ``[…]`` and return where it ends; a bracket without an end fits nothing."""
    found = _CLASS_END.match(glob, at)
    if found is None:
        raise re.error("a bracket is not closed")
    inner = found.group()[1:-1]
    negated = inner[:1] in ("!", "^")
    if negated:
        inner = inner[1:]
    text = re.sub(r"\[:([a-z]+):\]", lambda match: "\0" + match.group(1) + "\0", inner)
    parts = text.split("\0")
    out = []
    for index, part in enumerate(parts):
        if index % 2:
            if part not in _POSIX:
                raise re.error(f"there is no class {part}")
            out.append(_POSIX[part])
        else:
            out.append(_members(part))
    return f"(?!/)[{'^' if negated else ''}{''.join(out)}]", found.end()


def _members(text: str) -> str:
    """Escape what means something inside a bracket of a regular expression and nothing inside git's."""
    out = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\" and at + 1 < len(text):
            at += 1
            out.append("\\" + text[at] if not text[at].isalnum() else text[at])
        elif char in "[]\\^&|~":
            out.append("\\" + char)
        elif char == "-" and out and at + 1 < len(text):
            out.append("-")
        elif char == "-":
            out.append("\\-")
        else:
            out.append(char)
        at += 1
    return "".join(out)
