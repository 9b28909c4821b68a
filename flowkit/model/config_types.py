"""Typed configs: values from a file become an object of a dataclass, or of a pydantic model.

Dataclasses are converted here: nested ones, ``Optional`` and unions, lists, tuples, sets, dicts, ``Literal``, enums,
paths and dates. Nothing is guessed: a text is no number. Everything that does not fit is told at once.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.exceptions import UsageError, did_you_mean

Path = tuple[str | int, ...]


class Misfit(NamedTuple):
    """One thing that does not fit: the keys that lead to it, and what is wrong there."""

    path: Path
    text: str
    hint: str | None = None

    @property
    def key(self) -> str:
        """The place as it is written: ``layers[0].size``."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
        return text


class Misfits(UsageError):
    """Values that do not fit a config's type.

    Attributes
    ----------
    misfits : list of Misfit
        All of them, so that whoever knows the file can tell the lines.
    """

    def __init__(self, label: str, misfits: list[Misfit]) -> None:
        self.label = label
        self.misfits = misfits
        super().__init__("\n".join(f"{label}: {told(misfit)}" for misfit in misfits))


def told(misfit: Misfit) -> str:
    """Return a misfit in one line."""
    text = f"{misfit.key}: {misfit.text}" if misfit.path else misfit.text
    return f"{text} ({misfit.hint})" if misfit.hint else text


def is_model(kind: Any) -> bool:
    """Whether a class can be the type of a config."""
    return isinstance(kind, type) and (_is_dataclass(kind) or _is_pydantic(kind))


def convert(values: Any, kind: type, label: str) -> Any:
    """Return an object of a dataclass or pydantic model.

    Parameters
    ----------
    values : mapping
        As read from a file.
    kind : type
        The class.
    label : str
        What the values are, for messages: ``config 'train'``.

    Raises
    ------
    Misfits
        With everything that does not fit.
    """
    misfits: list[Misfit] = []
    made = _pydantic(values, kind, misfits) if _is_pydantic(kind) else _object(values, kind, (), misfits)
    if misfits:
        raise Misfits(label, misfits)
    return made


def _is_dataclass(kind: Any) -> bool:
    # A pydantic dataclass is one of both kinds, and made by its own rules.
    return hasattr(kind, "__dataclass_fields__")


def _is_pydantic(kind: Any) -> bool:
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate")


def _pydantic(values: Any, kind: Any, misfits: list[Misfit]) -> Any:
    refused = sys.modules["pydantic"].ValidationError
    try:
        return kind.model_validate(values)
    except refused as error:
        for found in error.errors():
            path = tuple(part for part in found["loc"] if isinstance(part, str | int))
            hint = None
            if found["type"] == "extra_forbidden" and len(path) == 1:
                hint = did_you_mean(str(path[0]), kind.model_fields)
            misfits.append(Misfit(path, str(found["msg"]), hint))
        return None


def _object(values: Any, kind: Any, path: Path, misfits: list[Misfit]) -> Any:
    if not isinstance(values, Mapping):
        misfits.append(Misfit(path, f"a table of keys is wanted, and it is {_shown(values)}"))
        return None
    fields = {
        name: field for name, field in kind.__dataclass_fields__.items() if field._field_type.name != "_FIELD_CLASSVAR"
    }
    known = [name for name, field in fields.items() if field.init]
    before = len(misfits)
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"known: {', '.join(known)}"
            misfits.append(Misfit((*path, key), f"there is no such key in {kind.__name__}", hint))
    hints = _hints(kind)
    given: dict[str, Any] = {}
    for name in known:
        if name in values:
            given[name] = _convert(values[name], hints.get(name, Any), (*path, name), misfits)
        elif _needed(fields[name]):
            misfits.append(Misfit((*path, name), f"it is missing ({kind.__name__} has no default for it)"))
    if len(misfits) > before:
        return None
    try:
        return kind(**given)
    except Exception as error:  # the border to the user's __post_init__
        misfits.append(Misfit(path, f"{kind.__name__} does not accept it: {type(error).__name__}: {error}"))
        return None


def _needed(field: Any) -> bool:
    import dataclasses

    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except Exception as error:  # a name in an annotation that cannot be found
        raise UsageError(f"the types of {kind.__name__} cannot be read: {type(error).__name__}: {error}") from error


