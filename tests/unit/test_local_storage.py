"""What only a folder on a disk can do wrong: permissions, full disks, links, leftovers."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowkit.datastore import local
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.root import find_root, make_root, network_file_system, open_storage
from flowkit.exceptions import NotFound, StoreError, UsageError


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path), durable=False)


def test_a_missing_root_is_not_made_by_writing(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "gone"), durable=False)
    with pytest.raises(StoreError, match="does not exist"):
        storage.create("a", [b""])
    assert not (tmp_path / "gone").exists()
    assert storage.info("a") is None
    assert list(storage.children("")) == []


def test_without_hard_links_create_still_keeps_its_promise(storage: LocalStorage, monkeypatch) -> None:
    def no_links(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    assert storage.create("deep/a", [b"first"])
    assert not storage.create("deep/a", [b"second"])
    assert storage.read("deep/a") == b"first"
    assert os.listdir(f"{storage.root}/.tmp") == []


def test_without_links_and_rename_create_refuses(storage: LocalStorage, monkeypatch) -> None:
    def no_links(source: str, target: str) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(sys, "platform", "other")
    with pytest.raises(StoreError, match="hard links"):
        storage.create("a", [b"x"])
    storage.replace("a", [b"x"])
    assert storage.read("a") == b"x"


def test_a_link_whose_reply_was_lost_counts(storage: LocalStorage, monkeypatch) -> None:
    real = os.link

    def lossy(source: str, target: str) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "the reply was lost, the retry found the link")

    monkeypatch.setattr(os, "link", lossy)
    assert storage.create("a", [b"mine"])
    monkeypatch.setattr(os, "link", real)
    assert not storage.create("a", [b"other"])


def test_a_limit_on_the_size_names_the_file(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from flowkit.datastore.local import LocalStorage\n"
        "from flowkit.exceptions import StoreError\n"
        "storage = LocalStorage(sys.argv[1], durable=False)\n"
        "try: storage.create('some/object', [b'x' * 5000])\n"
        "except StoreError as error: print(error)\n"
        "import os; print(os.listdir(sys.argv[1] + '/.tmp'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "cannot write" in done.stdout
    assert "some/object" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "full"), (errno.EROFS, "read-only")])
def test_errors_say_what_to_do(storage: LocalStorage, monkeypatch, number: int, word: str) -> None:
    def fails(descriptor: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fails)
    with pytest.raises(StoreError) as caught:
        storage.replace("flows/F/1/run.json", [b"x"])
    monkeypatch.undo()
    assert "flows/F/1/run.json" in caught.value.headline
    assert word in (caught.value.hint or "")
    assert os.listdir(f"{storage.root}/.tmp") == []


def test_short_writes_are_finished(storage: LocalStorage, monkeypatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    storage.replace("a", [b"0123456789" * 5])
    assert storage.read("a") == b"0123456789" * 5


def test_too_many_open_files(storage: LocalStorage) -> None:
    storage.replace("a", [b"x"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(StoreError, match="cannot"):
            storage.read("a")
        with pytest.raises(StoreError, match="cannot"):
            storage.create("b", [b"x"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert storage.read("a") == b"x"


def test_leftovers_are_swept_after_a_day(storage: LocalStorage) -> None:
    storage.replace("a", [b"x"])
    old, new = Path(storage.root, ".tmp", "old"), Path(storage.root, ".tmp", "new")
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    yesterday = time.time() - 2 * local.STALE
    os.utime(old, (yesterday, yesterday))
    assert storage.sweep() == 1
    assert os.listdir(f"{storage.root}/.tmp") == ["new"]


def test_a_mapped_file_does_not_change_under_replace(storage: LocalStorage) -> None:
    import mmap

    storage.replace("a", [b"x" * 5000])
    path = storage.local_path("a")
    assert path
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        storage.replace("a", [b"y"])
        assert mapped[:] == b"x" * 5000


def test_the_nearest_root_upward(tmp_path: Path) -> None:
    outer = Path(make_root(str(tmp_path / ".flowkit")))
    assert (outer / ".gitignore").read_text() == "*\n"
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_root(str(below)) == str(outer)
    inner = make_root(str(tmp_path / "a" / ".flowkit"))
    assert find_root(str(below)) == inner


def test_the_folder_of_the_metadata_service_at_home_is_no_datastore(tmp_path):
    (tmp_path / ".flowkit" / "service").mkdir(parents=True)
    below = tmp_path / "project"
    below.mkdir()
    assert find_root(str(below)) != str(tmp_path / ".flowkit")
    make_root(str(tmp_path / ".flowkit"))
    assert find_root(str(below)) == str(tmp_path / ".flowkit")


def test_opening(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = tmp_path / "data"
    with pytest.raises(NotFound, match="no datastore"):
        open_storage(str(wanted))
    assert open_storage(str(wanted), create=True).root == str(wanted)
    assert open_storage(str(wanted)).root == str(wanted)
    assert open_storage("memory:").name == "memory"
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        open_storage(str(tmp_path / "file"), create=True)
    with pytest.raises(UsageError, match="there is no kind of datastore called 'ftp'"):
        open_storage("ftp://host/path")


def test_this_folder_is_local_or_named(tmp_path: Path) -> None:
    kind = network_file_system(str(tmp_path))
    assert kind is None or isinstance(kind, str)
