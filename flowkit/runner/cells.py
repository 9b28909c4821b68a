"""From the cells of a notebook to a file: what a flow's cell defines, and what that needs of other cells."""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import re
import symtable
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flowkit.exceptions import UsageError
from flowkit.model.flowspec import FlowSpec

_ALWAYS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_VALUES = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Try, ast.If)
"""Statements that may define something, or run flows; what else a cell does, it does in the notebook only."""
_DRIVERS = frozenset({"NBRunner", "Runner", "NBDeployer", "Deployer", "get_ipython", "display"})
_PYTHON_MAGIC = re.compile(r"\s*%%(time|timeit|capture|prun)\b[^\n]*\n")
"""Magics of a whole cell that is Python beneath the line."""


class _Statement:
    """A statement at the top of a cell: its text, the names that it defines, and those that it needs."""

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        table = symtable.symtable(text, name, "exec")
        self.defines = {each.get_name() for each in table.get_symbols() if each.is_assigned() or each.is_imported()}
        self.defines |= {each.get_name() for each in table.get_symbols() if each.is_namespace()}
        self.needs = set(_globals(table)) - self.defines
        self.defines |= _star(text)


def program_of(flow: type[FlowSpec]) -> str:
    """Return the source of a flow file with all that the cell of the flow defines, and what that needs.

    Parameters
    ----------
    flow : class
        The flow, which a cell of this notebook (or a file) defines.

    Raises
    ------
    UsageError
        If its source cannot be found or is no plain Python, or a name that it needs is not defined by plain Python.
    """
    cell = _cell(flow)
    try:
        own = _statements(_plain(cell))
    except SyntaxError as error:
        raise UsageError(
            f"the cell of {flow.__name__} is not plain Python: {error.msg} (line {error.lineno})",
            "keep magics (% and !) in another cell than the flow",
        ) from error
    namespace = vars(sys.modules[flow.__module__])
    parts = [*_needed(own, namespace, flow.__name__), *(each.text for each in own)]
    return "\n\n".join([*_future(parts), f'if __name__ == "__main__":\n    {flow.__name__}()\n'])


def _needed(own: list[_Statement], namespace: Mapping[str, Any], flow: str) -> list[str]:
    """Return the statements of other cells that define what these need: what is needed first comes first."""
    defined = set().union(*(each.defines for each in own), vars(builtins), {"__name__", "__file__", "__doc__"})
    missing = sorted({name for each in own for name in each.needs} - defined)
    if not any(name in namespace for name in missing):
        return []
    others: dict[str, _Statement] = {}
    for cell in _history():
        try:
            statements = _statements(cell)
        except SyntaxError:
            continue  # it did not run either
        for statement in statements:
            others.update(dict.fromkeys(statement.defines, statement))
    found: dict[int, str] = {}
    begun: set[int] = set()
    todo = [(name, False) for name in reversed(missing)]
    while todo:
        name, done = todo.pop()
        provider = others.get(name)
        if provider is None:
            if name in namespace and name not in defined:
                raise UsageError(
                    f"{flow} needs '{name}', which no cell defines by plain Python",
                    "define it in the cell of the flow, or import it from a module beside the notebook",
                )
        elif done:
            found[id(provider)] = provider.text
        elif id(provider) not in begun:
            begun.add(id(provider))
            todo += [(name, True), *((each, False) for each in sorted(provider.needs - defined))]
    return list(found.values())


def _statements(source: str) -> list[_Statement]:
    """Return the statements of a cell that define something."""
    lines = source.split("\n")
    kept = []
    for statement in ast.parse(source).body:
        if isinstance(statement, _ALWAYS) or (isinstance(statement, _VALUES) and not _drives(statement)):
            first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))])
            end = statement.end_lineno or first
            alone = ast.get_source_segment(source, statement) if first == end else None
            kept.append(_Statement(alone or "\n".join(lines[first - 1 : end]), "cell"))
    return kept


def _drives(statement: ast.stmt) -> bool:
    """Whether a statement runs flows, or talks to the notebook, rather than defining something."""
    return any(
        isinstance(node, (ast.Await, ast.Yield)) or (isinstance(node, ast.Name) and node.id in _DRIVERS)
        for node in ast.walk(statement)
    )


def _globals(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the names that code takes from its module, at any depth."""
    module = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (module or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _globals(inner)


def _star(text: str) -> set[str]:
    """Return what ``from module import *`` has defined."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in sys.modules:
            module = sys.modules[node.module]
            found |= set(getattr(module, "__all__", None) or [name for name in vars(module) if name[:1] != "_"])
    return found


def _future(parts: list[str]) -> list[str]:
    """Put the imports from ``__future__`` first, as Python wants it."""
    first = dict.fromkeys(part for part in parts if part.startswith("from __future__"))
    return [*first, *(part for part in parts if part not in first)]


def _plain(source: str) -> str:
    """Return a cell without what is IPython's own: the line of a cell's magic, and lines that are magics."""
    source = _PYTHON_MAGIC.sub("", source, count=1)
    shell = _shell()
    return source if shell is None else str(shell.transform_cell(source))


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _history() -> list[str]:
    """Return the cells that were run, oldest first."""
    shell = _shell()
    cells: list[str] = [] if shell is None else shell.history_manager.input_hist_raw
    return [_plain(cell) for cell in cells]


def _cell(flow: type[FlowSpec]) -> str:
    """Return the text of the cell (or file) that defines a flow: its steps know where they were compiled."""
    for value in vars(flow).values():
        function = inspect.unwrap(value) if callable(value) else None
        code = getattr(function, "__code__", None)
        if code is not None and getattr(function, "__module__", None) == flow.__module__:
            lines = linecache.getlines(code.co_filename)
            if lines:
                return "".join(lines)
    shell = _shell()
    for cell in reversed([] if shell is None else shell.history_manager.input_hist_raw):
        if re.search(rf"^\s*class\s+{re.escape(flow.__name__)}\b", cell, re.MULTILINE):
            return str(cell)
    raise UsageError(
        f"the source of {flow.__name__} cannot be found",
        "define the flow in a cell of the notebook, or use Runner(file)",
    )
