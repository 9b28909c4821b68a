"""What all objects of the client have in common: a path, a namespace, tags, children.

Objects are light: they hold names and, once asked, the record that the metadata index has of them. An object made
from a path is checked to exist and to be in the namespace; one that comes out of another object needs no check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from flowkit.client.connection import Connection, connect
from flowkit.client.namespace import get_metadata, get_namespace
from flowkit.exceptions import InvalidPathspec, NamespaceMismatch, NotFound
from flowkit.model.pathspec import Pathspec

if TYPE_CHECKING:
    from datetime import datetime

    from flowkit.metadata.records import RunRecord

_Object = TypeVar("_Object", bound="ClientObject")
_BY_DEPTH: dict[int, type[ClientObject]] = {}
"""The classes by the number of parts of their paths: how a child finds the class of its parent."""


class ClientObject:
    """One flow, run, step, task or artifact.

    Parameters
    ----------
    pathspec : str
        For example ``TrainFlow/12/train`` for a step.

    Raises
    ------
    InvalidPathspec
        If the path has not as many parts as this kind of object needs.
    NotFound
        If there is no such object.
    NamespaceMismatch
        If there is one, but not in the current namespace.
    """

    _kind: ClassVar[str]
    _depth: ClassVar[int]

    _path: Pathspec
    _connection: Connection
    _namespace: str | None
    _parent: ClientObject | None
    _attempt: int | None

    def __init__(self, pathspec: str, *, _namespace_check: bool = True) -> None:
        self._begin(pathspec, None, _namespace_check)

    def _begin(self, pathspec: str, attempt: int | None, check: bool) -> None:
        path = Pathspec.parse(pathspec, self._depth)
        self._fill(connect(get_metadata()), path, get_namespace() if check else None, None, attempt)
        self._check()

    def _fill(
        self,
        connection: Connection,
        path: Pathspec,
        namespace: str | None,
        parent: ClientObject | None,
        attempt: int | None = None,
    ) -> None:
        self._connection = connection
        self._path = path
        self._namespace = namespace
        self._parent = parent
        self._attempt = attempt

    def __init_subclass__(cls) -> None:
        _BY_DEPTH[cls._depth] = cls

    @classmethod
    def _of(
        cls: type[_Object], parent: ClientObject | None, connection: Connection, path: Pathspec, namespace: str | None
    ) -> _Object:
        """Return an object that is known to exist, or one to be looked at later."""
        made = cls.__new__(cls)
        made._fill(connection, path, namespace, parent)
        return made

    def _child(self, cls: type[_Object], name: str) -> _Object:
        return cls._of(self, self._connection, self._path._replace(**{cls._kind: name}), self._namespace)

    @classmethod
    def unchecked(cls: type[_Object], pathspec: str, place: str) -> _Object:
        """Return the object of a path in a place, without looking whether it is there, and without a namespace."""
        return cls._of(None, connect(place), Pathspec.parse(pathspec, cls._depth), None)

    # -- is it there? -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise NotFound or NamespaceMismatch."""
        if not self._exists():
            raise NotFound(f"there is no {self._kind} '{self._path}' in {self._connection.where}", self._near())
        if not self.is_in_namespace():
            raise NamespaceMismatch(
                f"the {self._kind} '{self._path}' is not in the namespace '{self._namespace}'",
                "namespace(None) shows the runs of everybody; is the name of a colleague's namespace user:<name>?",
            )

    def _exists(self) -> bool:
        raise NotImplementedError

    def _near(self) -> str | None:
        """Return a hint for a name that does not exist: what it may have been meant to be."""
        raise NotImplementedError

    # -- names --------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The last part of the path."""
        part: str = self._path[self._depth - 1]  # type: ignore[assignment]
        return part

    @property
    def pathspec(self) -> str:
        """The whole path, from the flow down."""
        return str(self._path)

    @property
    def path_components(self) -> list[str]:
        """The parts of the path, from the flow down."""
        return [part for part in self._path if part is not None]

    @property
    def origin_pathspec(self) -> str | None:
        """The path in the run from which this one was resumed; None where it was made by its own run."""
        return None

    @property
    def parent(self) -> Any:
        """The object one level up: the step of a task, the run of a step, …; None for a flow."""
        return self._up()

    def _up(self) -> Any:
        if self._parent is None and self._depth > 1:
            path = Pathspec(*self.path_components[:-1])
            self._parent = _BY_DEPTH[self._depth - 1]._of(None, self._connection, path, self._namespace)
            if self._kind == "artifact":
                self._parent._attempt = self._attempt
        return self._parent

    def __repr__(self) -> str:
        attempt = "" if self._attempt is None else f", attempt={self._attempt}"
        return f"{type(self).__name__}({self.pathspec!r}{attempt})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClientObject):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return type(self), self._path, self._attempt, self._connection.place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restore, (type(self), tuple(self._path), self._attempt, self._namespace, self._connection.place)

    # -- tags and times -----------------------------------------------------------------------------------------------

    def _tagged(self) -> RunRecord:
        """Return the record of the run, which has the tags of everything in it."""
        raise NotImplementedError

    @property
    def tags(self) -> frozenset[str]:
        """The user and system tags of the run that this is a part of."""
        return self.user_tags | self.system_tags

    @property
    def user_tags(self) -> frozenset[str]:
        """The tags that users gave to the run."""
        return frozenset(self._tagged().tags)

    @property
    def system_tags(self) -> frozenset[str]:
        """The tags that flowkit gave to the run, such as ``user:ada``."""
        return frozenset(self._tagged().system_tags)

    @property
    def created_at(self) -> datetime | None:
        """When it came to be, in local time; None where nobody knows."""
        when = self._created()
        if when is None:
            return None
        from datetime import datetime

        return datetime.fromtimestamp(when)

    def _created(self) -> float | None:
        raise NotImplementedError

    def is_in_namespace(self) -> bool:
        """Whether it is in the namespace that was current when this object was made."""
        return self._namespace is None or self._namespace in self.tags

    # -- children -----------------------------------------------------------------------------------------------------

    def _children(self) -> Iterator[ClientObject]:
        """Yield the children that are shown, newest first."""
        raise NotImplementedError

    def _find(self, name: str) -> ClientObject | None:
        """Return a child by its name, hidden ones too; None where there is none (or not in the namespace)."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return self._children()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._lookup(name) is not None

    def __getitem__(self, name: str) -> Any:
        found = self._lookup(name)
        if found is None:
            raise KeyError(name)
        return found

    def _lookup(self, name: str) -> ClientObject | None:
        try:
            return self._find(str(name))
        except InvalidPathspec:
            return None  # a name that cannot exist does not exist


def _restore(
    cls: type[_Object], path: tuple[str | None, ...], attempt: int | None, namespace: str | None, metadata: str
) -> _Object:
    """Make an object again from its pickle; nothing is looked up before it is asked for."""
    made = cls.__new__(cls)
    made._fill(connect(metadata), Pathspec.parse("/".join(p for p in path if p), cls._depth), namespace, None, attempt)
    return made
