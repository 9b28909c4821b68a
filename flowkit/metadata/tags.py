"""The rules of tags, without any storage.

User tags are changed by people; system tags are written once by the run and never change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from flowkit.exceptions import UsageError

MAX_TAGS = 50
"""User tags of one run, at most."""
MAX_LENGTH = 500
"""Characters of one tag, at most."""


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags sorted, each once, if a run can have them as user tags.

    Raises
    ------
    UsageError
        If one is empty, too long, no text or not to be written as UTF-8, or if they are too many; all problems at once.
    """
    if isinstance(tags, str):
        raise UsageError(f"tags are given as a list, not as the text {tags!r}")
    given = list(tags)
    problems = [problem for problem in map(_problem, given) if problem]
    if problems:
        raise UsageError("; ".join(problems), f"a tag is a text of 1 to {MAX_LENGTH} characters")
    unique = tuple(sorted(set(given)))
    if len(unique) > MAX_TAGS:
        raise UsageError(f"{len(unique)} tags are too many", f"a run has at most {MAX_TAGS} tags of its user")
    return unique


def changed_tags(
    user: Collection[str], system: Collection[str], add: Iterable[str], remove: Iterable[str]
) -> tuple[str, ...]:
    """Return a run's user tags after removing some and then adding others, sorted.

    Removing a tag that the run does not have changes nothing, nor does adding one that it has (of either kind).

    Raises
    ------
    UsageError
        If a tag to be removed is a system tag, one to be added is not a tag, or the run would have too many.
    """
    if isinstance(remove, str):
        raise UsageError(f"tags are given as a list, not as the text {remove!r}")
    gone = set(remove)
    fixed = sorted(gone & set(system))
    if fixed:
        raise UsageError(f"system tags cannot be removed: {', '.join(fixed)}")
    wanted = set(check_tags(add)) - set(system)
    after = (set(user) - gone) | wanted
    if len(after) > MAX_TAGS and len(after) > len(set(user)):
        raise UsageError(
            f"the run would have {len(after)} tags",
            f"a run has at most {MAX_TAGS} tags of its user: remove some in the same step",
        )
    return tuple(sorted(after))


def _problem(tag: object) -> str | None:
    if not isinstance(tag, str):
        return f"{tag!r} is not a text"
    if not tag:
        return "a tag is empty"
    if len(tag) > MAX_LENGTH:
        return f"a tag has {len(tag)} characters: {tag[:30]!r}…"
    if "\0" in tag:
        return f"a tag holds the character NUL: {tag!r}"
    try:
        tag.encode()
    except UnicodeEncodeError:
        return f"a tag cannot be written as UTF-8: {tag!r}"
    return None
