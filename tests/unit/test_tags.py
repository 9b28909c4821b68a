"""The rules of tags."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.exceptions import UsageError
from flowkit.metadata.tags import MAX_LENGTH, MAX_TAGS, changed_tags, check_tags

TAGS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


def test_good_tags_come_back_sorted_and_once() -> None:
    assert check_tags(["b", "a", "b", "x" * MAX_LENGTH, " ", "ä🙂", "a\nb"]) == (
        "\x20",
        "a",
        "a\nb",
        "b",
        "x" * 500,
        "ä🙂",
    )
    assert check_tags(iter([])) == ()
    assert len(check_tags(f"t{i}" for i in range(MAX_TAGS))) == MAX_TAGS


@pytest.mark.parametrize(
    ("tag", "why"),
    [("", "empty"), ("x" * 501, "501"), ("a\0b", "NUL"), ("\udcff", "UTF-8"), (3, "3"), (None, "None"), (b"x", "x")],
)
def test_bad_tags(tag: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_tags(["fine", tag])
    with pytest.raises(UsageError, match=why):
        changed_tags([], [], [tag], [])


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(UsageError, match=r"empty.*501.*NUL"):
        check_tags(["", "x" * 501, "\0"])


def test_too_many() -> None:
    with pytest.raises(UsageError, match="51"):
        check_tags(f"t{i}" for i in range(51))
    full = [f"t{i}" for i in range(50)]
    with pytest.raises(UsageError, match="51"):
        changed_tags(full, [], ["new"], [])
    assert "new" in changed_tags(full, [], ["new"], ["t0"])
    assert len(changed_tags([*full, "more", "yet"], [], [], ["t0"])) == 51, "fewer is always allowed"


@pytest.mark.parametrize("given", ["abc", ""])
def test_a_text_is_no_list_of_tags(given: str) -> None:
    with pytest.raises(UsageError, match="list"):
        check_tags(given)
    with pytest.raises(UsageError, match="list"):
        changed_tags([], [], [], given)


def test_system_tags_stay() -> None:
    with pytest.raises(UsageError, match="user:ada"):
        changed_tags(["a"], ["user:ada", "s"], [], ["a", "user:ada"])
    assert changed_tags(["a"], ["user:ada"], ["user:ada", "b"], []) == ("a", "b")


@given(st.sets(TAGS, max_size=5), st.sets(TAGS, max_size=5), st.sets(TAGS, max_size=5), st.sets(TAGS, max_size=5))
def test_remove_then_add(user: set[str], system: set[str], add: set[str], remove: set[str]) -> None:
    user -= system
    remove -= system
    after = changed_tags(user, system, add, remove)
    assert set(after) == (user - remove) | (add - system)
    assert list(after) == sorted(after)
    assert changed_tags(after, system, add, []) == after
