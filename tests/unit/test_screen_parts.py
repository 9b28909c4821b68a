"""The parts of what is seen on a terminal: lines that fit, few drawings, the graph as characters and as SVG."""

from __future__ import annotations

import io
import itertools
import signal
import xml.dom.minidom

import pytest
from graph_builder import graph_of
from hypothesis import given
from hypothesis import strategies as st
from random_flows import BLOCKS, RandomFlow

from flowkit.cli.console import Console, clean
from flowkit.cli.live import LiveDisplay
from flowkit.cli.run_summary import size
from flowkit.cli.run_view import RunView, StepView, draw
from flowkit.cli.terminal import ASCII, UNICODE, Terminal, cells, fit
from flowkit.model import graph_drawing
from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.graph_layout import BOX_HEIGHT, layout
from flowkit.model.graph_svg import to_svg
from flowkit.runtime.decisions import Counts

COUNT = st.integers(0, 2_000)
STEPS = st.lists(
    st.builds(
        lambda name, counts, more, seconds, rate: StepView(clean(name), *counts, sum(counts) + more, seconds, rate),
        st.text(max_size=40),
        st.tuples(*[COUNT] * 7),
        COUNT,
        st.none() | st.floats(0, 1e6),
        st.none() | st.floats(0, 1e4),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 200), st.integers(1, 30), st.sampled_from(["running", "failed"]), st.none() | COUNT)
def test_a_run_fits_into_any_window(steps, width, most, state, expected):
    view = RunView("Flow/1", state, 12.5, steps, expected, "note")
    for glyphs in (UNICODE, ASCII):
        terminal = Terminal(True, False, glyphs)
        lines = draw(view, terminal, width, most)
        assert len(lines) <= most + 3
        assert all(cells(terminal.line(parts, width)) <= width for parts in lines)


def test_steps_where_something_happens_are_shown():
    steps = [StepView(f"step{n}", succeeded=1, total=1) for n in range(100)]
    steps += [StepView("busy", running=1, total=1), *(StepView(f"later{n}") for n in range(100))]
    steps[3] = StepView("broken", failed=1, total=1)
    terminal = Terminal(True, False, UNICODE)
    text = "\n".join(terminal.line(parts, 80) for parts in draw(RunView("F/1", "running", 1.0, steps), terminal, 80, 8))
    for name in ("broken", "busy", "step99", "later0"):
        assert name in text
    assert "193 more steps: 96 succeeded, 97 pending" in text


@given(st.text(alphabet=st.sampled_from("aé猫\u0301🙂 "), max_size=30), st.integers(0, 30))
def test_texts_are_cut_by_the_columns_that_they_take(text, width):
    assert cells(fit(text, width)) <= max(width, 0)
    if cells(text) <= width:
        assert fit(text, width) == text


def test_sizes_are_told_as_people_read_them():
    assert [size(n) for n in (0, 999, 1500, 99_449, 123_456, 10**9, 5 * 10**12)] == [
        *("0 B", "999 B", "1.5 kB", "99.4 kB", "123 kB", "1.0 GB", "5.0 TB")
    ]


class _Screen(io.StringIO):
    """Counts how often something is written."""

    encoding = "utf-8"  # type: ignore[assignment]
    writes = 0

    def write(self, text):
        self.writes += 1
        return super().write(text)


@pytest.fixture
def display():
    """A display with a clock that the test moves."""
    out = _Screen()
    console = Console(out=out, err=out)
    now = [0.0]
    made = LiveDisplay(
        console, Terminal(True, True, UNICODE), ["start", "work"], "flow.py", lambda: 90.0, lambda: now[0]
    )
    before = signal.getsignal(signal.SIGWINCH)
    made.run_started("Flow", "1", None)
    yield made, out, now
    console.release()
    assert signal.getsignal(signal.SIGWINCH) == before


