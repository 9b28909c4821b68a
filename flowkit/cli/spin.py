"""``python flow.py spin``: try out one step on the inputs that it had in a past run, without running the flow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.session import Session
from flowkit.exceptions import InvalidPathspec, NotFound, RunFailed, UsageError, did_you_mean

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.model.launch import Launch
    from flowkit.runtime.spin import Overrides, Spin

_MOST_RUNS = 20
"""How many of the newest runs are looked at for one that has the inputs."""
_LONGEST = 200
"""Bytes of an artifact whose value is shown."""


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(**options: Any) -> int:
        return _spin(session, **options)

    params: list[click.Parameter] = [
        click.Argument(["pathspec"], metavar="STEP|[RUN/]STEP[/TASK]"),
        click.Option(
            ["--set", "given"], multiple=True, metavar="NAME=EXPRESSION", help="Give an artifact another value."
        ),
        click.Option(
            ["--artifacts-module"],
            type=click.Path(dir_okay=False),
            help="A Python file whose dictionary ARTIFACTS gives artifacts other values.",
        ),
        click.Option(["--persist/--no-persist"], default=False, help="Keep what the step makes, for inspect_spin()."),
        click.Option(["--skip-decorators"], is_flag=True, help="Run the step without its decorators."),
        click.Option(["--run-id-file"], type=click.Path(dir_okay=False), help="Write the spin's id there."),
        click.Option(["--runner-attribute-file"], type=click.Path(dir_okay=False), hidden=True),
    ]
    return click.Command(
        "spin",
        callback=callback,
        params=params,
        help="Try out one step: run one of its tasks in this process, on the inputs that it had in a past run (the "
        "newest one that has them). Nothing of that run is changed. For an input of a join write STEP/TASK:NAME=….",
    )


def _spin(
    session: Session,
    pathspec: str,
    given: tuple[str, ...],
    artifacts_module: str | None,
    persist: bool,
    skip_decorators: bool,
    run_id_file: str | None,
    runner_attribute_file: str | None,
) -> int:
    from flowkit.cli.execution import write_run_id
    from flowkit.datastore.spins import open_spins
    from flowkit.runtime.spin import check_overrides, spin

    console = session.console
    run, step, task = _parts(session, pathspec)
    overrides = _overrides(session, given, artifacts_module)
    if not session.dynamic:
        session.prepare()
    storage = session.storage()
    run, launch = _found(session, storage, run, step, task)
    if session.dynamic:
        from flowkit.cli.configs import settle_as_run

        settle_as_run(session, storage, run)
        session.prepare()
    check_overrides(session.definition, launch, overrides)
    with contextlib.nullcontext(open_spins(storage, create=True)) if persist else _forgotten() as kept:
        console.say(f"Spinning {launch.ref} on the inputs of run {run}.")
        began = time.perf_counter()
        result = spin(session.definition, storage, kept, launch, run, overrides, skip_decorators=skip_decorators)
        took = time.perf_counter() - began
        path = f"{session.definition.name}/{result.run}/{launch.ref}"
        options = {"run_id_file": run_id_file, "runner_attribute_file": runner_attribute_file}
        write_run_id(options, session.definition.name, result.run, "spin", task=path, root=storage.root)
        if result.manifest is None:
            raise RunFailed(f"{launch.ref} failed", "nothing of the run was changed")
        _show(session, storage, kept, result)
    console.say(f"{launch.ref} succeeded in {took:.2f} s" + (f"; kept as {path}: inspect_spin()" if persist else "."))
    return 0


def _parts(session: Session, text: str) -> tuple[str | None, str, str | None]:
    """Return run, step and task of what the user wrote; a step may stand alone, or before one of its tasks."""
    from flowkit.model.coordinates import valid_task_id

    steps = session.definition.steps
    parts = text.strip("/").split("/")
    if len(parts) > 2 and parts[0] == session.definition.name:
        parts = parts[1:]
    if len(parts) == 1 or (len(parts) == 2 and parts[0] in steps and parts[1] not in steps):
        parts = ["", *parts]
    if not 2 <= len(parts) <= 3:
        raise InvalidPathspec(f"{text!r} does not name a step", "for example train, 12/train, 12/train/0")
    run, step, task = [*parts, None][:3]
    if step not in steps:
        raise NotFound(f"{session.definition.name} has no step '{step}'", did_you_mean(str(step), steps))
    if task is not None and not valid_task_id(task):
        raise InvalidPathspec(f"'{task}' is not a task id", "a task id looks like 0, 3, 3.1 or 0-2")
    return run or None, str(step), task


def _found(session: Session, storage: Storage, run: str | None, step: str, task: str | None) -> tuple[str, Launch]:
    """Return the run whose inputs are taken, and what to run."""
    from flowkit.metadata.store import RunFilter
    from flowkit.runtime.spin import find_launch

    graph = session.definition.graph
    if run is not None:
        return run, find_launch(storage, graph, run, step, task)
    store = session.metadata_store(storage)
    try:
        newest = [each.run for each in store.runs(graph.flow, RunFilter(user=session.user, limit=_MOST_RUNS))]
        newest = newest or [each.run for each in store.runs(graph.flow, RunFilter(limit=_MOST_RUNS))]
    finally:
        store.close()
    if not newest:
        raise NotFound(f"{graph.flow} has no runs here: there are no inputs for {step}", f"{session.program} run")
    first: NotFound | None = None
    for each in newest:
        try:
            return each, find_launch(storage, graph, each, step, task)
        except NotFound as error:
            first = first or error
    assert first is not None
    raise first


def _overrides(session: Session, given: tuple[str, ...], file: str | None) -> Overrides:
    """Return the values that the user gives, by input and name."""
    import builtins
    import sys

    found: dict[str | None, dict[str, Any]] = {}
    if file is not None:
        for name, value in _module(file).items():
            if isinstance(value, dict) and "/" in name:
                found.setdefault("/".join(name.split("/")[-2:]), {}).update(value)
            else:
                found.setdefault(None, {})[name] = value
    names = {**vars(builtins), **vars(sys.modules[session.definition.cls.__module__])}
    for text in given:
        target, equals, expression = text.partition("=")
        where, colon, name = target.rpartition(":")
        if not equals or not name.isidentifier():
            raise UsageError(f"--set {text!r} is not of the form NAME=EXPRESSION", "for example --set alpha=0.5")
        try:
            value = eval(expression, names)  # the user's own words, in the user's own module
        except Exception as error:  # whatever an expression of the user's can raise
            raise UsageError(
                f"--set {name}: {expression!r} cannot be evaluated: {type(error).__name__}: {error}",
                "write a Python expression: a text needs quotes of its own, as in --set \"name='text'\"",
            ) from error
        found.setdefault(where if colon else None, {})[name] = value
    return found


def _module(file: str) -> dict[str, Any]:
    import runpy

    try:
        made = runpy.run_path(file).get("ARTIFACTS")
    except OSError as error:
        raise UsageError(f"--artifacts-module: {file} cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever a file of the user's can raise
        raise UsageError(f"--artifacts-module: {file} fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, dict) or not all(isinstance(name, str) for name in made):
        raise UsageError(f"--artifacts-module: {file} has no dictionary ARTIFACTS", "write ARTIFACTS = {'name': value}")
    return made


@contextlib.contextmanager
def _forgotten() -> Iterator[Storage]:
    """Give a datastore that is gone in the end; what a step makes must be storable all the same."""
    import tempfile

    from flowkit.datastore.local import LocalStorage

    with tempfile.TemporaryDirectory(prefix="flowkit-spin-") as folder:
        yield LocalStorage(folder, durable=False)


def _show(session: Session, storage: Storage, kept: Storage, result: Spin) -> None:
    from flowkit.cli.console import clean
    from flowkit.cli.dump import shown
    from flowkit.datastore.artifacts import ArtifactReader
    from flowkit.datastore.blobs import Blobs
    from flowkit.datastore.layered import LayeredStorage

    assert result.manifest is not None
    console = session.console
    reader = ArtifactReader(Blobs(LayeredStorage(kept, storage)))
    for name in result.changed:
        value = shown(reader, name, result.manifest.artifacts[name], _LONGEST, [])
        console.say(f"    {console.paint(clean(name), 'cyan')} = {value}")
    way = result.manifest.transition
    if way.targets:
        console.say(
            f"    next: {', '.join(way.targets)}" + (f" ({way.width:,} tasks)" if way.width is not None else "")
        )
