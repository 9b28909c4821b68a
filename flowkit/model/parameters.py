"""Parameters of a flow: values given when a run starts, read-only afterwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flowkit.exceptions import Location, UsageError, did_you_mean

RESERVED = frozenset(
    {
        "params", "with", "tag", "namespace", "obj", "tags", "decospecs", "run_id_file", "max_num_splits",
        "max_workers", "max_log_size", "user_namespace", "run_id", "task_id", "runner_attribute_file",
        "fail_fast", "keep_going", "task_start", "respect_resources", "origin_run_id", "plan", "help", "json",
        "detach", "reattach", "show_bootstrap", "runner_arguments", "trigger_events", "deployed_as", "notify_about",
        "deployed_template",
    }
)  # fmt: skip
"""Names that options of ``run`` and ``resume`` have already, with underscores for dashes."""
YIELDING = frozenset({"debug", "pdb"})
"""Names of options that a parameter may have all the same, since flows have such ones: the option is not there then."""

_TRUE = frozenset({"true", "1", "yes", "y", "on", "t"})
_FALSE = frozenset({"false", "0", "no", "n", "off", "f"})


class JSONTypeClass:
    """The type of a parameter whose text is JSON; `JSONType` is the instance to use."""

    name = "JSON"

    def __repr__(self) -> str:
        return "JSON"

    def __reduce__(self) -> str:
        return "JSONType"


JSONType = JSONTypeClass()


class ParameterContext(NamedTuple):
    """What a callable default is told.

    Parameters
    ----------
    flow_name, user_name, parameter_name : str
        Who asks for which value.
    logger : callable
        Prints a line for the user.
    ds_type : str
        The datastore's kind, e.g. ``local``.
    configs : mapping
        The flow's configs by name.
    """

    flow_name: str
    user_name: str
    parameter_name: str
    logger: Callable[[str], None]
    ds_type: str
    configs: Any = None


class Parameter:
    """A value that is given when the run starts: ``python flow.py run --alpha 0.1``.

    In the steps it is read as an attribute of ``self`` and cannot be changed. It can also be given by the
    environment variable ``FLOWKIT_RUN_<NAME>``.

    Parameters
    ----------
    name : str
        The option's name; underscores may be typed as dashes.
    default : object or callable, optional
        The value where none is given. A callable gets a `ParameterContext` and is called once for each run.
    type : type, list, optional
        ``str``, ``int``, ``float``, ``bool``, ``JSONType``, a subclass of ``enum.Enum``, a list or tuple of choices,
        or a click type. Default: the type of `default`, else ``str``.
    help : str, optional
        One line for ``--help``.
    required : bool, default False
        Whether the run refuses to start without a value.
    show_default : bool, default True
        Whether ``--help`` tells the default.
    separator : str, optional
        For ``str``: the text is split there and the value is a list of str.

    Raises
    ------
    UsageError
        If the name is not a valid one, or is taken by an option of ``run``.
    """

    expects = "a value"

    def __init__(
        self,
        name: str,
        default: Any = None,
        type: Any = None,
        help: str | None = None,
        required: bool | None = None,
        show_default: bool = True,
        separator: str | None = None,
        **unknown: Any,
    ) -> None:
        self.location = _caller()
        self.name = name
        self.attribute = name
        told: tuple[Any, ...] = (default, type, help, required, show_default, separator)
        self.waiting: tuple[Any, ...] | None = None
        """What the parameter was made with, where some of it waits for configs."""
        if any(waits_for_configs(value) for value in told):
            self.waiting = told
            told = (None, None, None, None, True, None)
        self._settle(*told, unknown=unknown)

    def _settle(
        self,
        default: Any,
        type: Any,
        help: str | None,
        required: bool | None,
        show_default: bool,
        separator: str | None,
        *,
        unknown: dict[str, Any],
    ) -> None:
        self.default = default
        self.help = help
        self.required = bool(required)
        self.show_default = show_default
        self.separator = separator
        if type is None:
            type = str if separator is not None else _infer(default)
        self.type = type
        try:
            self._check(unknown)
        except UsageError as error:
            error.where = self.location
            raise

    def settled(self, told: Sequence[Any]) -> Parameter:
        """Return the same parameter with what it waited for: default, type, help, required, show_default, separator.

        Raises
        ------
        UsageError
            If the values do not make a parameter.
        """
        import copy

        made = copy.copy(self)
        made.waiting = None
        default, *rest = told
        made._settle(_thawed(default), *rest, unknown={})
        return made

    def _check(self, unknown: dict[str, Any]) -> None:
        _check_name(self.name)
        if unknown:
            options = ["default", "type", "help", "required", "show_default", "separator"]
            first = next(iter(unknown))
            raise UsageError(f"Parameter('{self.name}') has no option '{first}'", did_you_mean(first, options))
        if isinstance(self.default, Parameter):
            raise UsageError(f"Parameter('{self.name}'): another parameter cannot be its default")
        if self.separator is not None and self.type is not str:
            raise UsageError(f"Parameter('{self.name}'): a separator goes with type=str only")
        self._check_default()

    def __set_name__(self, owner: Any, attribute: str) -> None:
        self.attribute = attribute

    def __get__(self, flow: Any, owner: Any = None) -> Any:
        if flow is None:
            return self
        binding = flow.__dict__.get("_binding")
        return self if binding is None else binding.load_parameter(self.attribute)

    def __set__(self, flow: Any, value: Any) -> None:
        raise AttributeError(f"'{self.attribute}' is a parameter and cannot be changed in a step: use another name")

    def __delete__(self, flow: Any) -> None:
        raise AttributeError(f"'{self.attribute}' is a parameter and cannot be deleted")

    def __repr__(self) -> str:
        return f"Parameter('{self.name}')"

    # -- values -------------------------------------------------------------------------------------------------

    @property
    def type_name(self) -> str:
        """What the value is, in a word, for help and errors."""
        kind = self.type
        if self.separator is not None:
            return f"text separated by '{self.separator}'"
        if _is_enum(kind):
            return "one of " + ", ".join(member.name for member in kind)
        if isinstance(kind, (list, tuple)):
            return "one of " + ", ".join(map(str, kind))
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        if isinstance(kind, JSONTypeClass):
            return "JSON"
        return names.get(kind) or str(getattr(kind, "name", None) or getattr(kind, "__name__", kind))

    def parse(self, text: str) -> Any:
        """Return the value that a text from the command line or the environment stands for.

        Raises
        ------
        UsageError
            If the text is not a value of the parameter's type.
        """
        if self.separator is not None:
            return text.split(self.separator) if text else []
        return self._convert(text)

    def take(self, value: Any) -> Any:
        """Return the value that a program gives: of the parameter's type, or a text that stands for one.

        Raises
        ------
        UsageError
            If it is not a value of the parameter's type.
        """
        return self._typed(value, "got")

    def resolve_default(self, context: ParameterContext) -> Any:
        """Return the default, calling it where it is a callable.

        Raises
        ------
        UsageError
            If the callable raises, or returns a value of another type.
        """
        if not callable(self.default) or _is_enum(self.default):
            return self._typed(self.default)
        try:
            value = self.default(context)
        except Exception as error:
            raise UsageError(
                f"the default of parameter '{self.name}' cannot be computed: {type(error).__name__}: {error}",
                f"it is the function '{getattr(self.default, '__name__', self.default)}'",
            ) from error
        return self._typed(value)

    def _typed(self, value: Any, lead: str = "its default is") -> Any:
        if value is None:
            return None
        if isinstance(value, str) and (self.separator is not None or self.type is not str):
            try:
                return self.parse(value)
            except UsageError as error:
                raise self._wrong(value, lead, error.hint) from None
        if self.separator is not None or isinstance(self.type, JSONTypeClass):
            return list(value) if isinstance(value, tuple) else value
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.type in (str, int, float, bool):
            if not isinstance(value, self.type) or (isinstance(value, bool) and self.type is not bool):
                raise self._wrong(value, lead)
            return value
        if isinstance(self.type, (list, tuple)) and value not in self.type:
            raise self._wrong(value, lead)
        return value

    def _check_default(self) -> None:
        if self.default is not None and not (callable(self.default) and not _is_enum(self.default)):
            self._typed(self.default)

    def _convert(self, text: str) -> Any:
        kind = self.type
        if kind is str:
            return text
        if kind is bool:
            return self._boolean(text)
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                raise self._wrong(text) from None
        if isinstance(kind, JSONTypeClass):
            try:
                return json.loads(text)
            except (ValueError, RecursionError) as error:
                raise self._wrong(text, hint=f"{error}; quote it for the shell: '{{\"a\": 1}}'") from None
        if _is_enum(kind):
            return self._choice(text, {member.name: member for member in kind})
        if isinstance(kind, (list, tuple)):
            return self._choice(text, {str(choice): choice for choice in kind})
        return self._foreign(text)

    def _boolean(self, text: str) -> bool:
        lowered = text.strip().lower()
        if lowered in _TRUE or lowered in _FALSE:
            return lowered in _TRUE
        raise self._wrong(text)

    def _choice(self, text: str, choices: dict[str, Any]) -> Any:
        if text in choices:
            return choices[text]
        raise self._wrong(text, hint=did_you_mean(text, choices))

    def _foreign(self, text: str) -> Any:
        """Convert by a click type, or by calling any other type."""
        try:
            if hasattr(self.type, "convert"):
                return self.type.convert(text, None, None)
            return self.type(text)
        except Exception as error:
            raise self._wrong(text, hint=str(getattr(error, "message", error)) or None) from error

    def _wrong(self, value: Any, lead: str = "got", hint: str | None = None) -> UsageError:
        return UsageError(f"parameter '{self.name}' takes {self.type_name}; {lead} {value!r}", hint)


def duplicate_names(parameters: Sequence[Parameter]) -> list[str]:
    """Return the names that two parameters share, ignoring case and dashes."""
    seen: set[str] = set()
    doubled = []
    for parameter in parameters:
        name = parameter.name.lower().replace("-", "_")
        if name in seen:
            doubled.append(parameter.name)
        seen.add(name)
    return doubled


def _caller() -> Location:
    """Where the user's code makes the parameter: the first frame outside of this package."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("flowkit."):
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name:
        raise UsageError(f"a parameter's name is a text, not {name!r}")
    folded = name.replace("-", "_")
    if not (folded.isidentifier() and folded.isascii()) or folded.startswith("_"):
        raise UsageError(
            f"'{name}' cannot be a parameter's name", "use letters, digits, _ and -, beginning with a letter"
        )
    if folded.lower() in RESERVED:
        raise UsageError(f"a parameter cannot be called '{name}': run has an option of that name")


def waits_for_configs(value: Any) -> bool:
    """Whether a value, or something in it, is known only when the flow's configs are."""
    configs = sys.modules.get("flowkit.model.configs")  # a flow without configs does not load them
    return configs is not None and configs.waits(value)


def _thawed(value: Any) -> Any:
    """Return what a config holds as plain values, which a step may change as it may those of any parameter."""
    return sys.modules["flowkit.model.configs"].plain(value)


def _infer(default: Any) -> Any:
    if isinstance(default, (dict, list)):
        return JSONType
    if isinstance(default, (bool, int, float)):
        return type(default)
    if default is not None and _is_enum(type(default)):
        return type(default)
    return str


def _is_enum(kind: Any) -> bool:
    """Whether it is an Enum class, without importing enum for flows that have none."""
    return isinstance(kind, type) and any(
        base.__module__ == "enum" and base.__name__ == "Enum" for base in kind.__mro__
    )
