"""A newcomer can follow the README in an empty folder: every snippet in it is run as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]


@pytest.fixture
def newcomer(workspace):
    hello, squares, client = _blocks("python")
    workspace.write("flow.py", hello)
    workspace.write("squares.py", squares)
    workspace.write("client.py", client)
    return workspace


def test_every_command_works_in_the_order_of_the_readme(newcomer) -> None:
    commands = _commands()
    assert ["flow.py", "run"] in commands
    for file, *arguments in commands:
        newcomer.run(*arguments, flow=file, check=True)


def test_the_client_finds_what_the_first_flow_left(newcomer) -> None:
    newcomer.run("run", check=True)
    printed = newcomer.run(flow="client.py", check=True).stdout
    assert "['Hello, Ada!', 'Hello, Grace!', 'Hello, Katherine!']" in printed
    # Newest first, as everywhere in the client.
    assert re.findall(r"^\d Hello, (\w+)!$", printed, re.MULTILINE)


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)", "".join(_blocks("sh")) + README))
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    assert {"demo", "test", "clean", "help"} <= named
    assert named <= targets


def test_every_link_leads_to_a_file() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target
