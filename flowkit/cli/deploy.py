"""``python flow.py deploy --to TARGET`` and a group of commands for each target: the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from flowkit.cli.group import Group
from flowkit.cli.parameters import parameter_options
from flowkit.cli.seconds import Seconds
from flowkit.cli.session import Session
from flowkit.deployer.target import CreateOption, Target
from flowkit.deployer.targets import make_target, target_class
from flowkit.exceptions import UsageError
from flowkit.model.include_file import IncludeFile

DEFAULT = "local"
"""Where ``deploy`` goes where nothing is said."""
FILE = "file"
"""A target's option of this name is an argument: ``airflow create FILE``."""
_RUN_STATES = ("pending", "running", "succeeded", "failed", "cancelled")


def command(session: Session) -> click.Command:
    """Make ``deploy``: its options are those of the target that the command line names."""
    return _Deploy(session)


def local_command(session: Session) -> click.Command:
    """Make ``local``."""
    return target_command(session, "local")


def argo_workflows_command(session: Session) -> click.Command:
    """Make ``argo-workflows``."""
    return target_command(session, "argo-workflows")


def step_functions_command(session: Session) -> click.Command:
    """Make ``step-functions``."""
    return target_command(session, "step-functions")


def airflow_command(session: Session) -> click.Command:
    """Make ``airflow``."""
    return target_command(session, "airflow")


def target_command(session: Session, name: str) -> Group:
    """Make the group of commands of a target.

    Parameters
    ----------
    session : Session
        The command's flow.
    name : str
        The target's name in the registry.
    """
    cls = target_class(name)
    group = Group(name, help=f"Deploy the flow to {cls.label}, and look after its runs there.", no_args_is_help=True)
    add_commands(group, session, cls)
    return group


def add_commands(group: Group, session: Session, cls: type[Target]) -> None:
    """Add the commands of a target to a group, which may have some already: these stay."""
    group.params.append(_name_option())
    made = [_create(session, cls), _list(session, cls)]
    made += [make(session, cls) for verb, make in _VERBS.items() if verb in cls.verbs]
    for each in made:
        assert each.name is not None
        if each.name not in group.commands:
            group.add_command(each)
        elif each.name == "list":  # kubernetes lists jobs by that name
            group.add_command(each, "list-deployments")
    listing = "list-deployments" if "list-deployments" in group.commands else "list"
    group.aliases = {"list-workflow-templates": listing, "resume": "unsuspend"}


def _name_option() -> click.Option:
    return click.Option(
        ["--name"],
        callback=_some_text,
        help="What it is called there. Default: after the flow (and its @project's branch).",
    )


def _some_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value == "":  # of an unset variable of a shell: what another deployment is called may follow from it
        raise click.BadParameter("it is empty; leave it out for the default", ctx, param)
    return value


def _named(given: Mapping[str, Any]) -> str | None:
    """Return ``--name`` of the command, else that of its group."""
    if given.get("name") is not None:  # a parameter of the flow may have the option's name
        return str(given["name"])
    parent = click.get_current_context().parent
    name = parent.params.get("name") if parent is not None else None
    return None if name is None else str(name)


# -- create -----------------------------------------------------------------------------------------------------------


def _create(session: Session, cls: type[Target]) -> click.Command:
    def callback(**given: Any) -> int:
        from flowkit.cli.deploy_create import create, order_of

        given["name"] = _named(given)
        return create(session, order_of(make_target(cls, _own(cls, given), session.root), given))

    return click.Command(
        "create",
        callback=callback,
        params=create_options(cls.options),
        help=f"Deploy the flow to {cls.label}, or deploy it again.",
    )


