"""Reads what a method does to ``self`` from its source, following every path at once and running nothing.

A state is carried through the statements; branches are walked apart and joined. The rule for everything that is not
understood is the same: from there on anything may be set (`State.unsure`), so nothing is complained about. Code
that runs later or never (lambdas, nested functions, generators, methods passed on) may set names at any time, and its
own reads are not judged.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any

from flowkit.model.effects import UNSURE, Effects, State
from flowkit.model.effects_expressions import Expressions, argument_names
from flowkit.model.effects_names import catches_missing, constant_truth, swallows
from flowkit.model.effects_self import GONE, Shared

_DEEPEST = 25
"""How many methods deep calls are followed."""


class Analysis(Shared):
    """The effects of a flow's methods, each walked through once.

    Parameters
    ----------
    cls : type
        The flow's class.
    """

    def __init__(self, cls: type) -> None:
        super().__init__(cls)
        self._known: dict[tuple[CodeType, type], Effects] = {}
        self._open: list[tuple[CodeType, type]] = []
        self._recursive: set[tuple[CodeType, type]] = set()

    def effects(self, function: FunctionType, owner: type, *, inputs: bool = False) -> Effects:
        """Return the effects of a method; recursion and what cannot be read make it unsure.

        Parameters
        ----------
        function : function
            As it stands in the class.
        owner : type
            The class.
        inputs : bool
            Whether its second argument is the inputs of a join.
        """
        key = (function.__code__, owner)
        if key in self._known:
            return self._known[key]
        if key in self._open:
            self._recursive.update(self._open[self._open.index(key) :])
            return UNSURE
        if len(self._open) > _DEEPEST:
            return UNSURE
        source = self.methods.source(function)
        if source is None:
            return UNSURE
        self._open.append(key)
        try:
            found = Walk(self, function, source, owner, inputs).run()
        except RecursionError:  # an expression nested deeper than Python follows
            found = UNSURE
        finally:
            self._open.pop()
        if key in self._recursive:
            # What one turn of a recursion reads, the turn before it may have set.
            found = found._replace(needs=())
        self._known[key] = found
        return found


class Walk(Expressions):
    """One walk through one function."""

    def run(self) -> Effects:
        """Walk the whole function."""
        end = State()
        self.block(self.source.body, end)
        for state in self.returns:
            end.join(state)
        if not self.self_known:
            return UNSURE
        sets = {name for name in self.log if not name.startswith(GONE)}
        return Effects(
            needs=tuple(need for need in self.needs if need.kind != "input" or self.inputs_known),
            reads=frozenset(self.reads),
            added=frozenset(end.added),
            deleted=frozenset(end.deleted),
            surely=frozenset(end.surely),
            sets=frozenset(sets),
            deletes=frozenset(name[1:] for name in self.log if name.startswith(GONE)),
            merged=end.merged,
            unsure=end.unsure,
            never_ends=end.dead,
        )

    def block(self, statements: Sequence[ast.stmt], state: State) -> None:
        """Walk statements until one of them leaves."""
        for statement in statements:
            if state.dead:
                return
            handler = _STATEMENTS.get(type(statement))
            if handler is not None:
                handler(self, statement, state)
            else:
                self.visit(statement, state)

    def assign(self, node: ast.Assign, state: State) -> None:
        """``a = b = value``; ``first = inputs[0]`` gives an input a name."""
        if self.input_source(node.value) is None:
            self.visit(node.value, state)
        elif not all(isinstance(target, ast.Name) and target.id in self.input_names for target in node.targets):
            self.inputs_known = False
        self.visit_all(node.targets, state)

    def assign_more(self, node: ast.AugAssign, state: State) -> None:
        """``self.x += 1`` reads and sets."""
        target = node.target
        if isinstance(target, ast.Attribute):
            before = ast.copy_location(ast.Attribute(target.value, target.attr, ast.Load()), target)
            self.visit(before, state)
        self.visit(node.value, state)
        self.visit(target, state)

    def assign_typed(self, node: ast.AnnAssign, state: State) -> None:
        """``self.x: int = 1``; without a value nothing happens."""
        if node.value is not None:
            self.visit(node.value, state)
            self.visit(node.target, state)

    def branch(self, node: ast.If, state: State) -> None:
        """``if``."""
        truth = constant_truth(node.test)
        if truth is not None:
            self.block(node.body if truth else node.orelse, state)
            return
        self.visit(node.test, state)
        other = state.copy()
        self.block(node.body, state)
        self.block(node.orelse, other)
        state.join(other)

    def loop(self, node: ast.For | ast.AsyncFor | ast.While, state: State) -> None:
        """A loop: what a turn sets, the next one may read."""
        if not isinstance(node, ast.While):
            self.visit_iterable(node.iter, state)
        self.absorb(self._sets_of_loop(node), state)
        truth = constant_truth(node.test) if isinstance(node, ast.While) else None
        if isinstance(node, ast.While):
            self.visit(node.test, state)
        if truth is False:
            self.block(node.orelse, state)
            return
        body, after = state.copy(), state
        breaks = self._turn(node, body)
        after.dead = after.dead or truth is True
        self.block(node.orelse, after)
        for left in breaks:
            after.join(left)

    def _turn(self, node: ast.For | ast.AsyncFor | ast.While, state: State) -> list[State]:
        self.loops.append([])
        if not isinstance(node, ast.While):
            self.visit(node.target, state)
        self.block(node.body, state)
        return self.loops.pop()

    def _sets_of_loop(self, node: ast.For | ast.AsyncFor | ast.While) -> frozenset[str]:
        """What a turn may do, found by a first turn; kept, so that nested loops are not walked ever more often."""
        found = self._set_in_loop.get(id(node))
        if found is None:
            mark, returns = len(self.log), len(self.returns)
            self.trial += 1
            if isinstance(node, ast.While):
                self.visit(node.test, State())
            self._turn(node, State())
            self.trial -= 1
            del self.returns[returns:]
            found = self._set_in_loop[id(node)] = frozenset(self.log[mark:])
        return found

    def leave_loop(self, node: ast.Break, state: State) -> None:
        """``break``."""
        if self.loops:
            self.loops[-1].append(state.copy())
        state.dead = True

    def next_turn(self, node: ast.Continue, state: State) -> None:
        """``continue``: the loop's entry knows already all that a turn may do."""
        state.dead = True

    def leave(self, node: ast.Return, state: State) -> None:
        """``return``."""
        if node.value is not None:
            self.visit(node.value, state)
        self.returns.append(state.copy())
        state.dead = True

    def fail(self, node: ast.Raise, state: State) -> None:
        """``raise``."""
        self.visit_all([node.exc, node.cause], state)
        state.dead = True

    def attempt(self, node: Any, state: State) -> None:
        """``try``: any part of its body may have run when a handler begins."""
        before, mark = state.copy(), len(self.log)
        left = [self.returns, *self.loops]
        counts = [len(states) for states in left]
        if any(catches_missing(handler.type, self.function) for handler in node.handlers):
            with self.unjudged():
                self.block(node.body, state)
        else:
            self.block(node.body, state)
        failed = before.copy()
        self.absorb(self.log[mark:], failed)
        self.block(node.orelse, state)
        for handler in node.handlers:
            if handler.name == self.me:
                self.self_known = False
            handled = failed.copy()
            self.block(handler.body, handled)
            state.join(handled)
        if node.finalbody:
            last, end = before.copy(), len(self.log)
            self.absorb(self.log[mark:], last)
            self.block(node.finalbody, last)
            names = self.log[end:]
            self.absorb(names, state)
            state.surely |= last.surely
            state.dead = state.dead or last.dead
            for states, count in zip(left, counts, strict=True):
                for early in states[count:]:
                    self.absorb(names, early)

    def enclose(self, node: ast.With | ast.AsyncWith, state: State) -> None:
        """``with``: some context managers swallow exceptions."""
        before, mark = state.copy(), len(self.log)
        for item in node.items:
            self.visit(item.context_expr, state)
            if item.optional_vars is not None:
                self.visit(item.optional_vars, state)
        if not any(swallows(item.context_expr, self.function) for item in node.items):
            self.block(node.body, state)
            return
        with self.unjudged():
            self.block(node.body, state)
        self.absorb(self.log[mark:], before)
        state.join(before)

    def match(self, node: Any, state: State) -> None:
        """``match``."""
        self.visit(node.subject, state)
        before = state.copy()
        for case in node.cases:
            branch = before.copy()
            self.visit(case.pattern, branch)
            if case.guard is not None:
                self.visit(case.guard, branch)
            self.block(case.body, branch)
            state.join(branch)

    def define(self, node: ast.FunctionDef | ast.AsyncFunctionDef, state: State) -> None:
        """A function in the function runs later."""
        self.visit_all([*node.decorator_list, *node.args.defaults, *node.args.kw_defaults], state)
        if node.name == self.me:
            self.self_known = False
        if self.me not in argument_names(node.args):
            self.later(lambda away: self.block(node.body, away), state)

    def define_class(self, node: ast.ClassDef, state: State) -> None:
        """A class in the function."""
        self.visit_all([*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)], state)
        self.later(lambda away: self.block(node.body, away), state)


_Handler = Callable[[Walk, Any, State], None]
_STATEMENTS: dict[type[ast.AST], _Handler] = {
    ast.Assign: Walk.assign,
    ast.AugAssign: Walk.assign_more,
    ast.AnnAssign: Walk.assign_typed,
    ast.If: Walk.branch,
    ast.For: Walk.loop,
    ast.AsyncFor: Walk.loop,
    ast.While: Walk.loop,
    ast.Break: Walk.leave_loop,
    ast.Continue: Walk.next_turn,
    ast.Return: Walk.leave,
    ast.Raise: Walk.fail,
    ast.Try: Walk.attempt,
    ast.With: Walk.enclose,
    ast.AsyncWith: Walk.enclose,
    ast.Match: Walk.match,
    ast.FunctionDef: Walk.define,
    ast.AsyncFunctionDef: Walk.define,
    ast.ClassDef: Walk.define_class,
    **({ast.TryStar: Walk.attempt} if hasattr(ast, "TryStar") else {}),
}
