"""docs/cli.md names every command and every option, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from flowkit import Config, FlowSpec, project, step, trigger_on_finish
from flowkit.cli import console_script, main
from flowkit.cli.console import Console
from flowkit.cli.session import Session
from flowkit.model.definition import define
from flowkit.registry import TABLES

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


class Plain(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


@trigger_on_finish(flow="Plain")
@project(name="demo")
class Decorated(FlowSpec):
    train = Config("train")

    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


def _commands(group: click.Group, obj: object, prefix: str = "") -> dict[str, set[str]]:
    """Every command that is shown, with its options."""
    found = {}
    ctx = click.Context(group, obj=obj)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        assert command.help or command.name == "logs", name
        if isinstance(command, click.Group):
            found.update(_commands(command, obj, f"{prefix}{name} "))
        else:
            found[f"{prefix}{name}"] = _options(command)
    return found


def _options(command: click.Command) -> set[str]:
    return {
        name
        for param in command.params
        if isinstance(param, click.Option) and not param.hidden
        for name in (*param.opts, *param.secondary_opts)
    }


SCHEDULERS = frozenset(TABLES["deployers"])
"""Their commands are documented once for all of them."""
JOBS = {("kubernetes", "list"), ("kubernetes", "kill")}
"""Commands of groups of that name that have nothing to do with deployments."""


def _program() -> dict[str, set[str]]:
    session = Session(define(Plain), Console())
    found = _commands(main._group(session), session)
    found["logs"] = found.pop("logs show")
    for name in list(found):
        target, _, verb = name.partition(" ")
        if target in SCHEDULERS and (target, verb) not in JOBS:
            found.setdefault(f"TARGET {verb.removesuffix('-deployments')}", set()).update(found.pop(name))
    console = Console()
    return {**found, **_commands(console_script._group(console), console, "flowkit ")}


def _section(title: str) -> str:
    match = re.search(rf"^###? {re.escape(title)}\n(.*?)(?=^##|\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert match, f"docs/cli.md has no section '{title}'"
    return match[1]


def _named(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(re.findall(r"`([^`\n]+)`", text))))


def test_the_commands_are_those_of_the_program():
    documented = set(re.findall(r"^### (.+)$", DOCS, re.MULTILINE))
    assert documented == set(_program())


@pytest.mark.parametrize("name", sorted(_program()))
def test_a_command_has_its_options_and_an_example(name):
    section = _section(name)
    assert _named(section) == _program()[name]
    program = name if name.startswith("flowkit") else f"python flow.py {name}"
    example = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert example
    if name.startswith("TARGET "):
        assert re.search(rf"^python flow\.py .*\b({'|'.join(SCHEDULERS)}) {name.partition(' ')[2]}\b", section, re.M)
    else:
        assert program in example[1]


def test_the_options_before_the_command():
    session = Session(define(Plain), Console())
    options = _options(main._group(session)) | {"--help", "-h"}
    ours = _options(main._group(Session(define(Decorated), Console()))) - options
    assert ours == {"--branch", "--production", "--trigger", "--config", "--config-value"}
    assert _named(_section("Before the command")) == options | ours | {"--no-pylint", "--environment"}
    assert _options(console_script._group(Console())) == {"--quiet", "--not-quiet", "-q"}
