"""Reading configs: from a file or a text to values, with the line of whatever is wrong.

JSON and TOML are read here, other formats (YAML) by what the registry has for the file's ending. A parser of the
flow's own takes the place of all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flowkit.exceptions import FlowkitError, Location, NotFound, UsageError, did_you_mean
from flowkit.model.config_types import Misfits, told
from flowkit.model.configs import Config, finished, options
from flowkit.model.parameters import ParameterContext


class Source(NamedTuple):
    """Where a config's values come from.

    Parameters
    ----------
    origin : str
        What says so, for messages: ``--config``, ``FLOWKIT_FLOW_CONFIG``, ``its default``.
    path : str or None
        The file.
    value : object
        Without a file: the values, or their text.
    """

    origin: str
    path: str | None = None
    value: Any = None


def choose(config: Config, given: Source | None, context: ParameterContext, folder: str) -> Source | None:
    """Return where a config's values come from: what is given, else its default; None for a config without value.

    Parameters
    ----------
    config : Config
        The config.
    given : Source or None
        What the command line or the environment says.
    context : ParameterContext
        What a callable default is told.
    folder : str
        Of the flow's file, where a default is looked for that is not in the working directory.

    Raises
    ------
    UsageError
        If a required config has no value, or a default cannot be computed.
    """
    if given is not None:
        return given
    said = options(config)
    for name, value in (("default", said.default), ("default_value", said.default_value)):
        if callable(value):
            try:
                value = value(context)
            except Exception as error:
                raise UsageError(
                    f"the {name} of config '{said.name}' cannot be computed: {type(error).__name__}: {error}",
                    None,
                    said.location,
                ) from error
        if value is None:
            continue
        if name == "default_value":
            return Source("its default_value", None, value)
        if not isinstance(value, str | os.PathLike):
            raise UsageError(f"config '{said.name}': its default is a path, not {value!r}", None, said.location)
        path = os.fspath(value)
        beside = os.path.join(folder, path)
        return Source("its default", path if os.path.exists(path) or not os.path.exists(beside) else beside)
    if said.required:
        raise UsageError(
            f"the config '{said.name}' is required",
            f"give it: --config {said.name} FILE, or --config-value {said.name} JSON",
            said.location,
        )
    return None


def read(config: Config, source: Source | None) -> Any:
    """Return a config's values as they are stored with the run; they fit the config's type.

    Raises
    ------
    UsageError
        If there is no such file, it cannot be read, its text means nothing, or the values do not fit.
    """
    if source is None:
        return None
    said = options(config)
    text = _text(config, source) if source.path is not None else source.value
    values = text
    if isinstance(text, str):
        values = _own_parser(config, source, text) if said.parser is not None else _parsed(config, source, text)
    values = _plain(values)
    if not said.plain and not isinstance(values, Mapping):
        raise UsageError(
            f"{_label(config, source)} holds {_kind(values)}, and a config is a table of keys",
            "put it under a key, or make it Config(…, plain=True)",
            None if source.path is None else Location(source.path, 1),
        )
    try:
        finished(config, values)
    except Misfits as error:
        lines = []
        for misfit in error.misfits:
            line = line_of(text, source.path, misfit.path) if source.path is not None and said.parser is None else None
            where = f"{source.path}:{line}: " if line is not None else f"{source.path}: " if source.path else ""
            lines.append(f"{where}config '{said.name}': {told(misfit)}")
        raise UsageError("\n".join(lines)) from None
    return values


def _label(config: Config, source: Source) -> str:
    name = options(config).name
    what = f"the file {source.path}" if source.path is not None else f"the value given by {source.origin}"
    return f"config '{name}': {what}"


def _text(config: Config, source: Source) -> str:
    assert source.path is not None
    try:
        with open(source.path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        hint = "the path is relative to the folder in which the command runs"
        near = _near(source.path) if isinstance(error, FileNotFoundError) else None
        raise UsageError(
            f"{_label(config, source)} cannot be read: {error.strerror}",
            near or hint,
            options(config).location if source.origin == "its default" else None,
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{_label(config, source)} is no UTF-8 text ({error.reason})") from None


def _near(path: str) -> str | None:
    try:
        return did_you_mean(os.path.basename(path), os.listdir(os.path.dirname(path) or "."))
    except OSError:
        return None


def _own_parser(config: Config, source: Source, text: str) -> Any:
    parser = options(config).parser
    where = options(config).location
    if isinstance(parser, str):
        parser = _load(parser, options(config).name, where)
    assert parser is not None
    try:
        return parser(text)
    except FlowkitError:
        raise
    except Exception as error:
        raise UsageError(
            f"{_label(config, source)} is not accepted by its parser: {type(error).__name__}: {error}", None, where
        ) from error


def _load(dotted: str, name: str, where: Location) -> Callable[[str], Any]:
    import importlib

    module, _, attribute = dotted.rpartition(".")
    module = f"flowkit{module if module != '.' else ''}" if dotted.startswith(".") else module
    try:
        if not module:
            raise ImportError("it names no module")
        found: Callable[[str], Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"config '{name}': its parser '{dotted}' cannot be imported: {error}",
            "write package.module.function",
            where,
        ) from error
    return found


def _parsed(config: Config, source: Source, text: str) -> Any:
    ending = _ending(source.path)
    parse = {"json": _json, "toml": _toml}.get(ending)
    try:
        if parse is not None:
            return parse(text)
        return _registered(ending)(text)
    except NotFound:
        raise UsageError(
            f"{_label(config, source)} ends in '.{ending}', which is not a known format",
            "use .json, .toml or .yaml, or give Config a parser",
        ) from None
    except _Malformed as error:
        hint = _QUOTES if source.path is None else None
        where = Location(source.path, error.line) if source.path is not None and error.line else None
        raise UsageError(f"{_label(config, source)} is no {error.format}: {error}", hint, where) from None


_QUOTES = "quote it for the shell: '{\"lr\": 0.1}'"


class _Malformed(ValueError):
    def __init__(self, format: str, text: str, line: int | None) -> None:
        super().__init__(text)
        self.format = format
        self.line = line


def _ending(path: str | None) -> str:
    """Return the format that a file's name tells; a value without a file, and a file without an ending, is JSON."""
    if path is None:
        return "json"
    return os.path.splitext(path)[1].lstrip(".").lower() or "json"


