"""Parsers for `Config(…, parser=…)`: lists of packages as tools write them, as ``{"python": …, "packages": {…}}``."""

from __future__ import annotations

import re
import sys
from typing import Any

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(
    rf"(?P<name>{_NAME}(?:\s*\[[^\]]*\])?)\s*"
    r"(?:@\s*(?P<url>\S+)|\(?(?P<version>(?:[<>=!~]=?=?\s*[^\s,;()<>=!~]+\s*,?\s*)+)\)?)?"
)


def requirements_txt_parser(text: str) -> dict[str, Any]:
    """Read a ``requirements.txt``.

    Returns
    -------
    dict
        ``packages``: names (with extras) to versions; an exact version stands without its ``==``, and none is an empty
        text. ``python`` is None.

    Raises
    ------
    ValueError
        For a line that is no requirement: options, files, conditions (``; python_version…``).
    """
    packages: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if line:
            name, version = _requirement(line, f"line {number}")
            packages[name] = version
    return {"packages": packages, "python": None}


def pyproject_toml_parser(text: str) -> dict[str, Any]:
    """Read ``requires-python`` and ``dependencies`` of the ``[project]`` of a ``pyproject.toml``.

    Returns
    -------
    dict
        As `requirements_txt_parser` returns it.

    Raises
    ------
    ValueError
        If it is no TOML, or a dependency is no requirement.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads(text).get("project", {})
    packages = dict(_requirement(item, "dependencies") for item in project.get("dependencies", ()))
    return {"packages": packages, "python": project.get("requires-python")}


def _requirement(text: str, where: str) -> tuple[str, str]:
    if ";" in text:
        raise ValueError(f"{where}: conditions are not taken: {text}")
    found = _REQUIREMENT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{where}: this is no requirement: {text}")
    name = re.sub(r"\s", "", found["name"])
    if found["url"]:
        return f"{name}@{found['url']}", ""
    version = re.sub(r"\s", "", found["version"] or "").rstrip(",")
    exact = re.fullmatch(r"==([^,*<>=!~]+)", version)
    return name, exact[1] if exact else version