def _convert(value: Any, hint: Any, path: Path, misfits: list[Misfit]) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _convert(value, typing.get_args(hint)[0], path, misfits)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return value
    if origin is typing.Union or origin is types.UnionType:
        return _one_of(value, typing.get_args(hint), path, misfits)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        near = (
            did_you_mean(value, [each for each in choices if isinstance(each, str)]) if isinstance(value, str) else None
        )
        misfits.append(Misfit(path, f"it is to be one of {', '.join(map(repr, choices))}, not {_shown(value)}", near))
        return None
    if _is_pydantic(hint):
        inner: list[Misfit] = []
        made = _pydantic(value, hint, inner)
        misfits += [each._replace(path=(*path, *each.path)) for each in inner]
        return made
    if _is_dataclass(hint):
        return _object(value, hint, path, misfits)
    container = _CONTAINERS.get(origin or hint)
    if container is not None:
        return container(value, origin or hint, typing.get_args(hint), path, misfits)
    return _plain(value, hint, path, misfits)


def _one_of(value: Any, choices: tuple[Any, ...], path: Path, misfits: list[Misfit]) -> Any:
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    # A whole number is one before it is a float: the exact type goes first.
    tried: list[list[Misfit]] = []
    for choice in sorted(choices, key=lambda each: each is not type(value)):
        found: list[Misfit] = []
        made = _convert(value, choice, path, found)
        if not found:
            return made
        tried.append(found)
    if len(tried) == 1:
        misfits += tried[0]
    else:
        misfits.append(Misfit(path, f"it is to be one of {', '.join(map(_named, choices))}, not {_shown(value)}"))
    return None


def _list(value: Any, kind: Any, inner: tuple[Any, ...], path: Path, misfits: list[Misfit]) -> Any:
    if not isinstance(value, list | tuple):
        misfits.append(Misfit(path, f"a list is wanted, and it is {_shown(value)}"))
        return None
    hints = [inner[0] if inner else Any] * len(value)
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        if len(inner) != len(value):
            misfits.append(Misfit(path, f"{len(inner)} items are wanted, and there are {len(value)}"))
            return None
        hints = list(inner)
    made = [
        _convert(item, hint, (*path, at), misfits) for at, (item, hint) in enumerate(zip(value, hints, strict=True))
    ]
    if kind in (set, frozenset, tuple):
        try:
            return kind(made)
        except TypeError as error:
            misfits.append(Misfit(path, str(error)))
            return None
    return made


def _dict(value: Any, kind: Any, inner: tuple[Any, ...], path: Path, misfits: list[Misfit]) -> Any:
    if not isinstance(value, Mapping):
        misfits.append(Misfit(path, f"a table of keys is wanted, and it is {_shown(value)}"))
        return None
    hint = inner[1] if len(inner) == 2 else Any
    key_hint = inner[0] if inner else Any
    made = {}
    for key, item in value.items():
        # The keys of JSON and TOML are texts, whatever the type says.
        read = int(key) if key_hint is int and isinstance(key, str) and key.lstrip("-").isdigit() else key
        made[read] = _convert(item, hint, (*path, key), misfits)
    return made


def _plain(value: Any, kind: Any, path: Path, misfits: list[Misfit]) -> Any:
    if kind is type(None) or kind is None:
        if value is None:
            return None
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif not isinstance(kind, type):
        return value  # a type that says nothing that could be checked here
    elif isinstance(value, kind):
        return value
    elif isinstance(value, str) and (read := _from_text(kind)) is not None:
        try:
            return read(value)
        except (ValueError, KeyError):
            pass
    hint = None
    members = getattr(kind, "__members__", None)
    if members is not None:
        hint = (did_you_mean(value, members) if isinstance(value, str) else None) or f"known: {', '.join(members)}"
    misfits.append(Misfit(path, f"{_named(kind)} is wanted, and it is {_shown(value)}", hint))
    return None


def _from_text(kind: type) -> Callable[[str], Any] | None:
    """Return what reads types that have no form of their own in files."""
    members = getattr(kind, "__members__", None)
    if members is not None:
        return lambda text: members[text] if text in members else kind(text)
    names = {base.__module__ + "." + base.__qualname__ for base in kind.__mro__}
    if "pathlib.PurePath" in names or "pathlib._local.PurePath" in names:
        return kind
    if names & {"datetime.date", "datetime.time"}:
        read: Callable[[str], Any] = kind.fromisoformat  # type: ignore[attr-defined]
        return read
    return kind if "decimal.Decimal" in names or "uuid.UUID" in names else None


_CONTAINERS: dict[Any, Callable[[Any, Any, tuple[Any, ...], Path, list[Misfit]], Any]] = {
    list: _list,
    tuple: _list,
    set: _list,
    frozenset: _list,
    Sequence: _list,
    Iterable: _list,
    Collection: _list,
    dict: _dict,
    Mapping: _dict,
}

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "a table of keys",
    type(None): "nothing",
}


def _named(kind: Any) -> str:
    return _WORDS.get(kind) or getattr(kind, "__name__", None) or str(kind)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a table of keys"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
