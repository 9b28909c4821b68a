"""Which runs may go: rules for each flow, and what they say of its runs. Pure: no clock, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from flowkit.exceptions import UsageError, did_you_mean
from flowkit.metadata.records import FINAL
from flowkit.upkeep.census import RunFacts

STATES = (*sorted(FINAL), "lost")
"""The states of a run that a rule can name; ``lost`` is one that never ended and that nobody works on."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_AGE = re.compile(r"(\d{1,9})\s*([smhdw])")


class Rule(NamedTuple):
    """What goes, of one flow: a run for which all of it is true.

    Parameters
    ----------
    older_than : float or None
        Seconds since it ended (since its last sign of life, where it never did).
    keep : int or None
        It is not among so many newest runs of its flow.
    keep_tags : tuple of str
        It has none of these tags.
    only_tags : tuple of str
        It has all of these tags.
    states : tuple of str
        Its state is one of these; any, where there are none.
    """

    older_than: float | None = None
    keep: int | None = None
    keep_tags: tuple[str, ...] = ()
    only_tags: tuple[str, ...] = ()
    states: tuple[str, ...] = ()

    @property
    def removes(self) -> bool:
        """Whether it lets anything go at all: that must be asked for by age, number, tag or state."""
        return self.older_than is not None or self.keep is not None or bool(self.only_tags or self.states)


class Rules(NamedTuple):
    """A rule for all flows, and what some flows have instead.

    Parameters
    ----------
    general : Rule
        For flows without one of their own.
    flows : mapping of str to Rule
        By the flow's name.
    only : str or None
        Nothing of any other flow goes.
    """

    general: Rule = Rule()
    flows: Mapping[str, Rule] = {}
    only: str | None = None

    def of(self, flow: str) -> Rule:
        """Return the rule for a flow."""
        if self.only is not None and flow != self.only:
            return Rule()
        return self.flows.get(flow, self.general)

    def keeping(self, tags: tuple[str, ...]) -> Rules:
        """Return these rules, under which runs with one of some more tags stay, too."""

        def with_tags(rule: Rule) -> Rule:
            return rule._replace(keep_tags=(*rule.keep_tags, *tags))

        return Rules(with_tags(self.general), {flow: with_tags(rule) for flow, rule in self.flows.items()}, self.only)


def chosen(runs: Iterable[RunFacts], rule: Rule) -> Iterator[tuple[RunFacts, str]]:
    """Yield the runs of one flow that a rule lets go whatever their age, with why; see `old_enough`."""
    if not rule.removes:
        return
    alive = sorted((run for run in runs if run.state not in ("deleted", "broken")), key=_newest_first)
    for place, run in enumerate(alive):
        if rule.keep is not None and place < rule.keep:
            continue
        state = "lost" if run.state == "unended" else run.state
        if rule.states and state not in rule.states:
            continue
        if set(rule.keep_tags) & set(run.tags) or not set(rule.only_tags) <= set(run.tags):
            continue
        yield run, _why(rule, state)


def old_enough(run: RunFacts, rule: Rule, now: float) -> bool:
    """Whether a run is as old as the rule wants it; ``now`` in seconds since the epoch."""
    return rule.older_than is None or now - run.since > rule.older_than


def parse_age(text: Any, origin: str) -> float:
    """Return seconds from ``90d``, ``36h``, ``2w``; ``origin`` names the option or setting in the error.

    Raises
    ------
    UsageError
        If it is no such text.
    """
    found = _AGE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise UsageError(f"{origin} must be a time such as 30d, 12h or 2w, not {text!r}")
    return int(found[1]) * _UNITS[found[2]]


_FIELDS = ("older_than", "keep", "keep_tags", "only_tags", "states")


def parse_rules(table: Mapping[str, Any], origin: str, only: str | None = None) -> Rules:
    """Return the rules that a project's file has in its table ``retention``.

    Parameters
    ----------
    table : mapping
        ``older_than`` (``90d``), ``keep`` (a number), ``keep_tags``, ``only_tags`` and ``states`` (lists), and
        ``flows``: a table of such tables by the flow's name, each of which takes the place of what it says itself.
    origin : str
        The file, for errors.
    only : str, optional
        As of `Rules`.

    Raises
    ------
    UsageError
        If anything of it is unknown or of the wrong type.
    """
    flows = table.get("flows", {})
    general = {name: value for name, value in table.items() if name != "flows"}
    if not isinstance(flows, Mapping) or not all(isinstance(each, Mapping) for each in flows.values()):
        raise UsageError(f"{origin}: retention.flows must be a table of tables", "[retention.flows.TrainFlow]")
    return Rules(
        parse_rule(general, f"{origin}: retention"),
        {flow: parse_rule({**general, **own}, f"{origin}: retention.flows.{flow}") for flow, own in flows.items()},
        only,
    )


def parse_rule(table: Mapping[str, Any], origin: str) -> Rule:
    """Return the rule that a table describes; see `parse_rules`."""
    for name in table:
        if name not in _FIELDS:
            raise UsageError(f"{origin} has no '{name}'", did_you_mean(name, _FIELDS) or f"known: {', '.join(_FIELDS)}")
    keep = table.get("keep")
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 0):
        raise UsageError(f"{origin}.keep must be a whole number of 0 or more, not {keep!r}")
    age = table.get("older_than")
    lists = {}
    for name in ("keep_tags", "only_tags", "states"):
        value = table.get(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{origin}.{name} must be a list of texts, not {value!r}")
        lists[name] = tuple(value)
    for state in lists["states"]:
        if state not in STATES:
            hint = did_you_mean(state, STATES) or f"states: {', '.join(STATES)}"
            raise UsageError(f"{origin}.states: no run that can go is '{state}'", hint)
    return Rule(None if age is None else parse_age(age, f"{origin}.older_than"), keep, **lists)


def _newest_first(run: RunFacts) -> tuple[float, int, str]:
    number = int(run.run) if run.run.isascii() and run.run.isdigit() and len(run.run) < 19 else -1
    return -(run.created or 0.0), -number, run.run


def _why(rule: Rule, state: str) -> str:
    parts = []
    if rule.states or state != "succeeded":
        parts.append(state)
    if rule.older_than is not None:
        parts.append(f"older than {_age(rule.older_than)}")
    if rule.keep is not None:
        parts.append(f"not among the newest {rule.keep}" if rule.keep else "none is kept")
    if rule.only_tags:
        parts.append(f"tagged {', '.join(rule.only_tags)}")
    return ", ".join(parts)


def _age(seconds: float) -> str:
    for unit in "wdhms":
        if seconds >= _UNITS[unit] and not seconds % _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s"
