"""What a mutator sees: the flow and its steps as values of one command, to be changed before the flow runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.decorators.attach import FlowMark, StepMark, find_decorator, parse_decospec, place
from flowkit.decorators.contract import Decorator, StepDecorator
from flowkit.decorators.user_steps import POSITIONAL, UserDecorator, hook_problem
from flowkit.exceptions import FlowInvalid, Problem, UsageError, did_you_mean
from flowkit.model.parameters import Parameter

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition, StepDefinition

IGNORE, ERROR, OVERRIDE = 1, 2, 3


class DecoratorSpec(NamedTuple):
    """One decorator, as mutators see it.

    Parameters
    ----------
    name : str
        For example ``retry``.
    full_name : str
        Its class with the module.
    args : list
        Positional arguments; only users' decorators have any.
    kwargs : dict
        Its attributes; those of built-in ones with their defaults.
    """

    name: str
    full_name: str
    args: list[Any]
    kwargs: dict[str, Any]


class _Mutable:
    """What flows and steps have in common: a list of decorators."""

    IGNORE, ERROR, OVERRIDE = IGNORE, ERROR, OVERRIDE

    def __init__(self, definition: FlowDefinition, mutator: UserDecorator, early: bool) -> None:
        self._definition = definition
        self._mutator = mutator
        self._early = early

    @property
    def decorator_specs(self) -> Iterator[DecoratorSpec]:
        """The decorators, innermost first."""
        return iter([_spec(decorator) for decorator in reversed(self._decorators())])

    def has_decorator(self, deco_type: Any) -> bool:
        """Whether there is a decorator of a name or class."""
        return next(self.get_decorator_specs(deco_type), None) is not None

    def get_decorator_specs(self, deco_type: Any) -> Iterator[DecoratorSpec]:
        """Return the decorators of a name or class, innermost first."""
        name = _name(deco_type)
        return (spec for spec in self.decorator_specs if name in (spec.name, spec.full_name))

    def remove_decorator(
        self, deco_type: Any, deco_args: Sequence[Any] | None = None, deco_kwargs: Mapping[str, Any] | None = None
    ) -> bool:
        """Remove the decorators of a name or class.

        Parameters
        ----------
        deco_type : str or type
            Which.
        deco_args, deco_kwargs : optional
            Only those that were given exactly these.

        Returns
        -------
        bool
            Whether there was one.
        """
        name = _name(deco_type)
        found = False
        for held in self._lists():
            for decorator in list(held):
                spec = _spec(decorator)
                given = {key: value for key, value in decorator.written.items() if key != POSITIONAL}
                if name not in (spec.name, spec.full_name):
                    continue
                if deco_args is not None and list(deco_args) != spec.args:
                    continue
                if deco_kwargs is not None and dict(deco_kwargs) not in (given, spec.kwargs):
                    continue
                self._check_phase(decorator, "removed")
                held.remove(decorator)
                found = True
        return found

    def _add(self, held: list[Any], made: Decorator, duplicates: Any, where: str) -> None:
        if duplicates not in (IGNORE, ERROR, OVERRIDE):
            raise UsageError(f"duplicates={duplicates!r}", "it is one of IGNORE, ERROR and OVERRIDE")
        present = [item for item in held if item.name == made.name]
        if present and duplicates == IGNORE and (isinstance(made, UserDecorator) or not made.multiple):
            return
        if present and duplicates == ERROR:
            raise UsageError(f"{where} has @{made.name} already", "add it with duplicates=OVERRIDE, or IGNORE")
        for item in present if duplicates == OVERRIDE else ():
            held.remove(item)
        if isinstance(made, StepDecorator):
            place(held, made)
        elif made.mutates:
            held.append(made)  # mutators stand in the order in which they act
        else:
            held.insert(0, made)

    def _made(self, deco_type: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, kind: str) -> Any:
        cls, attributes = _resolved(deco_type, kind)
        attributes = {**attributes, **(kwargs or {})}
        if args:
            if not issubclass(cls, UserDecorator):
                raise UsageError(f"@{cls.name} takes its attributes by name", "give them as deco_kwargs")
            attributes = {POSITIONAL: tuple(args), **attributes}
        if self._definition.configs:
            from flowkit.model.configs import plain, settled

            attributes = plain(settled(attributes, self._definition.config_values))
        return cls.make(attributes, inserted_by=f"the mutator {self._mutator.name}", location=self._mutator.location)

    def _check_phase(self, decorator: Any, what: str) -> None:
        later = decorator.mutates or not isinstance(decorator, StepDecorator)
        if later and not self._early:
            self._too_late(f"@{decorator.name} be {what}")

    def _too_late(self, what: str) -> None:
        raise UsageError(f"in mutate it is too late to have {what}", "do that in pre_mutate")

    def _decorators(self) -> list[Any]:
        return [decorator for held in self._lists() for decorator in held]

    def _lists(self) -> list[list[Any]]:
        raise NotImplementedError


class MutableFlow(_Mutable):
    """A flow that a mutator may change: its parameters, its decorators, its steps.

    ``flow.train`` is the step, config or parameter of that name. What waits for configs may be given as it is:
    ``config_expr`` works here, too.
    """

    @property
    def configs(self) -> Iterator[tuple[str, Any]]:
        """The names and values of the flow's configs."""
        return iter(list(self._definition.config_values.items()))

    @property
    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The names of the flow's parameters, and the parameters."""
        return iter(list(self._definition.parameters.items()))

    @property
    def steps(self) -> Iterator[tuple[str, MutableStep]]:
        """The names of the steps, and the steps, in the order of the source."""
        for name in list(self._definition.steps):
            yield name, self._step(name)

    def _step(self, name: str) -> MutableStep:
        return MutableStep(self._definition, self._mutator, self._early, self._definition.steps[name])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        definition = self._definition
        if name in definition.steps:
            return self._step(name)
        for known in (definition.config_values, definition.parameters):
            if name in known:
                return known[name]
        names = [*definition.steps, *definition.config_values, *definition.parameters]
        hint = did_you_mean(name, names)
        raise AttributeError(f"the flow has no step, config or parameter '{name}'" + (f" ({hint})" if hint else ""))

    def add_parameter(self, name: str, value: Parameter, overwrite: bool = False) -> None:
        """Give the flow a parameter; only in pre_mutate.

        Parameters
        ----------
        name : str
            The name of the attribute.
        value : Parameter
            The parameter.
        overwrite : bool, default False
            Whether it may take the place of one that is there.
        """
        if not self._early:
            self._too_late(f"the parameter '{name}' added")
        if not isinstance(value, Parameter):
            raise UsageError(f"add_parameter('{name}') takes a Parameter, not {value!r}")
        definition = self._definition
        if name in definition.parameters and not overwrite:
            raise UsageError(f"there is a parameter '{name}' already", "overwrite=True replaces it")
        if name in definition.steps or name in definition.configs or name in definition.constants:
            raise UsageError(f"the flow has something else that is called '{name}'", "give the parameter another name")
        value.__set_name__(definition.cls, name)
        definition.parameters[name] = value

    def remove_parameter(self, parameter_name: str) -> bool:
        """Take a parameter away; only in pre_mutate. Return whether there was one."""
        if not self._early:
            self._too_late(f"the parameter '{parameter_name}' removed")
        return self._definition.parameters.pop(parameter_name, None) is not None

    def add_decorator(
        self,
        deco_type: Any,
        deco_args: Sequence[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
        duplicates: int = IGNORE,
    ) -> None:
        """Give the flow a decorator, or another FlowMutator, which acts later; only in pre_mutate.

        Parameters
        ----------
        deco_type : str or type
            A name (``"schedule"``, also with attributes: ``"project:name=x"``), a decorator (``schedule``), or a class
            of FlowMutators.
        deco_args, deco_kwargs : optional
            What would stand in the parentheses.
        duplicates : int
            What happens where the flow has one of the name already: IGNORE leaves that one, OVERRIDE replaces it,
            ERROR refuses.
        """
        made = self._made(deco_type, deco_args, deco_kwargs, "flow")
        if isinstance(made, StepDecorator):
            raise UsageError(f"@{made.name} is for steps", "add it to a step: for name, step in mutable_flow.steps")
        self._check_phase(made, "added")
        held = self._definition.mutators if made.mutates else self._definition.decorators
        self._add(held, made, duplicates, "the flow")

    def _lists(self) -> list[list[Any]]:
        return [self._definition.decorators, self._definition.mutators]


class MutableStep(_Mutable):
    """A step that a mutator may change: its decorators."""

    def __init__(self, definition: FlowDefinition, mutator: UserDecorator, early: bool, step: StepDefinition) -> None:
        super().__init__(definition, mutator, early)
        self._step = step

    @property
    def name(self) -> str:
        """The step's name."""
        return self._step.name

    @property
    def flow(self) -> MutableFlow:
        """The step's flow."""
        return MutableFlow(self._definition, self._mutator, self._early)

    def add_decorator(
        self,
        deco_type: Any,
        deco_args: Sequence[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
        duplicates: int = IGNORE,
    ) -> None:
        """Give the step a decorator, as the outermost one; a StepMutator only in pre_mutate.

        Parameters
        ----------
        deco_type : str or type
            A name (``"retry"``, also with attributes: ``"retry:times=2"``), a decorator (``retry``), or a class of
            UserStepDecorators or StepMutators.
        deco_args, deco_kwargs : optional
            What would stand in the parentheses.
        duplicates : int
            What happens where the step has one of the name already: IGNORE leaves that one, OVERRIDE replaces it,
            ERROR refuses.
        """
        made = self._made(deco_type, deco_args, deco_kwargs, "step")
        if not isinstance(made, StepDecorator):
            raise UsageError(f"@{made.name} is for flows, not for steps", "add it to the flow, in pre_mutate")
        self._check_phase(made, "added")
        self._add(self._step.decorators, made, duplicates, f"step '{self._step.name}'")

    def _lists(self) -> list[list[Any]]:
        return [self._step.decorators]


# -- carrying mutators out -----------------------------------------------------------------------------------------


def pre_mutate(definition: FlowDefinition) -> list[Problem]:
    """Have every mutator act a first time; return what is wrong.

    Those that are added meanwhile act after the others.
    """
    return _all_act(definition, "pre_mutate", early=True)


def mutate(definition: FlowDefinition) -> list[Problem]:
    """Have every mutator act a second time, on what ``--with`` has added as well; return what is wrong."""
    problems = _all_act(definition, "mutate", early=False)
    for step in definition.steps.values():
        definition.graph[step.name].decorators = tuple(decorator.name for decorator in step.decorators)
    return problems


def _all_act(definition: FlowDefinition, hook: str, *, early: bool) -> list[Problem]:
    problems: list[Problem] = []
    for mutator in _growing(definition.mutators):
        _act(mutator, hook, MutableFlow(definition, mutator, early), problems)
    for step in definition.steps.values():
        for mutator in _growing(step.decorators, of_step=True):
            _act(mutator, hook, MutableStep(definition, mutator, early, step), problems)
    return problems


def _growing(held: list[Any], *, of_step: bool = False) -> Iterator[Any]:
    """Yield every mutator of a list that may change meanwhile, each once: of a step the innermost one first."""
    done: list[Any] = []
    while True:
        order = [one for one in reversed(held) if one.mutates] if of_step else held
        following = next((one for one in order if not any(one is each for each in done)), None)
        if following is None:
            return
        done.append(following)
        yield following


def _act(mutator: Any, hook: str, target: Any, problems: list[Problem]) -> None:
    found = mutator.begin()
    if not found and not getattr(mutator, "_broken", False):
        try:
            getattr(mutator, hook)(target)
        except FlowInvalid as error:
            found = [each._replace(headline=f"@{mutator.name}, {hook}: {each.headline}") for each in error.problems]
        except Exception as error:  # the border to the user's code
            found = [hook_problem(mutator, hook, error)]
    if found:
        mutator._broken = True
    problems += found


def _name(deco_type: Any) -> str:
    if isinstance(deco_type, str):
        return deco_type.partition(":")[0]
    return str(_class_of(deco_type).name)


def _class_of(deco_type: Any) -> type[Decorator]:
    found = deco_type.decorator if isinstance(deco_type, StepMark | FlowMark) else deco_type
    if isinstance(found, type) and issubclass(found, Decorator):
        return found
    raise UsageError(f"{deco_type!r} is no decorator", 'give its name, e.g. "retry", or the decorator itself')


def _resolved(deco_type: Any, kind: str) -> tuple[type[Decorator], Mapping[str, Any]]:
    if isinstance(deco_type, str):
        name, attributes = parse_decospec(deco_type)
        return find_decorator(name, flow=kind == "flow"), attributes
    spec = getattr(deco_type, "spec", None)
    if spec is not None:  # Timing(label="x"), as it would stand above a step
        return spec[0], spec[1]
    return _class_of(deco_type), {}


def _spec(decorator: Decorator) -> DecoratorSpec:
    attributes = dict(decorator.attributes)
    args = list(attributes.pop(POSITIONAL, ()))
    cls = type(decorator)
    return DecoratorSpec(decorator.name, f"{cls.__module__}.{cls.__qualname__}", args, attributes)