def test_ten_thousand_events_a_second_are_drawn_ten_times(display):
    shown, out, now = display
    asked = itertools.count()

    def counts():
        next(asked)
        return {"start": Counts(0, 0, 1), "work": Counts(100, 4, 5)}

    for number in range(20_000):
        now[0] = number / 10_000
        shown.task_started(TaskRef("work", Coordinates((number,))), 0, False, 1, 0.0)
        if number % 100 == 0:
            shown.line(TaskRef("work", Coordinates((number,))), "out", f"line {number}", 1e9)
        patience = shown.turn(counts)
        assert 0 < patience <= 1
    assert 10 <= next(asked) <= 20
    shown._console.release()
    assert out.writes <= 60
    text = out.getvalue()
    assert text.count("line ") == 200
    assert "of about 1 min 30 s" in text


def test_nothing_happens_without_time_passing(display):
    shown, out, now = display
    now[0] = 5.0
    shown.turn(lambda: {"work": Counts(1)})
    before = out.writes
    for _ in range(1_000):
        assert shown.turn(lambda: pytest.fail("nothing is to be drawn")) == 1.0
    assert out.writes == before


def test_what_others_print_goes_above_the_display(display):
    shown, out, now = display
    out.isatty = lambda: True
    now[0] = 5.0
    shown.turn(lambda: {"work": Counts(1)})
    shown._console.warn("something\x1b[2J\nelse")
    end = out.getvalue()
    assert end.index("something\nelse\n") < end.rindex("Flow/1")
    assert "\x1b[2J" not in end


# -- the graph -------------------------------------------------------------------------------------------------------


@given(BLOCKS, st.integers(0, 3))
def test_random_graphs_are_drawn_without_anything_in_the_way(block, seed):
    graph = RandomFlow(block, seed).graph
    plan = layout(graph)
    assert plan is not None
    assert {box.name for box in plan.boxes} == set(graph.order())
    taken: set[tuple[int, int]] = set()
    for box in plan.boxes:
        area = {(x, y) for x in range(box.x, box.x + box.width) for y in range(box.y, box.y + BOX_HEIGHT)}
        assert not area & taken
        taken |= area
    inside = {(x, y) for box in plan.boxes for x in range(box.x, box.x + box.width) for y in [box.y + 1]}
    for wire in plan.wires:
        assert not {(wire.x1, y) for y in range(wire.y1, wire.y2 + 1)} & inside or wire.y1 == wire.y2
        assert not {(x, wire.y1) for x in range(wire.x1, wire.x2 + 1)} & inside or wire.x1 == wire.x2
    for ascii_only in (False, True):
        lines = graph_drawing.draw(plan, ascii=ascii_only).lines
        assert len(lines) == plan.height
        assert max(map(len, lines)) <= plan.width
        assert all(f" {name} " in "\n".join(lines) for name in graph.order())
    xml.dom.minidom.parseString(to_svg(graph))


def test_a_graph_that_does_not_nest_is_drawn_as_svg_only():
    graph = graph_of(
        {
            "start": "switch a b",
            "a": "switch c d",
            "b": "switch c d",
            "c": "linear end",
            "d": "linear end",
            "end": "end",
        }
    )
    assert layout(graph) is None
    picture = xml.dom.minidom.parseString(to_svg(graph))
    assert {text.firstChild.data for text in picture.getElementsByTagName("text")} == set(graph.nodes)
    assert len(picture.getElementsByTagName("path")) == 8


def test_texts_in_svg_are_escaped():
    graph = graph_of({"start": "switch a b", "a": "linear end", "b": "linear end", "end": "end"})
    graph["start"].variable = "x"
    graph["start"].cases = {'<script>"&\x1b': "a", "other": "b"}
    picture = to_svg(graph)
    assert "<script" not in picture
    assert '<script>"&�' in [
        text.firstChild.data for text in xml.dom.minidom.parseString(picture).getElementsByTagName("text")
    ]


def test_a_long_chain_is_drawn_in_one_column():
    steps = {f"s{n}": f"linear s{n + 1}" for n in range(2_000)}
    graph = graph_of({"start": "linear s0", **steps, "s2000": "linear end", "end": "end"})
    plan = layout(graph)
    assert plan is not None
    assert plan.height == BOX_HEIGHT * 2_003
    assert plan.width <= 10
