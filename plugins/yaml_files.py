"""YAML files as configs, by PyYAML."""

from __future__ import annotations

import re
from typing import Any

from flowkit.exceptions import MissingExtra


class YamlParser:
    """Reads YAML: ``Config("train", parser=yaml_parser)``; files that end in ``.yaml`` and ``.yml`` need no parser."""

    def __call__(self, text: str) -> Any:
        """Return the values of a text; nothing in it can run code."""
        return _yaml().safe_load(text)

    def lines(self, text: str) -> dict[tuple[Any, ...], int]:
        """Return the line of each key, by the keys that lead to it."""
        yaml = _yaml()
        places: dict[tuple[Any, ...], int] = {}
        todo: list[tuple[Any, tuple[Any, ...]]] = [(yaml.compose(text, Loader=yaml.SafeLoader), ())]
        seen: set[int] = set()
        while todo:
            node, path = todo.pop()
            if id(node) in seen:  # an alias: its anchor has been looked at
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    places[(*path, key.value)] = key.start_mark.line + 1
                    todo.append((value, (*path, key.value)))
            elif isinstance(node, yaml.SequenceNode):
                for position, item in enumerate(node.value):
                    places[(*path, position)] = item.start_mark.line + 1
                    todo.append((item, (*path, position)))
        return places


def conda_environment_yml_parser(text: str) -> dict[str, Any]:
    """Read an ``environment.yml`` of conda, for `Config(…, parser=…)`.

    Returns
    -------
    dict
        ``packages``: names to versions (empty where none is given; an exact one without its ``=``), and ``python``.

    Raises
    ------
    ValueError
        If it has a list for pip, or a line that is no package with a version.
    """
    packages: dict[str, str] = {}
    for item in (_yaml().safe_load(text) or {}).get("dependencies", ()):
        if not isinstance(item, str):
            raise ValueError(f"dependencies: only packages of conda are taken, not {', '.join(item)}:")
        found = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*((?:[<>=!~]=?[^\s,<>=!~]+,?)*)", item.strip())
        if found is None:
            raise ValueError(f"dependencies: this is no package with a version: {item}")
        packages[found[1]] = re.sub(r"^={1,2}(?=[^,<>=!~]+$)", "", found[2])
    return {"packages": packages, "python": packages.pop("python", None)}


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtra(
            "configs in YAML need a package that is not installed: PyYAML", "pip install 'flowkit[yaml]'"
        ) from None
    return yaml


yaml_parser = YamlParser()
