"""Configs of a flow: settings from files, known before anything else, for decorators, parameters and steps alike.

In the body of the class a config's values are not known yet: ``config.cpu`` is a `Delayed` value there, which is
computed when the command knows the files. In a step ``self.config`` is the value itself, a `ConfigValue`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from flowkit.exceptions import Location, UsageError, did_you_mean

_UNPACKED = "**"
"""What the keyword begins with under which a config that is unpacked into a decorator waits for its values."""


class _Frozen:
    """Takes away the methods of a built-in container that would change it."""

    def _refuse(self, *arguments: Any, **keywords: Any) -> NoReturn:
        raise TypeError("the values of a config cannot be changed (to_dict() gives a copy that can)")

    __setitem__ = __delitem__ = __ior__ = __iadd__ = __imul__ = _refuse
    update = clear = pop = popitem = setdefault = append = extend = insert = remove = sort = reverse = _refuse


class _FrozenList(_Frozen, list):  # type: ignore[type-arg]
    __slots__ = ()

    def __reduce__(self) -> Any:
        return _frozen, (plain(self),)

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class ConfigValue(_Frozen, dict[Any, Any]):
    """The values of a config: a dict that cannot be changed, with its keys as attributes too.

    ``value.train.lr``, ``value["train"]["lr"]``, ``value.get("lr", 0.1)``, ``**value``, iteration and everything else
    that reads a dict. A key with the name of a method (``items``) is read as ``value["items"]``.

    Parameters
    ----------
    values : mapping
        Nested mappings become `ConfigValue`, lists lists that cannot be changed.
    """

    __slots__ = ()

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        super().__init__({key: _frozen(value) for key, value in (values or {}).items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            pass
        known = [key for key in self if isinstance(key, str)]
        hint = did_you_mean(name, known) if not name.startswith("__") else None
        raise AttributeError(f"the config has no key '{name}'" + (f" ({hint})" if hint else ""), name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse()

    def __delattr__(self, name: str) -> None:
        self._refuse()

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(key for key in self if isinstance(key, str))})

    def to_dict(self) -> dict[Any, Any]:
        """Return the values as plain dicts and lists, which may be changed."""
        found: dict[Any, Any] = plain(self)
        return found

    def __reduce__(self) -> Any:
        return ConfigValue, (self.to_dict(),)

    def __copy__(self) -> ConfigValue:
        return self

    def __deepcopy__(self, memo: Any) -> ConfigValue:
        return self


def _frozen(value: Any) -> Any:
    if isinstance(value, ConfigValue | _FrozenList):
        return value
    if isinstance(value, dict):
        return ConfigValue(value)
    return _FrozenList(_frozen(item) for item in value) if type(value) is list else value


def plain(value: Any) -> Any:
    """Return the value of a config as plain dicts and lists, which may be changed."""
    if isinstance(value, ConfigValue) or type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, _FrozenList) or type(value) is list:
        return [plain(item) for item in value]
    return value


class Options(NamedTuple):
    """What a `Config` was made with; see there. `location` is where it stands."""

    name: str
    default: Any
    default_value: Any
    help: str | None
    required: bool
    parser: Callable[[str], Any] | str | None
    plain: bool
    show_default: bool
    type: Any
    location: Location


class Config:
    """Settings of a flow, read from a file before anything else: ``python flow.py --config train big.toml run``.

    In the steps ``self.train`` is a `ConfigValue`. In the class the values are used before they are known:
    ``@resources(cpu=train.cpu)``, ``@retry(**train.retry)``, ``Parameter("lr", default=train.lr)``,
    ``@environment(vars=config_expr("{'N': str(train.n)}"))``. Values can also be given as JSON,
    ``--config-value train '{"lr": 0.1}'``, and by the environment variables ``FLOWKIT_FLOW_CONFIG`` and
    ``FLOWKIT_FLOW_CONFIG_VALUE``, which hold a JSON mapping from names to files or values.

    Parameters
    ----------
    name : str
        The name on the command line.
    default : str or callable, optional
        The file to read where none is given: JSON, TOML or YAML by its ending. A callable gets a
        `flowkit.model.parameters.ParameterContext`. A path is relative to the working directory or, where there is
        no such file, to the folder of the flow's file.
    default_value : dict, str or callable, optional
        The values (or their text, as in a file) where none are given. Not together with `default`.
    help : str, optional
        One line for ``--help``.
    required : bool, default False
        Whether the flow refuses to start without a value. A config without value is None.
    parser : callable or str, optional
        Turns the text of the file into the values; as a string ``package.module.function``.
    plain : bool, default False
        Whether what the parser returns is used as it is; else it has to be a mapping.
    show_default : bool, default True
        Whether ``--help`` tells the default.
    type : type, optional
        A dataclass or a pydantic model: the values are checked against it, and the config is an object of it.

    Raises
    ------
    UsageError
        If the name is not a valid one, or options exclude each other.
    """

    is_config = True
    _told: Options

    def __init__(
        self,
        name: str,
        default: Any = None,
        default_value: Any = None,
        help: str | None = None,
        required: bool | None = None,
        parser: Callable[[str], Any] | str | None = None,
        plain: bool = False,
        show_default: bool = True,
        type: Any = None,
        **unknown: Any,
    ) -> None:
        location = _caller()
        self._attribute = name
        self._cached: tuple[Any, Any] | None = None
        self._told = Options(
            name, default, default_value, help, bool(required), parser, plain, show_default, type, location
        )
        problem = _wrong(self._told, unknown)
        if problem is not None:
            problem.where = location
            raise problem

    def __set_name__(self, owner: Any, attribute: str) -> None:
        self._attribute = attribute

    def __get__(self, flow: Any, owner: Any = None) -> Any:
        if flow is None:
            return self
        binding = flow.__dict__.get("_binding")
        if binding is None:
            return self
        stored = binding.load_parameter(self._attribute)
        if self._cached is None or self._cached[0] is not stored:
            self._cached = (stored, finished(self, stored))
        return self._cached[1]

    def __set__(self, flow: Any, value: Any) -> None:
        raise AttributeError(f"'{self._attribute}' is a config and cannot be changed in a step: use another name")

    def __delete__(self, flow: Any) -> None:
        raise AttributeError(f"'{self._attribute}' is a config and cannot be deleted")

    def __getattr__(self, name: str) -> Delayed:
        if name.startswith("_"):
            raise AttributeError(name)
        return Delayed(self, (name,), _caller(1))

    def __getitem__(self, key: Any) -> Any:
        where = _caller(1)
        return Delayed(self, (), where, unpacks=True) if _unpacks(key) else Delayed(self, (key,), where)

    def keys(self) -> list[str]:
        """For ``**config``: one keyword, which is replaced when the values are known."""
        return [f"{_UNPACKED}{self._attribute}"]

    def __repr__(self) -> str:
        return f"Config('{self._told.name}')"


class _Expression(NamedTuple):
    """What `config_expr` was given, and the names that it may use."""

    text: str
    code: Any
    names: Mapping[str, Any]
    local: Mapping[str, Any]


class Delayed:
    """A value that is known when the configs are: ``config.train.lr`` in the body of a class."""

    __slots__ = ("_base", "_path", "_unpacks", "_where")

    def __init__(
        self, base: Config | _Expression, path: tuple[Any, ...], where: Location, unpacks: bool = False
    ) -> None:
        self._base = base
        self._path = path
        self._where = where
        self._unpacks = unpacks

    def __getattr__(self, name: str) -> Delayed:
        if name.startswith("_"):
            raise AttributeError(name)
        return Delayed(self._base, (*self._path, name), _caller(1))

    def __getitem__(self, key: Any) -> Delayed:
        if _unpacks(key):
            return Delayed(self._base, self._path, _caller(1), unpacks=True)
        return Delayed(self._base, (*self._path, key), _caller(1))

    def keys(self) -> list[str]:
        """For ``**config.train``: one keyword, which is replaced when the values are known."""
        return [f"{_UNPACKED}{_label(self)}"]

    def __repr__(self) -> str:
        return f"<{_label(self)}, not known yet>"

    def _too_early(self, *others: Any) -> NoReturn:
        raise UsageError(
            f"{_label(self)} is not known yet while the class is being defined",
            "pass it on as it is, or compute with it when it is known: "
            f'config_expr("{_label(self) if isinstance(self._base, Config) else self._base.text} + 1")',
            _caller(1),
        )

    __bool__ = __iter__ = __len__ = __int__ = __float__ = __index__ = __contains__ = _too_early
    __str__ = __format__ = _too_early
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _too_early
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = _too_early
    __lt__ = __le__ = __gt__ = __ge__ = _too_early


def config_expr(expression: str) -> Any:
    """Return a value that is computed when the configs are known.

    Parameters
    ----------
    expression : str
        Python; it may use the flow's configs by the names that they have in the class, and everything that is known
        where `config_expr` is called.

    Examples
    --------
    >>> @resources(memory=config_expr("config.cpu * 4096"))
    ... @step
    ... def train(self): ...

    Raises
    ------
    UsageError
        If the text is not an expression.
    """
    frame = sys._getframe(1)
    where = Location(frame.f_code.co_filename, frame.f_lineno)
    try:
        code = compile(expression.strip(), f"config_expr at {where}", "eval")
    except (SyntaxError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"config_expr({expression!r}) is no expression: {error}", None, where) from None
    local = frame.f_locals if frame.f_locals is not frame.f_globals else {}
    return Delayed(_Expression(expression, code, frame.f_globals, local), (), where)


# -- when the values are known -------------------------------------------------------------------------------------


def options(config: Config) -> Options:
    """Return what a config was made with: every public name of the config itself stands for one of its keys."""
    return config._told


def attribute_of(config: Config) -> str:
    """Return the name of a config in its flow."""
    return config._attribute


def is_config(value: Any) -> bool:
    """Whether a value of a class is a config."""
    return getattr(type(value), "is_config", False) is True


def finished(config: Config, stored: Any) -> Any:
    """Return what a step sees of a config: an object of its type, a `ConfigValue`, or the value as it is.

    Raises
    ------
    UsageError
        If the values do not fit the config's type, or are no mapping where they should be.
    """
    told = config._told
    if stored is None:
        return None
    if told.type is not None:
        from flowkit.model.config_types import convert

        return convert(stored, told.type, f"config '{told.name}'")
    return _frozen(stored) if not told.plain else stored


def settled(value: Any, configs: Mapping[str, Any]) -> Any:
    """Return a value with everything that waited for configs computed, also inside dicts, lists and tuples.

    Parameters
    ----------
    value : object
        For example the attributes of a decorator.
    configs : mapping
        The values of the flow's configs by their names in the class.

    Raises
    ------
    UsageError
        If something cannot be computed; `where` is the line that asked for it.
    """
    if isinstance(value, Delayed):
        return _compute(value, configs)
    if isinstance(value, Config):
        return _known(value, configs, value._told.location)
    if type(value) is dict:
        found: dict[Any, Any] = {}
        for key, item in value.items():
            if _unpacks(key):
                found.update(_unpacked(item, configs))
            else:
                found[key] = settled(item, configs)
        return found
    if type(value) in (list, tuple, set):
        return type(value)(settled(item, configs) for item in value)
    return value


def waits(value: Any) -> bool:
    """Whether a value, or something in it, waits for configs."""
    if isinstance(value, Delayed | Config):
        return True
    if type(value) is dict:
        return any(waits(item) for item in value.values())
    return type(value) in (list, tuple, set) and any(waits(item) for item in value)


def _compute(value: Delayed, configs: Mapping[str, Any]) -> Any:
    base = value._base
    if isinstance(base, Config):
        found, label = _known(base, configs, value._where), base._attribute
        if found is None and value._path:
            name = base._told.name
            raise UsageError(
                f"{_label(value)}: the config '{name}' has no value",
                f"give it one: --config {name} FILE, or a default",
                value._where,
            )
    else:
        found, label = _evaluated(base, configs, value._where), f'config_expr("{base.text}")'
    for key in value._path:
        found = _inner(found, key, label, value._where)
        label = f"{label}.{key}" if isinstance(key, str) else f"{label}[{key!r}]"
    return found


def _known(config: Config, configs: Mapping[str, Any], where: Location) -> Any:
    if config._attribute not in configs:
        raise UsageError(
            f"{config!r} is not one of the flow's configs",
            f"write it into the class of the flow: {config._attribute} = {config!r}",
            where,
        )
    return configs[config._attribute]


def _evaluated(base: _Expression, configs: Mapping[str, Any], where: Location) -> Any:
    try:
        return eval(base.code, {**base.names, **base.local, **configs})
    except Exception as error:
        text = f"config_expr({base.text!r}) cannot be computed: {type(error).__name__}: {error}"
        raise UsageError(text, None, where) from error


def _inner(found: Any, key: Any, label: str, where: Location) -> Any:
    if isinstance(found, Mapping) or not isinstance(key, str):
        try:
            return found[key]
        except (KeyError, IndexError, TypeError):
            known = [str(name) for name in found] if isinstance(found, Mapping) else []
    else:
        try:
            return getattr(found, key)
        except AttributeError:
            known = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
    hint = did_you_mean(str(key), known) or (f"it has: {', '.join(known[:20])}" if known else None)
    raise UsageError(f"{label} has no {key!r}", hint, where) from None


def _unpacked(value: Any, configs: Mapping[str, Any]) -> Mapping[str, Any]:
    found = settled(value, configs)
    if found is None:
        return {}
    fields = getattr(type(found), "__dataclass_fields__", None)
    if fields is not None:
        return {name: getattr(found, name) for name in fields}
    dump = getattr(found, "model_dump", None)
    if not isinstance(found, Mapping) and callable(dump):
        found = dump()
    if not isinstance(found, Mapping):
        raise UsageError(f"**{_label(value)} is no mapping: it is {found!r}", None, value._where)
    return {str(key): item for key, item in found.items()}


def _unpacks(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(_UNPACKED)


def _label(value: Delayed) -> str:
    base = value._base
    text = base._attribute if isinstance(base, Config) else f'config_expr("{base.text}")'
    return text + "".join(f".{key}" if isinstance(key, str) else f"[{key!r}]" for key in value._path)


def _wrong(told: Options, unknown: Mapping[str, Any]) -> UsageError | None:
    name = told.name
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier() or name.startswith("_"):
        return UsageError(f"{name!r} cannot be a config's name", "use letters, digits, _ and -, a letter first")
    if unknown:
        first = next(iter(unknown))
        hint = did_you_mean(first, Options._fields[1:-1]) or f"it has: {', '.join(Options._fields[1:-1])}"
        return UsageError(f"Config('{name}') has no option '{first}'", hint)
    if told.default is not None and told.default_value is not None:
        return UsageError(
            f"Config('{name}') has a default and a default_value", "give a path by one, or values by the other"
        )
    if told.plain and told.type is not None:
        return UsageError(f"Config('{name}') is plain and has a type", "plain is for values of no type: leave one out")
    if waits(told.default) or waits(told.default_value):
        return UsageError(f"Config('{name}'): another config cannot be its default")
    if told.type is not None:
        from flowkit.model.config_types import is_model

        if not is_model(told.type):
            return UsageError(f"Config('{name}'): type is to be a dataclass or a pydantic model, not {told.type!r}")
    return None


def _caller(skip: int = 0) -> Location:
    """Where the user's code is: the first frame outside of this package."""
    frame = sys._getframe(1 + skip)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("flowkit."):
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno)
