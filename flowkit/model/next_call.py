"""How a step's source says where the flow goes: the ``self.next`` at the end of its body, read with `ast`.

Only the last statement counts, so that the graph is known before anything runs. Everything that is not one of
the forms of `flowkit.model.flowspec.FlowSpec.next` is explained, not guessed at.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeGuard

from flowkit.exceptions import did_you_mean

FunctionSource = ast.FunctionDef | ast.AsyncFunctionDef
NextKind = Literal["linear", "split", "foreach", "parallel", "switch", "end", "invalid"]

_OPTIONS = ("foreach", "num_parallel", "condition")
_SWITCH_FORM = "self.next({'a': self.x, 'b': self.y}, condition='name_of_an_artifact')"
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_BLOCKS: dict[type[ast.stmt], str] = {
    ast.For: "a loop",
    ast.AsyncFor: "a loop",
    ast.While: "a loop",
    ast.With: "a with block",
    ast.AsyncWith: "a with block",
    ast.Try: "a try block",
}


class NextCall(NamedTuple):
    """The transition at the end of one step.

    Parameters
    ----------
    kind : str
        As for `flowkit.model.graph.Node`; ``end`` where the step has no ``self.next`` at all, ``invalid`` where it
        has one that cannot be understood (then `problem` says why and `hint` what to write instead).
    targets : tuple of str
        The names after ``self.``, in order, each once.
    variable : str, optional
        The artifact named by ``foreach`` or ``condition``.
    cases : dict of str to str, optional
        For a switch: the text of each case to its target.
    line : int, optional
        Where ``self.next`` stands.
    mentions : tuple of str
        Where it is not understood: every attribute of self that the call speaks of.
    """

    kind: NextKind
    targets: tuple[str, ...] = ()
    variable: str | None = None
    cases: dict[str, str] | None = None
    line: int | None = None
    problem: str | None = None
    hint: str | None = None
    mentions: tuple[str, ...] = ()


class _NotUnderstood(Exception):
    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def read_next_call(function: FunctionSource) -> NextCall:
    """Return the transition of a step from the source of its function."""
    me = _first_argument(function)
    last = function.body[-1]
    call = last.value if isinstance(last, ast.Expr) else None
    if not _is_next(call, me):
        return _without_last_call(function, me)
    try:
        if isinstance(function, ast.AsyncFunctionDef):
            raise _NotUnderstood("a step cannot be an async function", "write def, and asyncio.run(…) inside the step")
        return _read(call, me)._replace(line=call.lineno)
    except _NotUnderstood as error:
        return NextCall(
            "invalid", line=call.lineno, problem=error.problem, hint=error.hint, mentions=_mentions(call, me)
        )


def arguments(function: FunctionSource) -> int:
    """Count the arguments of a step's function, self included; ``*args`` and the like count as one each."""
    given = function.args
    plain = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
    return plain + (given.vararg is not None) + (given.kwarg is not None)


def _first_argument(function: FunctionSource) -> str:
    given = [*function.args.posonlyargs, *function.args.args]
    return given[0].arg if given else "self"


def _is_next(expression: ast.AST | None, me: str) -> TypeGuard[ast.Call]:
    return (
        isinstance(expression, ast.Call)
        and isinstance(expression.func, ast.Attribute)
        and expression.func.attr == "next"
        and isinstance(expression.func.value, ast.Name)
        and expression.func.value.id == me
    )


# -- the forms ----------------------------------------------------------------------------------------------------


def _read(call: ast.Call, me: str) -> NextCall:
    options = _read_options(call)
    positional = call.args
    for argument in positional:
        if isinstance(argument, ast.Starred):
            raise _NotUnderstood(
                f"self.next takes steps one by one, not '{_text(argument)}'",
                "name every step: self.next(self.a, self.b), or use a foreach over a list of what differs",
            )
    if not positional:
        raise _NotUnderstood("self.next names no step", "name the step that follows: self.next(self.end)")
    if "condition" in options or any(isinstance(argument, ast.Dict) for argument in positional):
        return _read_switch(positional, options, me)
    targets = tuple(_target(argument, me) for argument in positional)
    if len(set(targets)) < len(targets):
        twice = next(name for name in targets if targets.count(name) > 1)
        raise _NotUnderstood(
            f"self.next names the step '{twice}' twice", "to run a step several times use a foreach over a list"
        )
    if "foreach" in options:
        variable = _artifact_name(options["foreach"], "foreach", "xs", me)
        return NextCall("foreach", _only(targets, "foreach"), variable)
    if "num_parallel" in options:
        return NextCall("parallel", _only(targets, "num_parallel"))
    return NextCall("linear" if len(targets) == 1 else "split", targets)


