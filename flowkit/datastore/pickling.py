"""The codec of whatever has none of its own: pickle, its fallbacks, and what to say where nothing helps.

The content written by ``pickle`` and ``cloudpickle`` is a plain pickle, or, where there are buffers (``meta`` says how
many), a header (magic, length of the pickle, then offset and length of every buffer), the pickle, and the buffers at
multiples of 64 bytes.
"""

from __future__ import annotations

import pickle
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flowkit.datastore.encoding import Encoded, NotEncodable
from flowkit.exceptions import ArtifactError, FlowkitError, StoreError

ALIGNMENT = 64
"""Buffers begin at multiples of so many bytes: a cache line, and enough for any vector instruction."""
IN_BAND = 4096
"""Buffers below so many bytes stay inside the pickle."""
MAGIC = b"flowkit\x01"
_HEADER = struct.Struct("<8sQQ")
_PLACE = struct.Struct("<QQ")
_LEVELS = 50_000
"""How deep a value may be nested."""
_HOP = 100
"""After so many levels pickling goes on in another thread: every interpreter grants each thread that much recursion."""
_SEARCH_SECONDS = 2.0


class PickleCodec:
    """Everything else: pickle, or cloudpickle where pickle refuses."""

    name = "pickle"

    def encode(self, value: Any) -> Encoded:
        """Return the value's pickle, followed by the memory of its large arrays."""
        return encode(value)

    def decode(self, view: memoryview, meta: Mapping[str, Any]) -> Any:
        """Return the value, its arrays standing on the memory given."""
        buffers = meta.get("buffers", 0)
        stream: memoryview = view
        parts: list[memoryview] = []
        if buffers:
            magic, length, count = _HEADER.unpack_from(view)
            start = _HEADER.size + count * _PLACE.size
            if magic != MAGIC or count != buffers or start + length > len(view):
                raise ArtifactError("the content is not what its manifest says")
            stream = view[start : start + length]
            for index in range(count):
                offset, size = _PLACE.unpack_from(view, _HEADER.size + index * _PLACE.size)
                parts.append(view[offset : offset + size])
        try:
            return pickle.loads(stream, buffers=parts)
        except AttributeError as error:
            if "__main__" not in str(error) or "main" not in meta:
                raise
            return loads_main(stream, parts, str(meta["main"]))


def encode(value: Any) -> Encoded:
    """Return a value's pickle, with its large buffers beside it.

    Raises
    ------
    NotEncodable
        From the error of the last attempt.
    """
    try:
        stream, buffers = _dumps(value, pickle.dumps)
        return frame(stream, buffers, _main_file(stream), "pickle")
    except RecursionError:
        return _encode_deep(value)
    except MemoryError:
        raise
    except Exception:  # whatever the classes of the value raise: cloudpickle takes more than pickle
        pass
    try:
        stream, buffers = _dumps(value, _cloud_dumps)
    except MemoryError:
        raise
    except Exception as error:
        raise NotEncodable from error
    return frame(stream, buffers, {}, "cloudpickle")


def frame(stream: bytes | memoryview, buffers: list[memoryview], meta: Mapping[str, Any], codec: str) -> Encoded:
    """Return the content of a pickle and its out-of-band buffers."""
    if not buffers:
        return Encoded([stream], len(stream), meta, codec)
    start = _HEADER.size + len(buffers) * _PLACE.size
    offset = start + len(stream)
    chunks: list[bytes | bytearray | memoryview] = [stream]
    places = []
    for buffer in buffers:
        gap = -offset % ALIGNMENT
        if gap:
            chunks.append(bytes(gap))
        offset += gap
        places.append(_PLACE.pack(offset, buffer.nbytes))
        chunks.append(buffer)
        offset += buffer.nbytes
    header = _HEADER.pack(MAGIC, len(stream), len(buffers)) + b"".join(places)
    return Encoded([header, *chunks], offset, {**meta, "buffers": len(buffers)}, codec)


