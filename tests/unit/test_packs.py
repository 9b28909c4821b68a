"""The items of a foreach: each is read alone, and what is read is verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.datastore.blobs import Blobs
from flowkit.datastore.layout import blob_file
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.packs import GROUP, pack_key, read_item, save_pack
from flowkit.exceptions import ArtifactError, DataError

scalars = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=20), st.none(), st.binary(max_size=9))
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3)
)


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.lists(scalars, max_size=200), st.lists(anything, max_size=20)))
def test_every_item_is_what_it_was(items: list[Any]) -> None:
    blobs = Blobs(MemoryStorage(), "always")
    pack, width = save_pack(blobs, items)
    assert width == len(items)
    for index, item in enumerate(items):
        found = read_item(blobs, pack, width, index)
        assert found == item
        assert type(found) is type(item)


ITERABLES: list[tuple[Any, list[Any]]] = [
    ((i * i for i in range(5)), [0, 1, 4, 9, 16]),
    ({"b": 1, "a": 2}, ["b", "a"]),
    ({"x", "z", "y"}, ["x", "y", "z"]),
    (range(3), [0, 1, 2]),
    ("abc", ["a", "b", "c"]),
    (numpy.arange(4) * 1.5, [0.0, 1.5, 3.0, 4.5]),
    ([], []),
    (("only",), ["only"]),
]


@pytest.mark.parametrize(("items", "wanted"), ITERABLES)
def test_what_can_be_iterated_over(items: Any, wanted: list[Any]) -> None:
    blobs = Blobs(MemoryStorage(), "always")
    pack, width = save_pack(blobs, items)
    assert [read_item(blobs, pack, width, index) for index in range(width)] == wanted


def test_arrays_keep_their_item_types() -> None:
    blobs = Blobs(MemoryStorage(), "always")
    for array in (numpy.arange(200, dtype="i2"), numpy.array(["a", "bc"]), numpy.arange(3).astype("M8[s]")):
        pack, width = save_pack(blobs, array)
        found = read_item(blobs, pack, width, width - 1)
        assert type(found) is type(array[-1])
        assert found == array[-1]
    matrix = numpy.arange(6.0).reshape(3, 2)
    pack, width = save_pack(blobs, matrix)
    assert read_item(blobs, pack, width, 1).tolist() == [2.0, 3.0]


def test_frames_give_their_column_names() -> None:
    pandas = pytest.importorskip("pandas")
    blobs = Blobs(MemoryStorage(), "always")
    pack, width = save_pack(blobs, pandas.DataFrame({"u": [1], "v": [2]}))
    assert [read_item(blobs, pack, width, index) for index in range(width)] == ["u", "v"]


def test_large_items_come_writable(tmp_path: Path) -> None:
    blobs = Blobs(LocalStorage(str(tmp_path), durable=False), "always")
    items = [numpy.full(200_000, float(i)) for i in range(3)]
    pack, width = save_pack(blobs, items)
    found = read_item(blobs, pack, width, 2)
    found[0] = -1
    assert found[1] == 2.0
    assert found.ctypes.data % 16 == 0


class Counting(MemoryStorage):
    """Notes what is read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def read(self, path: str) -> bytes:
        raise AssertionError("whole objects are not read")

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        self.reads.append(length)
        return super().read_range(path, offset, length)


def test_an_item_takes_two_small_reads() -> None:
    storage = Counting()
    blobs = Blobs(storage, "always")
    pack, width = save_pack(blobs, range(100_000))
    storage.reads.clear()
    assert read_item(blobs, pack, width, 77_777) == 77_777
    assert len(storage.reads) == 2
    assert sum(storage.reads) < 1000
    pack, width = save_pack(blobs, [{"i": i} for i in range(1000)])
    storage.reads.clear()
    assert read_item(blobs, pack, width, 500) == {"i": 500}
    assert len(storage.reads) == 2


@pytest.mark.parametrize("items", [[{"a": i} for i in range(10)], list(range(500))], ids=["single", "grouped"])
def test_no_damage_gives_a_wrong_item(items: list[Any]) -> None:
    storage = MemoryStorage()
    blobs = Blobs(storage, "always")
    pack, width = save_pack(blobs, items)
    path = blob_file(pack_key(pack))
    whole = storage.read(path)
    for place in range(0, len(whole), 13):
        broken = bytearray(whole)
        broken[place] ^= 0x55
        storage.replace(path, [broken])
        for index in (0, width // 2, width - 1):
            try:
                found = read_item(blobs, pack, width, index)
            except ArtifactError:
                continue
            assert found == items[index]
    storage.replace(path, [whole[: len(whole) // 2]])
    with pytest.raises(ArtifactError):
        read_item(blobs, pack, width, width - 1)
    storage.delete(path)
    with pytest.raises(ArtifactError, match="missing"):
        read_item(blobs, pack, width, 0)


def test_a_swapped_pack_is_found_out() -> None:
    storage = MemoryStorage()
    blobs = Blobs(storage, "always")
    mine, width = save_pack(blobs, [[i] for i in range(10)])
    other, _ = save_pack(blobs, [[i + 100] for i in range(10)])
    storage.replace(blob_file(pack_key(mine)), [storage.read(blob_file(pack_key(other)))])
    with pytest.raises(ArtifactError, match="does not belong"):
        read_item(blobs, mine, width, 3)


def test_swapped_rows_are_found_out() -> None:
    storage = MemoryStorage()
    blobs = Blobs(storage, "always")
    pack, width = save_pack(blobs, [[i] for i in range(10)])
    path = blob_file(pack_key(pack))
    content = storage.read(path)
    storage.replace(path, [content[64:128] + content[:64] + content[128:]])
    with pytest.raises(ArtifactError, match="does not belong"):
        read_item(blobs, pack, width, 0)


@pytest.mark.parametrize("pack", ["", "x", "a-b-c", "0" * 64, "../../x-00-1", "0" * 64 + "-" + "0" * 32 + "-0"])
def test_forged_packs_are_refused(pack: str) -> None:
    with pytest.raises(DataError):
        read_item(Blobs(MemoryStorage(), "always"), pack, 3, 1)


def test_an_item_that_cannot_be_stored_is_named() -> None:
    blobs = Blobs(MemoryStorage(), "always")
    with pytest.raises(ArtifactError, match=r"self\.jobs\[1\]") as caught:
        save_pack(blobs, [1, (i for i in "ab")], step="start", name="jobs")
    assert "start" in str(caught.value)


def test_long_strings_are_not_read_with_their_neighbours() -> None:
    storage = Counting()
    blobs = Blobs(storage, "always")
    pack, width = save_pack(blobs, ["x" * 100_000, *map(str, range(GROUP))])
    storage.reads.clear()
    assert read_item(blobs, pack, width, 5) == "4"
    assert sum(storage.reads) < 1000


def test_the_same_items_make_the_same_pack() -> None:
    blobs = Blobs(MemoryStorage(), "always")
    assert save_pack(blobs, [[1], "a"]) == save_pack(blobs, [[1], "a"])
