"""``@exit_hook``: functions that run when a run is over."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import flow_decorator
from flowkit.decorators.attributes import check_options, items
from flowkit.decorators.contract import FlowDecorator
from flowkit.exceptions import Problem

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition

_ATTRIBUTES = ("on_success", "on_error")


class ExitHook(FlowDecorator):
    """Call functions when the run is over. May stand above a flow several times.

    A hook runs in a process of its own, after the run; one that fails is reported and changes nothing about the run.

    Parameters
    ----------
    on_success : list of functions
        Called after a run that succeeded, with the client's Run object where they take an argument.
    on_error : list of functions
        Called after any other run: failed, or stopped.
    options : dict
        For the scheduler of a deployed flow.

    Examples
    --------
    >>> def tell(run):
    ...     print(f"{run.pathspec} failed")
    >>> @exit_hook(on_error=[tell])
    ... class TrainFlow(FlowSpec): ...
    """

    name = "exit_hook"
    defaults = {"on_success": [], "on_error": [], "options": {}}
    multiple = True

    def configure_flow(self, flow: FlowDefinition, options: Mapping[str, Any]) -> list[Problem]:
        """Check that the hooks are functions of at most one argument."""
        problems = check_options(self)
        hooks = [(name, hook) for name in _ATTRIBUTES for hook in items(self.attributes[name])]
        for name, hook in hooks:
            if not callable(hook):
                problems.append(
                    self.problem(
                        f"@exit_hook({name}=…): {hook!r} is not a function", f"write {name}=[function], without ()"
                    )
                )
            elif _argument(hook) is False:
                problems.append(
                    self.problem(
                        f"@exit_hook({name}=…): {_label(hook)} needs more than a run",
                        f"write def {_label(hook)}(run): …",
                    )
                )
        if not hooks and not problems:
            problems.append(self.problem("@exit_hook has no function", "give on_success=[…] or on_error=[…]"))
        return problems

    def run_ended(self, flow: FlowDefinition, pathspec: str, state: str) -> list[Problem]:
        """Call the hooks for this end of the run, one after the other."""
        name = "on_success" if state == "succeeded" else "on_error"
        problems = []
        for hook in items(self.attributes[name]):
            wrong = _call(hook, pathspec)
            if wrong:
                problems.append(self.problem(f"the exit hook {_label(hook)} {wrong}", "the run is not affected"))
        return problems


def _label(hook: Any) -> str:
    return str(getattr(hook, "__name__", type(hook).__name__))


def _argument(hook: Callable[..., Any]) -> str | bool | None:
    """How a hook takes the run: a keyword's name, True for the first place, None for not, False for impossible."""
    import inspect

    try:
        parameters = list(inspect.signature(hook).parameters.values())
    except (TypeError, ValueError):  # built-in functions tell nothing
        return None
    required = [
        item
        for item in parameters
        if item.default is item.empty and item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
    ]
    named = next((item for item in parameters if item.name == "run" and item.kind is not item.VAR_POSITIONAL), None)
    if len(required) > 1 or (len(required) == 1 and named is not None and required[0] is not named):
        return False
    if named is not None and named.kind not in (named.POSITIONAL_ONLY, named.VAR_KEYWORD):
        return "run"
    if len(required) == 1:
        return required[0].kind is not required[0].KEYWORD_ONLY
    return None


def _call(hook: Callable[..., Any], pathspec: str) -> str | None:
    """Call one hook in a process of its own; return what went wrong."""
    if not hasattr(os, "fork"):
        return _call_here(hook, pathspec)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_the_hook(hook, pathspec)
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        import signal

        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    return f"was killed by signal {-code}" if code < 0 else f"failed (exit status {code}, see above)"


def _be_the_hook(hook: Callable[..., Any], pathspec: str) -> None:
    """The child: call the hook and end, whatever happens, without going back into the caller's code."""
    import signal

    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        code = 1 if _call_here(hook, pathspec) else 0
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _call_here(hook: Callable[..., Any], pathspec: str) -> str | None:
    from flowkit import context

    try:
        how = _argument(hook)
        if how is None or how is False:
            hook()
            return None
        if context.client_factory is None:
            raise RuntimeError("there is no client in this process")
        run = context.client_factory("run", pathspec)
        if how is True:
            hook(run)
        else:
            hook(run=run)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            return None
        from flowkit.exceptions import user_traceback

        sys.stderr.write(user_traceback(error))
        return f"failed: {type(error).__name__}"
    return None


exit_hook = flow_decorator(ExitHook)