def create_options(own: Sequence[CreateOption]) -> list[click.Parameter]:
    """Return the options of ``create``: those that every target has, then the target's own."""
    at_least = click.IntRange(min=1)
    options: list[click.Parameter] = [
        _name_option(),
        click.Option(["--authorize"], metavar="TOKEN", help="The production token of what is deployed there."),
        click.Option(["--generate-new-token"], is_flag=True, help="Give it a new production token."),
        click.Option(["--new-token"], metavar="TOKEN", help="Give it this production token."),
        click.Option(["--tag", "tags"], multiple=True, help="Tag its runs; may be repeated."),
        click.Option(["--namespace"], help="The namespace of its runs. Default: production:<token>."),
        click.Option(["--only-json"], is_flag=True, help="Print what would be deployed, and do nothing else."),
        click.Option(["--max-workers"], type=at_least, help="Tasks of a run at once. Default: 100."),
        click.Option(
            ["--max-log-size"], type=at_least, default=10, show_default=True, help="MB kept of each attempt's log."
        ),
        click.Option(
            ["--workflow-timeout"],
            type=Seconds(min=0, min_open=True),
            metavar="SECONDS",
            help="How long a run may take.",
        ),
        click.Option(
            ["--workflow-priority", "--priority", "priority"],
            type=int,
            help="Which run goes first, where the scheduler knows that: the higher number.",
        ),
        click.Option(
            ["--concurrency"],
            type=click.Choice(["allow", "forbid", "replace"]),
            default="allow",
            show_default=True,
            help="When it is due while a run of it goes on: start another one, leave it out, or end that one first.",
        ),
        click.Option(["--notify-on-error"], is_flag=True, help="Tell people when a run did not succeed."),
        click.Option(["--notify-on-success"], is_flag=True, help="Tell people when a run succeeded."),
        click.Option(["--workflow-title"], help="A title, for people."),
        click.Option(["--workflow-description"], help="What it is for, for people."),
        click.Option(
            ["--deployer-attribute-file", "--runner-attribute-file", "deployer_attribute_file"],
            type=click.Path(dir_okay=False),
            hidden=True,
        ),
    ]
    taken = {name for each in options for name in each.opts}
    return [*options, *(_target_option(option, taken) for option in own)]


def _target_option(option: CreateOption, taken: set[str]) -> click.Parameter:
    spelled = f"--{option.name.replace('_', '-')}"
    if spelled in taken:
        raise UsageError(f"the target's option {spelled} is one that every target has", "the target has to rename it")
    variable = f"target_{option.name}"
    if option.name == FILE:
        return click.Argument([variable], required=False, metavar="[FILE]")
    kind: Any = click.Choice(list(option.choices)) if option.choices else option.kind
    if option.kind is bool:
        names = f"{spelled}/--no-{spelled[2:]}" if option.default is True else spelled
        return click.Option([names, variable], is_flag=True, default=bool(option.default), help=option.help)
    return click.Option(
        [spelled, variable], type=kind, default=option.default, multiple=option.multiple, help=option.help
    )


