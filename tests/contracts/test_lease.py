"""One owner of a run, whatever the storage: races, lost replies, clocks that are set, owners that sleep or die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowkit.datastore import lease as leases
from flowkit.datastore.layout import lease_file
from flowkit.datastore.lease import Lease, LeaseLost, read_holder, read_owner
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.sealed import unseal
from flowkit.datastore.storage import Storage
from flowkit.exceptions import Conflict, StoreError
from flowkit.metadata.liveness import owner_is_gone, this_process

ADA = {"user": "ada", "host": "laptop", "pid": 11}
BOB = {"user": "bob", "host": "desktop", "pid": 22}
PATH = lease_file("Flow", "1")


@pytest.fixture(params=("local", "memory", "s3"))
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        from flowkit.plugins.aws.s3_storage import S3Storage

        return S3Storage(f"s3://{request.getfixturevalue('aws').bucket()}/some/root", fresh=0)
    return MemoryStorage() if request.param == "memory" else LocalStorage(str(tmp_path), durable=False)


def take(storage: Storage, owner: dict[str, Any] = ADA, **options: Any) -> Lease:
    return Lease.acquire(storage, "Flow", "1", owner, **options)


def content(storage: Storage) -> dict[str, Any]:
    return unseal(storage.read(PATH), PATH)


def test_the_first_owner_has_it_and_the_next_is_told_who(storage: Storage) -> None:
    lease = take(storage)
    assert lease.epoch == 1
    lease.check()
    lease.renew()
    for take_over in (False, True):
        with pytest.raises(Conflict, match=r"run 1 belongs to ada@laptop \(process 11\), since 2"):
            take(storage, BOB, take_over=take_over, gone=lambda owner: False)
    lease.check()
    assert read_owner(storage, "Flow", "1") == ADA


def test_a_released_run_is_anybodys_at_once(storage: Storage) -> None:
    take(storage).release()
    assert read_holder(storage, "Flow", "1") is None
    second = take(storage, BOB)
    assert second.epoch == 2
    second.release()
    second.release()
    assert take(storage).epoch == 3


def test_a_dead_owner_is_followed_at_once_and_an_owner_that_lost_knows(storage: Storage) -> None:
    first = take(storage)
    second = take(storage, BOB, take_over=True, gone=lambda owner: owner == ADA)
    assert second.epoch == 2
    first.check()  # it need not look: its time is not over, and it counts as dead
    with pytest.raises(LeaseLost, match="not ours any more: it was taken over by bob@desktop"):
        first.renew()
    assert first.lost is not None
    with pytest.raises(LeaseLost):
        first.check()
    first.release()  # changes nothing
    second.renew()
    assert read_owner(storage, "Flow", "1") == BOB


def test_an_owner_that_is_silent_for_long_enough_is_followed(storage: Storage) -> None:
    take(storage, expires_after=0.3)
    told: list[str] = []
    begun = time.monotonic()
    second = take(storage, BOB, take_over=True, told=told.append)
    assert time.monotonic() - begun >= 0.3
    assert second.epoch == 2
    assert told == [line for line in told if line.startswith("Run 1 belonged to ada@laptop (process 11), since ")]
    assert len(told) == 1


def test_an_owner_that_renews_is_not_followed_whatever_its_clock_says(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)  # years behind: by that clock it ran out long ago
    lease = take(storage, expires_after=1.0)
    lease.renew()
    monkeypatch.undo()
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.05):
            lease.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(Conflict, match="belongs to ada@laptop"):
            take(storage, BOB, take_over=True)
    finally:
        stop.set()
        thread.join()
    lease.check()


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_an_owner_whose_clock_is_set_looks_before_it_does_anything(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    lease = take(storage)
    writes = content(storage)["write"]
    lease.check()
    assert content(storage)["write"] == writes  # nothing was asked
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    lease.check()
    assert content(storage)["write"] != writes
    second = take(storage, BOB, take_over=True, gone=lambda owner: True)
    monkeypatch.setattr(time, "time", lambda: real() + 2 * jump)
    with pytest.raises(LeaseLost):
        lease.check()
    second.check()


def test_an_owner_that_slept_looks_before_it_does_anything(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = take(storage)
    take(storage, BOB, take_over=True, gone=lambda owner: True)
    steady = leases._steady
    monkeypatch.setattr(leases, "_steady", lambda: steady() + 3600)  # the wall clock was set back meanwhile
    with pytest.raises(LeaseLost, match="taken over by bob"):
        lease.check()


@pytest.mark.parametrize("round_", range(3))
def test_of_many_who_take_it_exactly_one_has_it(storage: Storage, round_: int) -> None:
    for begin in (lambda: None, lambda: take(storage, ADA, take_over=True, gone=lambda owner: True)):
        begin()
        won: list[Lease] = []
        lost: list[Conflict] = []
        barrier = threading.Barrier(8)

        def race(number: int, won=won, lost=lost, barrier=barrier) -> None:
            owner = {"user": f"u{number}", "host": "h", "pid": number}
            barrier.wait()
            try:
                won.append(take(storage, owner, take_over=True, gone=lambda found: found == ADA))
            except Conflict as error:
                lost.append(error)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        # The seven others watch a living owner: it renews, and they see that.
        deadline = time.monotonic() + 60
        while len(won) + len(lost) < 8 and time.monotonic() < deadline:
            for lease in won:
                lease.renew()
            time.sleep(0.01)
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        won[0].renew()
        storage.delete(PATH)


class LosesReplies(MemoryStorage):
    """Carries every conditional write out and says that it did not work, or does not know."""

    mode = ""

    def create(self, path: str, chunks: Any) -> bool:
        return self._said(super().create(path, chunks))

    def replace_version(self, path: str, content: bytes, version: str) -> bool:
        return self._said(super().replace_version(path, content, version))

    def _said(self, done: bool) -> bool:
        if self.mode == "refused":
            return False
        if self.mode == "error" and done:
            raise StoreError("no answer")
        return done


@pytest.mark.parametrize("mode", ["refused", "error"])
def test_a_write_whose_reply_is_lost_counts(mode: str) -> None:
    storage = LosesReplies()
    storage.mode = mode
    first = take(storage)
    for _ in range(3):
        first.renew()
    second = take(storage, BOB, take_over=True, gone=lambda owner: True)
    assert second.epoch == 2
    with pytest.raises(LeaseLost):
        first.renew()
    second.renew()
    second.release()
    assert take(storage).epoch == 3


class Silent(MemoryStorage):
    """Does not answer for a while."""

    silent = False

    def read_version(self, path: str) -> Any:
        if self.silent:
            raise StoreError("no answer")
        return super().read_version(path)

    def replace_version(self, path: str, content: bytes, version: str) -> bool:
        if self.silent:
            raise StoreError("no answer")
        return super().replace_version(path, content, version)


def test_while_nobody_answers_nobody_loses_and_nobody_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Silent()
    lease = take(storage, expires_after=0.5)
    found: list[Any] = []

    def follow() -> None:
        try:
            found.append(take(storage, BOB, take_over=True))
        except Conflict as error:
            found.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(0.1)
    storage.silent = True
    with pytest.raises(StoreError):
        lease.renew()
    time.sleep(0.6)
    with pytest.raises(StoreError):  # its time is over: it knows nothing
        lease.check()
    storage.silent = False
    lease.check()  # nobody could have taken it
    thread.join()
    assert isinstance(found[0], Conflict)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 200, b'{"blake3":"0","body":{}}'])
def test_a_damaged_lease_is_nobodys_after_a_while(
    storage: Storage, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRES_AFTER", 0.2)
    storage.create(PATH, [damage])
    with pytest.raises(Conflict, match="belongs to"):
        take(storage)
    assert take(storage, take_over=True).epoch == 1


def test_what_a_lease_says_is_not_trusted(storage: Storage) -> None:
    forged = {"user": "\x1b[31mada", "host": ["x"], "pid": "1\n2"}
    take(storage, forged, expires_after=0.2)
    with pytest.raises(Conflict) as caught:
        take(storage, BOB)
    assert str(caught.value.headline).isprintable()
    assert owner_is_gone({"pid": "1", "host": 5, "boot_id": [], "process_start": {}}) is None
    assert owner_is_gone({}) is None


def test_a_removed_lease_is_lost(storage: Storage) -> None:
    lease = take(storage)
    storage.delete(PATH)
    with pytest.raises(LeaseLost, match="its lease was removed"):
        lease.renew()


PROGRAM = """
import sys, time
from flowkit.datastore.lease import Lease, LeaseLost
from flowkit.datastore.local import LocalStorage
from flowkit.exceptions import Conflict
from flowkit.metadata.liveness import owner_is_gone, this_process

