"""One artifact, and all artifacts of a task as attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from flowkit.client.object import ClientObject
from flowkit.exceptions import NotFound, did_you_mean
from flowkit.model.manifest import Artifact

if TYPE_CHECKING:
    from datetime import datetime

    from flowkit.metadata.records import RunRecord


class DataArtifact(ClientObject):
    """One artifact: a named value that a task stored.

    Nothing is loaded before `data` is asked for.

    Parameters
    ----------
    pathspec : str
        For example ``TrainFlow/12/train/3/model``.
    attempt : int, optional
        Of this attempt of the task only; default: the attempt that succeeded.
    """

    _kind: ClassVar[str] = "artifact"
    _depth: ClassVar[int] = 5

    def __init__(self, pathspec: str, attempt: int | None = None, *, _namespace_check: bool = True) -> None:
        self._begin(pathspec, attempt, _namespace_check)

    @property
    def _task(self) -> Any:
        # A Task, whose module imports this one.
        return self._up()

    @property
    def _artifact(self) -> Artifact:
        found = self._task._stored(self.id)
        if found is None:
            raise NotFound(f"there is no artifact '{self.pathspec}' in {self._connection.where}", self._near())
        return cast(Artifact, found)

    @property
    def data(self) -> Any:
        """The value, loaded afresh each time.

        Raises
        ------
        ArtifactError
            If the stored content is damaged or missing, or cannot be turned into a value here.
        """
        return self._connection.value(self.pathspec, self._artifact)

    @property
    def size(self) -> int:
        """Bytes of the stored content."""
        return self._artifact.size

    @property
    def sha(self) -> str:
        """The key of the stored content: equal content, equal key."""
        return self._artifact.key

    @property
    def type(self) -> str:
        """The value's type, for example ``dict`` or ``numpy.ndarray``."""
        return self._artifact.type

    @property
    def preview(self) -> Mapping[str, Any]:
        """What can be shown without loading the value: ``repr``, ``shape``, ``dtype``, ``length``, ``columns``…"""
        return self._artifact.preview

    @property
    def finished_at(self) -> datetime | None:
        """When the task that stored it ended, in local time."""
        return cast("datetime | None", self._task.finished_at)

    @property
    def origin_pathspec(self) -> str | None:
        """The path in the run from which this one was resumed; None where it was made by its own run."""
        task = self._task.origin_pathspec
        return None if task is None else f"{task}/{self.id}"

    def _created(self) -> float | None:
        return cast("float | None", self._task._ended())

    def _tagged(self) -> RunRecord:
        return cast("RunRecord", self._task._tagged())

    def _exists(self) -> bool:
        return self._task._exists() and self._task._stored(self.id) is not None

    def _near(self) -> str | None:
        return did_you_mean(self.id, self._task._names()) or "the task's artifacts are listed by list(Task(...))"

    def _children(self) -> Iterator[ClientObject]:
        return iter(())

    def _find(self, name: str) -> ClientObject | None:
        return None


class Artifacts(tuple[DataArtifact, ...]):
    """The artifacts of a task as a tuple, each also an attribute by its name."""

    _fields: tuple[str, ...]

    def __new__(cls, artifacts: Iterator[DataArtifact]) -> Artifacts:
        made = super().__new__(cls, artifacts)
        made._fields = tuple(artifact.id for artifact in made)
        # What is in the instance's own dictionary goes before the methods of tuple: an artifact may be called index.
        made.__dict__.update(zip(made._fields, made, strict=True))
        return made

    def _asdict(self) -> dict[str, DataArtifact]:
        return dict(zip(self._fields, self, strict=True))

    def __getattr__(self, name: str) -> DataArtifact:
        raise AttributeError(_no_artifact(name, self._fields))

    def __repr__(self) -> str:
        return f"Artifacts({', '.join(_shown(name) for name in self._fields)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Artifacts, (tuple(self),)


class FlowData:
    """The values of a task's artifacts as attributes, each loaded when it is asked for, afresh each time.

    ``"x" in data`` tells whether there is an artifact of that name.
    """

    def __init__(self, artifacts: Mapping[str, DataArtifact]) -> None:
        self.__artifacts = artifacts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_FlowData__"):
            raise AttributeError(name)
        artifact = self.__artifacts.get(name)
        if artifact is None:
            raise AttributeError(_no_artifact(name, self.__artifacts))
        return artifact.data

    def __contains__(self, name: object) -> bool:
        return name in self.__artifacts

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__artifacts})

    def __repr__(self) -> str:
        return f"<FlowData: {', '.join(_shown(name) for name in self.__artifacts)}>"


def _shown(name: str) -> str:
    return name if name.isidentifier() else ascii(name)


def _no_artifact(name: str, names: Any) -> str:
    near = did_you_mean(name, names)
    return f"there is no artifact {_shown(name)}" + (f": {near}" if near else "")
