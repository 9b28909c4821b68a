"""Finding the runs, steps and tasks that people name on the command line: ``3``, ``3/train``, ``MyFlow/3/train/0``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from flowkit.cli.session import Session
from flowkit.exceptions import InvalidPathspec, NotFound, did_you_mean
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.model.pathspec import check_part

_PAGE = 1_000
_FORM = ("RUN", "STEP", "TASK")
_EXAMPLE = ("3", "train", "0")


class Place(NamedTuple):
    """What a path on the command line names, below the command's flow."""

    run: RunRecord
    step: str | None = None
    task: str | None = None

    @property
    def path(self) -> str:
        """``run/step/task``, as far as they are named."""
        return "/".join(part for part in (self.run.run, self.step, self.task) if part is not None)


def find(session: Session, store: MetadataStore, text: str | None, *, least: int = 1, most: int = 3) -> Place:
    """Return what a path names.

    Parameters
    ----------
    session : Session
        The command's flow; its name may begin the path.
    store : MetadataStore
        Where to look.
    text : str or None
        ``RUN[/STEP[/TASK]]``; None for the newest run of all.
    least, most : int
        How many of these parts there must be.

    Raises
    ------
    InvalidPathspec
        If the path has another form.
    NotFound
        If there is no such run, step or task; the hint names what there is.
    """
    if text is None:
        return Place(newest_run(session, store))
    flow = session.definition.name
    parts = text.strip("/").split("/")
    if len(parts) > 1:
        if parts[0] == flow:
            parts = parts[1:]
        elif any(known.flow == parts[0] for known in store.flows()) and store.run(flow, parts[0]) is None:
            raise NotFound(
                f"{text!r} is of the flow {parts[0]}, and {session.script} is {flow}", "use that flow's file"
            )
    if not least <= len(parts) <= most:
        form = "/".join(_FORM[:least]) + "".join(f"[/{name}" for name in _FORM[least:most]) + "]" * (most - least)
        raise InvalidPathspec(f"{text!r} is not a path of the form {form}", f"for example {'/'.join(_EXAMPLE[:most])}")
    for part in parts:
        check_part(part, text)
    step, task = [*parts[1:], None, None][:2]
    run = _run(session, store, parts[0])
    if step is not None:
        _check_step(session, store, run, step)
        if task is not None:
            _check_task(store, run, step, task)
    return Place(run, step, task)


def find_run(session: Session, store: MetadataStore, text: str) -> RunRecord:
    """Return the run that a path names."""
    return find(session, store, text, most=1).run


def newest_run(session: Session, store: MetadataStore, namespace: str | None = None) -> RunRecord:
    """Return the flow's newest run (with that tag).

    Raises
    ------
    NotFound
        If there is none.
    """
    flow = session.definition.name
    found = store.runs(flow, RunFilter(tags=(namespace,) if namespace else (), limit=1))
    if found:
        return found[0]
    if namespace and store.runs(flow, RunFilter(limit=1)):
        raise NotFound(f"{flow} has no run in the namespace {namespace}", f"see {session.program} status")
    raise NotFound(f"{flow} has no runs here", f"start one: {session.program} run")


def tasks_of(store: MetadataStore, place: Place, status: str | None = None) -> Iterator[TaskRecord]:
    """Yield the tasks of a run or a step, or the one task, in the order in which they began."""
    flow, run = place.run.flow, place.run.run
    if place.step is not None and place.task is not None:
        record = store.task(flow, run, place.step, place.task)
        if record is not None:
            yield record
        return
    after: str | None = None
    while True:
        page = store.tasks(flow, run, place.step, status=status, limit=_PAGE, after=after)
        yield from (record for record in page if not record.step.startswith("_") or record.step == place.step)
        if len(page) < _PAGE:
            return
        last = page[-1]
        after = last.task if place.step is not None else f"{last.step}/{last.task}"


def _run(session: Session, store: MetadataStore, run: str) -> RunRecord:
    flow = session.definition.name
    record = store.run(flow, run)
    if record is not None:
        return record
    known = [record.run for record in store.runs(flow, RunFilter(limit=_PAGE))]
    if not known:
        hint: str | None = f"{flow} has no runs here: {session.program} run"
    else:
        hint = did_you_mean(run, known) or f"its newest run is {known[0]}"
    raise NotFound(f"there is no run {flow}/{run}", hint)


def _check_step(session: Session, store: MetadataStore, run: RunRecord, step: str) -> None:
    began = [record.step for record in store.steps(run.flow, run.run) if not record.step.startswith("_")]
    if step in began or step in session.definition.steps or step.startswith("_"):
        return
    known = list(dict.fromkeys((*began, *session.definition.steps)))
    hint = did_you_mean(step, known) or f"its steps: {', '.join(known)}"
    raise NotFound(f"run {run.run} has no step '{step}'", hint)


def _check_task(store: MetadataStore, run: RunRecord, step: str, task: str) -> None:
    if store.task(run.flow, run.run, step, task) is not None:
        return
    known = sorted((record.task for record in store.tasks(run.flow, run.run, step, limit=_PAGE)), key=_by_number)
    if not known:
        raise NotFound(f"the step '{step}' of run {run.run} has no tasks yet")
    shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
    raise NotFound(
        f"the step '{step}' of run {run.run} has no task '{task}'", did_you_mean(task, known) or f"its tasks: {shown}"
    )


def _by_number(task: str) -> list[tuple[int, str]]:
    """Order the ids of tasks as people count: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in task.replace("-", ".").split(".")]
