"""Decorators of steps that users write: `UserStepDecorator` as a class, `user_step_decorator` from a generator.

Both are step decorators like the built-in ones: an onion layer about the step (`StepDecorator.around`), the first one
written outermost. A layer that replaces or skips the step cuts off the users' own layers inside it; the built-in ones
(``@timeout``, ``@retry``) hold for what stands in the step's place, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.decorators.attach import FlowMark, StepMark
from flowkit.decorators.contract import Decorator, StepDecorator, TaskContext
from flowkit.exceptions import FlowkitError, InvalidNext, Location, Problem, TaskError, is_ours, message_of
from flowkit.model.flowspec import FlowSpec

if TYPE_CHECKING:
    from types import TracebackType

    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

USER_SKIP_STEP: dict[str, Any] = {}
"""Yielded by a generator decorator: the step is skipped, and the flow goes on as its source says."""
POSITIONAL = "*"
"""The attribute under which positional arguments are kept."""
_registered: dict[str, list[type[Decorator]]] = {}


class UserDecoratorType(type):
    """Makes a class usable as a decorator: ``@Timing`` and ``@Timing(label="x")`` stand above a step (or a class)."""

    abstract: bool

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> None:
        super().__init__(name, bases, namespace, **keywords)
        cls.abstract = bool(namespace.get("abstract"))
        if not cls.abstract:
            if "name" not in namespace:
                cls.name = name
            _registered.setdefault(cls.name, []).append(cls)  # type: ignore[arg-type]

    name: str

    def __call__(cls, *arguments: Any, **attributes: Any) -> Any:
        """Decorate: a bare ``@Timing`` gets the step itself, anything else makes what decorates."""
        frame = sys._getframe(1)
        mark = cls._mark()
        if len(arguments) == 1 and not attributes and _is_target(cls, arguments[0]):
            return mark._put(arguments[0], {}, frame, frame.f_lineno)
        if arguments:
            attributes = {POSITIONAL: arguments, **attributes}
        code, line = frame.f_code, frame.f_lineno

        def put(target: Any) -> Any:
            frame = sys._getframe(1)
            return mark._put(target, attributes, frame, line if frame.f_code is code else frame.f_lineno)

        put.spec = (cls, attributes)  # type: ignore[attr-defined]
        return put

    def _mark(cls) -> Any:
        return StepMark(cls) if issubclass(cls, StepDecorator) else FlowMark(cls)  # type: ignore[arg-type]


def _is_target(cls: type, value: Any) -> bool:
    """Whether the one argument of a decorator is what it stands above, and not one in its parentheses."""
    if getattr(value, "is_step", False) is True or (isinstance(value, type) and issubclass(value, FlowSpec)):
        return True
    if not issubclass(cls, StepDecorator):
        return False
    # Only mutators take arguments without a name.
    return isinstance(value, FunctionType) or not cls.mutates


def registered(name: str) -> list[type[Decorator]]:
    """Return the users' decorators of a name: that of the class, or its end with the module: ``timing.Timing``.

    Of a class that was defined anew, as in a notebook, only the last one counts.
    """
    short = name.rpartition(".")[2]
    found = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in _registered.get(short, ())}
    if short != name:
        found = {full: cls for full, cls in found.items() if full == name or full.endswith(f".{name}")}
    return list(found.values())


def registered_names() -> list[str]:
    """Return the names of all decorators of users that were imported."""
    return list(_registered)


class UserDecorator(Decorator):
    """What the decorators of users have in common: any attributes, handed to `init`."""

    abstract = True
    defaults: ClassVar[Mapping[str, Any]] = {}
    _began = False

    def __init__(
        self,
        attributes: Mapping[str, Any] | None = None,
        *,
        inserted_by: str | None = None,
        location: Location | None = None,
    ) -> None:
        given = dict(attributes or {})
        self.attributes = given
        self.given = frozenset(given)
        self.written = given
        self.inserted_by = inserted_by
        self.location = location

    @classmethod
    def make(cls, attributes: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Return a decorator; calling the class is what its users do above a step."""
        return type.__call__(cls, attributes, **options)

    def init(self, *arguments: Any, **attributes: Any) -> None:
        """Take what is written in the parentheses; called once in each process, before any other method."""
        if arguments or attributes:
            raise TypeError("it takes nothing in parentheses: give it an init(self, …) that does")

    def add_to_package(self) -> Iterable[Any]:
        """Return further files for the code package: paths, or (path, name in the package)."""
        return ()

    def package_files(self) -> list[tuple[str, str]]:
        """Return what `add_to_package` names."""
        import os

        found = []
        for item in self.add_to_package() or ():
            path, name = (item, os.path.basename(str(item).rstrip("/"))) if isinstance(item, str) else item[:2]
            found.append((str(path), str(name)))
        return found

    def begin(self) -> list[Problem]:
        """Call `init`, once; return what is wrong."""
        if self._began:
            return []
        self._began = True
        attributes = {name: value for name, value in self.attributes.items() if name != POSITIONAL}
        try:
            self.init(*self.attributes.get(POSITIONAL, ()), **attributes)
        except Exception as error:  # the border to the user's code
            return [hook_problem(self, "init", error)]
        return []


