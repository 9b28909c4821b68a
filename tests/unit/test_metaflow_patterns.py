"""Regular expressions from outside: found where Python finds them, in time that grows with the text only."""

from __future__ import annotations

import random
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.exceptions import UsageError
from flowkit.metadata_service.metaflow_patterns import MAX_DEPTH, compiled

_ATOMS = st.sampled_from(["a", "b", "1", ".", "[ab]", "[^a]", "[a-c1]", r"\d", r"\w", r"\s", r"\.", r"[\d-]", "(?:ab)"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeat = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "+?"])
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        st.tuples(inner.map("({})".format), repeat).map("".join),
    )


_PATTERNS = st.recursive(_ATOMS, _grown, max_leaves=6)


@given(_PATTERNS, st.sampled_from(["{}", "^{}", "{}$", "^(?:{})$"]), st.text("abc1. -:", max_size=12))
def test_it_finds_what_python_finds(pattern, frame, text):
    whole = frame.format(pattern)
    assert compiled(whole)(text) == (re.search(whole, text) is not None)


@given(st.text(r"ab()[]{}*+?|\.^$-,1d", max_size=20), st.text("ab1", max_size=8))
def test_whatever_is_given_is_matched_or_refused(pattern, text):
    try:
        found = compiled(pattern)(text)
    except UsageError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = re.search(pattern, text)
        except re.error:
            return  # what Python does not take may be taken here
    assert found == (expected is not None)


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("^(?:work:1)$", "work:1", True),
        ("^(?:work:1)$", "work:12", False),
        ("^(?:outer:0,inner:.*)$", "outer:0,inner:4", True),
        ("", "", True),
        ("^$", "", True),
        ("^$", "a", False),
        ("^a{,2}$", "aa", True),
        ("^a{,2}$", "aaa", False),
        ("a{}", "a{}", True),
        ("x{", "x{", True),
        ("[]a]", "]", True),
        ("ä+", "xää", True),
    ],
)
def test_patterns_as_clients_send_them(pattern, text, found):
    assert compiled(pattern)(text) is found


@pytest.mark.parametrize("pattern", ["(a+)+$", "^(a|a)*$", "(a*)*b", "((a{0,20}){0,20})b", "(.*)(.*)(.*)(.*)(.*)[^a]$"])
def test_no_pattern_takes_for_ever(pattern):
    text = "a" * 20_000 + "!"
    assert compiled(pattern)(text) == ("[^a]" in pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "(",
            ")",
            "[",
            "[a",
            "[b-a]",
            "*",
            "a**",
            "a{300}",
            "a{3,1}",
            "\\",
            r"\1",
            r"\b",
            "(?=a)",
            "(?P<n>a)",
            "(?i)a",
        ),
        *("(" * (MAX_DEPTH + 2) + ")" * (MAX_DEPTH + 2), "(" * 4000, "a" * 4000),
        *("((a{100}){100}){100}", "(((((){200}){200}){200}){200}){200}", r"[\1]", "[\\"),
    ],
)
def test_what_cannot_be_matched_so_is_refused(pattern):
    with pytest.raises(UsageError, match="pattern"):
        compiled(pattern)


def test_a_pattern_that_takes_too_much_work_is_refused():
    matches = compiled("a[ab]{150}c")
    chance = random.Random(7)
    text = "".join(chance.choice("ab") for _ in range(300_000))
    with pytest.raises(UsageError, match="too much work"):
        matches(text)
