"""Tables of PyArrow and frames of pandas, where Arrow does better than pickle alone.

Pickle protocol 5 already stores tables, and frames of numbers and of pandas' own string type, as the memory that they
are. What it does badly are two things, and these only are done here, without losing anything:

- A table that is a slice of a larger one would bring all of the larger one's memory: it is cut down first.
- A frame's columns of Python strings (dtype ``object``) would be pickled string by string: they travel as Arrow
  arrays beside the rest of the frame, and are Python strings again afterwards. Columns that hold anything else, be
  it a single None, stay in the pickle.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from flowkit.datastore import pickling
from flowkit.datastore.encoding import Encoded, NotEncodable

_MIN_ROWS = 1000
_MAX_COLUMNS = 100


class ArrowCodec(pickling.PickleCodec):
    """The codec of PyArrow's tables and pandas' frames; used only where both packages are loaded already."""

    name = "arrow"

    def takes(self, kind: type) -> bool:
        """Whether values of a type may profit."""
        for module, name in (("pyarrow", "Table"), ("pyarrow", "RecordBatch"), ("pandas", "DataFrame")):
            if kind is getattr(sys.modules.get(module), name, None):
                return True
        return False

    def encode(self, value: Any) -> Encoded:
        """Return the value as bytes, or raise `NotEncodable` where plain pickle does as well."""
        if type(value).__name__ != "DataFrame":
            return pickling.encode(_compact(value))
        frame, strings = _without_strings(value)
        encoded = pickling.encode((frame, value.columns, strings))
        if encoded.codec != "pickle":
            raise NotEncodable
        return encoded._replace(codec=self.name)

    def decode(self, view: memoryview, meta: Mapping[str, Any]) -> Any:
        """Return the frame."""
        import pandas

        frame, columns, strings = super().decode(view, meta)
        for position, array in strings:
            objects = array.to_numpy(zero_copy_only=False)
            # By position: labels may be repeated, or be of any kind.
            frame.insert(position, f"\0{position}", pandas.Series(objects, index=frame.index, dtype=object))
        frame.columns = columns
        return frame


def _compact(table: Any) -> Any:
    """Return a table that owns no more memory than it shows."""
    if table.get_total_buffer_size() <= table.nbytes * 1.25 + 65536:
        return table
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    reader = pyarrow.ipc.open_stream(sink.getvalue())
    return reader.read_all() if isinstance(table, pyarrow.Table) else reader.read_next_batch()


def _without_strings(frame: Any) -> tuple[Any, list[tuple[int, Any]]]:
    """Take the columns of plain Python strings out of a frame."""
    import pyarrow

    if len(frame) < _MIN_ROWS:
        raise NotEncodable
    strings: list[tuple[int, Any]] = []
    for position, dtype in enumerate(frame.dtypes):
        if str(dtype) != "object":
            continue
        values = frame.iloc[:, position].to_numpy()
        if type(values[0]) is not str or set(map(type, values)) != {str}:
            continue
        try:
            strings.append((position, pyarrow.array(values, pyarrow.large_string())))
        except (pyarrow.ArrowException, UnicodeError):  # lone surrogates are strings to Python only
            continue
    if not strings or len(strings) > _MAX_COLUMNS:
        raise NotEncodable
    taken = {position for position, _ in strings}
    rest = frame.iloc[:, [position for position in range(frame.shape[1]) if position not in taken]]
    rest.columns = range(rest.shape[1])
    return rest, strings
