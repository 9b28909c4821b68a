"""Which firings are due: pure rules over what is deployed, what is remembered, what has happened, and the time.

The id of a run follows from what fires it (the scheduled time, the ids of the events), so a firing that is decided
twice is the same run, and `run --run-id` claims it once. What is decided is written down before anything is started.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from flowkit.deployer.local.cron import CronTimes
from flowkit.deployer.target import Concurrency, DeploymentRecord, EventPlan

PREFIX = "local"
CatchUp = Literal["none", "last", "all"]
CATCH_UP: tuple[CatchUp, ...] = ("none", "last", "all")
ON_TIME = 90.0
"""Seconds after its time for which a firing is not late: the scheduler looks more often, even started by hand."""
MOST_CAUGHT_UP = 1_000
"""Of the firings that were missed, so many of the newest are made up for (``--catch-up all``)."""
TRIES = 3
"""How often a run is started that ends before it has begun."""
PAUSES = (5.0, 60.0)
"""Seconds between these tries."""
MOST_DECIDED = 100
"""Firings by events that are decided and have not begun: further events wait where they are kept."""
RECENT = 50
"""Firings that are remembered though nothing came of them."""

CLOCK_BACK = 3_600.0
"""Seconds by which a clock is set back that was wrong; by less, it is merely that of another machine."""
_LATEST = 1e11
_STAMP = "%Y%m%dT%H%M%SZ"
_RUN = re.compile(r"[0-9]{8}T[0-9]{6}Z(-[0-9a-f]{4})?|e[0-9a-f]{20}")


class Plan(NamedTuple):
    """What the scheduler knows of one deployment.

    Parameters
    ----------
    name, flow : str
    created : float
        When it was deployed, seconds since the epoch.
    schedule, timezone : str or None
    events : tuple of EventPlan
        All of them together start a run.
    concurrency : str
    catch_up : str
    timeout : float or None
        Seconds that a run may take.
    reset : tuple of (str, str or None), or None
        Cron text and time zone: what was waited for till then does not count any more.
    """

    name: str
    flow: str
    created: float = 0.0
    schedule: str | None = None
    timezone: str | None = None
    events: tuple[EventPlan, ...] = ()
    concurrency: Concurrency = "allow"
    catch_up: CatchUp = "last"
    timeout: float | None = None
    reset: tuple[str, str | None] | None = None


class Happened(NamedTuple):
    """One event, or the end of a run: its name, which one, when, ``event`` or ``run``, its fields."""

    name: str
    id: str
    when: float
    kind: str = "event"
    data: Mapping[str, Any] = {}


class Firing(NamedTuple):
    """A run that is to be started.

    Parameters
    ----------
    run : str
        Its id.
    why : str
        ``schedule``, ``events`` or ``trigger``.
    when : float
        The time that it is for.
    events : tuple of (str, str, float, str)
        For ``current.trigger``.
    parameters : mapping of str to str
        JSON texts by attribute name.
    decided : float
    tries : int
        How often it was started.
    not_before : float
        Not to be started before.
    after : tuple of str
        Runs that have to be over first (``--concurrency replace``).
    """

    run: str
    why: str
    when: float
    events: tuple[tuple[str, str, float, str], ...] = ()
    parameters: Mapping[str, str] = {}
    decided: float = 0.0
    tries: int = 0
    not_before: float = 0.0
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a deployment from one look to the next, and from one scheduler to the next.

    Parameters
    ----------
    schedule : str
        The schedule that `looked` is about.
    looked : float
        Up to when the schedule was looked at.
    source : str
        Where events come from; `read` is a number there.
    read : int or None
        The last event that was looked at; None where none ever was.
    waiting : mapping of str to Happened
        Of the events that have happened since the last firing, the newest of each name.
    decided : tuple of Firing
        To be started, or started and not known to have begun.
    active : mapping of str to float
        Runs that go on, and when they were started.
    ended : tuple of (str, str, float)
        The newest firings that nothing came of: the run, why not, when.
    flows : mapping of str to FlowWatch
        Of each flow whose end is waited for.
    """

    schedule: str = ""
    looked: float = 0.0
    source: str = ""
    read: int | None = None
    waiting: Mapping[str, Happened] = field(default_factory=dict)
    decided: tuple[Firing, ...] = ()
    active: Mapping[str, float] = field(default_factory=dict)
    ended: tuple[tuple[str, str, float], ...] = ()
    flows: Mapping[str, FlowWatch] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether a run goes on, or is about to."""
        return bool(self.active or self.decided)

    def with_decided(self, firing: Firing) -> Memory:
        """Return it with one more firing."""
        return replace(self, decided=(*self.decided, firing))

    def without(self, run: str) -> Memory:
        """Return it without a firing that is not wanted any more."""
        return replace(self, decided=tuple(each for each in self.decided if each.run != run))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "schedule": self.schedule,
            "looked": self.looked,
            "source": self.source,
            "read": self.read,
            "waiting": {name: [*event[:4], dict(event.data)] for name, event in self.waiting.items()},
            "decided": [{**each._asdict(), "parameters": dict(each.parameters)} for each in self.decided],
            "active": dict(self.active),
            "ended": [list(each) for each in self.ended],
            "flows": {name: [watch.since, list(watch.open), dict(watch.seen)] for name, watch in self.flows.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Memory:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError, TypeError, KeyError
            If it is anything else.
        """
        return cls(
            schedule=str(data["schedule"]),
            looked=_time(data["looked"]),
            source=str(data["source"]),
            read=None if data["read"] is None else int(data["read"]),
            waiting={str(name): _happened(*item) for name, item in data["waiting"].items()},
            decided=tuple(_firing(item) for item in data["decided"]),
            active={str(run): _time(when) for run, when in data["active"].items()},
            ended=tuple((str(run), str(why), _time(when)) for run, why, when in data["ended"]),
            flows={
                str(name): FlowWatch(_time(since), tuple(map(str, runs)), {str(k): _time(v) for k, v in seen.items()})
                for name, (since, runs, seen) in data["flows"].items()
            },
        )


