"""Where the source of a flow's steps is, and what is wrong with how they are written down.

Each file is parsed once; the functions are found by their first line, so that a flow of ten thousand steps costs one
parse. `linecache` knows notebook cells and modules inside archives as well as files.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from flowkit.exceptions import Location, Problem
from flowkit.model.next_call import FunctionSource


class StepSource(NamedTuple):
    """The source of one step.

    Parameters
    ----------
    function : ast node
        The ``def``.
    owner : ast.ClassDef or None
        The class in whose body it stands.
    """

    function: FunctionSource
    owner: ast.ClassDef | None


def plain_function(value: Any) -> FunctionType | None:
    """Return the function that the user wrote, below whatever `functools.wraps` put around it."""
    seen: set[int] = set()
    while hasattr(value, "__wrapped__") and id(value) not in seen:
        seen.add(id(value))
        value = value.__wrapped__
    return value if isinstance(value, FunctionType) else None


def find_sources(functions: Iterable[FunctionType]) -> dict[CodeType, StepSource]:
    """Return the source of each function that has one.

    Parameters
    ----------
    functions : iterable of function
        From any number of files. Those whose source cannot be read, or has changed so that another function stands
        in their place, are missing from the result.
    """
    by_file: dict[str, list[FunctionType]] = {}
    for function in functions:
        by_file.setdefault(function.__code__.co_filename, []).append(function)
    found: dict[CodeType, StepSource] = {}
    for file, members in by_file.items():
        tree = _parse(file, members[0].__globals__)
        if tree is None:
            continue
        wanted = sorted({function.__code__.co_firstlineno for function in members})
        by_line = {_first_line(source.function): source for source in _functions(tree, wanted)}
        for function in members:
            source = by_line.get(function.__code__.co_firstlineno)
            if source is not None and source.function.name == function.__code__.co_name:
                found[function.__code__] = source
    return found


_parsed: dict[str, tuple[list[str], ast.Module]] = {}
"""What was parsed, by file, until `forget_sources`: the lines, which tell whether the file is still the same."""


def forget_sources() -> None:
    """Give back the memory of the files that were parsed: nobody is going to ask for more of their functions."""
    _parsed.clear()


def _parse(file: str, module_globals: dict[str, Any]) -> ast.Module | None:
    linecache.checkcache(file)
    lines = linecache.getlines(file, module_globals)
    known = _parsed.get(file)
    if known is not None and known[0] is lines:
        return known[1]
    try:
        tree = ast.parse("".join(lines)) if lines else None
    except (SyntaxError, ValueError):
        return None
    if tree is not None:
        _parsed[file] = (lines, tree)
    return tree


def _functions(tree: ast.Module, wanted: list[int]) -> Iterator[StepSource]:
    """The functions that begin in one of the lines; only what contains such a line is looked into."""
    from bisect import bisect_left

    todo: list[tuple[list[ast.stmt], ast.ClassDef | None]] = [(tree.body, None)]
    while todo:
        body, owner = todo.pop()
        for statement in body:
            first, last = _first_line(statement), statement.end_lineno or statement.lineno
            position = bisect_left(wanted, first)
            if position == len(wanted) or wanted[position] > last:
                continue
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield StepSource(statement, owner)
            inner = statement if isinstance(statement, ast.ClassDef) else owner
            todo.extend((block, inner) for block in _blocks(statement))


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if block:
            yield block
    for name in ("handlers", "cases"):
        for part in getattr(statement, name, ()):
            yield part.body


def _first_line(statement: ast.stmt) -> int:
    """The line that `co_firstlineno` tells: that of the first decorator, where there is one."""
    decorators = getattr(statement, "decorator_list", None)
    return decorators[0].lineno if decorators else statement.lineno


# -- mistakes in the class body ------------------------------------------------------------------------------------


def source_problems(sources: Iterable[tuple[FunctionType, StepSource]]) -> tuple[list[Problem], set[str]]:
    """Return what is wrong with how steps are written down, as far as only the source tells, and whose steps got lost.

    Parameters
    ----------
    sources : iterable of (function, StepSource)
        The steps that were found.

    Returns
    -------
    problems : list of Problem
        Names that are given twice in one class body.
    lost : set of str
        Those of them that end up as something else than a step.
    """
    problems: list[Problem] = []
    lost: set[str] = set()
    owners: dict[int, tuple[str, ast.ClassDef]] = {}
    for function, source in sources:
        if source.owner is not None:
            owners.setdefault(id(source.owner), (function.__code__.co_filename, source.owner))
    for file, owner in owners.values():
        for name, before, after in _given_twice(owner):
            both = _is_step(before) and _is_step(after)
            what = f"the step '{name}' is defined twice" if both else f"'{name}' is a step and something else"
            problems.append(
                Problem(
                    f"{what} in {owner.name}: in line {before.lineno} and in line {after.lineno}",
                    Location(file, after.lineno),
                    "only the last one counts: rename one of the two",
                )
            )
            if not _is_step(after):
                lost.add(name)
    return problems, lost


def _given_twice(owner: ast.ClassDef) -> Iterator[tuple[str, ast.stmt, ast.stmt]]:
    """The names that a class body gives again where one of the two is a step, with both statements."""
    earlier: dict[str, ast.stmt] = {}
    for statement in owner.body:
        for name in _names_given(statement):
            before = earlier.get(name)
            if before is not None and (_is_step(before) or _is_step(statement)):
                yield name, before, statement
            earlier[name] = statement


def _names_given(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and statement.value is not None and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _is_step(statement: ast.stmt) -> bool:
    return any(_decorator_name(item) == "step" for item in getattr(statement, "decorator_list", ()))


def _decorator_name(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""
