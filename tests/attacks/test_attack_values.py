"""Random frames and random nests of values through the store, beside the chosen ones of tests/unit/test_codecs.py."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import fractions
import math
import uuid
from typing import Any

import pytest
from attack_tools import SOAK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowkit.datastore.artifacts import ArtifactReader, ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.memory import MemoryStorage

numpy = pytest.importorskip("numpy")
pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

ROWS = st.sampled_from([0, 1, 7, 600])
MORE = settings(
    max_examples=1500 if SOAK else 60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def stored(value: Any) -> Any:
    """Return a value as another process would find it."""
    blobs = Blobs(MemoryStorage(), "always")
    return ArtifactReader(blobs).load("x", ArtifactWriter(blobs).save("x", value, step="s"))


def columns(n: int) -> dict[str, Any]:
    """Return a column of each kind with some of its values missing, where it can have such."""
    text = pandas.Series([None if i % 11 == 3 else f"w{i % 13}ü" for i in range(n)], dtype=object)
    number = pandas.Series([float("nan") if i % 7 == 2 else i / 3 for i in range(n)], dtype="float64")
    return {
        "text": text,
        "string": text.astype("string"),
        "string[pyarrow]": text.astype("string[pyarrow]"),
        "category": text.astype("category"),
        "ordered": pandas.Categorical(text.to_numpy(), sorted({f"w{i}ü" for i in range(13)}), ordered=True),
        "number": number,
        "Float32": number.astype("Float32"),
        "Int8": pandas.Series([i % 100 for i in range(n)], dtype="Int8").where(number.notna()),
        "boolean": pandas.Series([i % 2 == 0 for i in range(n)], dtype="boolean").where(number.notna()),
        "complex": number.astype("complex128"),
        "half": number.astype("float16"),
        "time": pandas.Series(pandas.date_range("1969-12-31", periods=n, freq="17min")).where(number.notna()),
        "seconds": pandas.Series(pandas.date_range("1900", periods=n, freq="D", unit="s")),
        "zone": pandas.Series(pandas.date_range("2024-03-30", periods=n, freq="h", tz="Europe/Berlin")),
        "delta": pandas.Series(pandas.to_timedelta(range(n), unit="s")).where(number.notna()),
        "period": pandas.Series(pandas.period_range("2000-01", periods=n, freq="M")),
        "interval": pandas.Series(pandas.interval_range(0, n, periods=n, closed="left")) if n else number,
        "sparse": pandas.arrays.SparseArray([i % 5 for i in range(n)], fill_value=0),
        "lists": pandas.Series([[i, None] for i in range(n)], dtype=object),
        "decimal[pyarrow]": pandas.Series(range(n), dtype="int64[pyarrow]"),
        "numbers and text": pandas.Series([i if i % 2 else str(i) for i in range(n)], dtype=object),
        "dates": pandas.Series([datetime.date(2024, 1, 1) + datetime.timedelta(i) for i in range(n)], dtype=object),
        "surrogates": pandas.Series(["\udcff"] * n, dtype=object),
    }


def indexes(n: int) -> dict[str, Any]:
    """Return an index of each kind, to be called."""
    return {
        "range": lambda: pandas.RangeIndex(5, 5 + 2 * n, 2),
        "numbers": lambda: pandas.Index(range(n, 0, -1), name="n"),
        "repeated": lambda: pandas.Index([i // 2 for i in range(n)], dtype="int16"),
        "text": lambda: pandas.Index([f"r{i}" for i in range(n)], name=("a", 1)),
        "time": lambda: pandas.date_range("2024", periods=n, freq="B"),
        "zone": lambda: pandas.date_range("2024", periods=n, freq="6h", tz="Asia/Kolkata"),
        "delta": lambda: pandas.timedelta_range("1 min", periods=n, freq="3s"),
        "period": lambda: pandas.period_range("1999", periods=n, freq="Q"),
        "interval": lambda: pandas.interval_range(0.0, float(max(n, 1)), periods=max(n, 1))[:n],
        "category": lambda: pandas.CategoricalIndex([f"c{i % 3}" for i in range(n)]),
        "levels": lambda: pandas.MultiIndex.from_arrays(
            [[i % 2 for i in range(n)], [f"l{i}" for i in range(n)], pandas.date_range("2020", periods=n)],
            names=["a", None, "t"],
        ),
        "Int64": lambda: pandas.Index(range(n), dtype="Int64"),
        "missing": lambda: pandas.Index([None if i == 1 else float(i) for i in range(n)]),
    }


COLUMNS, INDEXES = list(columns(1)), list(indexes(1))
LABELS = st.sampled_from(["a", "b", 0, 1.5, None, ("u", 1), True, datetime.date(2024, 1, 1), "ü", ""])


@MORE
@given(
    rows=ROWS,
    kinds=st.lists(st.tuples(LABELS, st.sampled_from(COLUMNS)), max_size=5),
    rowlabels=st.sampled_from(INDEXES),
    cut=st.sampled_from([slice(None), slice(1, None), slice(None, None, 2), slice(None, None, -1)]),
)
def test_random_frames(rows: int, kinds: list[tuple[Any, str]], rowlabels: str, cut: slice) -> None:
    frame = pandas.concat([pandas.Series(columns(rows)[kind]) for _, kind in kinds], axis=1) if kinds else None
    frame = pandas.DataFrame(index=range(rows)) if frame is None else frame
    frame.columns = pandas.Index([label for label, _ in kinds], dtype=object)
    frame.index = indexes(rows)[rowlabels]()
    frame = frame.iloc[cut]
    found = stored(frame)
    pandas.testing.assert_frame_equal(found, frame, check_freq=True)
    assert list(found.dtypes) == list(frame.dtypes)
    assert [type(label) for label in found.columns] == [type(label) for label in frame.columns]
    assert type(found.index) is type(frame.index)
    for place, (_, kind) in enumerate(kinds):
        pandas.testing.assert_series_equal(stored(frame.iloc[:, place]), frame.iloc[:, place], check_freq=True)
        if kind in ("numbers and text", "lists", "dates"):
            types = [type(value) for value in frame.iloc[:, place]]
            assert [type(value) for value in found.iloc[:, place]] == types


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any
    b: Any = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass
class Slotted:
    __slots__ = ("a",)
    a: Any


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**4000), 2**4000),
    st.floats(),
    st.complex_numbers(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.datetimes(timezones=st.sampled_from([None, datetime.timezone.utc])),
    st.uuids(),
    st.timedeltas(),
    st.sampled_from([math.nan, math.inf, -0.0, range(3), slice(1, None), int, ..., NotImplemented]),
    st.integers(0, 3000).map(lambda n: numpy.arange(n)),
    st.integers(0, 9).map(lambda n: numpy.float32(n)),
)


def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.tuples(st.integers())), inner, max_size=4),
        st.frozensets(st.one_of(st.text(max_size=3), st.integers()), max_size=4),
        st.builds(Frozen, inner, inner),
        st.builds(Slotted, inner),
        inner.map(lambda value: (value, value)),
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values are alike down to their types; NaN is like NaN, -0.0 is not like 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, numpy.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, Frozen):
        return same(one.a, other.a) and same(one.b, other.b)
    if isinstance(one, Slotted):
        return same(one.a, other.a)
    return bool(one == other)


@MORE
@given(st.recursive(LEAVES, nest, max_leaves=25))
def test_random_nests(value: Any) -> None:
    found = stored(value)
    assert same(found, value)
    # What is one object stays one, and what goes round goes round.
    ring = [value]
    ring.append(ring)
    found = stored({"ring": ring, "again": ring})
    assert found["ring"] is found["again"]
    assert found["ring"][1] is found["ring"]
    assert same(found["ring"][0], value)


def test_values_of_every_size_about_the_thresholds() -> None:
    """Inside the manifest, in a blob, mapped: one byte more or less changes nothing."""
    for edge in (1, 4096, 8192, 65536, 1 << 20, (1 << 20) + 4096):
        for size in range(edge - 2, edge + 3):
            content = (b"\x00\xff" * (size // 2 + 1))[:size]
            assert stored(content) == content
            assert stored(bytearray(content)) == content
            text = "é" * (size // 2)
            assert stored(text) == text
    for value in (decimal.Decimal("NaN"), fractions.Fraction(1, 3), uuid.UUID(int=0)):
        assert repr(stored(value)) == repr(value)
