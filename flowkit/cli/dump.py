"""``python flow.py dump``: the artifacts of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.console import clean
from flowkit.cli.lookup import Place, find, tasks_of
from flowkit.cli.session import Session
from flowkit.cli.table import one_line
from flowkit.exceptions import FlowkitError, NotFound, did_you_mean
from flowkit.metadata.records import TaskRecord
from flowkit.model.manifest import Artifact

if TYPE_CHECKING:
    from flowkit.datastore.artifacts import ArtifactReader
    from flowkit.model.manifest import Manifest

Chosen = tuple[TaskRecord, dict[str, Artifact]]


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(input_path: str, private: bool, max_value_size: int, include: str, file: str | None) -> int:
        return _dump(session, input_path, private, max_value_size, _names(include), file)

    params: list[click.Parameter] = [
        click.Argument(["input_path"]),
        click.Option(["--private/--no-private"], default=False, help="Also those whose names begin with _."),
        click.Option(
            ["--max-value-size"],
            type=click.IntRange(min=0),
            default=1000,
            show_default=True,
            help="Show values of up to so many bytes whole, of larger ones what is known without loading them.",
        ),
        click.Option(["--include"], default="", metavar="NAMES", help="Only these, separated by commas."),
        click.Option(
            ["--file"],
            type=click.Path(dir_okay=False),
            help="Write the values to a pickle file, as a dictionary from pathspec to {name: value}.",
        ),
    ]
    return click.Command(
        "dump",
        callback=callback,
        params=params,
        help="Show the artifacts of tasks. INPUT_PATH is RUN/STEP or RUN/STEP/TASK.",
    )


def _dump(
    session: Session, path: str, private: bool, max_value_size: int, include: tuple[str, ...], file: str | None
) -> int:
    from flowkit.datastore.artifacts import ArtifactReader
    from flowkit.datastore.blobs import Blobs
    from flowkit.datastore.manifests import read_manifest
    from flowkit.datastore.many import paired_with

    storage = session.storage()
    store = session.metadata_store(storage)
    reader = ArtifactReader(Blobs(storage))

    def manifest_of(task: TaskRecord) -> Manifest | None:
        return read_manifest(storage, task.flow, task.run, task.step, task.task)

    try:
        place = find(session, store, path, least=2)
        tasks = paired_with(storage, manifest_of, tasks_of(store, place))
        chosen = _chosen(session, place, tasks, private, include)
        if file is not None:
            _to_file(session, chosen, reader, file)
            return 0
        console = session.console
        damage: list[FlowkitError] = []
        with console.paged():
            for task, artifacts in chosen:
                console.data(console.paint(clean(f"{_pathspec(task)}:"), "bold"))
                for name, artifact in artifacts.items():
                    value = shown(reader, name, artifact, max_value_size, damage)
                    console.data(f"    {console.paint(clean(name), 'cyan')} = {value}")
                if not console.listening:
                    break
        if damage:
            raise damage[0]  # everything that could be shown has been
    finally:
        store.close()
    return 0


def _chosen(
    session: Session,
    place: Place,
    tasks: Iterator[tuple[TaskRecord, Manifest | None]],
    private: bool,
    include: tuple[str, ...],
) -> Iterator[Chosen]:
    """Yield the tasks that committed, each with the artifacts that were asked for.

    Raises
    ------
    NotFound
        After the last one: if no task committed, or none has an artifact that was named.
    """
    missing, seen = set(include), set[str]()
    any_task = None
    for task, manifest in tasks:
        if manifest is None:
            reason = f": {one_line(task.reason)}" if task.reason else ""
            session.console.say(f"{_pathspec(task)} has no artifacts: it has not succeeded ({task.state}{reason}).")
            continue
        any_task = task
        names = sorted(manifest.artifacts)
        seen.update(names)
        missing.difference_update(names)
        wanted = [name for name in names if (name in include if include else private or not name.startswith("_"))]
        yield task, {name: manifest.artifacts[name] for name in wanted}
    if any_task is None:
        raise NotFound(f"no task of {place.path} has succeeded: there are no artifacts")
    if missing:
        first = sorted(missing)[0]
        hint = did_you_mean(first, seen) or f"artifacts: {', '.join(sorted(seen)) or 'none'}"
        raise NotFound(f"there is no artifact '{first}' in {place.path}", hint)


def shown(reader: ArtifactReader, name: str, artifact: Artifact, limit: int, damage: list[FlowkitError]) -> str:
    """Return an artifact as text: its value where it is small and can be loaded, else what is known of it.

    What is wrong with its content, rather than with this process's idea of it, is added to `damage`.
    """
    why = ""
    if artifact.size <= limit:
        try:
            view = reader.view(name, artifact)
        except FlowkitError as error:
            damage.append(error)
            return f"<{one_line(_preview(artifact))}, {one_line(error.headline)}>"
        try:
            return clean(repr(reader.decode(name, artifact, view)))
        except FlowkitError as error:
            why = f", {one_line(error.headline)}"
        except Exception as error:  # the border to the value's own __repr__
            why = f", its repr fails: {type(error).__name__}: {one_line(str(error))}"
    return f"<{one_line(_preview(artifact))}{why}>"


def _preview(artifact: Artifact) -> str:
    preview: Mapping[str, Any] = artifact.preview
    parts = [artifact.type]
    for fact in ("shape", "dtype", "columns", "length"):
        if fact in preview and not (fact == "length" and "shape" in preview):
            parts.append(f"{fact} {preview[fact]}")
    if "repr" in preview:
        parts.append(str(preview["repr"]))
    parts.append(f"{artifact.size:,} bytes")
    return ", ".join(parts)


def _to_file(session: Session, chosen: Iterator[Chosen], reader: ArtifactReader, file: str) -> None:
    from flowkit.datastore.pickling import write_pickle

    values = {
        _pathspec(task): {name: reader.load(name, artifact) for name, artifact in artifacts.items()}
        for task, artifacts in chosen
    }
    write_pickle(file, values)
    session.console.say(f"{len(values):,} {'task' if len(values) == 1 else 'tasks'} written to {file}.")


def _pathspec(task: TaskRecord) -> str:
    return f"{task.flow}/{task.run}/{task.step}/{task.task}"


def _names(include: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in include.split(",") if name.strip())
