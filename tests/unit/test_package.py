"""The code package: what is in it, that the same files are the same bytes, and that unpacking trusts nobody."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowkit.exceptions import Conflict, DataError, FlowInvalid, UsageError
from flowkit.model.definition import FlowDefinition, define
from flowkit.package import archive, files
from flowkit.package.files import CODE, INFO, Package, Source, collect
from flowkit.package.ignore import Ignored, parse
from flowkit.settings import settings as flowkit_settings

FLOW = """
from flowkit import FlowSpec, package, step
{imports}

{decorator}
class Packed(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flow's folder, with nothing above it that has rules."""
    made = tmp_path / "project"
    made.mkdir()
    return made


def write(folder: Path, *names: str, text: str = "x = 1\n") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def define_flow(folder: Path, decorator: str = "", imports: str = "") -> FlowDefinition:
    write(folder, "flow.py", text=FLOW.format(decorator=decorator, imports=imports))
    spec = importlib.util.spec_from_file_location("packed_flow", folder / "flow.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["packed_flow"] = module
    try:
        spec.loader.exec_module(module)
        return define(module.Packed)
    finally:
        del sys.modules["packed_flow"]


def users(package: Package) -> dict[str, str]:
    return {source.name: source.why for source in package.sources if source.why != "flowkit"}


def packed(package: Package) -> bytes:
    with archive.pack(package) as content:
        return bytes(content)


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_code_of_the_folder_is_taken_and_nothing_else(folder):
    write(folder, "a.py", "sub/b.py", "model.R", "table.RDS", "deep/er/c.py")
    write(folder, "data.csv", "notes.txt", ".hidden.py", ".git/hook.py", ".flowkit/blobs/x.py", "sub/__pycache__/b.py")
    write(folder, "env/pyvenv.cfg", "env/lib/thing.py", "venv/x.py", "conda/conda-meta/history", "conda/x.py")
    write(folder, "node_modules/x/y.py", "lib/site-packages/z.py")
    package = collect(define_flow(folder))
    assert users(package) == {
        "flow.py": "flow",
        "a.py": "suffix",
        "sub/b.py": "suffix",
        "model.R": "suffix",
        "table.RDS": "suffix",
        "deep/er/c.py": "suffix",
    }
    assert package.program == "flow.py"
    assert package.info()["flow"] == "Packed"


def test_further_suffixes_come_from_everywhere(folder, monkeypatch):
    write(folder, "a.csv", "b.SQL", "c.yml", "d.txt", "e.tar.gz")
    monkeypatch.setenv("FLOWKIT_PACKAGE_SUFFIXES", "yml")
    flowkit_settings(reload=True)
    try:
        definition = define_flow(folder, '@package(suffixes=["*.csv"])')
        found = users(collect(definition, ".sql, .tar.gz"))
    finally:
        monkeypatch.undo()
        flowkit_settings(reload=True)
    assert set(found) == {"flow.py", "a.csv", "b.SQL", "c.yml", "e.tar.gz"}
    with pytest.raises(UsageError, match="not a suffix"):
        collect(define_flow(folder), "data/x.csv")


def test_ignore_files_leave_out_and_flowkits_has_the_last_word(folder):
    write(folder, "keep.py", "old.py", "back.py", "data/x.py", "sub/a.py", "sub/gen_a.py", "top.py", "sub/top.py")
    write(folder, ".gitignore", text="old.py\nback.py\ndata/\n/top.py\n")
    write(folder, "sub/.gitignore", text="gen_*.py\n")
    write(folder, ".flowkitignore", text="!back.py\nkeep.py\n")
    assert set(users(collect(define_flow(folder)))) == {"flow.py", "back.py", "sub/a.py", "sub/top.py"}


def test_a_repositorys_rules_hold_below_it_but_never_leave_out_the_flows_folder(tmp_path):
    write(tmp_path, ".gitignore", text="scratch/\nsecret.py\n")
    (tmp_path / ".git").mkdir()
    write(tmp_path, "scratch/a.py", "scratch/secret.py")
    assert set(users(collect(define_flow(tmp_path / "scratch")))) == {"flow.py", "a.py"}


def test_rules_above_a_folder_that_is_in_no_repository_do_not_count(tmp_path):
    write(tmp_path, ".gitignore", text="*.py\n")
    write(tmp_path, "project/a.py")
    assert set(users(collect(define_flow(tmp_path / "project")))) == {"flow.py", "a.py"}


def test_what_is_imported_is_taken_whatever_the_rules_say(folder, monkeypatch):
    write(folder, "used_by_packed.py", "unused.py", "venv/lib/outside_of_packed.py")
    write(folder, ".gitignore", text="*.py\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(folder / "venv" / "lib"))
    definition = define_flow(folder, imports="import outside_of_packed, used_by_packed")
    try:
        assert users(collect(definition)) == {"flow.py": "flow", "used_by_packed.py": "imported"}
    finally:
        del sys.modules["used_by_packed"], sys.modules["outside_of_packed"]


def test_links_are_followed_inside_and_told_outside(folder, tmp_path):
    write(tmp_path, "secrets/key.py", "elsewhere.py")
    write(folder, "real/a.py", "real/deep/b.py")
    (folder / "same").symlink_to("real")
    (folder / "loop").symlink_to(".")
    (folder / "real" / "up").symlink_to("..")
    (folder / "real" / "deep" / "self").symlink_to("self")
    (folder / "alias.py").symlink_to("real/a.py")
    (folder / "gone.py").symlink_to("nowhere.py")
    (folder / "out").symlink_to(tmp_path / "secrets")
    (folder / "out.py").symlink_to(tmp_path / "elsewhere.py")
    package = collect(define_flow(folder))
    assert {name for name in users(package) if not name.startswith(("real/up", "same/up"))} == {
        "flow.py",
        "alias.py",
        "real/a.py",
        "real/deep/b.py",
        "same/a.py",
        "same/deep/b.py",
    }
    assert set(package.skipped) == {"out", "out.py"}
    assert len(users(package)) < 30


def test_decorators_add_files_and_folders(folder, tmp_path):
    write(folder, "config.yml", "queries/a.sql", "queries/.hidden", "queries/deep/b.sql")
    write(tmp_path, "shared/c.txt", "shared/d.txt")
    definition = define_flow(
        folder, '@package(files=["config.yml", "queries", "../shared/c.txt", ("../shared", "both")])'
    )
    assert users(collect(definition)) == {
        "flow.py": "flow",
        "config.yml": "added",
        "queries/a.sql": "added",
        "queries/deep/b.sql": "added",
        "c.txt": "added",
        "both/c.txt": "added",
        "both/d.txt": "added",
    }


@pytest.mark.parametrize(
    ("decorator", "message"),
    [
        ('@package(files=["missing.txt"])', "missing.txt is needed for the code package and cannot be read"),
        ('@package(files=[("a.txt", "../up.txt")])', "leads out of it"),
        ('@package(files=[("a.txt", "/etc/x")])', "leads out of it"),
        ('@package(files=[("a.txt", ".flowkit_code/flowkit/x.py")])', "is flowkit's own"),
        ('@package(files=[("a.txt", "x"), ("b.txt", "x")])', "two files have the name 'x'"),
        ('@package(files=[("a.txt", "x"), ("b.txt", "x/y")])', "is a file and a folder"),
        ('@package(files=[("a.txt", "a\\nb")])', "control character"),
        ('@package(files=["huge.bin"])', "the code package would have 3.2 GB"),
        ('@package(files=["pipe"])', "it is not a file"),
    ],
)
def test_what_cannot_be_packed_is_told_before_anything_starts(folder, decorator, message):
    write(folder, "a.txt", text="a")
    write(folder, "b.txt", text="b")
    os.mkfifo(folder / "pipe")
    with open(folder / "huge.bin", "wb") as file:
        file.truncate(3_200_000_000)
    with pytest.raises(FlowInvalid) as error:
        collect(define_flow(folder, decorator))
    assert message in str(error.value)


def test_all_problems_are_told_at_once(folder):
    with pytest.raises(FlowInvalid) as error:
        collect(define_flow(folder, '@package(files=["one.txt", "two.txt"])'))
    assert len(error.value.problems) == 2


@pytest.mark.parametrize("wrong", ['files="a.txt"', "files=[3]", 'files=[("a", "b", "c")]', 'suffixes=["."]'])
def test_package_says_what_it_takes(folder, wrong):
    definition = define_flow(folder, f"@package({wrong})")
    assert definition.decorators[0].configure_flow(definition, {})


def test_flowkit_and_its_plugins_go_along_and_nothing_else_of_it(folder):
    names = {source.name for source in collect(define_flow(folder)).sources if source.why == "flowkit"}
    for name in (
        "__init__.py",
        "py.typed",
        "runtime/bootstrap_stub.txt",
        "plugins/__init__.py",
        "plugins/aws/__init__.py",
    ):
        assert f"{CODE}/flowkit/{name}" in names
    unwanted = ("/flowkit/tutorials/", "/flowkit/metadata_service/", "__pycache__", ".pyc")
    assert not [name for name in names if any(part in name for part in unwanted)]


# -- the same files, the same bytes -----------------------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes_wherever_they_are(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second" / "place"
    names = ["b.py", "a.py", "sub/c.py", "ä.py"]
    write(first, *names)
    define_flow(first)
    for name in reversed([*names, "flow.py"]):
        (second / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first / name, second / name)
        os.utime(second / name, (1, 1))
        os.chmod(second / name, 0o600)
    one, two = packed(collect(define_flow(first))), packed(collect(define_flow(second)))
    assert one == two
    write(second, "a.py", text="x = 2\n")
    assert packed(collect(define_flow(second))) != one


def test_whether_a_file_is_executable_is_kept(folder, tmp_path):
    write(folder, "tool.py")
    (folder / "tool.py").chmod(0o711)
    archive.extract(packed(collect(define_flow(folder))), str(tmp_path / "out"))
    assert (tmp_path / "out" / "tool.py").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out" / "flow.py").stat().st_mode & 0o777 == 0o644


_PART = st.text(st.characters(blacklist_categories=("C", "Z"), blacklist_characters='/\\:"'), min_size=1, max_size=12)
_NAME = st.lists(
    _PART.filter(lambda part: part not in (".", "..") and len(part.encode()) < 200), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.dictionaries(_NAME.map("/".join), st.binary(max_size=200), max_size=6))
def test_what_is_packed_comes_out_again(tmp_path_factory, contents):
    clashing = set(files.files_that_are_folders(contents))
    contents = {name: data for name, data in contents.items() if name not in clashing}
    folder = tmp_path_factory.mktemp("round")
    sources = []
    for number, (name, data) in enumerate(sorted(contents.items())):
        (folder / str(number)).write_bytes(data)
        sources.append(Source(name, str(folder / str(number)), len(data), "added"))
    content = packed(Package("F", str(folder), "flow.py", tuple(sources)))
    assert archive.names(content) == [INFO, *sorted(contents)]
    assert set(archive.extract(content, str(folder / "out"))) == {INFO, *contents}
    assert archive.read_info(content)["flow"] == "F"
    for name, data in contents.items():
        assert (folder / "out" / name).read_bytes() == data
        assert archive.read(content, name) == data


def test_a_file_that_vanishes_before_it_is_packed_is_an_error(folder):
    write(folder, "a.py")
    package = collect(define_flow(folder))
    (folder / "a.py").unlink()
    with pytest.raises(UsageError, match=r"a\.py is needed for the code package and cannot be read"):
        packed(package)


# -- unpacking trusts nobody ------------------------------------------------------------------------------------------


def tar_of(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form) as tar:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
            else:
                tar.addfile(member)
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def claiming(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)


GOOD = ("good.py", b"1")
BAD = {
    "absolute": tar_of(GOOD, ("/tmp/evil", b"x")),
    "above": tar_of(GOOD, ("../evil", b"x")),
    "above, further in": tar_of(GOOD, ("a/../../evil", b"x")),
    "backslashes": tar_of(GOOD, ("..\\evil", b"x")),
    "a drive": tar_of(GOOD, ("C:/evil", b"x")),
    "empty part": tar_of(GOOD, ("a//b", b"x")),
    "control character": tar_of(GOOD, ("a\x1b[2Jb", b"x")),
    "symbolic link": tar_of(GOOD, special("link", tarfile.SYMTYPE, "/etc/passwd")),
    "link inside": tar_of(GOOD, special("link", tarfile.SYMTYPE, "good.py")),
    "hard link": tar_of(GOOD, special("link", tarfile.LNKTYPE, "good.py")),
    "folder": tar_of(GOOD, special("folder", tarfile.DIRTYPE)),
    "device": tar_of(GOOD, special("null", tarfile.CHRTYPE)),
    "pipe": tar_of(GOOD, special("pipe", tarfile.FIFOTYPE)),
    "twice": tar_of(GOOD, GOOD),
    "file and folder": tar_of(GOOD, ("good.py/x", b"x")),
    "larger than any": claiming("huge", 50 << 30),
    "long name": tar_of(GOOD, ("x/" * 3000 + "y", b"x")),
    "cut off": tar_of(GOOD, ("more.py", os.urandom(5000)))[:-600],
    "no archive": b"nonsense",
    "nothing": b"",
    "gzip of nonsense": gzip.compress(b"nonsense" * 1000),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_writes_nothing(tmp_path, name):
    with pytest.raises(DataError):
        archive.extract(BAD[name], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_claims_gigabytes_does_not_take_them(tmp_path):
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 3 << 30
    bomb = gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + b"\0" * (8 << 20), 1)
    with pytest.raises(DataError, match="larger than any can be"):
        archive.extract(bomb, str(tmp_path / "out"))


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_FILES", 10)
    with pytest.raises(DataError, match="larger than any can be"):
        archive.extract(tar_of(*((f"{n}.py", b"") for n in range(11))), str(tmp_path / "out"))


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=30) | st.text("./\\a:", min_size=1)
)
def test_no_name_leads_out(tmp_path_factory, name):
    outer = tmp_path_factory.mktemp("outer")
    try:
        content = tar_of((name, b"x"))
        written = archive.extract(content, str(outer / "in" / "folder"))
    except (DataError, ValueError):
        assert list(outer.iterdir()) == []
        return
    found = [path.relative_to(outer / "in" / "folder").as_posix() for path in outer.rglob("*") if path.is_file()]
    assert found == written


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=40), at=st.integers(0, 400))
def test_a_damaged_archive_is_an_error_of_ours_or_harmless(tmp_path_factory, noise, at):
    good = tar_of(GOOD, ("sub/more.py", b"2" * 300))
    damaged = good[:at] + noise + good[at + len(noise) :]
    outer = tmp_path_factory.mktemp("outer")
    try:
        archive.extract(damaged, str(outer / "out"))
    except DataError:
        pass
    assert {path.name for path in outer.iterdir()} <= {"out"}