class FlowWatch(NamedTuple):
    """What is known of the runs of a flow whose end is waited for.

    Parameters
    ----------
    since : float
        Runs that were made before are known.
    open : tuple of str
        Those of them that have not ended.
    seen : mapping of str to float
        Runs that have ended, and were made around `since`: not to be counted again.
    """

    since: float
    open: tuple[str, ...] = ()
    seen: Mapping[str, float] = {}


class Decision(NamedTuple):
    """What to remember from now on, and lines for people."""

    memory: Memory
    notes: tuple[str, ...] = ()


def plan_of(record: DeploymentRecord) -> Plan:
    """Return what the scheduler has to know of a deployment, from its record."""
    details = record.details
    catch_up = details.get("catch_up")
    timeout = details.get("workflow_timeout")
    return Plan(
        name=record.name,
        flow=record.flow,
        created=record.created,
        schedule=record.schedule,
        timezone=record.timezone,
        events=record.events,
        concurrency=record.concurrency if record.concurrency in ("allow", "forbid", "replace") else "allow",
        catch_up=catch_up if catch_up in CATCH_UP else "last",
        timeout=float(timeout) if isinstance(timeout, int | float) and timeout > 0 else None,
        reset=reset_of(details.get("event_options")),
    )


def reset_of(options: Any) -> tuple[str, str | None] | None:
    """Return when events that are waited for are forgotten: ``options={"reset_at": {"cron": …, "timezone": …}}``."""
    found = options.get("reset_at") if isinstance(options, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(found.get("cron"), str):
        return None
    zone = found.get("timezone")
    return found["cron"], zone if isinstance(zone, str) else None


# -- ids -----------------------------------------------------------------------------------------------------------


def scheduled_run(name: str, when: float) -> str:
    """Return the run of a scheduled time: ``local-nightly-20261121T020000Z``."""
    return f"{PREFIX}-{name}-{stamp(when)}"


def triggered_run(name: str, when: float, salt: bytes) -> str:
    """Return the run that somebody starts by hand."""
    return f"{PREFIX}-{name}-{stamp(when)}-{salt[:2].hex()}"


def event_run(name: str, events: Iterable[Happened]) -> str:
    """Return the run of some events: the same events give the same run."""
    text = json.dumps(sorted((event.name, event.id) for event in events))
    return f"{PREFIX}-{name}-e{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"


def is_run_of(name: str, run: str) -> bool:
    """Whether a run's id is one of a deployment's."""
    head = f"{PREFIX}-{name}-"
    return run.startswith(head) and _RUN.fullmatch(run, len(head)) is not None


def stamp(when: float) -> str:
    """Return a moment as run ids have it, in UTC."""
    return time.strftime(_STAMP, time.gmtime(when))


# -- deciding --------------------------------------------------------------------------------------------------------


def begin(plan: Plan, memory: Memory | None, source: str, newest: Callable[[], int], now: float) -> Memory:
    """Return what is remembered of a deployment that is looked at for the first time, or was deployed anew.

    A schedule counts from when it was deployed on, also where it has changed; events from then on that are new in their
    source, of which `newest` tells the last number.
    """
    found = memory or Memory()
    text = f"{plan.schedule or ''}|{plan.timezone or ''}"
    if memory is None or found.schedule != text:
        # Never back: whoever still has the record of before must not begin at its creation again.
        found = replace(found, schedule=text, looked=max(found.looked, min(plan.created or now, now)))
    if found.looked > now + CLOCK_BACK:
        # The clock was far ahead when the schedule was looked at: nothing would be due until it is there again. What
        # was started already is not started again, since its run has its id.
        found = replace(found, looked=now)
    if found.source != source or found.read is None:
        found = replace(found, source=source, read=newest())
    names = {event.name for event in plan.events}
    flows = {event.name for event in plan.events if event.flow is not None}
    return replace(
        found,
        waiting={name: event for name, event in found.waiting.items() if name in names},
        flows={name: found.flows.get(name) or FlowWatch(min(plan.created or now, now)) for name in sorted(flows)},
    )


def decide(plan: Plan, memory: Memory, now: float) -> Decision:
    """Return what the schedule asks for at a moment."""
    if plan.schedule is None:
        return Decision(memory)
    if now < memory.looked:
        return Decision(memory)  # the clock was set back: what was looked at is not looked at again
    times = CronTimes(plan.schedule, plan.timezone)
    if plan.concurrency == "forbid" and plan.catch_up == "all" and memory.busy:
        return Decision(memory)  # one after another: the schedule is looked at again when this one is over
    due, notes = _due(plan, times, memory.looked, now)
    found = replace(memory, looked=now)
    for when in due:
        run = scheduled_run(plan.name, when)
        if plan.concurrency == "forbid" and found.busy:
            if plan.catch_up == "all":
                return Decision(replace(found, looked=_before(when)), tuple(notes))
            notes.append(f"left out {run}: {_named(_goes_on(found))} goes on")
            continue
        found, more = _fired(plan, found, Firing(run, "schedule", when, decided=now))
        notes += more
    return Decision(found, tuple(notes))


def take(plan: Plan, memory: Memory, events: Sequence[Happened], now: float) -> tuple[Decision, int]:
    """Return what comes of events, in their order, and how many of them were looked at.

    All the events that a deployment waits for start a run together; of several of one name, the newest counts. While a
    run goes on and ``forbid`` holds, the rest waits where it is.
    """
    names = {event.name for event in plan.events}
    notes: list[str] = []
    for count, event in enumerate(events):
        if event.name not in names:
            continue
        if (plan.concurrency == "forbid" and memory.busy) or len(memory.decided) >= MOST_DECIDED:
            return Decision(memory, tuple(notes)), count
        waiting = {**_fresh(plan, memory.waiting, event.when), event.name: event}
        if names > waiting.keys():
            memory = replace(memory, waiting=waiting)
            continue
        together = [waiting[each.name] for each in plan.events]
        firing = Firing(
            event_run(plan.name, together),
            "events",
            event.when,
            tuple((each.name, each.id, each.when, each.kind) for each in together),
            _parameters(plan, waiting),
            now,
        )
        memory, more = _fired(plan, replace(memory, waiting={}), firing)
        notes += more
    return Decision(memory, tuple(notes)), len(events)


def _due(plan: Plan, times: CronTimes, since: float, now: float) -> tuple[list[float], list[str]]:
    """Return the moments that count, and what to say of those that do not."""
    on_time = times.between(max(since, now - ON_TIME), now)
    if now - ON_TIME <= since:
        return on_time, []
    if plan.catch_up == "all":
        found = times.between(since, now, MOST_CAUGHT_UP)
        return found, [f"caught up with {len(found):,} firings of {plan.name}"] if len(found) > 1 else []
    if on_time:
        return on_time[-1:] if plan.catch_up == "last" else on_time, []
    missed = times.latest(since, now)
    if missed is None:
        return [], []
    if plan.catch_up == "none":
        return [], [f"left out {scheduled_run(plan.name, missed)}: no scheduler ran then"]
    return [missed], [f"caught up with {scheduled_run(plan.name, missed)}: no scheduler ran then"]


def _fired(plan: Plan, memory: Memory, firing: Firing) -> tuple[Memory, list[str]]:
    """Write a firing down; with ``replace``, in the place of those that have not begun, and after those that have."""
    if any(each.run == firing.run for each in memory.decided) or firing.run in memory.active:
        return memory, []  # decided already: the same events again
    if plan.concurrency != "replace":
        return replace(memory, decided=(*memory.decided, firing)), []
    notes = [f"{each.run} is replaced by {firing.run} before it began" for each in memory.decided if not each.tries]
    begun = tuple(each for each in memory.decided if each.tries)
    after = (*memory.active, *(each.run for each in begun))
    return replace(memory, decided=(*begun, firing._replace(after=after))), notes


def _fresh(plan: Plan, waiting: Mapping[str, Happened], now: float) -> dict[str, Happened]:
    """Return what is waited with, without what a reset has made void."""
    if plan.reset is None or not waiting:
        return dict(waiting)
    reset = CronTimes(*plan.reset).latest(min(event.when for event in waiting.values()) - 1, now)
    return {name: event for name, event in waiting.items() if reset is None or event.when > reset}


def _parameters(plan: Plan, events: Mapping[str, Happened]) -> dict[str, str]:
    found = {}
    for event in plan.events:
        data = events[event.name].data
        for attribute, name in event.parameters:
            if name in data:
                found[attribute] = json.dumps(data[name])
    return found


def _goes_on(memory: Memory) -> list[str]:
    return [*memory.active, *(each.run for each in memory.decided)]


def _named(runs: Sequence[str]) -> str:
    return runs[0] if len(runs) == 1 else f"{runs[0]} (and {len(runs) - 1} more)"


def _before(when: float) -> float:
    return when - 0.5


def _firing(data: Mapping[str, Any]) -> Firing:
    return Firing(
        run=str(data["run"]),
        why=str(data["why"]),
        when=_time(data["when"]),
        events=tuple((str(name), str(key), _time(when), str(kind)) for name, key, when, kind in data["events"]),
        parameters={str(name): str(text) for name, text in data["parameters"].items()},
        decided=_time(data["decided"]),
        tries=int(data["tries"]),
        not_before=_time(data["not_before"]),
        after=tuple(map(str, data["after"])),
    )


def _happened(name: Any, id: Any, when: Any, kind: Any, data: Any) -> Happened:
    if not isinstance(data, Mapping):
        raise ValueError("the data of an event is no object")
    return Happened(str(name), str(id), _time(when), str(kind), data)


def _time(value: Any) -> float:
    """Return a moment that was read: ``NaN`` is a number in JSON as Python has it, and is before and after nothing."""
    when = float(value)
    if not 0 <= when < _LATEST:
        raise ValueError(f"{value!r} is no moment")
    return when
