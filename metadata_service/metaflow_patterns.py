"""Regular expressions from outside, matched in time that grows with the text only.

Python's own engine goes back and tries again, which a short expression can drag out for ever. This one walks through
all alternatives at once (Thompson's construction), and remembers which characters lead where. It knows what can be
matched so: literals, ``.``, classes, ``\\d \\w \\s``, groups, ``|``, ``* + ? {m,n}``, ``^`` and ``$``; no references
back, and no looking around.

Source: Ken Thompson, Regular Expression Search Algorithm, CACM 11(6), 1968.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flowkit.exceptions import UsageError

MAX_NODES = 2_000
"""Of one expression, after ``{m,n}`` is written out."""
MAX_DEPTH = 50
"""Groups within groups."""
MAX_REPEAT = 200
WORK = 1_000_000
"""Nodes that are visited for one expression, until it is refused; what is remembered costs nothing."""
_REMEMBERED = 5_000

Test = Callable[[str], bool]

_CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class _Node(NamedTuple):
    """A place in an expression: what it takes to go on, and where to."""

    kind: str  # "char", "any of" (go on to all), "begin", "end", "found"
    test: Test | None
    following: tuple[int, ...]


def compiled(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether an expression is found in a text.

    Parameters
    ----------
    pattern : str
        The expression.

    Raises
    ------
    UsageError
        If it cannot be understood or is too large; what is returned raises it where matching takes too much work.
    """
    return _Machine(_Reader(pattern)).search