class UserStepDecorator(UserDecorator, StepDecorator, metaclass=UserDecoratorType):
    """A decorator for steps, to be subclassed: what happens before a step, after it, or in its stead.

    Examples
    --------
    >>> class Timing(UserStepDecorator):
    ...     def init(self, label="took"):
    ...         self.label = label
    ...
    ...     def pre_step(self, step_name, flow, inputs=None):
    ...         self.start = time.perf_counter()
    ...
    ...     def post_step(self, step_name, flow, exception=None):
    ...         print(step_name, self.label, time.perf_counter() - self.start, "s")
    ...         return exception

    ``@Timing`` and ``@Timing(label="…")`` stand above ``@step``; ``--with Timing`` puts it on every step.

    Attributes
    ----------
    skip_step : bool or dict
        Set by `pre_step`: True skips the step, a dict does as well and holds options for ``self.next``
        (``{"num_parallel": 4}``).
    """

    abstract = True
    multiple = True
    users = True
    skip_step: bool | Mapping[str, Any] = False

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Call `init`."""
        return self.begin()

    def pre_step(self, step_name: str, flow: Any, inputs: Any = None) -> Callable[..., None] | None:
        """Act before the step.

        Returns
        -------
        callable or None
            What runs instead of the step: it gets the flow, and the inputs of a join.
        """
        return None

    def post_step(self, step_name: str, flow: Any, exception: BaseException | None = None) -> Any:
        """Act after the step.

        Parameters
        ----------
        exception : BaseException or None
            What the step raised.

        Returns
        -------
        exception, None or tuple
            What is to be raised; None ends the step as one that succeeded. With a dict, ``(exception, {…})``, it holds
            options for ``self.next``.
        """
        return exception

    def around(self, task: TaskContext, proceed: Callable[[], None]) -> None:
        """Run the step between `pre_step` and `post_step`."""
        if task.fallback or task.body is not None:
            proceed()
            return
        self.skip_step = False
        replacement = _hooked(self, "pre_step", lambda: self.pre_step(task.step, task.flow, task.inputs))
        skip = self.skip_step
        wanted: Mapping[str, Any] | None = None
        if skip is not False and skip is not None:
            wanted = self._options(skip if isinstance(skip, Mapping) else {}, "skip_step")
            task.body = _nothing
        elif replacement is not None:
            task.body = _replacing(self, replacement, task)
        raised: BaseException | None = None
        try:
            proceed()
        except Exception as error:  # whatever the step raises is the decorator's to judge
            raised = error
        result = _hooked(self, "post_step", lambda: self.post_step(task.step, task.flow, raised), raised)
        if isinstance(result, tuple):
            result, changed = (*result, None)[:2]
            if changed is not None:
                wanted = self._options(changed, "post_step")
        self._finish(task, raised, result, wanted)

    def _options(self, given: Any, hook: str) -> Mapping[str, Any]:
        if isinstance(given, Mapping):
            return given
        raise TaskError(
            f"@{self.name}: {hook} gives {type(given).__name__} as options for self.next",
            "a dict is wanted",
            self.location,
        )

    def _finish(
        self, task: TaskContext, raised: BaseException | None, result: Any, wanted: Mapping[str, Any] | None
    ) -> None:
        if isinstance(raised, InvalidNext):
            raise raised  # the flow itself is wrong, which must not go unseen
        if isinstance(result, BaseException):
            if result is raised:
                raise raised
            raise result from raised
        if result is not None:
            raise TaskError(
                f"@{self.name}: post_step returns {type(result).__name__}",
                "return the exception to raise, None, or (exception, options for self.next)",
                self.location,
            )
        if wanted is not None or raised is not None:
            task.change_next(wanted or {}, only_missing=wanted is None)


def _nothing() -> None:
    """Stands in the place of a step that is skipped."""


def _replacing(decorator: Decorator, replacement: Any, task: TaskContext) -> Callable[[], None]:
    if not callable(replacement):
        raise TaskError(
            f"@{decorator.name} gives a {type(replacement).__name__} to run instead of the step",
            "give a function of the flow (and of the inputs, for a join), a dict to skip the step, or None",
            decorator.location,
        )
    if task.inputs is not None:
        return lambda: replacement(task.flow, task.inputs)
    return lambda: replacement(task.flow)


# -- from a generator ----------------------------------------------------------------------------------------------


def user_step_decorator(function: Callable[..., Generator[Any, Any, None]]) -> Any:
    """Make a decorator for steps out of a generator: what stands before ``yield`` runs before the step.

    Parameters
    ----------
    function : generator function
        Of ``(step_name, flow, inputs)``, and of ``attributes``, a dict, where it takes a fourth argument: then the
        decorator takes keywords. It yields at most once: nothing to run the step, a function to run in its stead,
        `USER_SKIP_STEP` or a dict of options for ``self.next`` to skip it. What the step raises is raised at the
        ``yield``; caught there, the flow goes on.

    Examples
    --------
    >>> @user_step_decorator
    ... def timing(step_name, flow, inputs):
    ...     start = time.perf_counter()
    ...     yield
    ...     flow.seconds = time.perf_counter() - start

    Raises
    ------
    FlowInvalid
        If it is no generator, or takes other arguments.
    """
    import inspect

    from flowkit.exceptions import FlowInvalid

    name = getattr(function, "__name__", repr(function))
    code = getattr(function, "__code__", None)
    where = Location(code.co_filename, code.co_firstlineno) if code is not None else None
    if not inspect.isgeneratorfunction(function):
        hint = "let it yield once: what comes before runs before the step, what follows runs after it"
        raise FlowInvalid([Problem(f"@user_step_decorator is for generators, and '{name}' is none", where, hint)])
    count = len(inspect.signature(function).parameters)
    if count not in (3, 4):
        hint = f"def {name}(step_name, flow, inputs): or def {name}(step_name, flow, inputs, attributes):"
        raise FlowInvalid([Problem(f"'{name}' is to take three or four arguments, and takes {count}", where, hint)])
    namespace = {
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "function": staticmethod(function),
        "takes_attributes": count == 4,
        "name": name,
    }
    return UserDecoratorType(name, (_GeneratorDecorator,), namespace)


class _GeneratorDecorator(UserStepDecorator):
    """A decorator that `user_step_decorator` has made of a generator."""

    abstract = True
    function: ClassVar[Callable[..., Generator[Any, Any, None]]]
    takes_attributes: ClassVar[bool]

    def init(self, *arguments: Any, **attributes: Any) -> None:
        """Check that it takes what it is given."""
        if arguments:
            raise TypeError("attributes are given by name")
        if attributes and not self.takes_attributes:
            raise TypeError("it takes nothing in parentheses: give it a fourth argument, attributes")

    def around(self, task: TaskContext, proceed: Callable[[], None]) -> None:
        """Run the generator up to its ``yield``, the step, and the rest of it."""
        if task.fallback or task.body is not None:
            proceed()
            return
        arguments = [task.step, task.flow, task.inputs]
        if self.takes_attributes:
            arguments.append(dict(self.attributes))
        running = type(self).function(*arguments)
        ended = object()
        told = _hooked(self, "what it does before the yield", lambda: next(running, ended))
        wanted: Mapping[str, Any] | None = None
        if told is ended:
            proceed()
            return
        if isinstance(told, Mapping):
            wanted, task.body = told, _nothing
        elif told is not None:
            task.body = _replacing(self, told, task)
        raised: BaseException | None = None
        try:
            proceed()
        except Exception as error:  # raised again at the yield
            raised = error
        self._resume(running, raised)
        self._finish(task, raised, None, wanted)

    def _resume(self, running: Generator[Any, Any, None], raised: BaseException | None) -> None:
        try:
            if raised is None:
                next(running)
            else:
                running.throw(raised)
        except StopIteration:
            return
        except Exception as error:
            if raised is not None:  # raised again, or translated
                raise
            raise hook_error(self, "what it does after the yield", error) from error
        running.close()
        raise TaskError(f"@{self.name} yields more than once", "a decorator yields once, for the step", self.location)


# -- errors of hooks -----------------------------------------------------------------------------------------------


def _hooked(decorator: Decorator, hook: str, call: Callable[[], Any], raised: BaseException | None = None) -> Any:
    """Call a hook; what it raises itself is told as an error of the decorator."""
    try:
        return call()
    except Exception as error:  # the border to the user's code
        if error is raised or isinstance(error, InvalidNext):
            raise
        raise hook_error(decorator, hook, error) from error


def hook_error(decorator: Decorator, hook: str, error: BaseException) -> TaskError:
    """Return the error of a decorator's hook in a task: which decorator, which hook, which line."""
    return TaskError(_said(decorator, hook, error), None, user_line(error) or decorator.location)


def hook_problem(decorator: Decorator, hook: str, error: BaseException) -> Problem:
    """Return the error of a decorator's hook before the run, as a problem of the flow."""
    where = user_line(error) or decorator.location
    if isinstance(error, FlowkitError):
        return Problem(f"@{decorator.name}, {hook}: {error.headline}", error.where or where, error.hint)
    return Problem(_said(decorator, hook, error), where)


def _said(decorator: Decorator, hook: str, error: BaseException) -> str:
    text = message_of(error)
    return f"@{decorator.name} failed in {hook}: {type(error).__name__}" + (f": {text}" if text else "")


def user_line(error: BaseException) -> Location | None:
    """Return the innermost line of the user's own code that an exception came through."""
    found = None
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not is_ours(file):
            found = Location(file, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found
