"""The manifest of a task: the commit that names its attempt and everything it made.

This is the value; `flowkit.datastore.manifests` writes and reads it with its checksum. No manifest: it never
happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flowkit.exceptions import DataError
from flowkit.model.transition import Frame, Transition

FORMAT = 1
"""Version of the manifest's form; a reader refuses a higher one."""
NOTHING: Mapping[str, Any] = {}
"""What a mapping of a value is where nothing was given; never changed."""


class Artifact(NamedTuple):
    """One named value, as a manifest records it.

    Parameters
    ----------
    key : str
        BLAKE3 of the stored content in hexadecimal: equal content, equal key, for inline ones too.
    size : int
        Bytes of the stored content.
    codec : str
        The codec that wrote it, e.g. ``pickle``, ``bytes``, ``str``, ``cloudpickle``, ``arrow``.
    type : str
        The value's type as ``module.qualname`` (builtins without the module).
    inline : str, optional
        The content itself in base64, for values of up to a few KB.
    preview : mapping
        What can be shown without decoding the value: ``repr``, ``shape``, ``dtype``, ``length``, ``columns``…,
        each only where it applies.
    meta : mapping
        What the codec needs to decode the content beside the content.
    """

    key: str
    size: int
    codec: str
    type: str
    inline: str | None = None
    preview: Mapping[str, Any] = NOTHING
    meta: Mapping[str, Any] = NOTHING

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without what is empty."""
        out: dict[str, Any] = {"key": self.key, "size": self.size, "codec": self.codec, "type": self.type}
        if self.inline is not None:
            out["inline"] = self.inline
        if self.preview:
            out["preview"] = self.preview
        if self.meta:
            out["meta"] = self.meta
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Artifact:
        """Read the JSON form."""
        return cls(
            data["key"],
            data["size"],
            data["codec"],
            data["type"],
            data.get("inline"),
            data.get("preview", {}),
            data.get("meta", {}),
        )


class Manifest(NamedTuple):
    """What one task committed.

    Parameters
    ----------
    flow, run, step, task, attempt
        Who wrote it.
    artifacts : mapping of str to Artifact
        Every artifact that the task has at its end: its own and the ones passed on untouched, by key.
    transition : Transition
        Where the flow goes next.
    frames : tuple of Frame
        The enclosing foreaches, outermost first.
    parents : str
        The parent tasks as `flowkit.model.launch.spans_text` writes them (within the same run).
    reads : mapping of str to list
        What was read: ``artifacts`` (``name=key`` or ``name`` alone for one found absent), ``inputs``
        (``step/task:name=key``), ``parameters``, ``foreach`` (``input``, ``index``, ``len(inputs)``),
        ``current`` (attribute names).
    started, ended : float
        Seconds since the epoch, of this attempt.
    gang : int
        For the control task of a gang: the number of nodes that it commits.
    extra : mapping
        What decorators and the ``_parameters`` task record, by name: plain JSON values.
    """

    flow: str
    run: str
    step: str
    task: str
    attempt: int
    artifacts: Mapping[str, Artifact]
    transition: Transition
    frames: tuple[Frame, ...] = ()
    parents: str = ""
    reads: Mapping[str, list[str]] = NOTHING
    started: float = 0.0
    ended: float = 0.0
    gang: int = 0
    extra: Mapping[str, Any] = NOTHING

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "flow": self.flow,
            "run": self.run,
            "step": self.step,
            "task": self.task,
            "attempt": self.attempt,
            "transition": [*self.transition],
            "frames": [frame.to_json() for frame in self.frames],
            "parents": self.parents,
            "reads": self.reads,
            "started": self.started,
            "ended": self.ended,
            "gang": self.gang,
            "extra": self.extra,
            "artifacts": {name: artifact.to_json() for name, artifact in self.artifacts.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Read the JSON form.

        Raises
        ------
        DataError
            If a newer flowkit wrote it, or a field is missing.
        """
        version = data.get("format")
        if isinstance(version, int) and version > FORMAT:
            raise DataError(
                f"the manifest has format {version}, this flowkit reads up to {FORMAT}",
                "a newer flowkit wrote it: pip install -U flowkit",
            )
        try:
            kind, targets, *rest = data["transition"]
            return cls(
                flow=data["flow"],
                run=data["run"],
                step=data["step"],
                task=data["task"],
                attempt=data["attempt"],
                artifacts={name: Artifact.from_json(entry) for name, entry in data["artifacts"].items()},
                transition=Transition(kind, tuple(targets), *rest),
                frames=tuple(Frame(*frame) for frame in data["frames"]),
                parents=data["parents"],
                reads=data["reads"],
                started=data["started"],
                ended=data["ended"],
                gang=data["gang"],
                extra=data["extra"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"a manifest is malformed: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Failure:
    """How an unsuccessful attempt ended; the content of its ``failed.json``.

    Parameters
    ----------
    kind : str
        ``error`` (the step raised), ``timeout``, ``killed`` (by a signal), ``oom``, ``crash`` (segmentation fault
        and the like), ``vanished`` (the process ended without a result), ``lost``, ``cancelled``, ``internal``; of a
        service: ``image``, ``capacity``, ``evicted``, ``deleted``, ``unreachable``, ``setup``, ``rejected``.
    message : str
        One line: the exception's type and text, or what happened to the process.
    exception : str, optional
        The exception's class as ``module.qualname``; `bases` lists the names of its base classes, for
        ``@retry(on=…)``.
    traceback : str, optional
        The user's own frames, ready to print.
    location : str, optional
        ``file:line`` of the innermost frame of the user's code.
    exit_status : int, optional
        What the process returned; negative for a signal.
    retry : bool
        Whether another attempt makes sense (False for a flow that is wrong whatever the attempt).
    usage : mapping, optional
        What the attempt used (`flowkit.model.usage.to_json`).
    """

    kind: str
    message: str
    exception: str | None = None
    bases: tuple[str, ...] = ()
    traceback: str | None = None
    location: str | None = None
    exit_status: int | None = None
    retry: bool = True
    attempt: int = 0
    started: float = 0.0
    ended: float = 0.0
    usage: Mapping[str, Any] | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """Read the JSON form; unknown fields are left out."""
        known = {name: data[name] for name in cls.__slots__ if name in data}
        if "bases" in known:
            known["bases"] = tuple(known["bases"])
        return cls(**known)