owner = {"user": sys.argv[2], **this_process()._asdict()}
try:
    lease = Lease.acquire(
        LocalStorage(sys.argv[1]), "Flow", "1", owner, take_over=True, gone=owner_is_gone, expires_after=1.0
    )
except Conflict as error:
    print("conflict", error.headline, flush=True)
    sys.exit(6)
print("mine", flush=True)
for _ in sys.stdin if sys.argv[3] == "ask" else iter(int, 1):
    try:
        lease.check() if sys.argv[3] == "ask" else (time.sleep(0.1), lease.renew())
    except LeaseLost as error:
        print("lost", error.headline, flush=True)
        sys.exit(6)
    if sys.argv[3] == "ask":
        print("mine", flush=True)
"""


@pytest.fixture
def process(tmp_path: Path):
    """Start owners in processes of their own."""
    started = []

    def start(name: str, mode: str = "keep") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), name, mode]
        made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(made)
        return made

    yield start
    for made in started:
        made.kill()
        made.communicate()


def test_an_owner_that_was_stopped_wakes_and_has_lost(process) -> None:
    owner = process("ada", "ask")
    assert owner.stdout.readline() == "mine\n"
    owner.send_signal(signal.SIGSTOP)
    time.sleep(1.1)  # until then it is alive as far as its lease tells
    other = process("bob", "keep")
    assert other.stdout.readline() == "mine\n"
    owner.send_signal(signal.SIGCONT)
    owner.stdin.write("do something\n")
    owner.stdin.flush()
    told = owner.stdout.readline()
    assert told.startswith("lost run 1 is not ours any more: it was taken over by bob@"), told
    assert owner.wait(30) == 6
    assert other.poll() is None


def test_an_owner_that_was_killed_is_followed_at_once_and_of_rivals_one_wins(process, tmp_path: Path) -> None:
    owner = process("ada")
    assert owner.stdout.readline() == "mine\n"
    owner.kill()
    owner.wait()
    rivals = [process(f"r{number}") for number in range(3)]
    told = sorted(rival.stdout.readline().split()[0] for rival in rivals)
    assert told == ["conflict", "conflict", "mine"]
    body = content(LocalStorage(str(tmp_path)))
    assert (body["epoch"], body["owner"]["user"][0]) == (2, "r")


def test_a_zombie_or_another_process_of_the_same_number_is_gone() -> None:
    facts = this_process()._asdict()
    assert owner_is_gone(facts) is False
    assert owner_is_gone({**facts, "process_start": 1}) is True
    assert owner_is_gone({**facts, "host": "elsewhere"}) is None
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert owner_is_gone({**facts, "pid": child}) is True
    os.waitpid(child, 0)


def test_the_lease_is_plain_json(storage: Storage) -> None:
    take(storage)
    assert json.loads(storage.read(PATH))["body"]["owner"] == ADA
