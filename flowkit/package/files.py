"""Which files a flow needs elsewhere: those of its folder, flowkit's own, and what decorators add.

Of the flow's folder it takes Python's files and those with further suffixes, as far as ``.gitignore`` and
``.flowkitignore`` do not leave them out, and every module of the folder that the flow has imported. Hidden files
and folders, virtual environments and caches never belong to it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from flowkit.exceptions import FlowInvalid, Problem, UsageError
from flowkit.model.definition import FlowDefinition
from flowkit.package.ignore import Ignored
from flowkit.settings import settings, working_folder
from flowkit.version import __version__

SUFFIXES = (".py", ".R", ".RDS")
"""Suffixes of files that always belong to a package."""
CODE = ".flowkit_code"
"""The folder in a package that holds flowkit itself."""
INFO = ".flowkit_package.json"
"""The file in a package that describes it."""
WARN_BYTES = 100_000_000
"""Bytes above which the user is told that a package is large."""
MOST_BYTES = 2 << 30
"""Bytes of all files of a package."""
MOST_FILES = 100_000
"""Files of a package, and folders that are looked through for it."""
_PRUNED = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages", "venv"})
_ENVIRONMENTS = ("pyvenv.cfg", "conda-meta")
_NOT_CODE = frozenset({"plugins", "metadata_service", "tutorials"})


class Source(NamedTuple):
    """One file of a package.

    Parameters
    ----------
    name : str
        In the package, with ``/`` between its parts.
    path : str
        On this machine.
    size : int
        Bytes.
    why : str
        ``flow`` (the flow's own file), ``suffix``, ``imported``, ``added`` (by a decorator) or ``flowkit``.
    """

    name: str
    path: str
    size: int
    why: str


class Package(NamedTuple):
    """The files of a package; `flowkit.package.archive.pack` makes an archive of them.

    Parameters
    ----------
    flow : str
        The flow's name.
    folder : str
        The folder that becomes the package's top.
    program : str
        How the flow is started there: ``flow.py``, or ``-m package.module``.
    sources : tuple of Source
        Sorted by name.
    skipped : tuple of str
        Links that lead out of the folder, which are left out.
    """

    flow: str
    folder: str
    program: str
    sources: tuple[Source, ...]
    skipped: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(source.size for source in self.sources)

    def info(self) -> dict[str, Any]:
        """Return what the package says about itself; nothing that differs between two machines."""
        return {
            "format": 1,
            "flow": self.flow,
            "program": self.program,
            "flowkit": __version__,
            "python": ".".join(map(str, sys.version_info[:2])),
        }


def collect(definition: FlowDefinition, suffixes: str | None = None) -> Package:
    """Find the files of a flow's package.

    Parameters
    ----------
    definition : FlowDefinition
        The flow, with all its decorators.
    suffixes : str, optional
        Further suffixes, separated by commas, as of ``--package-suffixes``. Those of the setting
        ``package_suffixes`` count too.

    Raises
    ------
    FlowInvalid
        With every file that is missing, unreadable or too large, or has another's name.
    """
    folder, program, only = _place(definition)
    found = _Collection(folder)
    main = os.path.relpath(definition.file, folder).replace(os.sep, "/")
    found.add(main, definition.file, "flow")
    wanted = _suffixes(definition, suffixes)
    for name, path in found.walk(only):
        if name.lower().endswith(wanted):
            found.add(name, path, "suffix")
    for name, path in _imported(folder):
        found.add(name, path, "imported")
    found.add_extras(definition)
    for name, path in _flowkit_files():
        found.add(f"{CODE}/{name}", path, "flowkit")
    return Package(definition.name, folder, program, found.sources(), tuple(found.skipped))


def _place(definition: FlowDefinition) -> tuple[str, str, str | None]:
    """Return the package's folder, how the flow is started there, and the one subfolder that belongs to it, if so."""
    folder, name = os.path.split(os.path.abspath(definition.file))
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is None or os.path.realpath(getattr(main, "__file__", None) or "") != os.path.realpath(definition.file):
        return folder, name, None
    parts = spec.name.split(".")
    for _ in parts[1:]:
        folder = os.path.dirname(folder)
    # A flow of an installed package: what lies beside that package is not the flow's.
    only = None if folder == working_folder() or len(parts) == 1 else parts[0]
    return folder, f"-m {spec.name.removesuffix('.__main__')}", only


def _suffixes(definition: FlowDefinition, given: str | None) -> tuple[str, ...]:
    texts = [*SUFFIXES]
    for text in (given, settings().package_suffixes):
        texts += (text or "").split(",")
    for decorator in definition.decorators:
        texts += decorator.package_suffixes()
    out = []
    for text in texts:
        suffix = text.strip().lstrip("*").lower()
        if suffix in ("", "."):
            continue
        if "/" in suffix:
            raise UsageError(f"'{text}' is not a suffix of files", "for example .csv")
        out.append(suffix if suffix.startswith(".") else f".{suffix}")
    return tuple(dict.fromkeys(out))


class _Collection:
    """The files found so far, and what is wrong with them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.skipped: list[str] = []
        self._found: dict[str, Source] = {}
        self._problems: list[Problem] = []
        self._real = os.path.realpath(folder)
        self._folders = 0

    def add(self, name: str, path: str, why: str) -> None:
        """Take a file in; a name that is taken by another file is a problem."""
        problem = _wrong_name(name, why)
        if problem is not None:
            self._problems.append(Problem(f"{path} cannot be in the code package: {problem}"))
            return
        known = self._found.get(name)
        if known is not None:
            if os.path.realpath(known.path) != os.path.realpath(path):
                self._problems.append(
                    Problem(
                        f"two files have the name '{name}' in the code package: {known.path} and {path}",
                        None,
                        "give one of them another name in package_files or @package(files=…)",
                    )
                )
            return
        try:
            size = os.stat(path).st_size
            if not os.path.isfile(path):
                raise OSError(0, "it is not a file")
            if not os.access(path, os.R_OK):
                raise OSError(0, "there is no permission to read it")
        except OSError as error:
            self._problems.append(
                Problem(f"{path} is needed for the code package and cannot be read: {error.strerror}", None, _LEAVE_OUT)
            )
            return
        self._found[name] = Source(name, path, size, why)

    def add_extras(self, definition: FlowDefinition) -> None:
        """Take in what decorators name: files, and folders with all that is in them."""
        on_flow = [*definition.decorators, *definition.mutators]
        for decorator in [*on_flow, *(each for s in definition.steps.values() for each in s.decorators)]:
            for path, name in decorator.package_files():
                path = os.path.join(os.path.dirname(definition.file), path)
                if not os.path.isdir(path):
                    self.add(name, path, "added")
                    continue
                for inner in _below(path):
                    self.add(f"{name}/{inner}", os.path.join(path, inner), "added")

    def sources(self) -> tuple[Source, ...]:
        """Return the files, sorted by name.

        Raises
        ------
        FlowInvalid
            With every problem.
        """
        names = sorted(self._found)
        self._problems += [
            Problem(f"'{name}' is a file and a folder in the code package: {self._found[name].path}")
            for name in files_that_are_folders(names)
        ]
        size = sum(source.size for source in self._found.values())
        if size > MOST_BYTES:
            self._problems.append(_too_large(size, self._found))
        if len(names) > MOST_FILES:
            self._problems.append(Problem(f"the code package would have {len(names):,} files", None, _LEAVE_OUT))
        if self._problems:
            raise FlowInvalid(self._problems)
        return tuple(self._found[name] for name in names)

    def walk(self, only: str | None) -> Iterator[tuple[str, str]]:
        """Yield name and path of every file of the flow's folder that is not left out."""
        rules = Ignored.above(self.folder).below(self.folder)
        if only is None:
            yield from self._walk(self.folder, "", rules, (self._real,))
        else:
            start = os.path.join(self.folder, only)
            yield from self._walk(start, f"{only}/", rules.below(start), (os.path.realpath(start),))

    def _walk(self, folder: str, prefix: str, rules: Ignored, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        pending = [(folder, prefix, rules, above)]
        while pending:
            folder, prefix, rules, above = pending.pop()
            self._folders += 1
            if self._folders > MOST_FILES:
                raise UsageError(
                    f"{self.folder} has more than {MOST_FILES:,} folders, too many for a code package", _LEAVE_OUT
                )
            for entry in self._entries(folder):
                name = prefix + entry.name
                if entry.name.startswith(".") or entry.name in _PRUNED:
                    continue
                is_folder = os.path.isdir(entry.path)
                if rules.leaves_out(entry.path, folder=is_folder):
                    continue
                real = os.path.realpath(entry.path) if entry.is_symlink() else None
                if real is not None and not _inside(real, self._real):
                    self.skipped.append(name)
                elif not is_folder:
                    if os.path.isfile(entry.path):
                        yield name, entry.path
                elif not _is_environment(entry.path):
                    real = real or os.path.join(above[-1], entry.name)
                    if real not in above:  # else it is a link to a folder that it is inside of
                        pending.append((entry.path, f"{name}/", rules.below(entry.path), (*above, real)))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._problems.append(Problem(f"the folder {folder} cannot be read: {error.strerror}", None, _LEAVE_OUT))
            return []


_LEAVE_OUT = "name it in a .flowkitignore beside the flow to leave it out"


def _wrong_name(name: str, why: str) -> str | None:
    parts = name.split("/")
    if name.startswith("/") or "" in parts or "." in parts or ".." in parts or "\\" in name:
        return f"'{name}' leads out of it"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if not name.isprintable():
        return f"its name has a control character: {name!r}"
    if why != "flowkit" and parts[0] in (CODE, INFO):
        return f"'{parts[0]}' is flowkit's own"
    return None


def _too_large(size: int, found: dict[str, Source]) -> Problem:
    largest = sorted(found.values(), key=lambda source: -source.size)[:3]
    named = ", ".join(f"{source.path} ({source.size / 1e6:,.0f} MB)" for source in largest)
    return Problem(
        f"the code package would have {size / 1e9:.1f} GB (at most {MOST_BYTES / 1e9:.1f}); the largest: {named}",
        None,
        "data belongs into artifacts, IncludeFile or S3; leave files out with a .flowkitignore",
    )


def files_that_are_folders(names: Iterable[str]) -> list[str]:
    """Return those names of files below which other files have their names; in time linear in the names."""
    folders: set[str] = set()
    names = list(names)
    for name in names:
        parent = name.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    return [name for name in names if name in folders]


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_environment(folder: str) -> bool:
    return any(os.path.lexists(os.path.join(folder, name)) for name in _ENVIRONMENTS)


def _imported(folder: str) -> list[tuple[str, str]]:
    """Return the modules of a folder that are imported, whatever ignore files say of them."""
    found = []
    for module_name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or module_name.partition(".")[0] == "flowkit" or not os.path.isfile(path):
            continue
        path = os.path.abspath(path)
        if not _inside(path, folder):
            continue
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        parts = name.split("/")
        if any(part.startswith(".") or part in _PRUNED for part in parts):
            continue
        if any(_is_environment(os.path.join(folder, *parts[:end])) for end in range(1, len(parts))):
            continue
        found.append((name, path))
    return found


def _flowkit_files() -> Iterator[tuple[str, str]]:
    """Yield the files of flowkit by where they are imported from, plugins on their own: they may lie elsewhere."""
    for folder in sys.modules["flowkit"].__path__:
        for name in _below(folder):
            if name.partition("/")[0] not in _NOT_CODE:
                yield f"flowkit/{name}", os.path.join(folder, name)
    spec = importlib.util.find_spec("flowkit.plugins")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in _below(folder):
            yield f"flowkit/plugins/{name}", os.path.join(folder, name)


def _below(folder: str) -> list[str]:
    """Return the names of all files below a folder, but for hidden ones and caches; links to folders stay out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _PRUNED]
        for name in names:
            if not name.startswith(".") and not name.endswith(".pyc"):
                found.append(os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/"))
    return sorted(found)