def write_pickle(path: str, value: Any) -> None:
    """Write a value to a file that `pickle.load` reads, for use outside of any datastore; whole or not at all.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    import os

    try:
        content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        raise
    except Exception:  # as in `encode`
        import cloudpickle

        content = cloudpickle.dumps(value)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


def _dumps(value: Any, dumps: Callable[..., bytes]) -> tuple[bytes, list[memoryview]]:
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle copies it
            return True
        if raw.nbytes < IN_BAND:
            return True
        buffers.append(raw)
        return False

    return dumps(value, protocol=5, buffer_callback=keep), buffers


def _cloud_dumps(value: Any, protocol: int, buffer_callback: Any) -> bytes:
    """Pickle with cloudpickle, but for what it stores as something else: open files and views of memory."""
    import io

    import cloudpickle

    class Careful(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = {**cloudpickle.Pickler.dispatch_table, io.TextIOWrapper: _refuse, memoryview: _refuse}

    file = io.BytesIO()
    Careful(file, protocol=protocol, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()


def _refuse(value: Any) -> Any:
    for name in ("stdout", "stderr", "stdin"):
        if value is getattr(sys, name):
            return getattr, (sys, name)
    raise TypeError(f"cannot pickle '{_type_name(value)}' object")


def _encode_deep(value: Any) -> Encoded:
    """Pickle what is nested too deep for the C implementation, whose depth no setting raises since Python 3.12."""
    try:
        stream, buffers = _dumps(value, _deep_dumps)
    except MemoryError:
        raise
    except Exception as error:
        raise NotEncodable from error
    return frame(stream, buffers, _main_file(stream), "pickle")


def _deep_dumps(value: Any, protocol: int, buffer_callback: Any) -> bytes:
    import io
    import threading

    class Deep(pickle._Pickler):
        level = 0

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            self.level += 1
            if self.level % _HOP:
                super().save(obj, save_persistent_id)  # type: ignore[misc]
            elif self.level > _LEVELS:
                raise RecursionError(f"nested more than {_LEVELS} levels deep")
            else:
                self.hop(obj, save_persistent_id)
            self.level -= 1

        def hop(self, obj: Any, save_persistent_id: bool) -> None:
            failure: list[BaseException] = []

            def work() -> None:
                try:
                    super(Deep, self).save(obj, save_persistent_id)  # type: ignore[misc]
                except BaseException as error:  # carried over to the thread that waits
                    failure.append(error)

            thread = threading.Thread(target=work, name="flowkit-deep-pickle")
            try:
                thread.start()
            except RuntimeError as error:
                raise RecursionError("nested too deep: no further thread can be started") from error
            thread.join()
            if failure:
                raise failure[0].with_traceback(None)

    file = io.BytesIO()
    Deep(file, protocol, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()


def _main_file(stream: bytes) -> dict[str, str]:
    """Where the classes of ``__main__`` that a pickle may name are defined."""
    if b"__main__" not in stream:
        return {}
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return {"main": str(file)} if file else {}


class _FromFile(pickle.Unpickler):
    """Finds classes of the flow file where another program is ``__main__`` but has imported that file."""

    file = ""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__" and not hasattr(sys.modules["__main__"], name.partition(".")[0]):
            for candidate in list(sys.modules.values()):
                if getattr(candidate, "__file__", None) == self.file:
                    return super().find_class(candidate.__name__, name)
        return super().find_class(module, name)


def loads_main(stream: memoryview, buffers: list[memoryview], file: str) -> Any:
    """Unpickle a value with classes of a flow file, in a process that runs another program.

    Raises
    ------
    ArtifactError
        If the file has not been imported; the hint says how.
    """
    import io
    import os

    unpickler = _FromFile(io.BytesIO(stream), buffers=buffers)
    unpickler.file = file
    try:
        return unpickler.load()
    except AttributeError as error:
        folder, module = os.path.split(file)
        module = module.removesuffix(".py")
        raise ArtifactError(
            f"the value is of a class that was defined in {file}, which this program has not imported ({error})",
            f"import it first: sys.path.insert(0, {folder!r}); import {module}\n"
            "(or move the class to a module of its own that both import)",
        ) from error


def refusal(name: str, value: Any, step: str, error: BaseException | None) -> ArtifactError:
    """Return the error for an artifact that cannot be stored: which, where, what inside it, and what to do."""
    if isinstance(error, FlowkitError):  # such as a flow that was assigned to an attribute: it says itself what to do
        return ArtifactError(f"step '{step}': the artifact '{name}' cannot be stored: {error.headline}", error.hint)
    if isinstance(error, RecursionError):
        return ArtifactError(
            f"step '{step}': the artifact '{name}' cannot be stored: it is nested too deep",
            "store it in another form, such as a list of its parts",
        )
    path, culprit = _culprit(f"self.{name}", value)
    kind = _type_name(culprit)
    if path == f"self.{name}":
        headline = f"step '{step}': the artifact '{name}' cannot be stored: a {kind} cannot be pickled"
    else:
        headline = f"step '{step}': the artifact '{name}' cannot be stored: {path} is a {kind}, which cannot be pickled"
    if error is not None:
        headline += f" ({type(error).__name__}: {_one_line(error)})"
    return ArtifactError(headline, _advice(name, kind, path))


def _advice(name: str, kind: str, path: str) -> str:
    variable = f"use a local variable instead of {path}" if path == f"self.{name}" else f"leave {path} out"
    if kind in ("generator", "range_iterator", "map", "filter", "zip", "enumerate") or kind.endswith("_iterator"):
        return f"an iterator can be used up only once: store list({path}) instead"
    if "lock" in kind.lower() or kind in ("_thread._local", "threading.Condition", "threading.Event"):
        return f"locks belong to one process: {variable}, or leave it out in the class's __getstate__"
    if kind.startswith(("_io.", "socket.", "sqlite3.", "subprocess.", "multiprocessing.")):
        return f"open files, connections and processes belong to one process: {variable}, and open it in each step"
    if kind == "memoryview":
        return f"a view is not data of its own: store bytes({path}) instead"
    return f"only data can be stored: {variable}, delete it before the step ends, or give its class a __getstate__"


def _culprit(path: str, value: Any) -> tuple[str, Any]:
    """Find the innermost part of a value that cannot be pickled, as far as some seconds of looking allow."""
    deadline = time.monotonic() + _SEARCH_SECONDS
    seen: set[int] = set()
    while id(value) not in seen and time.monotonic() < deadline:
        seen.add(id(value))
        for inner_path, inner in _parts(path, value):
            if time.monotonic() > deadline:
                return path, value
            if id(inner) not in seen and not _picklable(inner):
                path, value = inner_path, inner
                break
        else:
            break
    return path, value


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if kind is dict:
        for key, inner in list(value.items()):
            yield f"{path}[{_short(key)}]", inner
            yield f"a key of {path}", key
    elif kind in (list, tuple):
        for index, inner in enumerate(value):
            yield f"{path}[{index}]", inner
    elif kind in (set, frozenset):
        for inner in value:
            yield f"an item of {path}", inner
    else:
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            for name, inner in list(attributes.items()):
                yield f"{path}.{name}", inner
        for owner in kind.__mro__:
            slots = owner.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else tuple(slots):
                try:
                    yield f"{path}.{name}", object.__getattribute__(value, name)
                except AttributeError:
                    continue
        closure = getattr(value, "__closure__", None)
        if closure and hasattr(value, "__code__"):
            for name, cell in zip(value.__code__.co_freevars, closure, strict=False):
                try:
                    yield f"{path} (its variable {name})", cell.cell_contents
                except ValueError:  # the variable has no value yet
                    continue


def _picklable(value: Any) -> bool:
    for dumps in (pickle.dumps, _cloud_dumps):
        try:
            _dumps(value, dumps)
            return True
        except Exception:  # whatever a value's own code raises: it is not picklable
            continue
    return False


def _type_name(value: Any) -> str:
    kind = type(value)
    module = str(kind.__module__)
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _short(key: Any) -> str:
    text = repr(key) if type(key) in (str, int, float, bool, bytes, type(None)) else f"<{_type_name(key)}>"
    return text if len(text) <= 40 else text[:37] + "…"


def _one_line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a user's exception class whose __str__ fails
        return ""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 300 else line[:297] + "…"
