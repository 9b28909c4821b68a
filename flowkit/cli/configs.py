"""The flow's configs on the command line: read before any command is made, since commands depend on them.

``run``, ``check`` and the like take them from ``--config``, ``--config-value``, the environment and defaults.
``resume`` has those of the run that it resumes, ``step`` those of its run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from flowkit.cli.session import root_of
from flowkit.exceptions import FlowkitError, UsageError, did_you_mean
from flowkit.model.config_files import Source, choose, read
from flowkit.model.configs import options
from flowkit.model.definition import FlowDefinition
from flowkit.model.parameters import ParameterContext
from flowkit.settings import settings, variable

if TYPE_CHECKING:
    from flowkit.cli.session import Session
    from flowkit.datastore.storage import Storage

_WITHOUT = frozenset(
    {"status", "logs", "dump", "tag", "cancel", "batch", "kubernetes", "docker", "help", "version", "step", "spin"}
)
"""Commands that look at runs and need no configs; ``step`` and ``spin`` have those of their run."""
_JOBS = frozenset({"list", "kill"})
"""Commands of ``kubernetes`` that look at jobs; the others deploy the flow, and need its configs."""
FILES = "FLOWKIT_FLOW_CONFIG"
VALUES = "FLOWKIT_FLOW_CONFIG_VALUE"


def config_options(definition: FlowDefinition) -> list[click.Parameter]:
    """Return the options before the command by which configs are given."""
    names = [options(config).name for config in definition.configs.values()]
    choice = " | ".join(names)
    return [
        click.Option(
            ["--config"],
            nargs=2,
            multiple=True,
            allow_from_autoenv=False,
            metavar=f"[{choice}] FILE",
            help="Read a config of the flow from a file: JSON, TOML or YAML.  " + _told(definition),
        ),
        click.Option(
            ["--config-value"],
            nargs=2,
            multiple=True,
            allow_from_autoenv=False,
            metavar=f"[{choice}] JSON",
            help="Give the values of a config.",
        ),
        # From a deployment to its runs: the values of deploy time, which no parser reads again.
        click.Option(["--stored-configs"], hidden=True, allow_from_autoenv=False),
    ]


def _told(definition: FlowDefinition) -> str:
    parts = []
    for config in definition.configs.values():
        said = options(config)
        notes = [said.help or ""]
        if said.required and said.default is None and said.default_value is None:
            notes.append("required")
        elif said.show_default and isinstance(said.default, str):
            notes.append(f"default: {said.default}")
        told = ", ".join(note for note in notes if note)
        parts.append(f"{said.name} ({told})" if told else said.name)
    return "Configs: " + "; ".join(parts) + "."


def settle(session: Session, group: click.Group, arguments: Sequence[str], commands: Mapping[str, Any]) -> bool:
    """Have the flow as it is with its configs, where the command needs that; return whether it was done.

    Parameters
    ----------
    session : Session
        The command.
    group : click.Group
        The options before the command, as far as they are known.
    arguments : sequence of str
        The command line.
    commands : mapping
        The names of the commands.
    """
    given = scan(arguments, group, commands)
    if given.command == "spin" and (given.files or given.values):
        raise UsageError(
            "spin takes no --config and no --config-value: it has the configs of the run whose inputs it takes",
            "leave them out; or begin a new run with them: run",
        )
    if given.command in _WITHOUT and (given.command != "kubernetes" or not _JOBS.isdisjoint(given.rest[:1])):
        return False
    try:
        values = _values_for(session, given)
        session.settle(values)
    except FlowkitError:
        if not given.asks_for_help:
            raise
        return False  # the options that are known have to do
    return True


def _values_for(session: Session, given: Given) -> dict[str, Any]:
    if not session.definition.configs:
        return {}
    if given.command != "resume":
        stored = given.place.get("stored_configs")
        return given_values(session, given) if stored is None else _stored(session, stored)
    if given.files or given.values:
        raise UsageError(
            "resume takes no --config and no --config-value: a run that is resumed keeps its configs",
            "leave them out; or begin a new run with them: run",
        )
    session.root = root_of(given.place.get("datastore"), given.place.get("datastore_root"))
    session.metadata = given.place.get("metadata", settings().metadata)
    from flowkit.cli.resume import parameters_to_resume

    storage = session.storage()
    return values_of_run(session, storage, parameters_to_resume(session, storage, given.rest))


def _stored(session: Session, text: str) -> dict[str, Any]:
    """Return the values that a deployment has kept."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UsageError("--stored-configs is no JSON mapping from attributes to values", "it is for deployments only")
    return {attribute: values.get(attribute) for attribute in session.definition.configs}


class Given(NamedTuple):
    """What stands before the command: configs as (name, file) and (name, JSON), and the place of the runs."""

    files: list[tuple[str, str]]
    values: list[tuple[str, str]]
    place: dict[str, str]
    command: str | None
    rest: list[str]
    asks_for_help: bool


