"""Small questions about expressions in a step's source, for `flowkit.model.effects_walk`."""

from __future__ import annotations

import ast
import builtins
import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from flowkit.model.next_call import FunctionSource

_QUIET_CONTEXTS = frozenset({"chdir", "closing", "nullcontext", "redirect_stderr", "redirect_stdout"})
_NOTHING = object()


def is_name(node: Any, name: str) -> bool:
    """Whether an expression (or the only expression of a list) is one name, and that is not empty."""
    if isinstance(node, list):
        return len(node) == 1 and is_name(node[0], name)
    return isinstance(node, ast.Name) and node.id == name != ""


def constant_truth(node: ast.expr) -> bool | None:
    """Return whether a condition always or never holds; None where that is open."""
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        truth = constant_truth(node.operand)
        return None if truth is None else not truth
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return False if name == "TYPE_CHECKING" else None


def literal_names(node: ast.expr | None) -> list[str] | None:
    """Return the names in a list (tuple, set) that is written out; None for anything else."""
    if not isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return None
    names = [item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return names if len(names) == len(node.elts) else None


def resolve(node: ast.expr, function: FunctionType) -> Any:
    """Return what a (dotted) name of a module's globals stands for, or None; no code runs."""
    if isinstance(node, ast.Name):
        code = function.__code__
        if node.id in code.co_varnames or node.id in code.co_cellvars or node.id in code.co_freevars:
            return None
        found = function.__globals__.get(node.id, _NOTHING)
        return getattr(builtins, node.id, None) if found is _NOTHING else found
    if isinstance(node, ast.Attribute):
        base = resolve(node.value, function)
        return vars(base).get(node.attr) if isinstance(base, ModuleType) else None
    return None


def called_class(node: ast.expr, function: FunctionType, cls: type) -> type | None:
    """Return the class of the flow's ancestry that a name stands for, as in ``Base.prepare(self)``."""
    found = resolve(node, function)
    return found if isinstance(found, type) and found in cls.__mro__ else None


def catches_missing(kind: ast.expr | None, function: FunctionType) -> bool:
    """Whether a handler may catch the AttributeError of an artifact that is not there."""
    if kind is None:
        return True
    if isinstance(kind, ast.Tuple):
        return any(catches_missing(item, function) for item in kind.elts)
    found = resolve(kind, function)
    return not isinstance(found, type) or issubclass(AttributeError, found)


def swallows(node: ast.expr, function: FunctionType) -> bool:
    """Whether a context manager may swallow an exception: any but those known from the standard library."""
    found = resolve(node.func, function) if isinstance(node, ast.Call) else None
    if not isinstance(found, (type, FunctionType, BuiltinFunctionType, MethodType)):
        return True
    top = str(found.__module__).partition(".")[0]
    if top == "contextlib":
        return found.__name__ not in _QUIET_CONTEXTS
    return top not in sys.stdlib_module_names or top == "unittest"


def inputs_of(function: FunctionSource, inputs: str) -> tuple[frozenset[str], bool]:
    """Return the names that are always one of a join's inputs, and whether no other name can be one.

    Parameters
    ----------
    function : ast node
        The join.
    inputs : str
        What it calls its inputs.
    """
    all_bound: dict[str, int] = {}
    by_inputs: dict[str, int] = {}
    known = True
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            all_bound[node.id] = all_bound.get(node.id, 0) + 1
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            target = _target_of_inputs(node.target, node.iter, inputs)
            if isinstance(target, ast.Name):
                by_inputs[target.id] = by_inputs.get(target.id, 0) + 1
            elif target is not None:
                known = False
        elif isinstance(node, ast.Assign) and _is_one_input(node.value, inputs):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    by_inputs[target.id] = by_inputs.get(target.id, 0) + 1
                else:
                    known = False
        elif isinstance(node, (ast.arg, ast.ExceptHandler, ast.alias)):
            name = node.arg if isinstance(node, ast.arg) else (node.name or "")
            all_bound[name] = all_bound.get(name, 0) + (name != inputs)
    tracked = frozenset(name for name, count in by_inputs.items() if all_bound.get(name, 0) == count)
    return tracked, known and len(tracked) == len(by_inputs) and not all_bound.get(inputs, 0)


def _target_of_inputs(target: ast.expr, iterable: ast.expr, inputs: str) -> ast.expr | None:
    """What a loop over the inputs binds to each; None where the loop is over something else."""
    if is_name(iterable, inputs):
        return target
    if isinstance(iterable, ast.Call) and is_name(iterable.func, "enumerate") and is_name(iterable.args[:1], inputs):
        if isinstance(target, ast.Tuple) and len(target.elts) == 2:
            return target.elts[1]
        return target
    return None


def _is_one_input(node: ast.expr, inputs: str) -> bool:
    if isinstance(node, ast.Subscript):
        return is_name(node.value, inputs) and not isinstance(node.slice, ast.Slice)
    return isinstance(node, ast.Attribute) and is_name(node.value, inputs)
