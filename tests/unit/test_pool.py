"""What a machine has, and how it is shared: plain counting, and what is read of the system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.exceptions import UsageError
from flowkit.model.coordinates import Coordinates
from flowkit.model.launch import Launch
from flowkit.runtime import machine
from flowkit.runtime.lanes import lane_name, share
from flowkit.runtime.local import LocalExecutor
from flowkit.runtime.pool import NOTHING, Needs, Pool

STEPS = {"none": NOTHING, "one": Needs(gpu=1), "two": Needs(gpu=2), "big": Needs(1, 700, 300), "cpu": Needs(cpu=400)}


@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.booleans()), max_size=40))
def test_what_fits_shares_nothing_and_all_comes_back(actions: list[tuple[str, bool]]) -> None:
    pool = Pool(Needs(3, 1000, 1000), ["a", "b", "c"], STEPS)
    before = {step: pool.room(needs) for step, needs in STEPS.items()}
    running: list[tuple[str, tuple[str, ...]]] = []
    for step, start in actions:
        if start and pool.fits(Launch(step, Coordinates())):
            running.append((step, pool.take(step)))
        elif running and not start:
            pool.give_back(*running.pop(0))
        devices = [name for _, taken in running for name in taken]
        assert len(devices) == len(set(devices))
        assert [len(taken) for _, taken in running] == [STEPS[step].gpu for step, _ in running]
        for used, total in ((1, 1000), (2, 1000)):
            assert sum(STEPS[step][used] for step, _ in running) <= total
    for each in running:
        pool.give_back(*each)
    assert {step: pool.room(needs) for step, needs in STEPS.items()} == before


def test_a_gang_fits_with_all_of_its_nodes_or_shares() -> None:
    pool = Pool(Needs(2), ["a", "b"], {"train": Needs(gpu=1)})
    assert pool.fits(Launch("train", Coordinates((0,)), gang=2))
    assert not pool.fits(Launch("train", Coordinates((0,)), gang=3))
    taken = [pool.take("train") for _ in range(3)]
    assert taken == [("a",), ("b",), ("a",)]
    pool.give_back("train", taken[0])
    assert pool.room(Needs(gpu=1)) == 0
    pool.give_back("train", taken[2])
    assert pool.room(Needs(gpu=1)) == 1


def test_steps_with_the_same_needs_are_one_lane_and_the_largest_is_asked_first() -> None:
    local = LocalExecutor(lambda launch, node: [])
    wanted = {"a": {"gpu": 1, "cpu": 8}, "b": {"gpu": 1}, "c": {"gpu": 2}, "d": {}, "e": {"gpu": 9}}
    lanes = share(local, wanted, respect=False, gpus="4", visible=None)
    assert lanes.executor_of == {
        "a": "local gpu=1",
        "b": "local gpu=1",
        "c": "local gpu=2",
        "d": "local",
        "e": "local gpu=4",
    }
    assert list(lanes.executors) == ["local gpu=4", "local gpu=2", "local gpu=1", "local"]
    assert [notice.split(";")[0] for notice in local.notices] == ["Step 'e' asks for 9 GPUs"]


def test_what_needs_more_than_there_is_needs_all() -> None:
    local = LocalExecutor(lambda launch, node: [])
    wanted = {"small": {}, "half": {"cpu": 0.01}, "wide": {"cpu": 10**6}, "long": {"memory": 10**12}}
    lanes = share(local, wanted, respect=True, gpus=None, visible=None)
    assert lanes.executor_of["wide"] == lanes.executor_of["long"]
    everything = Needs(0, machine.memory() or 0, int(machine.processors() * 1000))
    assert lanes.executor_of["wide"] == lane_name(everything)
    assert lanes.executor_of["half"] == "local cpu=10"
    assert local.notices == []


def test_processors_and_memory_are_those_of_this_machine_at_most() -> None:
    assert 0 < machine.processors() <= (os.cpu_count() or 1)
    assert 1 << 20 < (machine.memory() or 0) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("configured", "visible", "found"),
    [
        ("0", "0,1", []),
        ("2", None, ["0", "1"]),
        ("2", "4,6,7", ["4", "6"]),
        ("2", "4", ["0", "1"]),
        ("1,", None, ["1"]),
        (" 3, GPU-8932f937-d72c , MIG-GPU-1/2/3", "0", ["3", "GPU-8932f937-d72c", "MIG-GPU-1/2/3"]),
        (None, "", []),
        (None, "-1", []),
        (None, "NoDevFiles", []),
        (None, "2, 0,2,1", ["2", "0"]),
        (None, "1,GPU-f00,-1,3", ["1", "GPU-f00"]),
    ],
)
def test_gpus_as_they_are_named(configured: str | None, visible: str | None, found: list[str]) -> None:
    assert machine.graphics(configured, visible) == found


@pytest.mark.parametrize("configured", ["two gpus", "1,,2", ",", "0,0", "-1", "0;1", "1.5", "²", "0,\x1b[31m"])
def test_gpus_that_cannot_be_named(configured: str) -> None:
    with pytest.raises(UsageError, match="FLOWKIT_LOCAL_GPUS must be"):
        machine.graphics(configured, None)


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia/gpus"), reason="this machine has GPUs, which count more")
@pytest.mark.parametrize(
    ("says", "found"),
    [
        ("echo 'GPU 0: A100 (UUID: GPU-1)'; echo '  MIG 1g.5gb Device 0:'; echo 'GPU 1: A100'", ["0", "1"]),
        ("echo 'GPU 0: A100'; exit 9", []),
        ("kill -9 $$", []),
        ("printf 'GPU \\377'", []),
    ],
)
def test_gpus_by_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, found: list[str]) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{says}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.graphics(None, None) == found