def scan(arguments: Sequence[str], group: click.Group, commands: Mapping[str, Any]) -> Given:
    """Read what stands before the command, without acting on any of it: click does that, once the flow is whole.

    Parameters
    ----------
    arguments : sequence of str
        The command line.
    group : click.Group
        The options of the flow as far as they are known; those that mutators add are not.
    commands : mapping
        The names of the commands.
    """
    known = {name: option for option in group.params for name in (*option.opts, *option.secondary_opts)}
    found = Given([], [], {}, None, [], False)
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if word in ("--help", "-h"):
            found = found._replace(asks_for_help=True)
        name, equals, text = word.partition("=")
        option = known.get(name)
        if name in ("--config", "--config-value"):
            words = ([text] if equals else []) + list(arguments[position:])
            position += 1 if equals else 2
            if len(words) >= 2:
                (found.files if name == "--config" else found.values).append((words[0], words[1]))
            else:  # click says so
                found = found._replace(asks_for_help=True)
        elif isinstance(option, click.Option) and not option.is_flag:
            if not equals:
                text = arguments[position] if position < len(arguments) else ""
                position += 1
            found.place[str(option.name)] = text
        elif word in commands:
            rest = list(arguments[position:])
            helps = found.asks_for_help or "--help" in rest or "-h" in rest
            return found._replace(command=word, rest=rest, asks_for_help=helps)
    return found


def given_values(session: Session, given: Given) -> dict[str, Any]:
    """Return the values of the flow's configs, as they are kept with a run, by attribute name.

    Raises
    ------
    UsageError
        With everything that is wrong: unknown names, files that cannot be read, values that do not fit.
    """
    definition = session.definition
    wrong: list[UsageError] = []
    sources = _sources(definition, given, wrong)
    values: dict[str, Any] = {}
    folder = os.path.dirname(os.path.abspath(definition.file))
    for attribute, config in definition.configs.items():
        name = options(config).name
        context = ParameterContext(definition.name, session.user, name, session.console.say, "local")
        try:
            values[attribute] = read(config, choose(config, sources.get(attribute), context, folder))
        except UsageError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise UsageError("several configs are wrong:\n" + "\n".join(f"  {error}" for error in wrong))
    return values


def _sources(definition: FlowDefinition, given: Given, wrong: list[UsageError]) -> dict[str, Source]:
    """Return what was given for each config, by attribute name; the command line wins over the environment."""
    found: dict[str, Source] = {}
    layers: tuple[tuple[str, str, Sequence[tuple[str, Any]], Sequence[tuple[str, Any]]], ...] = (
        (FILES, VALUES, list(_variable(FILES, wrong).items()), list(_variable(VALUES, wrong).items())),
        ("--config", "--config-value", given.files, given.values),
    )
    for for_file, for_value, files, values in layers:
        here: dict[str, Source] = {}
        for origin, pairs, is_file in ((for_file, files, True), (for_value, values, False)):
            for name, what in pairs:
                attribute = _attribute(definition, name, origin, wrong)
                if attribute is None:
                    continue
                before = here.get(attribute)
                if before is not None and before.origin != origin:
                    wrong.append(
                        UsageError(
                            f"the config '{name}' is given a file by {for_file} and a value by {for_value}",
                            "give one of the two",
                        )
                    )
                elif before is not None:
                    wrong.append(UsageError(f"{origin}: the config '{name}' is given twice", "give it once"))
                here[attribute] = Source(origin, str(what)) if is_file else Source(origin, None, what)
        found.update(here)
    return found


def _attribute(definition: FlowDefinition, name: str, origin: str, wrong: list[UsageError]) -> str | None:
    known = {options(config).name: attribute for attribute, config in definition.configs.items()}
    folded = {each.lower().replace("-", "_"): attribute for each, attribute in known.items()}
    attribute = known.get(name) or folded.get(name.lower().replace("-", "_"))
    if attribute is None:
        hint = did_you_mean(name, known) or f"its configs: {', '.join(known)}"
        wrong.append(UsageError(f"{origin}: {definition.name} has no config '{name}'", hint))
    return attribute


def _variable(name: str, wrong: list[UsageError]) -> dict[str, Any]:
    text = variable(name)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        found = error
    if isinstance(found, dict) and (name == VALUES or all(isinstance(path, str) for path in found.values())):
        return found
    what = "files" if name == FILES else "values"
    wrong.append(
        UsageError(
            f"{name} is no JSON mapping from names of configs to {what}"
            + (f": {found}" if isinstance(found, Exception) else ""),
            f'for example {name}=\'{{"train": ' + ('"train.toml"}\'' if name == FILES else '{"lr": 0.1}}\''),
        )
    )
    return {}


# -- the configs of a run ------------------------------------------------------------------------------------------


def settle_as_run(session: Session, storage: Storage, run: str) -> None:
    """Have the flow as it was with the configs of a run.

    Raises
    ------
    NotFound
        If there is no such run.
    """
    if not session.definition.configs:
        session.settle({})
        return
    from flowkit.runtime.origin import run_parameters

    session.settle(values_of_run(session, storage, run_parameters(storage, session.definition.name, run)))


def values_of_run(session: Session, storage: Storage, manifest: Any) -> dict[str, Any]:
    """Return the configs that a run was started with, from its ``_parameters`` manifest."""
    from flowkit.datastore.artifacts import ArtifactReader
    from flowkit.datastore.blobs import Blobs

    reader = ArtifactReader(Blobs(storage))
    artifacts = manifest.artifacts
    known = [name for name in session.definition.configs if name in artifacts]
    return {name: reader.load(name, artifacts[name]) for name in known}