def _read_options(call: ast.Call) -> dict[str, ast.expr]:
    options: dict[str, ast.expr] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise _NotUnderstood(
                f"self.next takes its options one by one, not '**{_text(keyword.value)}'",
                "write the option out, e.g. foreach='xs'",
            )
        if keyword.arg not in _OPTIONS:
            raise _NotUnderstood(
                f"self.next has no option '{keyword.arg}'",
                did_you_mean(keyword.arg, _OPTIONS) or f"its options: {', '.join(_OPTIONS)}",
            )
        if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is None):
            options[keyword.arg] = keyword.value
    if len(options) > 1:
        raise _NotUnderstood(
            f"self.next takes one of {' and '.join(options)}, not both",
            "put a step between, one transition each",
        )
    return options


def _read_switch(positional: list[ast.expr], options: dict[str, ast.expr], me: str) -> NextCall:
    cases = positional[0]
    if not isinstance(cases, ast.Dict) or len(positional) != 1:
        if "condition" in options:
            raise _NotUnderstood("a condition goes with one dict of cases, written out in the call", _SWITCH_FORM)
        raise _NotUnderstood("self.next takes either steps or one dict of cases", _SWITCH_FORM)
    if "condition" not in options:
        other = next(iter(options), None)
        raise _NotUnderstood(
            f"{other} does not go with a dict of cases" if other else "self.next got a dict without a condition",
            _SWITCH_FORM,
        )
    variable = _artifact_name(options["condition"], "condition", "kind", me)
    if not cases.keys:
        raise _NotUnderstood("the dict of cases is empty", _SWITCH_FORM)
    read: dict[str, str] = {}
    values: set[Any] = set()
    for key, target in zip(cases.keys, cases.values, strict=True):
        text, value = _case(key, me)
        if value in values or text in read:
            raise _NotUnderstood(
                f"two cases of the switch read {text}",
                "a dict keeps only the last of equal keys, and 1, 1.0 and True are equal: make the cases differ",
            )
        values.add(value)
        read[text] = _target(target, me)
    return NextCall("switch", tuple(dict.fromkeys(read.values())), variable, read)


def _case(key: ast.expr | None, me: str) -> tuple[str, Any]:
    """Return a case's text and a value to compare it by."""
    if isinstance(key, ast.Constant) and isinstance(key.value, (str, int, float)):
        return str(key.value), key.value
    if isinstance(key, ast.UnaryOp) and isinstance(key.op, ast.USub) and isinstance(key.operand, ast.Constant):
        number = key.operand.value
        if isinstance(number, (int, float)):
            return str(-number), -number
    path = _attribute_path(key, me)
    if len(path) > 1:
        text = f"config:{'.'.join(path)}"
        return text, (text,)
    raise _NotUnderstood(
        "a case of the switch is "
        + (f"'{_text(key)}', which is known only at run time" if key is not None else "a dict that is unpacked"),
        "write a string, a number, True, False or self.<config>.<key> as the case",
    )


def _attribute_path(expression: ast.expr | None, me: str) -> list[str]:
    """Return ``['a', 'b']`` for ``self.a.b``; nothing for anything else."""
    path: list[str] = []
    while isinstance(expression, ast.Attribute):
        path.append(expression.attr)
        expression = expression.value
    return path[::-1] if isinstance(expression, ast.Name) and expression.id == me else []


