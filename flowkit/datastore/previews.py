"""What can be shown of a value without ever loading it: computed once, when it is saved.

A preview is bounded in bytes and time, never raises, and never runs code of a user's class: exact built-in types are
looked into, and types of NumPy, pandas, PyArrow and torch by attributes that are theirs; everything else is its type.
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

LIMIT = 240
"""Characters of a preview's text."""
_COLUMNS = 50
_ITEMS = 12
_DEPTH = 3
_NUMBERS = (bool, float, complex, type(None), type(...))
_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", set: "{}", frozenset: "{}", dict: "{}"}


def preview(value: Any) -> dict[str, Any]:
    """Return plain JSON values: ``repr`` and, where they apply, ``length``, ``shape``, ``dtype`` and ``columns``."""
    try:
        found = _preview(value)
        # What a library's own classes put there must not reach the manifest as something else than plain values.
        return {key: entry for key, entry in found.items() if entry is not None}
    except Exception:  # the border to other libraries' objects: a preview must never fail a task
        return {}


def _preview(value: Any) -> dict[str, Any]:
    kind = type(value)
    if kind in _BRACKETS or kind in (str, bytes, bytearray, range):
        return {"repr": _text(value), "length": len(value)}
    if kind is int or kind in _NUMBERS:
        return {"repr": _text(value)}
    root = kind.__module__.partition(".")[0] if isinstance(kind.__module__, str) else ""
    describe = _LIBRARIES.get(root)
    # Classes that users derive live in their own modules, so that `root` is not a library's.
    return describe(value, kind) if describe is not None and root in sys.modules else {}


def _numpy(value: Any, kind: type) -> dict[str, Any]:
    numpy = sys.modules["numpy"]
    if kind is numpy.ndarray or kind is numpy.ma.MaskedArray or kind.__name__ == "memmap":
        found: dict[str, Any] = {"shape": [int(n) for n in value.shape], "dtype": _cut(str(value.dtype), 80)}
        if value.ndim:
            found["length"] = int(value.shape[0])
        if kind is numpy.ndarray and value.dtype.kind in "biufcSUMm":
            items = value.reshape(-1)[:_ITEMS] if value.flags.c_contiguous else value[(slice(0, 3),) * value.ndim]
            more = " …" if value.size > items.size else ""
            found["repr"] = _cut(", ".join(_cut(str(item), 40) for item in items.reshape(-1)[:_ITEMS]) + more)
        return found
    if isinstance(value, numpy.generic) and value.dtype.kind in "biufcSUMm":
        return {"repr": _cut(str(value)), "dtype": str(value.dtype)}
    return {}


def _pandas(value: Any, kind: type) -> dict[str, Any]:
    name = kind.__name__
    if name == "DataFrame":
        columns, types = value.columns, value.dtypes
        return {
            "shape": [len(value), len(columns)],
            "length": len(value),
            "columns": [_cut(label if type(label) is str else _text(label), 80) for label in columns[:_COLUMNS]],
            "dtype": [_dtype(entry) for entry in types.iloc[:_COLUMNS]],
        }
    if name == "Series" or name.endswith("Index"):
        return {"length": len(value), "shape": [len(value)], "dtype": _dtype(value.dtype)}
    if name in ("Timestamp", "Timedelta"):
        return {"repr": _cut(str(value))}
    return {}


def _dtype(dtype: Any) -> str:
    kind = type(dtype)
    known = str(kind.__module__).partition(".")[0] in ("numpy", "pandas")
    return _cut(str(dtype) if known else f"{kind.__module__}.{kind.__qualname__}", 60)


def _pyarrow(value: Any, kind: type) -> dict[str, Any]:
    name = kind.__name__
    if name in ("Table", "RecordBatch"):
        return {
            "shape": [int(value.num_rows), int(value.num_columns)],
            "length": int(value.num_rows),
            "columns": [_cut(label, 80) for label in value.schema.names[:_COLUMNS]],
            "dtype": [_cut(str(entry), 40) for entry in value.schema.types[:_COLUMNS]],
        }
    if name == "ChunkedArray" or name.endswith("Array"):
        return {"length": len(value), "dtype": _cut(str(value.type), 80)}
    return {}


def _torch(value: Any, kind: type) -> dict[str, Any]:
    if kind.__name__ in ("Tensor", "Parameter"):
        return {"shape": [int(n) for n in value.shape], "dtype": str(value.dtype), "device": str(value.device)}
    return {}


_LIBRARIES = {"numpy": _numpy, "pandas": _pandas, "pyarrow": _pyarrow, "torch": _torch}


def _text(value: Any) -> str:
    return _cut(_repr(value, 0, set()))


def _repr(value: Any, depth: int, above: set[int]) -> str:
    kind = type(value)
    if kind is str or kind is bytes:
        return repr(value if len(value) <= LIMIT else value[:LIMIT]) + ("" if len(value) <= LIMIT else "…")
    if kind is bytearray:
        return f"bytearray({_repr(bytes(value[:LIMIT]), depth, above)})" + ("…" if len(value) > LIMIT else "")
    if kind is int:
        return repr(value) if value.bit_length() <= 512 else f"<int of {value.bit_length()} bits>"
    if kind in _NUMBERS or kind is range:
        return repr(value)
    if kind in _BRACKETS:
        if not value and kind in (set, frozenset):
            return f"{kind.__name__}()"
        opening, closing = tuple(_BRACKETS[kind])
        if depth >= _DEPTH or id(value) in above:
            return f"{opening}…{closing}" if value else opening + closing
        return opening + _inside(value, kind, depth, above | {id(value)}) + closing
    root = kind.__module__.partition(".")[0] if isinstance(kind.__module__, str) else ""
    if root == "numpy" and root in sys.modules:
        return str(_numpy(value, kind).get("repr") or f"<{root}.{kind.__qualname__}>")
    return f"<{_cut(str(kind.__module__), 60)}.{_cut(str(kind.__qualname__), 60)}>"


def _inside(value: Any, kind: type, depth: int, above: set[int]) -> str:
    parts: list[str] = []
    size = 0
    entries = value.items() if kind is dict else value
    for entry in islice(entries, _ITEMS):
        if kind is dict:
            text = f"{_repr(entry[0], depth + 1, above)}: {_repr(entry[1], depth + 1, above)}"
        else:
            text = _repr(entry, depth + 1, above)
        parts.append(text)
        size += len(text)
        if size > LIMIT:
            break
    if len(parts) < len(value):
        parts.append("…")
    elif kind is tuple and len(parts) == 1:
        return f"{parts[0]},"
    return ", ".join(parts)


def _cut(text: str, limit: int = LIMIT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
