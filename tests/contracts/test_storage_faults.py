"""What is promised also where calls fail: one creator, one commit, whole content or an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from faulty import FaultyStorage

from flowkit.datastore.blobs import Blobs
from flowkit.datastore.manifests import read_manifest, write_manifest
from flowkit.datastore.packs import read_item, save_pack
from flowkit.datastore.runs import claim_run
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import StoreError
from flowkit.model.manifest import Manifest
from flowkit.model.transition import Transition

RATES = [0.1, 0.5, 0.9]


def until_answered(call: Callable[[], Any], tries: int = 1000) -> Any:
    for _ in range(tries):
        try:
            return call()
        except StoreError:
            continue
    raise AssertionError("no answer")


def together(calls: list[Callable[[], object]]) -> list[object]:
    """Call all at once; None where one ended in a StoreError."""
    start = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def one(number: int) -> None:
        start.wait()
        try:
            results[number] = calls[number]()
        except StoreError:
            return

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("rate", RATES)
def test_one_creates_at_most(storage: Storage, rate: float) -> None:
    faulty = FaultyStorage(storage, rate, late=0.002)
    for round_ in range(5):
        contents = [b"%d %d" % (round_, me) * 100 for me in range(6)]
        path = f"claims/{round_}"
        told = together([lambda c=content, p=path: faulty.create(p, [c]) for content in contents])
        assert told.count(True) <= 1
        try:
            found = storage.read(path)
        except Missing:
            assert True not in told
            continue
        assert found in contents
        if True in told:
            assert found == contents[told.index(True)]


@pytest.mark.parametrize("rate", RATES)
def test_one_replaces_a_version_at_most(storage: Storage, rate: float) -> None:
    faulty = FaultyStorage(storage, rate, late=0.002)
    storage.create("lease", [b"start"])
    for round_ in range(5):
        version = storage.read_version("lease").version
        calls = [lambda t=b"%d %d" % (round_, me), v=version: faulty.replace_version("lease", t, v) for me in range(5)]
        told = together(calls)
        assert told.count(True) <= 1
        if True in told:
            assert storage.read("lease") == b"%d %d" % (round_, told.index(True))


@pytest.mark.parametrize("rate", RATES)
def test_content_is_whole_or_an_error(storage: Storage, rate: float) -> None:
    faulty = FaultyStorage(storage, rate)
    old, new = os.urandom(40_000), os.urandom(70_000)
    until_answered(lambda: faulty.replace("x", [old]))
    assert until_answered(lambda: faulty.read("x")) == old
    for content in (new, old, new):
        try:
            faulty.replace("x", [content[:100], content[100:]])
            assert storage.read("x") == content
        except StoreError:
            assert storage.read("x") in (old, new)
        memory = bytearray(len(content))
        size = until_answered(lambda memory=memory: faulty.read_into("x", 0, memoryview(memory)))
        assert memory[:size] == storage.read("x")[: len(memory)]
    names = {f"{number}" for number in range(20)}
    for name in names:
        storage.create(f"many/{name}", [b""])
    assert set(until_answered(lambda: list(faulty.children("many")))) == names
    until_answered(lambda: faulty.delete("x"))
    assert until_answered(lambda: faulty.info("x")) is None


@pytest.mark.parametrize("rate", RATES)
def test_a_task_is_committed_once(storage: Storage, rate: float) -> None:
    faulty = FaultyStorage(storage, rate, late=0.002)
    for task in range(4):
        attempts = [
            Manifest(flow="F", run="1", step="a", task=str(task), attempt=n, artifacts={}, transition=Transition("end"))
            for n in range(4)
        ]
        told = together([lambda m=manifest: write_manifest(faulty, m) for manifest in attempts])
        assert told.count(True) <= 1
        found = read_manifest(storage, "F", "1", "a", str(task))
        assert found is not None or True not in told
        if True in told:
            assert found is not None
            assert found.attempt == told.index(True)


@pytest.mark.parametrize("rate", RATES[:2])
def test_runs_have_numbers_of_their_own(storage: Storage, rate: float) -> None:
    faulty = FaultyStorage(storage, rate, seed=4)
    numbers = [until_answered(lambda n=n: claim_run(faulty, "Flow", {"nonce": n})) for n in range(6)]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.7])
def test_blobs_and_packs_are_whole(storage: Storage, rate: float) -> None:
    blobs = Blobs(FaultyStorage(storage, rate), "always")
    for size in (10, 30_000, 3_000_000):
        content = os.urandom(1000) * (size // 1000) + os.urandom(size % 1000)
        key = until_answered(lambda content=content: blobs.put([content], len(content)))
        assert until_answered(lambda key=key, content=content: blobs.get(key, len(content))) == content
    items = [f"item {number}" for number in range(100)]
    pack, width = until_answered(lambda: save_pack(blobs, items))
    for index in (0, 63, 64, 99):
        assert until_answered(lambda index=index: read_item(blobs, pack, width, index)) == items[index]
