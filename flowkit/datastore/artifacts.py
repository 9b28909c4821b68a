"""Artifacts: named values of a task, saved through codecs into blobs, loaded lazily, and kept where unchanged."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from flowkit.datastore.blobs import MAPPED, Blobs, key_of
from flowkit.datastore.codecs import Encoded, NotEncodable, decode, encode
from flowkit.datastore.mapped import untouched
from flowkit.datastore.packs import read_item, save_pack
from flowkit.datastore.pickling import refusal
from flowkit.datastore.previews import preview
from flowkit.exceptions import ArtifactError, FlowkitError
from flowkit.model.manifest import Artifact

__all__ = ["INLINE", "ArtifactReader", "ArtifactSet", "ArtifactWriter", "read_item", "save_pack"]

INLINE = 2048
"""Content of at most so many bytes lives inside the manifest."""
_IMMUTABLE = frozenset({int, float, complex, bool, str, bytes, type(None), range, type(...)})
"""Exact types whose values cannot change: what was loaded is what was stored."""


class ArtifactWriter:
    """Saves values.

    Parameters
    ----------
    blobs : Blobs
        Where to.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs

    def save(self, name: str, value: Any, *, step: str) -> Artifact:
        """Store a value and return its entry in the manifest.

        Parameters
        ----------
        name, step : str
            The artifact and the step that saves it, for errors.

        Raises
        ------
        ArtifactError
            If the value cannot be stored; it says what inside the value is in the way.
        StoreError
            If the datastore cannot be written.
        """
        encoded = self.encode(name, value, step=step)
        return self.write(value, encoded, key_of(encoded.chunks))

    def encode(self, name: str, value: Any, *, step: str) -> Encoded:
        """Return a value as bytes, or raise the error of `save`."""
        try:
            return encode(value)
        except NotEncodable as error:
            raise refusal(name, value, step, error.__cause__) from error.__cause__

    def write(self, value: Any, encoded: Encoded, key: str) -> Artifact:
        """Store an encoded value under its key."""
        inline = None
        if encoded.size <= INLINE:
            inline = base64.b64encode(b"".join(encoded.chunks)).decode("ascii")
        else:
            self.blobs.put(encoded.chunks, encoded.size, key)
        return Artifact(key, encoded.size, encoded.codec, _type_name(value), inline, preview(value), encoded.meta)


