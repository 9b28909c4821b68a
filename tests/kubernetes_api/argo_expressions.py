"""The expressions and templates of Argo Workflows, as far as flowkit writes them; everything else is refused.

There are three languages. ``{{name}}`` is text put into text; ``{{=…}}``, ``depends`` and a retry's ``expression`` are
those of expr-lang, with maps of what is known; ``when`` is one of govaluate's, in which only texts in quotes are
compared here, since its bare words would be taken for texts too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<number>\d+)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign>==|!=|<=|>=|&&|\|\||[-+?:().,\[\]!<>]))"
)
_TAG = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_BUILT_IN = frozenset(
    ("all", "none", "any", "one", "filter", "map", "find", "count", "sum", "reduce", "len", "type", "abs", "ceil",
     "floor", "round", "int", "float", "string", "trim", "upper", "lower", "split", "replace", "repeat", "join", "max",
     "min", "mean", "median", "now", "duration", "date", "timezone", "first", "last", "get", "take", "keys", "values",
     "reverse", "concat", "sort", "uniq", "flatten", "let", "not", "in", "and", "or", "nil", "matches", "contains")
)  # fmt: skip
"""Words of expr-lang that no task may be called, as far as they are in small letters."""
_LEVELS = (("||",), ("&&",), ("==", "!="), ("<", ">", "<=", ">="), ("+", "-"))
_KNOWN_TAGS = re.compile(
    r"workflow\.(name|uid|namespace|status|parameters\.[\w-]+|annotations\.[\w./-]+|labels\.[\w./-]+)"
    r"|inputs\.parameters\.[\w-]+|tasks\.[\w-]+\.(status|outputs\.parameters\.[\w-]+)|item|retries|lastRetry\.exitCode"
)


class Unknown(Exception):
    """A variable that is not there, or not yet."""


class Refused(Exception):
    """What real Argo would refuse, or what this interpreter does not know."""


# -- text put into text ------------------------------------------------------------------------------------------------


def replace(document: Any, known: Mapping[str, str], *, strict: bool = False) -> Any:
    """Return a document with every ``{{…}}`` replaced whose variables are known.

    As in Argo, that happens in the document's JSON: a value is escaped once, where it is put in.

    Raises
    ------
    Refused
        If a tag is none that flowkit should write, or (`strict`) its variable is not known.
    """
    text = json.dumps(document)

    def put(found: re.Match[str]) -> str:
        tag = found[1].strip()
        if tag.startswith("="):
            source = json.loads(f'"{tag[1:]}"')
            try:
                value = evaluate(source, nested(known))
            except Unknown:
                value = None
            if value is None:
                if strict:
                    raise Refused(f"failed to evaluate {source!r}")
                return found[0]
            value = str(value) if not isinstance(value, bool) else str(value).lower()
        else:
            if not _KNOWN_TAGS.fullmatch(tag):
                raise Refused(f"unknown tag {{{{{tag}}}}}")
            if tag not in known:
                if strict:
                    raise Refused(f"failed to resolve {{{{{tag}}}}}")
                return found[0]
            value = known[tag]
        return json.dumps(value)[1:-1]

    return json.loads(_TAG.sub(put, text))


def tags(document: Any) -> list[str]:
    """Return the variables of every tag in a document; of an expression, those that it asks for."""
    found: list[str] = []
    for tag in _TAG.findall(json.dumps(document)):
        tag = tag.strip()
        if tag.startswith("="):
            found += names_in(json.loads(f'"{tag[1:]}"'))
        else:
            found.append(tag)
    return found


def nested(known: Mapping[str, str]) -> dict[str, Any]:
    """Return flat names with dots as maps in maps; of ``a`` and ``a.b`` the second one counts."""
    found: dict[str, Any] = {}
    for name in sorted(known, key=lambda each: each.count(".")):
        place = found
        *outer, last = _parts(name)
        for part in outer:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[last] = known[name]
    return found


def _parts(name: str) -> list[str]:
    return name.split(".")


# -- when --------------------------------------------------------------------------------------------------------------


def should_execute(when: str) -> bool:
    """Evaluate ``when``: texts in quotes, ``==``, ``!=``, ``&&``, ``||``, brackets; nothing else."""
    if not when:
        return True
    tokens = _tokens(when)
    for kind, word in tokens:
        if kind in ("name", "number") or (kind == "sign" and word not in ("==", "!=", "&&", "||", "(", ")")):
            raise Refused(f"when {when!r}: {word!r} is not in quotes")
    value = evaluate(when, {})
    if not isinstance(value, bool):
        raise Refused(f"when {when!r}: expected a boolean")
    return value


# -- expr-lang ---------------------------------------------------------------------------------------------------------


def evaluate(source: str, known: Mapping[str, Any]) -> Any:
    """Evaluate an expression.

    Raises
    ------
    Unknown
        If a variable is asked for that is not there.
    Refused
        If there is something in it that flowkit does not write, or types do not fit.
    """
    parser = _Parser(source)
    value = parser.whole()
    return value(known)


def names_in(source: str) -> list[str]:
    """Return the variables of an expression, with dots."""
    parser = _Parser(source)
    parser.whole()
    return parser.names


def _tokens(source: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while source[at:].strip():
        match = _TOKEN.match(source, at)
        if match is None:
            raise Refused(f"{source!r} has something unknown at {source[at : at + 20]!r}")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return found


Value = Callable[[Mapping[str, Any]], Any]


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = _tokens(source)
        self.at = 0
        self.names: list[str] = []

    def whole(self) -> Value:
        value = self.ternary()
        if self.at != len(self.tokens):
            raise Refused(f"{self.source!r}: {self.tokens[self.at][1]!r} is too much")
        return value

    def ternary(self) -> Value:
        test = self.level(0)
        if not self.take("?"):
            return test
        yes = self.ternary()
        self.want(":")
        no = self.ternary()
        return lambda known: yes(known) if _truth(test(known), self.source) else no(known)

    def level(self, depth: int) -> Value:
        if depth == len(_LEVELS):
            return self.unary()
        left = self.level(depth + 1)
        while (sign := self.peek()) in _LEVELS[depth]:
            self.at += 1
            left = self.pair(str(sign), left, self.level(depth + 1))
        return left

    def pair(self, sign: str, left: Value, right: Value) -> Value:
        if sign == "||":
            return lambda known: _truth(left(known), self.source) or _truth(right(known), self.source)
        if sign == "&&":
            return lambda known: _truth(left(known), self.source) and _truth(right(known), self.source)

        def both(known: Mapping[str, Any]) -> Any:
            one, other = left(known), right(known)
            if one is not None and other is not None and type(one) is not type(other):
                raise Refused(f"{self.source!r}: {one!r} {sign} {other!r} have different types")
            return {
                "==": lambda: one == other,
                "!=": lambda: one != other,
                "<": lambda: one < other,
                ">": lambda: one > other,
                "<=": lambda: one <= other,
                ">=": lambda: one >= other,
                "+": lambda: one + other,
                "-": lambda: one - other,
            }[sign]()

        return both

    def unary(self) -> Value:
        if self.take("!"):
            value = self.unary()
            return lambda known: not _truth(value(known), self.source)
        return self.primary()

    def primary(self) -> Value:
        if self.at == len(self.tokens):
            raise Refused(f"{self.source!r} ends too early")
        kind, word = self.tokens[self.at]
        self.at += 1
        if kind == "text":
            text = re.sub(r"\\(.)", r"\1", word[1:-1])
            return lambda known: text
        if kind == "number":
            number = int(word)
            return lambda known: number
        if word == "(":
            value = self.ternary()
            self.want(")")
            return value
        if kind != "name":
            raise Refused(f"{self.source!r}: {word!r} is unexpected")
        if word in ("true", "false"):
            return lambda known: word == "true"
        return self.variable(word)

    def variable(self, word: str) -> Value:
        path = [word]
        while True:
            if self.take("."):
                kind, part = self.tokens[self.at]
                if kind != "name":
                    raise Refused(f"{self.source!r}: {part!r} is no name")
                self.at += 1
                path.append(part)
            elif self.take("["):
                kind, part = self.tokens[self.at]
                if kind != "text":
                    raise Refused(f"{self.source!r}: {part!r} is no text")
                self.at += 1
                path.append(part[1:-1])
                self.want("]")
            elif self.peek() == "(":
                return self.call(".".join(path))
            else:
                if word in _BUILT_IN:
                    raise Refused(f"{self.source!r}: {word} is a function, and not what it is taken for")
                self.names.append(".".join(path))
                return lambda known: _look(known, path)

    def call(self, name: str) -> Value:
        self.want("(")
        given = [self.ternary()]
        while self.take(","):
            given.append(self.ternary())
        self.want(")")
        if name not in _FUNCTIONS:
            raise Refused(f"{self.source!r} calls {name}, which flowkit does not use")
        return lambda known: _FUNCTIONS[name](*(each(known) for each in given))

    def peek(self) -> str | None:
        if self.at == len(self.tokens) or self.tokens[self.at][0] != "sign":
            return None
        return self.tokens[self.at][1]

    def take(self, sign: str) -> bool:
        if self.peek() != sign:
            return False
        self.at += 1
        return True

    def want(self, sign: str) -> None:
        if not self.take(sign):
            raise Refused(f"{self.source!r}: {sign!r} is missing")


def _look(known: Mapping[str, Any], path: list[str]) -> Any:
    found: Any = known
    for depth, part in enumerate(path):
        if not isinstance(found, Mapping) or (not depth and part not in found):
            raise Unknown(".".join(path))
        found = found.get(part)  # what a map does not have is nil
    return found


def _truth(value: Any, source: str) -> bool:
    if not isinstance(value, bool):
        raise Refused(f"{source!r}: {value!r} is no boolean")
    return value


def _as_int(value: Any) -> int:
    if value is None:
        raise Unknown("nil")
    return int(value)


def _replace(old: str, new: str, text: Any) -> str:
    if text is None:
        raise Unknown("nil")
    return str(text).replace(old, new)


_FUNCTIONS: dict[str, Callable[..., Any]] = {"asInt": _as_int, "sprig.replace": _replace}