def _own(cls: type[Target], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the target's own options."""
    return {option.name: given[f"target_{option.name}"] for option in cls.options}


class _Deploy(click.Command):
    """``deploy``, which has the options of the target that ``--to`` names."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._target = DEFAULT
        help = "Deploy the flow to a scheduler: --to argo-workflows --help tells the options of that one."
        super().__init__("deploy", callback=self._deploy, params=self._params(()), help=help)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find out which target it is before the options are read."""
        (to,) = (each for each in self.params if each.name == "to")
        self._target = to.resolve_envvar_value(ctx) or DEFAULT
        for position, word in enumerate(args):
            option, equals, value = word.partition("=")
            if option == "--to" and (equals or position + 1 < len(args)):
                self._target = value if equals else args[position + 1]
        self.params = self._params(target_class(self._target).options)
        return super().parse_args(ctx, args)

    @staticmethod
    def _params(own: Sequence[CreateOption]) -> list[click.Parameter]:
        to = click.Option(["--to"], default=DEFAULT, show_default=True, metavar="TARGET", help=_targets())
        return [to, *create_options(own)]

    def _deploy(self, to: str, **given: Any) -> int:
        from flowkit.cli.deploy_create import create, order_of

        cls = target_class(to)
        return create(self._session, order_of(make_target(cls, _own(cls, given), self._session.root), given))


def _targets() -> str:
    from flowkit.registry import TABLES

    return f"The scheduler: {', '.join(TABLES['deployers'])}, or one that a package brings."


# -- what is deployed, and its runs ----------------------------------------------------------------------------------


def _runs(name: str) -> Any:
    """Return a function of `flowkit.cli.deploy_runs`, imported when it is called."""

    def act(*args: Any, **options: Any) -> int:
        from flowkit.cli import deploy_runs

        done: int = getattr(deploy_runs, name)(*args, **options)
        return done

    return act


def _list(session: Session, cls: type[Target]) -> click.Command:
    def callback(all: bool, json: bool) -> int:
        done: int = _runs("list_deployed")(session, cls, everything=all, as_json=json)
        return done

    params: list[click.Parameter] = [
        click.Option(["--all"], is_flag=True, help="Of all flows, not of this one only."),
        click.Option(["--json"], is_flag=True, help="As JSON."),
    ]
    return click.Command("list", callback=callback, params=params, help=f"List what is deployed to {cls.label}.")


def _trigger(session: Session, cls: type[Target]) -> click.Command:
    def callback(**given: Any) -> int:
        done: int = _runs("trigger")(session, cls, _named(given), given)
        return done

    flow = [each for each in session.definition.parameters.values() if not isinstance(each, IncludeFile)]
    own: list[click.Parameter] = [
        _name_option(),
        click.Option(["--run-id-file"], type=click.Path(dir_okay=False), help="Write the run id there."),
        click.Option(["--runner-attribute-file"], type=click.Path(dir_okay=False), hidden=True),
    ]
    taken = {option for each in flow for option in (f"--{each.name}", f"--{each.name.replace('_', '-')}")}
    params = [each for each in own if taken.isdisjoint(each.opts)] + parameter_options(flow)
    return click.Command("trigger", callback=callback, params=params, help=f"Start a run on {cls.label} now.")


def _list_runs(session: Session, cls: type[Target]) -> click.Command:
    def callback(**given: Any) -> int:
        states = {state for state in _RUN_STATES if given[state]} | ({"failed"} if given["timed_out"] else set())
        done: int = _runs("list_runs")(session, cls, _named(given), states, given["limit"], as_json=given["json"])
        return done

    params: list[click.Parameter] = [_name_option()]
    for state in _RUN_STATES:
        names = [f"--{state}", *(["--aborted"] if state == "cancelled" else []), state]
        params.append(click.Option(names, is_flag=True, help=f"Those that are {state}; may be combined."))
    params.append(click.Option(["--timed-out"], is_flag=True, hidden=True))
    params.append(
        click.Option(
            ["--limit"], type=click.IntRange(min=1), default=20, show_default=True, help="At most so many, the newest."
        )
    )
    params.append(click.Option(["--json"], is_flag=True, help="As JSON."))
    return click.Command("list-runs", callback=callback, params=params, help=f"List runs on {cls.label}.")


def _status(session: Session, cls: type[Target]) -> click.Command:
    def callback(run: str, **given: Any) -> int:
        done: int = _runs("status")(session, cls, _named(given), run, as_json=given["json"])
        return done

    params: list[click.Parameter] = [
        click.Argument(["run"]),
        _name_option(),
        click.Option(["--json"], is_flag=True, help="As JSON."),
    ]
    return click.Command("status", callback=callback, params=params, help=f"Tell how a run on {cls.label} stands.")


def _authorized(verb: str, help: str) -> Any:
    """Return what makes a command that changes a run, for who has the token."""

    def make(session: Session, cls: type[Target]) -> click.Command:
        def callback(run: str, authorize: str | None, **given: Any) -> int:
            done: int = _runs("change")(session, cls, _named(given), verb, run, authorize)
            return done

        params: list[click.Parameter] = [click.Argument(["run"]), _name_option(), _authorize()]
        return click.Command(verb, callback=callback, params=params, help=help.format(label=cls.label))

    return make


def _authorize() -> click.Option:
    return click.Option(["--authorize"], metavar="TOKEN", help="The production token, where you have it not already.")


def _delete(session: Session, cls: type[Target]) -> click.Command:
    def callback(authorize: str | None, **given: Any) -> int:
        done: int = _runs("delete")(session, cls, _named(given), authorize)
        return done

    help = (
        f"Remove the deployment from {cls.label}: nothing starts any more. Runs are kept, and those that go on, go on."
    )
    return click.Command("delete", callback=callback, params=[_name_option(), _authorize()], help=help)


_VERBS: Mapping[str, Any] = {
    "trigger": _trigger,
    "status": _status,
    "list-runs": _list_runs,
    "suspend": _authorized("suspend", "Let a run on {label} start nothing more until it is unsuspended."),
    "unsuspend": _authorized("unsuspend", "Let a suspended run on {label} go on."),
    "terminate": _authorized("terminate", "Stop a run on {label}: what runs is ended, nothing more starts."),
    "delete": _delete,
}
"""What makes the command of each of `Target.verbs`."""
