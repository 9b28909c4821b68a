"""The form of log lines, and reading them whole, from the end and while they are written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flowkit.datastore import logs
from flowkit.datastore.layout import log_file
from flowkit.datastore.logs import LogLine, follow_log, format_line, parse_lines, read_log, tail_log, text_of
from flowkit.datastore.memory import MemoryStorage

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
    assert follow_log(storage, *PLACE, 0) == ([], 0)


def test_tail_and_follow_over_many_blocks(monkeypatch) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 1000)
    data = b"".join(format_line(i, "err" if i % 3 else "out", b"line %d" % i) for i in range(5000))
    torn = data + b"0000005000.000000 o| half"
    storage = stored(torn)
    assert [line.text for line in tail_log(storage, *PLACE, 2)] == [b"line 4999", b"half"]
    assert [line.text for line in tail_log(stored(data), *PLACE, 2, "out")] == [b"line 4995", b"line 4998"]
    assert len(list(read_log(storage, *PLACE))) == 5001
    offset, seen = 0, []
    while True:
        lines, offset = follow_log(storage, *PLACE, offset)
        if not lines:
            break
        seen += lines
    assert len(seen) == 5000
    assert offset == len(data)


def test_a_line_longer_than_a_block_does_not_stop_following(monkeypatch) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 100)
    storage = stored(format_line(1, "out", b"x" * 450))
    offset, size = 0, 0
    for _ in range(20):
        lines, offset = follow_log(storage, *PLACE, offset)
        size += sum(len(line.text) for line in lines)
    assert offset == 450 + logs.HEADER + 1
    assert size == 450


def test_a_line_as_the_type_says() -> None:
    assert next(parse_lines(b"1700000000.250000 e+ hi\n")) == LogLine(1700000000.25, "err", b"hi", True)