def _registered(ending: str) -> Callable[[str], Any]:
    from flowkit import registry

    found = registry.load("config_parsers", ending)

    def parse(text: str) -> Any:
        try:
            return found(text)
        except FlowkitError:
            raise
        except Exception as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error) or type(error).__name__
            raise _Malformed(ending.upper(), problem, mark.line + 1 if mark is not None else None) from error

    return parse


def _json(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _Malformed("JSON", f"{error.msg} (line {error.lineno}, column {error.colno})", error.lineno) from None
    except RecursionError:
        raise _Malformed("JSON", "it is nested too deeply", None) from None


def _toml(text: str) -> Any:
    import re

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise _Malformed("TOML", str(error), int(line[1]) if line else text.count("\n") + 1) from None
    except RecursionError:
        raise _Malformed("TOML", "it is nested too deeply", None) from None


def _plain(values: Any) -> Any:
    """Return what a parser may have made as dicts and lists; anything that is neither is left alone."""
    if isinstance(values, Mapping):
        return {key: _plain(item) for key, item in values.items()}
    return [_plain(item) for item in values] if type(values) is list else values


def _kind(values: Any) -> str:
    names = {
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "nothing",
    }
    return names.get(type(values)) or f"a value of type {type(values).__name__}"


# -- the line of a key ---------------------------------------------------------------------------------------------


def line_of(text: str, path: str | None, keys: tuple[Any, ...]) -> int | None:
    """Return the line in which a value stands, or the nearest one that holds it; None where that cannot be told.

    Parameters
    ----------
    text : str
        The content of the file.
    path : str or None
        Its name, which tells the format.
    keys : tuple of str and int
        The way to the value.
    """
    ending = _ending(path)
    try:
        places = {"json": _json_lines, "toml": _toml_lines, "yaml": _yaml_lines, "yml": _yaml_lines}[ending](text)
    except Exception:  # the border to advice: the file was read, and where a key stands is only told
        return None
    for length in range(len(keys), 0, -1):
        line = places.get(tuple(keys[:length]))
        if line is not None:
            return line
    return None


def _json_lines(text: str) -> dict[tuple[Any, ...], int]:
    import re
    from json.decoder import JSONDecoder

    places: dict[tuple[Any, ...], int] = {}
    blank = re.compile(r"[ \t\n\r]*")
    scalar = JSONDecoder().raw_decode

    def skip(at: int) -> int:
        found = blank.match(text, at)
        return found.end() if found is not None else at

    def value(at: int, path: tuple[Any, ...]) -> int:
        at = skip(at)
        if text[at] not in "{[":
            return scalar(text, at)[1]
        opened, at, count = text[at], skip(at + 1), 0
        while text[at] not in "}]":
            key: Any = count
            line = text.count("\n", 0, at) + 1
            if opened == "{":
                key, at = scalar(text, at)
                at = skip(at) + 1  # the colon
            places[(*path, key)] = line
            at = skip(value(at, (*path, key)))
            at = skip(at + 1) if text[at] == "," else at
            count += 1
        return at + 1

    value(0, ())
    return places


def _toml_lines(text: str) -> dict[tuple[Any, ...], int]:
    import re

    places: dict[tuple[Any, ...], int] = {}
    counts: dict[tuple[Any, ...], int] = {}
    table: tuple[Any, ...] = ()
    key = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
    dotted = rf"{key}(?:\s*\.\s*{key})*"

    def parts(written: str) -> tuple[Any, ...]:
        return tuple(part.strip("\"'") for part in re.findall(key, written))

    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(rf"\s*(\[\[?)\s*({dotted})\s*\]", line)
        if header is not None:
            table = parts(header[2])
            if header[1] == "[[":
                count = counts.get(table, 0)
                counts[table] = count + 1
                places.setdefault(table, number)
                table = (*table, count)
            places.setdefault(table, number)
            continue
        assigned = re.match(rf"\s*({dotted})\s*=", line)
        if assigned is not None:
            places.setdefault((*table, *parts(assigned[1])), number)
    return places


def _yaml_lines(text: str) -> dict[tuple[Any, ...], int]:
    from flowkit import registry

    lines: dict[tuple[Any, ...], int] = registry.load("config_parsers", "yaml").lines(text)
    return lines