class ArtifactReader:
    """Loads values.

    Parameters
    ----------
    blobs : Blobs
        Where from.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs

    def load(self, name: str, artifact: Artifact) -> Any:
        """Return the value, a fresh one each time; its content is verified against its key.

        Raises
        ------
        ArtifactError
            If the content is missing or damaged, or this process cannot decode it.
        """
        return self.decode(name, artifact, self.view(name, artifact))

    def view(self, name: str, artifact: Artifact) -> memoryview:
        """Return the content in memory that belongs to the caller."""
        what = f"the artifact '{name}'"
        if artifact.inline is None:
            return self.blobs.get(artifact.key, artifact.size, what)
        try:
            content = bytearray(base64.b64decode(artifact.inline, validate=True))
        except ValueError as error:
            raise ArtifactError(f"{what} is damaged: {error}") from error
        if self.blobs.verify != "off" and key_of([content]) != artifact.key:
            raise ArtifactError(
                f"{what} is damaged: its content has the hash {key_of([content])}, not {artifact.key}",
                "resume the run from the step that made it",
            )
        return memoryview(content)

    def decode(self, name: str, artifact: Artifact, view: memoryview) -> Any:
        """Return the value that the content stands for."""
        try:
            return decode(artifact.codec, view, artifact.meta)
        except FlowkitError as error:
            raise ArtifactError(f"the artifact '{name}' cannot be loaded: {error.headline}", error.hint) from error
        except Exception as error:  # the border to code of the value's own classes, or to a module that is missing
            raise ArtifactError(
                f"the artifact '{name}' ({artifact.type}) cannot be loaded: {type(error).__name__}: {error}",
                _how(error),
            ) from error


class ArtifactSet:
    """The artifacts of one attempt: what it inherited, read when asked for, and what it leaves behind.

    Parameters
    ----------
    reader, writer
        How values are loaded and saved.
    inherited : dict of str to Artifact
        What the task has before its code runs; entries may be added and removed by the caller.
    step : str
        The step, for errors.
    """

    def __init__(
        self, reader: ArtifactReader, writer: ArtifactWriter, inherited: dict[str, Artifact], step: str = ""
    ) -> None:
        self.inherited = inherited
        self.step = step
        self._reads: dict[str, None] = {}
        self._reader = reader
        self._writer = writer
        self._loaded: dict[str, tuple[Artifact, Any, memoryview | None]] = {}

    @property
    def reads(self) -> list[str]:
        """What was loaded, as ``name=key``, each once, in that order."""
        return list(self._reads)

    def names(self) -> list[str]:
        """Return the names of what was inherited, sorted."""
        return sorted(self.inherited)

    def load(self, name: str) -> Any:
        """Return an inherited artifact's value: the same object at every call.

        Raises
        ------
        KeyError
            If there is none of that name.
        ArtifactError
            If it cannot be loaded.
        """
        artifact = self.inherited[name]
        known = self._loaded.get(name)
        if known is not None and known[0] is artifact:
            return known[1]
        view = self._reader.view(name, artifact)
        value = self._reader.decode(name, artifact, view)
        # The mapping is kept only to be asked, at the end, which of its pages were written to.
        self._loaded[name] = (artifact, value, view if view.nbytes >= MAPPED else None)
        self._reads[f"{name}={artifact.key}"] = None
        return value

    def finish(
        self, values: Mapping[str, Any], deleted: set[str] | frozenset[str] = frozenset()
    ) -> dict[str, Artifact]:
        """Save what the attempt made or changed, and return every artifact that it leaves.

        Parameters
        ----------
        values : mapping
            The attributes at the end, those that were loaded before among them.
        deleted : set of str
            Names that end here, unless `values` has them again.

        Raises
        ------
        ArtifactError
            If a value cannot be stored.
        """
        result = {name: artifact for name, artifact in self.inherited.items() if name not in deleted}
        saved: dict[int, Artifact] = {}
        for name, value in values.items():
            same = saved.get(id(value))
            result[name] = same if same is not None else self._outcome(name, value)
            if type(value) not in _IMMUTABLE:
                saved[id(value)] = result[name]
        return result

    def _outcome(self, name: str, value: Any) -> Artifact:
        inherited = self.inherited.get(name)
        known = self._loaded.get(name)
        mine = known is not None and known[0] is inherited and known[1] is value
        if mine and inherited is not None and known is not None:
            if type(value) in _IMMUTABLE or _plain_tuple(value):
                return inherited
            encoded = self._writer.encode(name, value, step=self.step)
            if known[2] is not None and untouched(known[2], encoded):
                return inherited
        else:
            encoded = self._writer.encode(name, value, step=self.step)
        key = key_of(encoded.chunks)
        if inherited is not None and key == inherited.key and encoded.codec == inherited.codec:
            return inherited
        if mine and inherited is not None and self._equals_fresh(name, inherited, encoded, key):
            return inherited
        return self._writer.write(value, encoded, key)

    def _equals_fresh(self, name: str, inherited: Artifact, encoded: Encoded, key: str) -> bool:
        """Whether a value that encodes otherwise than it was stored is unchanged all the same.

        Sets of strings and interned names pickle differently in every process: a fresh copy tells.
        """
        fresh = self._writer.encode(name, self._reader.load(name, inherited), step=self.step)
        return fresh.size == encoded.size and fresh.codec == encoded.codec and key_of(fresh.chunks) == key


def _plain_tuple(value: Any) -> bool:
    return type(value) is tuple and len(value) <= 1000 and all(type(item) in _IMMUTABLE for item in value)


def _type_name(value: Any) -> str:
    kind = type(value)
    module, name = kind.__module__, kind.__qualname__
    if not isinstance(module, str) or not isinstance(name, str):
        return "object"
    return name if module == "builtins" else f"{module}.{name}"


def _how(error: Exception) -> str | None:
    if isinstance(error, ModuleNotFoundError):
        return f"install the package that has the module '{error.name}', in the version that the run used"
    if isinstance(error, (AttributeError, ImportError)):
        return "the code that defines the value's class has changed or is not importable here"
    return None
