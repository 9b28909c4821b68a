"""Previews: small, quick, plain JSON, and never the user's code."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.datastore.previews import LIMIT, preview

anything = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers()),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner), st.dictionaries(st.text(), inner), st.frozensets(st.integers())
    ),
)


@given(anything)
def test_any_builtin_value_has_a_small_plain_preview(value: Any) -> None:
    found = preview(value)
    assert len(json.dumps(found)) < 6 * LIMIT + 500
    assert len(found["repr"]) <= LIMIT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        ("hi", "'hi'"),
        ([1, "a", None], "[1, 'a', None]"),
        ((1,), "(1,)"),
        ({"k": [1.5]}, "{'k': [1.5]}"),
        (set(), "set()"),
        (b"x", "b'x'"),
        (range(3), "range(0, 3)"),
        (bytearray(b"x"), "bytearray(b'x')"),
        ([[[[1]]]], "[[[[…]]]]"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …]"),
        (10**1000, "<int of 3322 bits>"),
        ([numpy.int64(3)], "[3]"),
    ],
)
def test_texts(value: Any, text: str) -> None:
    assert preview(value)["repr"] == text


class Trap:
    """Every way to look at it raises or runs for ever."""

    def _no(self, *args: Any) -> Any:
        raise AssertionError("the user's code ran")

    __repr__ = __str__ = __len__ = __iter__ = __bool__ = __getattr__ = __format__ = __hash__ = __eq__ = _no  # type: ignore[assignment]


class TrapList(list):
    __repr__ = __len__ = __iter__ = Trap._no  # type: ignore[assignment]


class TrapArray(numpy.ndarray):
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("the user's code ran")


def test_the_users_code_never_runs() -> None:
    assert preview(Trap()) == {}
    assert preview(TrapList([1])) == {}
    assert preview(numpy.zeros(3).view(TrapArray)) == {}
    assert "Trap>" in preview([Trap(), {"k": TrapList()}])["repr"]
    trapped = numpy.empty(1, dtype=object)
    trapped[0] = Trap()
    assert preview(trapped) == {"shape": [1], "dtype": "object", "length": 1}


def test_cycles_end() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert preview(ring)["repr"] == "[[…]]"


def test_large_values_take_no_time() -> None:
    preview("x" * 50_000_000)
    preview([0] * 10_000_000)
    preview(numpy.zeros((3000, 3000)).T)
    preview({i: "y" * 1000 for i in range(100_000)})


def test_arrays_and_numbers() -> None:
    assert preview(numpy.arange(6).reshape(2, 3)) == {
        "shape": [2, 3], "dtype": "int64", "length": 2, "repr": "0, 1, 2, 3, 4, 5"
    }  # fmt: skip
    assert preview(numpy.array(5.0)) == {"shape": [], "dtype": "float64", "repr": "5.0"}
    assert preview(numpy.float32(1.5)) == {"repr": "1.5", "dtype": "float32"}
    assert preview(numpy.zeros((2, 0)))["repr"] == ""
    for array in (numpy.zeros((2, 2), "V4"), numpy.ma.masked_all(3), numpy.rec.fromarrays([[1], [2]])):
        json.dumps(preview(array))


def test_frames_and_tables() -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": [1, 2], "b": [0.5, 1.5], ("c", 1): ["x", "y"]})
    found = preview(frame)
    assert found["shape"] == [2, 3]
    assert found["columns"] == ["a", "b", "('c', 1)"]
    assert found["dtype"][:2] == ["int64", "float64"]
    assert preview(frame["a"]) == {"length": 2, "shape": [2], "dtype": "int64"}
    assert preview(pandas.Timestamp("2024-01-02"))["repr"].startswith("2024-01-02")
    wide = pandas.DataFrame(numpy.zeros((2, 5000)))
    assert len(json.dumps(preview(wide))) < 10_000
    assert preview(pyarrow.table({"x": [1]})) == {
        "shape": [1, 1], "length": 1, "columns": ["x"], "dtype": ["int64"]
    }  # fmt: skip
    assert preview(pyarrow.array([1, 2])) == {"length": 2, "dtype": "int64"}


def test_other_types_say_nothing() -> None:
    assert preview(object()) == {}
    assert preview(int) == {}
    assert preview(preview) == {}
