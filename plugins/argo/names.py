"""Names of what flowkit makes in Argo Workflows: of deployments, and of the templates and tasks within one.

Templates and tasks may have letters, digits and hyphens only; a template's name becomes part of its pods' names, which
are in small letters, and a task's name stands in expressions (``depends``), which have words of their own.
"""

from __future__ import annotations

import re

from flowkit.plugins.kubernetes.syntax import digest

NAME_LIMIT = 52
"""Characters of a deployment's name: a CronWorkflow's limit, since eleven follow it in the names of its runs, and a
run's name is the value of a label."""
_SHORT = 45
_CAMEL = re.compile(r"(?:[A-Z][a-z0-9]+)+")
_WORD = re.compile(r"[A-Z][a-z0-9]+")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_EXPRESSION_WORDS = frozenset(
    ("true", "false", "nil", "and", "or", "not", "in", "if", "else", "let", "matches", "contains", "startswith",
     "endswith", "all", "none", "any", "one", "filter", "map", "find", "count", "sum", "reduce", "len", "type", "abs",
     "ceil", "floor", "round", "int", "float", "string", "trim", "upper", "lower", "split", "replace", "repeat", "join",
     "max", "min", "mean", "median", "now", "duration", "date", "timezone", "first", "last", "get", "take", "keys",
     "values", "reverse", "concat", "sort", "uniq", "flatten", "bitand", "bitor", "bitxor", "bitnand", "bitnot",
     "bitshl", "bitshr", "bitushr", "jsonpath", "sprig", "item", "workflow", "inputs", "outputs", "tasks", "steps")
)  # fmt: skip
"""What means something in an expression: a task of the name of a built-in function breaks ``depends``
(https://github.com/argoproj/argo-workflows/issues/12037)."""


def deployment_name(flow: str, project: str | None, branch: str | None) -> str:
    """Return what a flow is called where nobody says: ``train-flow``, ``project.branch.train-flow``.

    Where small letters cannot tell it from another flow or branch, or it is too long, a hash goes behind it.

    Examples
    --------
    >>> deployment_name("TrainFlow", None, None)
    'train-flow'
    >>> deployment_name("TrainFlow", "digits", "user.ann")
    'digits.user.ann.train-flow'
    """
    whole = ".".join(part for part in (project, branch, flow) if part)
    words = "-".join(_WORD.findall(flow)) if _CAMEL.fullmatch(flow) else flow
    told = ".".join(part for part in (project, branch, words) if part)
    parts = (re.sub(r"[^a-z0-9-]+", "-", part.lower()).strip("-") for part in told.split("."))
    name = ".".join(part for part in parts if part)
    spelled = [part for part in (project, branch) if part]
    same = bool(_CAMEL.fullmatch(flow)) and all(re.fullmatch(r"[a-z0-9.-]+", part) for part in spelled)
    if same and len(name) <= _SHORT and is_deployment_name(name):
        return name
    kept = re.sub(r"[-.]+$", "", name[: _SHORT - 7])
    return f"{kept or 'flow'}-{digest(whole, 6)}"


def is_deployment_name(name: str) -> bool:
    """Whether a text can be the name of a deployment."""
    return len(name) <= NAME_LIMIT and _NAME.fullmatch(name) is not None


class Names:
    """Gives each thing of one deployment a name that nothing else of its kind has."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def give(self, wanted: str) -> str:
        """Return a name like the one wanted: that one, if nobody has it and it can be one."""
        name = re.sub(r"[^a-z0-9-]+", "-", wanted.lower()).strip("-")
        if name in _EXPRESSION_WORDS or not name or name[0].isdigit():
            name = f"step-{name}".strip("-")
        if name in self._taken or len(name) > 100:
            name = f"{name[:80]}-{digest(wanted, 8)}"
        while name in self._taken:
            name = f"{name}-"  # two different texts with one hash
            name = f"{name}x"
        self._taken.add(name)
        return name