def _target(expression: ast.expr, me: str) -> str:
    if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name) and expression.value.id == me:
        return expression.attr
    text = _text(expression)
    problem = f"self.next takes steps, not '{text}'"
    if isinstance(expression, ast.Name):
        raise _NotUnderstood(problem, f"write self.next({me}.{expression.id})")
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        name = expression.value
        raise _NotUnderstood(
            f"self.next takes steps, not the text {text}",
            f"write self.next({me}.{name})" if name.isidentifier() else None,
        )
    if isinstance(expression, ast.Call) and _attribute_path(expression.func, me):
        raise _NotUnderstood(
            f"self.next takes the step itself, not a call of it: '{text}'",
            f"write self.next({_text(expression.func)}), without the parentheses",
        )
    if isinstance(expression, ast.IfExp):
        raise _NotUnderstood(problem, f"what is decided at run time is a switch: {_SWITCH_FORM}")
    if isinstance(expression, (ast.List, ast.Tuple)):
        raise _NotUnderstood(problem, "name the steps one after the other: self.next(self.a, self.b)")
    raise _NotUnderstood(problem, "name each step as self.<step>")


def _artifact_name(value: ast.expr, option: str, example: str, me: str) -> str:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        if value.value.isidentifier():
            return value.value
        raise _NotUnderstood(
            f"{option}={_text(value)} is not the name of an artifact",
            f"assign it first, self.{example} = …, and write {option}='{example}'",
        )
    path = _attribute_path(value, me)
    name = path[0] if len(path) == 1 else example
    raise _NotUnderstood(
        f"{option} takes the name of an artifact as a string, not '{_text(value)}'",
        f"write {option}='{name}'" + ("" if len(path) == 1 else f", with self.{example} = … before it"),
    )


def _only(targets: tuple[str, ...], option: str) -> tuple[str, ...]:
    if len(targets) != 1:
        raise _NotUnderstood(
            f"{option} goes to one step, not to {len(targets)}",
            "go to one step, and let that one split: self.next(self.a, self.b)",
        )
    return targets


# -- what is wrong where the last statement is not self.next -------------------------------------------------------


def _without_last_call(function: FunctionSource, me: str) -> NextCall:
    """Return ``end`` for a step without any ``self.next``, else say why the one that it has does not count."""
    for statement in function.body:
        if isinstance(statement, _DEFINITIONS):
            continue
        call = next((node for node in _inside(statement) if _is_next(node, me)), None)
        if call is not None:
            break
    else:
        return NextCall("end")
    problem, hint = _misplaced(statement, call, function.body[-1])
    mentions = tuple(name for node in _inside(function) if _is_next(node, me) for name in _mentions(node, me))
    return NextCall("invalid", line=call.lineno, problem=problem, hint=hint, mentions=mentions)


def _misplaced(statement: ast.stmt, call: Any, last: ast.stmt) -> tuple[str, str]:
    if isinstance(statement, ast.If) or type(statement).__name__ == "Match":
        word = "an if" if isinstance(statement, ast.If) else "a match"
        return (
            f"self.next stands inside {word}, so the graph cannot be known before the run",
            f"assign what decides to an artifact and end the step with a switch: {_SWITCH_FORM}",
        )
    block = next((text for kind, text in _BLOCKS.items() if isinstance(statement, kind)), None)
    block = block or ("a try block" if type(statement).__name__ == "TryStar" else None)
    if block:
        return f"self.next stands inside {block}", "move it after the block, as the last statement of the step"
    if isinstance(statement, ast.Return):
        return "self.next is returned", "write self.next(…) as a statement of its own, without return"
    if isinstance(statement, ast.Expr) and statement.value is call:
        return (
            "self.next is not the last statement of the step",
            f"move self.next to the end, after what stands in line {last.lineno}",
        )
    return (
        "self.next is part of another statement",
        "write self.next(…) as a statement of its own, the last of the step",
    )


def _inside(root: ast.AST) -> Iterator[ast.AST]:
    """Every node of a tree but those of functions and classes defined in it, in the order of the source."""
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        if node is root or not isinstance(node, _DEFINITIONS):
            todo.extend(reversed(list(ast.iter_child_nodes(node))))


def _mentions(call: ast.Call, me: str) -> tuple[str, ...]:
    found = [node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute) and _attribute_path(node, me)]
    found += [node.id for node in ast.walk(call) if isinstance(node, ast.Name)]
    found += [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return tuple(dict.fromkeys(found))


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else text[:57] + "…"