class _Reader:
    """Reads an expression into nodes, from its end to its beginning as far as they point."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._place = 0
        self._built = 0
        self.nodes: list[_Node] = [_Node("found", None, ())]
        tree = self._alternatives(0)
        if self._place < len(pattern):
            raise self._wrong("a bracket is closed that was not opened")
        self.start = self._build(tree, 0)

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"the pattern cannot be used: {what} (at character {self._place + 1})")

    def _peek(self) -> str:
        return self._pattern[self._place : self._place + 1]

    def _take(self) -> str:
        char = self._peek()
        self._place += 1
        return char

    # A tree is a tuple: its kind, then what belongs to it.

    def _alternatives(self, depth: int) -> tuple:  # type: ignore[type-arg]
        if depth > MAX_DEPTH:
            raise self._wrong("its groups are too deep")
        branches = [self._sequence(depth)]
        while self._peek() == "|":
            self._take()
            branches.append(self._sequence(depth))
        return branches[0] if len(branches) == 1 else ("any", branches)

    def _sequence(self, depth: int) -> tuple:  # type: ignore[type-arg]
        parts = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom(depth)))
        return ("all", parts)

    def _repeated(self, atom: tuple) -> tuple:  # type: ignore[type-arg]
        bounds = self._bounds() if self._peek() and self._peek() in "*+?{" else None
        if bounds is None:
            return atom
        if self._peek() == "?":  # how greedy it is changes nothing in whether it is found
            self._take()
        if self._peek() and self._peek() in "*+?":
            raise self._wrong("something is repeated twice")
        return ("repeat", atom, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        char = self._peek()
        if char != "{":
            self._take()
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        end = self._pattern.find("}", self._place)
        least, comma, most = self._pattern[self._place + 1 : end].partition(",") if end > 0 else ("", "", "")
        if not (comma or _is_count(least)) or not all(each == "" or _is_count(each) for each in (least, most)):
            return None
        self._place = end + 1
        low = int(least or 0)
        high = int(most) if most else None if comma else low
        if low > MAX_REPEAT or (high is not None and not low <= high <= MAX_REPEAT):
            raise self._wrong(f"it repeats something more than {MAX_REPEAT} times, or backwards")
        return low, high

    def _atom(self, depth: int) -> tuple:  # type: ignore[type-arg]
        char = self._take()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return ("char", self._class())
        if char == ".":
            return ("char", lambda each: each != "\n")
        if char == "^":
            return ("begin",)
        if char == "$":
            return ("end",)
        if char == "\\":
            return ("char", self._escaped())
        if char in "*+?":
            raise self._wrong("there is nothing to repeat")
        return ("char", char.__eq__)

    def _group(self, depth: int) -> tuple:  # type: ignore[type-arg]
        if self._peek() == "?":
            if not self._pattern.startswith("?:", self._place):
                raise self._wrong("of groups with a question mark only (?:…) is known")
            self._place += 2
        inner = self._alternatives(depth + 1)
        if self._take() != ")":
            raise self._wrong("a bracket is not closed")
        return inner

    def _escaped(self) -> Test:
        char = self._take()
        if char.lower() in _CLASSES:
            return _class_test(char)
        if char in _CONTROLS:
            return _CONTROLS[char].__eq__
        if char == "" or char.isalnum():
            raise self._wrong("a backslash stands before something unknown")
        return char.__eq__

    def _class(self) -> Test:
        """Read what follows ``[``."""
        negated = self._peek() == "^"
        if negated:
            self._take()
        tests: list[Test] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._member(tests)
            if low is None or self._peek() != "-" or self._pattern[self._place + 1 : self._place + 2] in ("]", ""):
                tests += [low.__eq__] if low is not None else []
                continue
            self._take()
            high = self._member(tests)
            if high is None or high < low:
                raise self._wrong("a range in a class makes no sense")
            tests.append(_range_test(low, high))
        self._take()
        return lambda char: any(test(char) for test in tests) != negated

    def _member(self, tests: list[Test]) -> str | None:
        """Read a character of a class, or (None) a class within it."""
        char = self._take()
        if char == "":
            raise self._wrong("a class is not closed")
        if char != "\\":
            return char
        char = self._take()
        if char and char.lower() in _CLASSES:
            tests.append(_class_test(char))
            return None
        if char == "" or (char.isalnum() and char not in _CONTROLS):
            raise self._wrong("a backslash stands before something unknown")
        return _CONTROLS.get(char, char)

    def _build(self, tree: tuple, following: int) -> int:  # type: ignore[type-arg]
        """Add the nodes of a tree and return where it begins."""
        self._built += 1
        if self._built > MAX_NODES:  # nothing, repeated, adds no node
            raise _too_large()
        kind = tree[0]
        if kind == "all":
            for part in reversed(tree[1]):
                following = self._build(part, following)
            return following
        if kind == "any":
            return self._add("any of", None, tuple(self._build(branch, following) for branch in tree[1]))
        if kind == "repeat":
            return self._build_repeat(tree[1], tree[2], tree[3], following)
        return self._add(kind, tree[1] if kind == "char" else None, (following,))

    def _build_repeat(self, tree: tuple, low: int, high: int | None, following: int) -> int:  # type: ignore[type-arg]
        begin = following
        if high is None:
            begin = self._add("any of", None, ())
            self.nodes[begin] = _Node("any of", None, (self._build(tree, begin), following))
        for _ in range((high or low) - low):
            begin = self._add("any of", None, (self._build(tree, begin), following))
        for _ in range(low):
            begin = self._build(tree, begin)
        return begin

    def _add(self, kind: str, test: Test | None, following: tuple[int, ...]) -> int:
        if len(self.nodes) >= MAX_NODES:
            raise _too_large()
        self.nodes.append(_Node(kind, test, following))
        return len(self.nodes) - 1


class _Machine:
    """Walks through a text in all places of an expression at once."""

    def __init__(self, reader: _Reader) -> None:
        self._nodes = reader.nodes
        self._start = reader.start
        self._work = 0
        self._known: dict[frozenset[int], dict[str, frozenset[int]]] = {}
        self._first = self._reached([self._start], begin=True)
        self._ends: dict[frozenset[int], bool] = {}

    def search(self, text: str) -> bool:
        """Whether the expression is found in a text."""
        places = self._first
        for char in text:
            if 0 in places:
                return True
            steps = self._known.get(places)
            if steps is None:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                    self._ends.clear()
                steps = self._known[places] = {}
            following = steps.get(char)
            if following is None:
                following = steps[char] = self._step(places, char)
            places = following
        return 0 in places or self._at_end(places, not text)

    def _step(self, places: frozenset[int], char: str) -> frozenset[int]:
        going = [self._start]
        for place in places:
            node = self._nodes[place]
            if node.test is not None and node.test(char):
                going += node.following
        self._count(len(places))
        return self._reached(going)

    def _at_end(self, places: frozenset[int], begin: bool) -> bool:
        if begin:
            return 0 in self._reached([self._start], begin=True, end=True)
        found = self._ends.get(places)
        if found is None:
            found = self._ends[places] = 0 in self._reached(list(places), end=True)
        return found

    def _reached(self, going: list[int], *, begin: bool = False, end: bool = False) -> frozenset[int]:
        """Return all places that can be reached without a character."""
        reached = set(going)
        while going:
            place = going.pop()
            node = self._nodes[place]
            if node.kind == "any of" or (node.kind == "begin" and begin) or (node.kind == "end" and end):
                new = set(node.following) - reached
                reached |= new
                going += new
        self._count(len(reached))
        return frozenset(reached)

    def _count(self, visited: int) -> None:
        self._work += visited
        if self._work > WORK:
            raise UsageError("the pattern takes too much work", "filter by a simpler one")


def _too_large() -> UsageError:
    return UsageError("the pattern is too large", "repeat less, or filter by a simpler one")


def _class_test(char: str) -> Test:
    test = _CLASSES[char.lower()]
    return test if char.islower() else lambda each: not test(each)


def _range_test(low: str, high: str) -> Test:
    return lambda char: low <= char <= high


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6
