"""Values to bytes and back: nothing lost, nothing copied, and a clear word for what cannot be stored."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.datastore import codecs
from flowkit.datastore.artifacts import ArtifactReader, ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.codecs import Encoded, NotEncodable, decode, encode, register_codec
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.pickling import ALIGNMENT
from flowkit.exceptions import ArtifactError


def through(value: Any) -> Any:
    encoded = encode(value)
    content = bytearray(b"".join(encoded.chunks))
    assert len(content) == encoded.size
    return decode(encoded.codec, memoryview(content), encoded.meta)


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    tags: tuple[str, ...]


class Text(str):
    pass


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(codec=None)),
    st.binary(),
    st.binary().map(bytearray),
    st.decimals(),
    st.datetimes(),
    st.uuids(),
    st.builds(Point, st.floats(), st.tuples(st.text(max_size=3))),
    st.builds(Text, st.text()),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.lists(inner, max_size=3).map(collections.deque),
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_any_value_comes_back(value: Any) -> None:
    found = through(value)
    assert type(found) is type(value)
    assert repr(found) == repr(value)  # equal, and NaN like NaN


@given(st.sets(st.one_of(st.text(), st.integers(), st.frozensets(st.text(max_size=3)))))
def test_sets_come_back(value: set[Any]) -> None:
    assert through(value) == value
    assert through(frozenset(value)) == value


def test_cycles_come_back() -> None:
    ring: list[Any] = [1]
    ring.append({"ring": ring})
    found = through(ring)
    assert found[1]["ring"] is found


class Linked:
    def __init__(self, below: Any) -> None:
        self.below = below


@pytest.mark.parametrize("depth", [900, 5000, 12_000])
def test_deep_values_come_back(depth: int) -> None:
    deep: Any = None
    for _ in range(depth):
        deep = Linked([deep])
    found = through(deep)
    levels = 0
    while found is not None:
        found = found.below[0]
        levels += 1
    assert levels == depth


def test_arrays_deep_inside_stay_beside_the_pickle() -> None:
    deep: Any = numpy.arange(10_000)
    for _ in range(3000):
        deep = {"deeper": deep}
    assert encode(deep).meta["buffers"] == 1


DTYPES = [*"?bhiqBHIQefdgFD", "S3", "U3", "M8[ns]", "m8[D]", ">i4", "<f8", "V4"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5000,), (300, 40), (3, 0, 2)])
def test_arrays_of_every_type(dtype: str, shape: tuple[int, ...]) -> None:
    size = math.prod(shape) * numpy.dtype(dtype).itemsize
    array = numpy.frombuffer(bytes(i % 100 for i in range(size)), dtype).reshape(shape)
    found = through(array)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


LAYOUTS = {
    "fortran": lambda a: numpy.asfortranarray(a),
    "transposed": lambda a: a.T,
    "strided": lambda a: a[::2, ::3],
    "reversed": lambda a: a[::-1],
    "slice": lambda a: a[10:20],
    "broadcast": lambda a: numpy.broadcast_to(a[0], (50, a.shape[1])),
    "read-only": lambda a: _frozen(a.copy()),
    "structured": lambda a: numpy.rec.fromarrays([a[:, 0], a[:, 1]], names="u,v"),
    "masked": lambda a: numpy.ma.masked_greater(a, 50),
    "objects": lambda a: a.astype(object),
}


def _frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_arrays_of_every_layout(layout: str) -> None:
    array = LAYOUTS[layout](numpy.arange(200.0 * 90).reshape(200, 90))
    found = through(array)
    assert type(found) is type(array)
    assert found.shape == array.shape
    assert found.tolist() == array.tolist()
    if layout == "read-only":
        assert not found.flags.writeable


def test_large_arrays_are_aligned_writable_and_not_copied() -> None:
    arrays = [numpy.arange(1000.0 + i) for i in range(5)]
    encoded = encode(arrays)
    assert encoded.meta == {"buffers": 5}
    for array, found in zip(arrays, through(arrays), strict=True):
        assert (found == array).all()
        assert found.flags.writeable
    chunk = next(chunk for chunk in encoded.chunks if isinstance(chunk, memoryview))
    assert numpy.shares_memory(numpy.frombuffer(chunk, "u1"), arrays[0])


def test_loading_maps_and_changing_stays_private(tmp_path: Path) -> None:
    blobs = Blobs(LocalStorage(str(tmp_path), durable=False), "always")
    artifact = ArtifactWriter(blobs).save("x", numpy.zeros(500_000), step="s")
    reader = ArtifactReader(blobs)
    first = reader.load("x", artifact)
    assert first.ctypes.data % ALIGNMENT == 0
    first[:] = 1
    assert reader.load("x", artifact).sum() == 0


def test_the_peak_of_memory_while_writing(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy\n"
        "from flowkit.datastore.artifacts import ArtifactReader, ArtifactWriter\n"
        "from flowkit.datastore.blobs import Blobs\n"
        "from flowkit.datastore.local import LocalStorage\n"
        "blobs = Blobs(LocalStorage(sys.argv[1], durable=False))\n"
        "ArtifactWriter(blobs).save('warm', numpy.zeros(300_000), step='s')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "x = numpy.ones(8 << 20)\n"
        "ArtifactWriter(blobs).save('x', {'x': x}, step='s')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.25 * (64 << 10)


# -- pandas and Arrow -------------------------------------------------------------------------------------------------

pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")


def frames() -> dict[str, Any]:
    n = 1500
    numbers = pandas.DataFrame({"a": numpy.arange(n), "b": numpy.linspace(0, 1, n)})
    words = pandas.Series([f"w{i % 50}" for i in range(n)], dtype=object)
    strings = numbers.assign(s=words, t=words.str.upper().astype(object))[["s", "a", "t", "b"]]
    repeated = strings.copy()
    repeated.columns = ["x", "x", "y", "x"]
    levels = strings.copy()
    levels.columns = pandas.MultiIndex.from_tuples([("u", 1), ("u", 2), ("v", 1), ("v", 2)], names=["p", "q"])
    noted = strings.copy()
    noted.attrs["unit"] = "m"
    odd = strings.copy()
    odd["mixed"] = pandas.Series([None, 1, "x"] * (n // 3), dtype=object)
    odd["derived"] = pandas.Series([Text("z")] * n, dtype=object)
    odd["lone"] = pandas.Series(["\ud800"] * n, dtype=object)
    return {
        "numbers": numbers,
        "strings": strings,
        "only strings": strings[["s"]],
        "repeated labels": repeated,
        "label levels": levels,
        "attrs": noted,
        "odd objects": odd,
        "sliced": strings.iloc[100:1300],
        "text index": strings.set_index("s"),
        "index levels": strings.set_index(["s", "a"]),
        "time index": strings.set_index(pandas.date_range("2024", periods=n, freq="h", tz="Europe/Berlin")),
        "periods": strings.set_index(pandas.period_range("2000", periods=n, freq="D")),
        "intervals": strings.set_index(pandas.interval_range(0, n)),
        "categories": strings.assign(c=words.astype("category")),
        "nullable": strings.assign(i=numbers["a"].astype("Int64"), z=numbers["a"] > 3).astype({"z": "boolean"}),
        "new strings": strings.assign(s=words.astype("string")),
        "arrow types": strings.assign(s=words.astype("string[pyarrow]"), k=numbers["a"].astype("int32[pyarrow]")),
        "sparse": strings.assign(k=pandas.arrays.SparseArray([0, 0, 1] * (n // 3))),
        "times": strings.assign(k=pandas.Timestamp("2020"), d=pandas.Timedelta("1h")),
        "numbered labels": pandas.DataFrame({0: words, 1: numbers["a"]}),
        "empty": strings.iloc[:0],
        "no columns": pandas.DataFrame(index=range(n)),
    }


@pytest.mark.parametrize("name", sorted(frames()))
def test_frames_come_back_whole(name: str) -> None:
    frame = frames()[name]
    before = frame.copy()
    found = through(frame)
    pandas.testing.assert_frame_equal(found, before, check_freq=True)
    pandas.testing.assert_frame_equal(frame, before)
    assert found.attrs == before.attrs
    assert list(found.dtypes) == list(before.dtypes)
    assert type(found.columns) is type(before.columns)
    assert type(found.index) is type(before.index)
    for position, dtype in enumerate(before.dtypes):
        if str(dtype) == "object":
            kinds = [[type(value) for value in data.iloc[:, position].array] for data in (before, found)]
            assert kinds[0] == kinds[1]
    for position, dtype in enumerate(before.dtypes):
        if dtype.kind == "f" and len(found):
            found.iloc[0, position] = -1.0


def test_strings_of_frames_go_through_arrow() -> None:
    all_frames = frames()
    assert encode(all_frames["strings"]).codec == "arrow"
    assert encode(all_frames["numbers"]).codec == "pickle"
    derived = type("Derived", (pandas.DataFrame,), {})
    assert codecs.codec_for(derived).name == "pickle"


def test_frames_larger_than_a_few_rows_read_back_the_same_strings() -> None:
    frame = pandas.DataFrame({"s": pandas.Series(["ü", "", "long " * 50] * 2000, dtype=object)})
    found = through(frame)
    assert found["s"].tolist() == frame["s"].tolist()


def test_series_and_indexes() -> None:
    for value in (pandas.Series(range(3000), name="n"), pandas.Index(["a", "b"]), pandas.Timestamp("2024", tz="UTC")):
        assert repr(through(value)) == repr(value)


def tables() -> dict[str, Any]:
    schema = pyarrow.schema(
        [pyarrow.field("a", pyarrow.int32(), nullable=False, metadata={"k": "v"}), ("s", pyarrow.string())],
        metadata={"about": "it"},
    )
    table = pyarrow.table({"a": list(range(5000)), "s": ["x", None] * 2500}, schema)
    return {
        "table": table,
        "slice": table.slice(4000, 20),
        "chunks": pyarrow.concat_tables([table, table.slice(10, 10)]),
        "dictionary": table.append_column("d", table["s"].dictionary_encode()),
        "dictionary slice": table.append_column("d", table["s"].dictionary_encode()).slice(17, 3),
        "empty": table.slice(0, 0),
        "batch": table.to_batches()[0],
        "batch slice": table.to_batches()[0].slice(4990, 5),
        "nested": pyarrow.table({"n": [[1, 2], None, [3]], "m": [{"x": 1}, None, {"x": 2}]}),
    }


@pytest.mark.parametrize("name", sorted(tables()))
def test_tables_come_back_whole(name: str) -> None:
    table = tables()[name]
    found = through(table)
    assert type(found) is type(table)
    assert found.schema.equals(table.schema, check_metadata=True)
    assert found.equals(table)
    found.validate(full=True)


def test_a_slice_of_a_table_does_not_bring_the_table() -> None:
    table = pyarrow.table({"a": numpy.arange(1_000_000)})
    assert encode(table.slice(5, 10)).size < 10_000


def test_nothing_is_imported_for_values_that_do_not_need_it() -> None:
    code = (
        "import sys\n"
        "from flowkit.datastore.artifacts import ArtifactWriter\n"
        "from flowkit.datastore.blobs import Blobs\n"
        "from flowkit.datastore.memory import MemoryStorage\n"
        "class A: pass\n"
        "writer = ArtifactWriter(Blobs(MemoryStorage()))\n"
        "for v in (1, 'x', b'y' * 5000, [1], {'a': {2}}, A(), None): writer.save('v', v, step='s')\n"
        "heavy = ('numpy', 'pandas', 'pyarrow', 'cloudpickle', 'tempfile', 'subprocess')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-S", "-c", "import site; site.main()\n" + code], capture_output=True)
    assert done.stdout.strip() == b"[]", done.stderr


# -- what pickle refuses ----------------------------------------------------------------------------------------------


def test_cloudpickle_takes_functions() -> None:
    factor = 3
    encoded = encode({"f": lambda x: x * factor})
    assert encoded.codec == "cloudpickle"
    assert through({"f": lambda x: x * factor})["f"](5) == 15


class Model:
    def __init__(self) -> None:
        self.layers = {"first": [1, {"lock": threading.Lock()}]}


class Slotted:
    __slots__ = ("fine", "wrong")

    def __init__(self) -> None:
        self.fine = 1
        self.wrong = threading.RLock()


class Angry:
    def __getstate__(self) -> Any:
        raise RuntimeError("not me")

    def __repr__(self) -> str:
        raise RuntimeError("nor this")


def _generator() -> Any:
    yield 1


REFUSED: list[tuple[Any, str, str]] = [
    (threading.Lock(), r"a _thread\.lock cannot be pickled", "one process"),
    (Model(), r"self\.thing\.layers\['first'\]\[1\]\['lock'\] is a _thread\.lock", "leave self.thing.layers"),
    (Slotted(), r"self\.thing\.wrong is a _thread\.RLock", "leave"),
    (_generator(), "a generator cannot be pickled", "list(self.thing)"),
    ([1, (2, _generator())], r"self\.thing\[1\]\[1\] is a generator", "list(self.thing[1][1])"),
    (memoryview(b"x"), "a memoryview cannot be pickled", "bytes(self.thing)"),
    ({"a": Angry()}, r"self\.thing\['a'\] is a .*Angry.*not me", "only data"),
]


@pytest.mark.parametrize(("value", "headline", "hint"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_stored(value: Any, headline: str, hint: str) -> None:
    with pytest.raises(ArtifactError, match=headline) as caught:
        ArtifactWriter(Blobs(MemoryStorage())).save("thing", value, step="train")
    assert "step 'train': the artifact 'thing'" in caught.value.headline
    assert hint in (caught.value.hint or "")


def test_open_files_are_not_stored_as_something_else(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w") as file, pytest.raises(ArtifactError, match=r"self\.log\[0\] is a _io"):
        ArtifactWriter(Blobs(MemoryStorage())).save("log", [file], step="s")


def test_a_closure_names_its_variable() -> None:
    lock = threading.Lock()
    with pytest.raises(ArtifactError, match=r"its variable lock"):
        ArtifactWriter(Blobs(MemoryStorage())).save("f", lambda: lock, step="s")


class Bottomless:
    def __reduce__(self) -> Any:
        return Bottomless, (Bottomless(),)


def test_what_has_no_bottom_is_refused() -> None:
    with pytest.raises(ArtifactError, match="nested too deep"):
        ArtifactWriter(Blobs(MemoryStorage())).save("x", Bottomless(), step="s")


# -- classes of the flow file -----------------------------------------------------------------------------------------

WRITES = """
import sys
from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage

