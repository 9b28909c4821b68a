"""The form of log lines, and reading them whole, from the end and while they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.datastore import logs
from flowkit.datastore.layout import log_file
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.logs import (
    START,
    LogLine,
    PieceWriter,
    Position,
    format_line,
    parse_lines,
    read_log,
    read_log_from,
    rewrite_log,
    tail_log,
    text_of,
)
from flowkit.datastore.memory import MemoryStorage
from flowkit.exceptions import StoreError

PLACE = ("F", "1", "a", "0", 0)


def stored(data: bytes) -> MemoryStorage:
    storage = MemoryStorage()
    storage.replace(log_file(*PLACE), [data])
    return storage


@given(
    when=st.floats(0, 4e9),
    stream=st.sampled_from(["out", "err", "note"]),
    text=st.binary(max_size=80).filter(lambda text: b"\n" not in text),
    partial=st.booleans(),
)
def test_what_was_written_is_read(when: float, stream: str, text: bytes, partial: bool) -> None:
    (line,) = parse_lines(format_line(when, stream, text, partial))
    assert line.stream == stream
    assert line.text == text
    assert line.partial == partial
    assert abs(line.when - when) < 1e-5


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(data: bytes) -> None:
    texts = [line.text for line in parse_lines(data)]
    assert sum(map(len, texts)) <= len(data)
    text_of(parse_lines(data))


def test_a_printed_header_forges_nothing() -> None:
    forged = format_line(5.0, "err", b"not mine")
    lines = list(parse_lines(format_line(9.0, "out", forged)))
    assert [(line.stream, line.when) for line in lines] == [("out", 9.0)] * len(lines)


def test_pieces_are_joined_within_their_stream() -> None:
    snow = "snöw".encode()
    data = (
        format_line(1, "out", snow[:3], partial=True)
        + format_line(2, "err", b"oops")
        + format_line(3, "out", snow[3:])
        + format_line(4, "out", b"no newline", partial=True)
    )
    assert text_of(parse_lines(data)) == "oops\nsnöw\nno newline"


def test_a_stream_keeps_the_notes() -> None:
    data = format_line(1, "out", b"a") + format_line(2, "err", b"b") + logs.truncation_line(3, 10)
    assert [line.stream for line in read_log(stored(data), *PLACE, "out")] == ["out", "note"]
    assert [line.stream for line in read_log(stored(data), *PLACE, "err")] == ["err", "note"]
    assert len(list(read_log(stored(data), *PLACE))) == 3


def test_no_log_is_no_lines() -> None:
    storage = MemoryStorage()
    assert list(read_log(storage, *PLACE)) == []
    assert tail_log(storage, *PLACE, 3) == []
    assert read_log_from(storage, *PLACE) == ([], START)


def test_tail_and_follow_over_many_blocks(monkeypatch) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 1000)
    data = b"".join(format_line(i, "err" if i % 3 else "out", b"line %d" % i) for i in range(5000))
    torn = data + b"0000005000.000000 o| half"
    storage = stored(torn)
    assert [line.text for line in tail_log(storage, *PLACE, 2)] == [b"line 4999", b"half"]
    assert [line.text for line in tail_log(stored(data), *PLACE, 2, "out")] == [b"line 4995", b"line 4998"]
    assert len(list(read_log(storage, *PLACE))) == 5001
    position, seen = START, []
    while True:
        lines, position = read_log_from(storage, *PLACE, position)
        if not lines:
            break
        seen += lines
    assert len(seen) == 5000
    assert position == Position(0, len(data))


def test_a_line_longer_than_a_block_does_not_stop_following(monkeypatch) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 100)
    storage = stored(format_line(1, "out", b"x" * 450))
    position, size = START, 0
    for _ in range(20):
        lines, position = read_log_from(storage, *PLACE, position)
        size += sum(len(line.text) for line in lines)
    assert position == Position(0, 450 + logs.HEADER + 1)
    assert size == 450


def test_a_line_as_the_type_says() -> None:
    assert next(parse_lines(b"1700000000.250000 e+ hi\n")) == LogLine(1700000000.25, "err", b"hi", True)


def lines(first: int, last: int) -> bytes:
    return b"".join(format_line(i, "err" if i % 3 else "out", b"line %d" % i) for i in range(first, last))


def texts(found) -> list[bytes]:
    return [line.text for line in found]


def numbered(first: int, last: int) -> list[bytes]:
    return [b"line %d" % i for i in range(first, last)]


@pytest.fixture(params=["memory", "local"])
def storage(request, tmp_path):
    return MemoryStorage() if request.param == "memory" else LocalStorage(str(tmp_path))


def pieces(storage) -> list[int]:
    return logs.log_parts(storage, *PLACE)[1]


def test_pieces_are_read_as_one_log(storage) -> None:
    writer = PieceWriter(storage, *PLACE)
    for start in range(0, 100, 10):
        writer.append(lines(start, start + 10))
    assert pieces(storage) == list(range(1, 11))
    assert texts(read_log(storage, *PLACE)) == numbered(0, 100)
    assert texts(read_log(storage, *PLACE, "out")) == [b"line %d" % i for i in range(0, 100, 3)]
    assert texts(tail_log(storage, *PLACE, 25)) == numbered(75, 100)
    assert texts(tail_log(storage, *PLACE, 4, "out")) == [b"line 90", b"line 93", b"line 96", b"line 99"]
    assert texts(tail_log(storage, *PLACE, 1000)) == numbered(0, 100)


def test_a_file_comes_before_the_pieces(storage) -> None:
    storage.replace(log_file(*PLACE), [lines(0, 50)])
    PieceWriter(storage, *PLACE).append(lines(50, 60))
    assert texts(read_log(storage, *PLACE)) == numbered(0, 60)
    assert texts(tail_log(storage, *PLACE, 15)) == numbered(45, 60)
    seen, position = read_log_from(storage, *PLACE)
    more, position = read_log_from(storage, *PLACE, position)
    assert texts(seen + more) == numbered(0, 60)
    assert read_log_from(storage, *PLACE, position) == ([], Position(2))


def test_a_log_of_pieces_is_followed(storage) -> None:
    writer, position, seen = PieceWriter(storage, *PLACE), START, []
    assert read_log_from(storage, *PLACE, position) == ([], START)
    for start in range(0, 30, 10):
        writer.append(lines(start, start + 10))
        found, position = read_log_from(storage, *PLACE, position)
        seen += found
        assert read_log_from(storage, *PLACE, position) == ([], position)
    assert texts(seen) == numbered(0, 30)


def test_a_line_without_its_end_waits_for_it() -> None:
    storage = MemoryStorage()
    writer, data = PieceWriter(storage, *PLACE), lines(0, 4)
    writer.append(data[:-5])
    assert texts(read_log(storage, *PLACE)) == numbered(0, 3)
    writer.append(data[-5:])
    assert texts(read_log(storage, *PLACE)) == numbered(0, 4)
    writer.append(b"torn")
    writer.close()
    assert texts(read_log(storage, *PLACE)) == [*numbered(0, 4), b"torn"]


def test_a_second_writer_of_an_attempt_goes_on_behind_the_first(storage) -> None:
    first, second = PieceWriter(storage, *PLACE), PieceWriter(storage, *PLACE)
    first.append(lines(0, 5))
    second.append(lines(5, 10))
    first.append(lines(10, 15))
    second.append(lines(15, 20))
    assert texts(read_log(storage, *PLACE)) == numbered(0, 20)
    assert pieces(storage) == [1, 2, 3, 4]


@pytest.mark.parametrize("again", [False, True])
def test_the_limit_holds_for_all_pieces(storage, again) -> None:
    line = len(lines(0, 1))
    writer = PieceWriter(storage, *PLACE, 10 * line + 3)
    writer.append(lines(0, 7))
    if again:
        writer = PieceWriter(storage, *PLACE, 10 * line + 3)
    writer.append(b"".join(format_line(1, "out", b"line %d" % (i % 10)) for i in range(40)))
    writer.append(lines(0, 3))
    assert writer.cut
    found = list(read_log(storage, *PLACE))
    assert [each.stream for each in found].count("note") == 1
    assert found[-1].stream == "note"
    assert len(found) == 11


def test_pieces_are_bounded_and_long_lines_whole(monkeypatch) -> None:
    monkeypatch.setattr(logs, "PIECE", 1000)
    storage = MemoryStorage()
    data = lines(0, 100) + format_line(1, "out", b"x" * 5000) + lines(100, 110)
    PieceWriter(storage, *PLACE).append(data)
    assert len(list(read_log(storage, *PLACE))) == 111
    sizes = [storage.info(f"flows/F/1/a/0/0/log.{number:06d}").size for number in pieces(storage)]
    assert sorted(sizes)[-2] <= 1000
    assert max(sizes) == 5000 + logs.HEADER + 1


def test_a_log_is_rewritten_part_by_part(storage) -> None:
    assert not rewrite_log(storage, *PLACE, lambda line: True, b"none")
    storage.replace(log_file(*PLACE), [lines(0, 10)])
    writer = PieceWriter(storage, *PLACE)
    writer.append(lines(10, 11))
    writer.append(lines(11, 20))
    assert rewrite_log(storage, *PLACE, lambda line: line.stream == "out", b"scrubbed")
    writer.append(lines(20, 22))
    kept = [b"line %d" % i for i in range(0, 20, 3)]
    assert texts(read_log(storage, *PLACE)) == [*kept, b"scrubbed", b"line 20", b"line 21"]
    seen, position = [], START
    while found := read_log_from(storage, *PLACE, position):
        seen += found[0]
        if not found[0] and found[1] == position:
            break
        position = found[1]
    assert texts(seen) == texts(read_log(storage, *PLACE))


class Refusing(MemoryStorage):
    """Takes nothing while it is broken; and tells of nothing that it took while it is torn."""

    broken = torn = False

    def create(self, path, content):
        if self.broken:
            raise StoreError("no answer")
        made = super().create(path, content)
        return made and not self.torn


def test_what_the_storage_does_not_take_goes_first_the_next_time(monkeypatch) -> None:
    storage = Refusing()
    writer = PieceWriter(storage, *PLACE)
    writer.append(lines(0, 5))
    storage.broken = True
    for start in (5, 10):
        with pytest.raises(StoreError):
            writer.append(lines(start, start + 5))
    storage.broken, storage.torn = False, True
    writer.append(lines(15, 20))
    assert texts(read_log(storage, *PLACE)) == numbered(0, 20)
    storage.torn, storage.broken = False, True
    monkeypatch.setattr(logs, "KEPT", 200)
    for start in range(20, 60, 5):
        with pytest.raises(StoreError):
            writer.append(lines(start, start + 5))
    storage.broken = False
    writer.append(b"")
    writer.append(lines(60, 65))
    found = list(read_log(storage, *PLACE))
    assert [each.stream for each in found].count("note") == 1
    assert texts(found)[-5:] == numbered(60, 65)
