"""Walks expressions: who reads and sets attributes of ``self`` and of the inputs of a join, and who is handed them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any

from flowkit.model.effects import ReadKind, State
from flowkit.model.effects_names import called_class, is_name, literal_names
from flowkit.model.effects_self import MERGED, OnSelf

_CONSUMERS = frozenset({"all", "any", "dict", "frozenset", "list", "max", "min", "set", "sorted", "sum", "tuple"})
_HARMLESS = frozenset({"id", "isinstance", "type"})
_SEES_LOCALS = frozenset({"eval", "exec", "locals", "vars"})
_SEES_FRAMES = frozenset({"_getframe", "currentframe"})


class Expressions(OnSelf):
    """The walk through the expressions of one function."""

    def visit(self, node: ast.AST, state: State) -> None:
        """Walk an expression, in the order in which Python evaluates it."""
        handler = _EXPRESSIONS.get(type(node))
        if handler is not None:
            handler(self, node, state)
            return
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, ast.AST):
                self.visit(value, state)
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, ast.AST):
                        self.visit(item, state)

    def visit_all(self, nodes: Iterable[ast.AST | None], state: State) -> None:
        """Walk several expressions, one after the other."""
        for node in nodes:
            if node is not None:
                self.visit(node, state)

    def visit_nothing(self, node: ast.AST, state: State) -> None:
        """A constant."""

    def visit_name(self, node: ast.Name, state: State) -> None:
        """A name that stands alone: self or the inputs are handed to somebody."""
        if node.id == self.me:
            if isinstance(node.ctx, ast.Load):
                self.unsure(state)
            else:
                self.self_known = False
        elif node.id == self.inputs or (node.id in self.input_names and isinstance(node.ctx, ast.Load)):
            self.inputs_known = False

    def visit_attribute(self, node: ast.Attribute, state: State) -> None:
        """``self.x``, ``inputs[0].x`` or an attribute of anything else: read, set or deleted."""
        name = self.name(node.attr)
        base = node.value
        if is_name(base, self.me):
            if isinstance(node.ctx, ast.Store):
                self.store(name, state)
            elif isinstance(node.ctx, ast.Del):
                self.delete(name, state)
            else:
                self.load(name, node.lineno, state)
            return
        source = self.input_source(base)
        if source is not None:
            self._visit_input(node, name, source, state)
            return
        if isinstance(base, ast.Call) and is_name(base.func, "super") and not base.args:
            self.load(name, node.lineno, state, self.owner)
            return
        if not isinstance(node.ctx, ast.Load) and self._is_class(base):
            self.analysis.guarded.add(name)
        self.visit(base, state)

    def _is_class(self, node: ast.expr) -> bool:
        """Whether an expression may be the flow's class, whose attributes every flow object has."""
        if isinstance(node, ast.Name):
            return isinstance(self.function.__globals__.get(node.id, str), type)
        return isinstance(node, ast.Call) or (isinstance(node, ast.Attribute) and node.attr == "__class__")

    def input_source(self, node: ast.expr) -> str | None:
        """The step of the input that an expression is, ``""`` for any of them; None where it is no input."""
        if not self.inputs:
            return None
        if isinstance(node, ast.Name):
            return "" if node.id in self.input_names else None
        if isinstance(node, ast.Subscript) and is_name(node.value, self.inputs):
            return None if isinstance(node.slice, ast.Slice) else ""
        if isinstance(node, ast.Attribute) and is_name(node.value, self.inputs):
            return node.attr
        return None

    def _visit_input(self, node: ast.Attribute, name: str, source: str, state: State) -> None:
        if isinstance(node.value, ast.Subscript):
            self.visit(node.value.slice, state)
        attribute = self.methods.attribute(name)
        if not isinstance(node.ctx, ast.Load):
            self.analysis.guarded.add(name)
        elif attribute is None:
            self.read(name, node.lineno, state, "input", source or None)
        elif not self.methods.is_ours(attribute) and (
            isinstance(attribute.value, property) or not self._is_inert(attribute)
        ):
            self.inputs_known = False  # a method of the flow may set attributes of an input

    def visit_call(self, node: ast.Call, state: State) -> None:
        """A call: of a method of the flow, of a built-in function that looks at attributes, of anything else."""
        function = node.func
        if isinstance(function, ast.Attribute):
            if self._call_on_self(node, function, state):
                return
            if function.attr in _SEES_FRAMES:
                self.unsure(state)
        elif isinstance(function, ast.Name) and self._call_builtin(node, function.id, state):
            return
        self.visit(function, state)
        self.visit_arguments(node, state)

    def visit_arguments(self, node: ast.Call, state: State, skip: int = 0) -> None:
        """Walk the arguments of a call; a generator given to a function that uses it up is as good as a list."""
        function = node.func
        consumed = isinstance(function, ast.Name) and function.id in _CONSUMERS
        consumed = consumed or (isinstance(function, ast.Attribute) and function.attr == "join")
        for argument in node.args[skip:]:
            if consumed and isinstance(argument, ast.GeneratorExp):
                self.visit_comprehension(argument, state)
            else:
                self.visit(argument, state)
        for keyword in node.keywords:
            self.visit(keyword.value, state)

    def _call_on_self(self, node: ast.Call, function: ast.Attribute, state: State) -> bool:
        name = self.name(function.attr)
        after: type | None = None
        skip = 0
        if is_name(function.value, self.me):
            if name == "next":
                self._call_next(node, state)
                return True
            if name == "merge_artifacts":
                self._call_merge(node, state)
                return True
        elif isinstance(function.value, ast.Call) and is_name(function.value.func, "super") and not function.value.args:
            after = self.owner
        elif node.args and is_name(node.args[0], self.me):
            base = called_class(function.value, self.function, self.methods.cls)
            if base is None:
                return False
            order = self.methods.cls.__mro__
            after, skip = (order[order.index(base) - 1] if order.index(base) else None), 1
        else:
            return False
        self.visit_arguments(node, state, skip)
        attribute = self.methods.attribute(name, after)
        if attribute is None:
            self.load(name, function.lineno, state, after)
        else:
            self.call_method(name, attribute, state)
        return True

    def _call_next(self, node: ast.Call, state: State) -> None:
        """``self.next``: the steps in it are not read; what foreach and condition name has to be set."""
        for argument in node.args:
            if isinstance(argument, ast.Dict):
                self.visit_all(argument.keys, state)
                self.visit_all((value for value in argument.values if not self._is_target(value)), state)
            elif not self._is_target(argument):
                self.visit(argument, state)
        for keyword in node.keywords:
            value = keyword.value
            named = isinstance(value, ast.Constant) and isinstance(value.value, str)
            if named and keyword.arg in ("foreach", "condition"):
                if self.methods.attribute(value.value) is None:  # type: ignore[attr-defined]
                    kind: ReadKind = "foreach" if keyword.arg == "foreach" else "condition"
                    self.read(value.value, node.lineno, state, kind)  # type: ignore[attr-defined]
            else:
                self.visit(value, state)

    def _is_target(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Attribute) and is_name(node.value, self.me)

    def _call_merge(self, node: ast.Call, state: State) -> None:
        given: dict[str, ast.expr] = dict(zip(("inputs", "exclude", "include"), node.args, strict=False))
        given.update({keyword.arg or "**": keyword.value for keyword in node.keywords})
        for name, value in given.items():
            if not (name == "inputs" and is_name(value, self.inputs)):
                self.visit(value, state)
        include = literal_names(given.get("include"))
        if include:
            for name in include:
                state.assign(name)
            self.log += include
            return
        state.merge(frozenset(literal_names(given.get("exclude")) or ()))
        self.log.append(MERGED)

    def _call_builtin(self, node: ast.Call, called: str, state: State) -> bool:
        """Handle the built-in functions that matter; False leaves the call to be walked as any other."""
        arguments = node.args
        if called in _SEES_LOCALS and (called != "vars" or not arguments):
            self.unsure(state)
            return False
        if called == "len" and len(arguments) == 1 and is_name(arguments[0], self.inputs):
            return True
        if called == "super":
            if arguments:
                self.unsure(state)
            return True
        if called in ("hasattr", "getattr", "setattr", "delattr") and len(arguments) >= 2:
            return self._call_reflection(node, called, state)
        if called in _HARMLESS and arguments and is_name(arguments[0], self.me):
            self.visit_all(arguments[1:], state)
            return True
        return False

    def _call_reflection(self, node: ast.Call, called: str, state: State) -> bool:
        target, key = node.args[0], node.args[1]
        name = key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None
        asks = called == "hasattr" or (called == "getattr" and len(node.args) > 2)
        if asks and name is not None:
            self.analysis.guarded.add(name)
            self.reads.add(name)
        if not is_name(target, self.me):
            if called in ("setattr", "delattr") and name is not None:
                self.analysis.guarded.add(name)
            return False
        self.visit_all(node.args[1:], state)
        if name is None:
            self.unsure(state)
        elif called == "setattr":
            self.store(name, state)
        elif called == "delattr":
            self.delete(name, state)
        elif asks:
            with self.unjudged():
                self.load(name, node.lineno, state)
        else:
            self.load(name, node.lineno, state)
        return True

    def visit_branches(self, node: ast.BoolOp | ast.IfExp, state: State) -> None:
        """``a and b``, ``a or b``, ``a if b else c``: not every part runs."""
        first, *rest = node.values if isinstance(node, ast.BoolOp) else (node.test, node.body, node.orelse)
        self.visit(first, state)
        before = state.copy()
        for part in rest:
            branch = before.copy()
            self.visit(part, branch)
            state.join(branch)

    def visit_comprehension(self, node: Any, state: State) -> None:
        """A comprehension: its element runs any number of times."""
        self.visit_iterable(node.generators[0].iter, state)
        mark, known = len(self.log), len(self.needs)
        branch = state.copy()
        self._visit_element(node, branch)
        if len(self.log) > mark:
            # Something is set in there, which the next turn may read.
            for need in list(self.needs)[known:]:
                del self.needs[need]
            self.absorb(self.log[mark:], state)
            branch = state.copy()
            self._visit_element(node, branch)
        state.join(branch)

    def _visit_element(self, node: Any, state: State) -> None:
        for position, part in enumerate(node.generators):
            if position:
                self.visit_iterable(part.iter, state)
            self.visit(part.target, state)
            self.visit_all(part.ifs, state)
        self.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt], state)

    def visit_iterable(self, node: ast.expr, state: State) -> None:
        """What a loop goes over; the inputs themselves are known, and are not handed to anybody."""
        if is_name(node, self.inputs):
            return
        if isinstance(node, ast.Call) and is_name(node.func, "enumerate") and is_name(node.args[:1], self.inputs):
            return
        self.visit(node, state)

    def visit_generator(self, node: ast.GeneratorExp, state: State) -> None:
        """A generator runs when somebody takes from it; only what it goes over is evaluated now."""
        self.visit_iterable(node.generators[0].iter, state)
        self.later(lambda away: self._visit_element(node, away), state)

    def visit_lambda(self, node: ast.Lambda, state: State) -> None:
        """A lambda runs later."""
        self.visit_all([*node.args.defaults, *node.args.kw_defaults], state)
        if self.me not in argument_names(node.args):
            self.later(lambda away: self.visit(node.body, away), state)


def argument_names(arguments: ast.arguments) -> set[str]:
    """Return the names that a function gives to what it is called with."""
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in given if argument is not None}


_Handler = Callable[[Expressions, Any, State], None]
_EXPRESSIONS: dict[type[ast.AST], _Handler] = {
    ast.Constant: Expressions.visit_nothing,
    ast.Name: Expressions.visit_name,
    ast.Attribute: Expressions.visit_attribute,
    ast.Call: Expressions.visit_call,
    ast.BoolOp: Expressions.visit_branches,
    ast.IfExp: Expressions.visit_branches,
    ast.ListComp: Expressions.visit_comprehension,
    ast.SetComp: Expressions.visit_comprehension,
    ast.DictComp: Expressions.visit_comprehension,
    ast.GeneratorExp: Expressions.visit_generator,
    ast.Lambda: Expressions.visit_lambda,
}