class Thing:
    value = 7

if __name__ == "__main__":
    artifact = ArtifactWriter(Blobs(LocalStorage(sys.argv[1]))).save("thing", [Thing()], step="s")
    import json
    print(json.dumps(artifact.to_json()))
"""

READS = """
import json, sys
from flowkit.datastore.artifacts import ArtifactReader
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage
from flowkit.exceptions import ArtifactError
from flowkit.model.manifest import Artifact
reader = ArtifactReader(Blobs(LocalStorage(sys.argv[1])))
artifact = Artifact.from_json(json.loads(sys.argv[2]))
try:
    reader.load("thing", artifact)
except ArtifactError as error:
    print(error)
sys.path.insert(0, sys.argv[3])
import my_flow
print(reader.load("thing", artifact)[0].value)
"""


def test_classes_of_the_flow_file(tmp_path: Path) -> None:
    flow = tmp_path / "my_flow.py"
    flow.write_text(WRITES)
    run = {"capture_output": True, "text": True, "check": True, "timeout": 60, "env": {**os.environ}}
    written = subprocess.run([sys.executable, str(flow), str(tmp_path)], **run)
    read = subprocess.run([sys.executable, "-c", READS, str(tmp_path), written.stdout, str(tmp_path)], **run)
    assert f"defined in {flow}" in read.stdout
    assert "import my_flow" in read.stdout
    assert read.stdout.endswith("7\n")


# -- codecs of one's own ----------------------------------------------------------------------------------------------


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


class Warm(Celsius):
    pass


class CelsiusCodec:
    name = "celsius"

    def encode(self, value: Celsius) -> Encoded:
        if value.degrees < -273:
            raise NotEncodable
        content = str(value.degrees).encode()
        return Encoded([content], len(content), {"unit": "C"}, self.name)

    def decode(self, view: memoryview, meta: Mapping[str, Any]) -> Celsius:
        assert meta == {"unit": "C"}
        return Celsius(float(bytes(view)))


@pytest.mark.parametrize("by", [Celsius, f"{__name__}.Celsius"], ids=["class", "name"])
def test_a_codec_of_ones_own(by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_BY_TYPE", "_BY_NAME", "_BY_TYPE_NAME"):
        monkeypatch.setattr(codecs, table, dict(getattr(codecs, table)))
    register_codec(CelsiusCodec(), by if by is Celsius else f"{Celsius.__module__}.{Celsius.__qualname__}")
    assert encode(Celsius(20)).codec == "celsius"
    assert through(Celsius(20)).degrees == 20
    assert encode(Warm(30)).codec == "celsius"
    assert encode(Celsius(-300)).codec in ("pickle", "cloudpickle")


def test_an_unknown_codec_says_what_to_do() -> None:
    with pytest.raises(ArtifactError, match="no codec 'martian'") as caught:
        decode("martian", memoryview(b""), {})
    assert "register_codec" in (caught.value.hint or "")
