"""The table of exit codes in the documentation is the table in the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from flowkit import exceptions

DOCUMENT = (Path(__file__).parents[2] / "docs" / "exit_codes.md").read_text(encoding="utf-8")


def _errors() -> dict[str, int]:
    return {
        name: kind.exit_code
        for name, kind in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(kind, exceptions.FlowkitError) and kind is not exceptions.FlowkitError
    }


def test_every_code_is_documented_in_its_own_words() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", DOCUMENT, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == exceptions.EXIT_CODES


def test_every_exception_is_documented_with_its_code() -> None:
    rows = re.findall(r"^\| (`.+) \| (\d+) \|$", DOCUMENT, re.MULTILINE)
    documented = {name: int(code) for names, code in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented == _errors()


def test_every_exception_is_drawn_in_the_tree() -> None:
    drawing = exceptions.__doc__ or ""
    for name in _errors():
        assert re.search(rf"── {name}\b", drawing), f"{name} is missing in the tree at the top of exceptions.py"


def test_every_exception_has_a_code_of_the_table() -> None:
    assert set(_errors().values()) <= set(exceptions.EXIT_CODES)
