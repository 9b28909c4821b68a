"""``python flow.py package``: the code that goes along to where steps run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flowkit.cli.group import Group
from flowkit.cli.session import Session
from flowkit.exceptions import UsageError

if TYPE_CHECKING:
    from flowkit.package.files import Package

_LARGEST = 5
"""How many files are named where a package is large."""


def command(session: Session) -> click.Command:
    """Make the group: ``list``, ``info``, ``save``, ``bootstrap``."""

    def listed(archive: str | None, as_json: bool) -> int:
        return _list(session, archive, as_json)

    def info(as_json: bool) -> int:
        return _info(session, as_json)

    def save(path: str) -> int:
        return _save(session, path)

    def bootstrap() -> int:
        return show_bootstrap(session)

    as_json = click.Option(["--json", "as_json"], is_flag=True, help="As JSON.")
    archive = click.Option(["--archive"], type=click.Path(dir_okay=False), help="List a package that was saved.")
    commands: dict[str, click.Command] = {
        "list": click.Command("list", callback=listed, params=[archive, as_json], help="List the files, one a line."),
        "info": click.Command("info", callback=info, params=[as_json], help="Tell what the package consists of."),
        "save": click.Command(
            "save",
            callback=save,
            params=[click.Argument(["path"], type=click.Path(dir_okay=False))],
            help="Write the package into a file: a tar, compressed by gzip.",
        ),
        "bootstrap": click.Command("bootstrap", callback=bootstrap, help="Show what a container runs first."),
    }
    return Group("package", commands=commands, help="Show the code that goes along to where steps run.")


def build(session: Session) -> Package:
    """Find the files of the flow's package, and say what is remarkable about it.

    Raises
    ------
    FlowInvalid
        If a file cannot be part of it.
    """
    from flowkit.package.files import WARN_BYTES, collect

    session.prepare()
    package = collect(session.definition, session.package_suffixes)
    for name in package.skipped:
        session.console.warn(f"Note: {name} is a link that leads out of {package.folder}: it is not in the package.")
    if package.size > WARN_BYTES:
        largest = sorted(package.sources, key=lambda source: -source.size)[:_LARGEST]
        named = ", ".join(f"{source.name} ({source.size / 1e6:,.0f} MB)" for source in largest)
        session.console.warn(
            f"Warning: the code package has {package.size / 1e6:,.0f} MB, which every task downloads; the largest: "
            f"{named}. Leave files out with a .flowkitignore."
        )
    return package


def show_bootstrap(session: Session) -> int:
    """Print the program that a container runs first, and how it is called."""
    from flowkit.datastore.root import default_root
    from flowkit.runtime.bootstrap import container_command, shown
    from flowkit.settings import settings

    package = build(session)
    root = session.root or default_root()
    command = container_command(
        root, "<package>", package.program, "<run>", "<list>", install=not settings().skip_install
    )
    session.console.data(shown(command))
    return 0


def _list(session: Session, archive: str | None, as_json: bool) -> int:
    console = session.console
    if archive is not None:
        from flowkit.package.archive import names

        try:
            with open(archive, "rb") as file:
                found = names(file)
        except OSError as error:
            raise UsageError(f"--archive: {archive} cannot be read: {error.strerror}") from None
        console.json(found) if as_json else console.data("\n".join(found))
        return 0
    package = build(session)
    if as_json:
        console.json([source._asdict() for source in package.sources])
    else:
        console.data("\n".join(source.name for source in package.sources))
    return 0


def _info(session: Session, as_json: bool) -> int:
    package = build(session)
    groups: dict[str, tuple[int, int]] = {}
    for source in package.sources:
        count, size = groups.get(source.why, (0, 0))
        groups[source.why] = (count + 1, size + source.size)
    if as_json:
        whys = {why: {"files": count, "bytes": size} for why, (count, size) in groups.items()}
        told = {**package.info(), "folder": package.folder, "files": whys, "left_out": list(package.skipped)}
        session.console.json(told)
        return 0
    words = {
        "flow": "the flow itself",
        "suffix": f"files of {package.folder}",
        "imported": "further modules that it imports",
        "added": "what decorators add",
        "flowkit": "flowkit and its plugins",
    }
    lines = [f"{package.flow} starts as: python {package.program}"]
    for why, label in words.items():
        count, size = groups.get(why, (0, 0))
        if count:
            lines.append(f"{count:7,} {'file ' if count == 1 else 'files'} {_size(size):>10}  {label}")
    lines.append(f"{len(package.sources):7,} files {_size(package.size):>10}  in all, before compression")
    session.console.data("\n".join(lines))
    return 0


def _save(session: Session, path: str) -> int:
    from flowkit.package.archive import pack

    package = build(session)
    try:
        with pack(package) as content, open(path, "wb") as file:
            file.write(content)
            size = len(content)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    session.console.say(f"{path}: {len(package.sources):,} files, {_size(size)}")
    return 0


def _size(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} KB"