def test_nothing_is_replaced_unless_asked_for(tmp_path):
    write(tmp_path, "out/good.py", text="mine")
    content = tar_of(("a.py", b"1"), GOOD)
    with pytest.raises(Conflict, match=r"good\.py"):
        archive.extract(content, str(tmp_path / "out"))
    assert not (tmp_path / "out" / "a.py").exists()
    assert (tmp_path / "out" / "good.py").read_text() == "mine"
    archive.extract(content, str(tmp_path / "out"), overwrite=True)
    assert (tmp_path / "out" / "good.py").read_bytes() == b"1"


def test_links_that_are_there_already_are_not_written_through(tmp_path):
    write(tmp_path, "precious.py", text="precious")
    (tmp_path / "outside").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "good.py").symlink_to(tmp_path / "precious.py")
    archive.extract(tar_of(GOOD), str(out), overwrite=True)
    assert (tmp_path / "precious.py").read_text() == "precious"
    assert (out / "good.py").read_bytes() == b"1"
    (out / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(Conflict, match="leads out"):
        archive.extract(tar_of(("sub/x.py", b"x")), str(out), overwrite=True)
    assert list((tmp_path / "outside").iterdir()) == []


def test_only_what_is_wanted_is_unpacked(tmp_path):
    names = archive.extract(tar_of(GOOD, ("b.py", b"2")), str(tmp_path), wanted=lambda name: name == "b.py")
    assert names == ["b.py"]
    assert [path.name for path in tmp_path.iterdir()] == ["b.py"]


# -- ignore files, beside git's own reading ------------------------------------------------------------------------

TREE = [
    *("a.py", "ab.py", "b.py", "a b.py", "A.py", "a-b.py", "1.py", "sub/a.py", "sub/b.py", "sub/deep/a.py"),
    *("sub/deep/er/a.py", "build/a.py", "build/keep/b.py", "foo/bar/baz/a.py", "x]y.py", "x!y.py", "x#y.py", "*.py"),
]
_ATOMS = (
    *("*", "a", "b", "?", "/", "!", "-", ".", " ", "**", "**/", "/**", "*.py", "a.py", "sub", "deep", "build", "keep"),
    *("[ab]", "[!a]", "[a-c]", "[^b]", "[]x]", "[[:digit:]]", "\\*", "\\ ", "\\!", "#", "\\#", "[", "]", "\\"),
    *("foo/**/a.py", "py", ".py"),
)
_LINE = st.lists(st.sampled_from(_ATOMS), min_size=1, max_size=5).map("".join)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write(folder, *TREE)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", "."], cwd=folder, env=environment, check=True)
    return folder


def ours(folder: Path) -> set[str]:
    return {name for name, _ in files._Collection(str(folder)).walk(None)}


def gits(folder: Path) -> set[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "ls-files", "-z", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return {name for name in done.stdout.split("\0") if name and not Path(name).name.startswith(".")}


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(_LINE, min_size=1, max_size=4), inner=st.lists(_LINE, max_size=2))
def test_ignore_files_mean_what_they_mean_to_git(repository, lines, inner):
    write(repository, ".gitignore", text="\n".join(lines) + "\n")
    write(repository, "sub/.gitignore", text="\n".join(inner) + "\n")
    assert ours(repository) == gits(repository)


@pytest.mark.parametrize(
    "lines",
    [
        "*.py\n!a.py", "sub/\n!sub/a.py", "/a.py", "sub/deep", "**/a.py", "sub/**", "sub/**/a.py", "/*/a.py", "a.py/",
        "#a.py", "\\#a.py", "a\\ b.py", "a b.py   ", "x[]]y.py", "[[:upper:]].py", "[a-", "!a.py", "*\n!*/\n!b.py",
        "b.py\r", "build/*\n!build/keep", "foo/*/baz", "***.py", "a**b.py",
    ],
)  # fmt: skip
def test_lines_that_people_write(repository, lines):
    write(repository, ".gitignore", text=lines + "\n")
    write(repository, "sub/.gitignore", text="")
    assert ours(repository) == gits(repository)


@settings(max_examples=200, deadline=None)
@given(line=st.text(max_size=40))
def test_any_line_can_be_read(line):
    rule = parse(line.replace("\n", ""), "/base")
    if rule is not None:
        rule.pattern.fullmatch("sub/deep/a.py")


def test_an_ignore_file_of_junk_is_no_harm(folder):
    (folder / ".gitignore").write_bytes(os.urandom(5000))
    (folder / "sub").mkdir()
    (folder / "sub" / ".gitignore").mkdir()
    Ignored.above(str(folder)).below(str(folder)).below(str(folder / "sub")).leaves_out(str(folder / "x"), folder=False)
