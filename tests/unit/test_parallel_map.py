"""`parallel_map` and its sister: results, order, errors, big values, and nothing left behind."""

from __future__ import annotations

import io
import os
import signal
import threading
from pathlib import Path

import numpy
import pytest

from flowkit import parallel_imap_unordered, parallel_map, profile
from flowkit.exceptions import StoreError, UsageError
from flowkit.runtime.parallel_map import ChildFailed
from flowkit.runtime.processes import children_of


class Refuses(Exception):
    def __reduce__(self):
        raise TypeError("not me")


class NeedsTwo(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def test_results_come_in_order_from_other_processes(tmp_path: Path) -> None:
    factor = 3
    found = parallel_map(lambda x: (x * factor, os.getpid()), range(20), max_parallel=4, dir=str(tmp_path))
    assert [value for value, _ in found] == [x * 3 for x in range(20)]
    assert os.getpid() not in {pid for _, pid in found}
    assert list(tmp_path.iterdir()) == []
    assert parallel_map(lambda x: x, []) == []


def test_arrays_come_back_whole_and_can_be_written_to() -> None:
    found = parallel_map(lambda x: {"array": numpy.full(500_000, x), "more": [None, x]}, [1.0, 2.0])
    assert [float(each["array"].sum()) for each in found] == [500_000.0, 1_000_000.0]
    found[0]["array"][0] = 7
    assert found[0]["array"][0] == 7


def test_values_are_taken_only_as_they_are_needed() -> None:
    taken = []
    before = children_of(os.getpid())  # other tests' servers may be among them

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    results = parallel_imap_unordered(lambda x: -x, endless(), max_parallel=2)
    first = [next(results) for _ in range(5)]
    results.close()
    assert set(first) <= {-number for number in taken}
    assert len(taken) <= 8
    assert children_of(os.getpid()) == before


def test_what_is_raised_is_raised_here_with_the_childs_traceback_and_the_rest_is_stopped(tmp_path: Path) -> None:
    before = children_of(os.getpid())

    def work(x):
        if x == 1:
            raise KeyError("missing")
        signal.pause()

    with pytest.raises(KeyError, match="missing") as caught:
        parallel_map(work, range(4), max_parallel=4, dir=str(tmp_path))
    assert "in work" in str(caught.value.__cause__)
    assert list(tmp_path.iterdir()) == []
    assert children_of(os.getpid()) == before


def test_what_cannot_come_back_is_told() -> None:
    def refuse(x):
        raise Refuses("no")

    with pytest.raises(ChildFailed, match="Refuses: no"):
        parallel_map(refuse, [1])
    with pytest.raises(ChildFailed, match="killed by SIGKILL"):
        parallel_map(lambda x: os.kill(os.getpid(), signal.SIGKILL), [1])
    with pytest.raises(ChildFailed, match="exited with 3"):
        parallel_map(lambda x: os._exit(3), [1])
    with pytest.raises(ChildFailed, match=r"a result \(lock\) cannot be pickled"):
        parallel_map(lambda x: threading.Lock(), [1])
    with pytest.raises(SystemExit):
        parallel_map(lambda x: exit(4), [1])
    for wrong in (0, -1, "two"):
        with pytest.raises(UsageError, match="max_parallel"):
            parallel_map(abs, [1], max_parallel=wrong)  # type: ignore[arg-type]


def test_errors_of_the_function_and_of_the_values_stay_what_they_are(tmp_path: Path) -> None:
    def broken():
        yield 1
        raise ConnectionResetError("while listing")

    def needs(x):
        raise NeedsTwo(x, x)

    with pytest.raises(FileNotFoundError, match="nowhere"):
        parallel_map(lambda x: (tmp_path / x).read_text(), ["nowhere"])
    with pytest.raises(ConnectionResetError, match="while listing"):
        parallel_map(abs, broken())
    with pytest.raises(ChildFailed, match="NeedsTwo: 1") as caught:
        parallel_map(needs, [1])
    assert "in needs" in str(caught.value.__cause__)
    with pytest.raises(StoreError, match="cannot keep its results"):
        parallel_map(abs, [1], dir=str(tmp_path / "nowhere"))


def test_nested_and_without_a_console(monkeypatch: pytest.MonkeyPatch) -> None:
    table = parallel_map(lambda x: parallel_map(lambda y: x * y, range(3), 2), range(3), 2)
    assert table == [[0, 0, 0], [0, 1, 2], [0, 2, 4]]
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr("sys.stdout", stream)
        assert parallel_map(abs, [-1]) == [1]


def test_children_draw_other_random_numbers(workspace) -> None:
    # In an interpreter of its own: another test may have seeded this one's generators, and that is respected.
    done = workspace.python(
        """
        import random, numpy
        from flowkit import parallel_map
        found = parallel_map(lambda x: (random.random(), numpy.random.random()), range(6))
        print(len({first for first, _ in found}), len({second for _, second in found}))
        numpy.random.seed(7)
        print(len(set(parallel_map(lambda x: numpy.random.random(), range(6)))))
        """,
        check=True,
    )
    assert done.stdout == "6 6\n1\n"


def test_in_a_step(workspace) -> None:
    workspace.write(
        "flow.py",
        """
        from flowkit import FlowSpec, parallel_map, profile, step

        class MapFlow(FlowSpec):
            @step
            def start(self):
                self.many = [1, 2, 3]
                with profile("squares"):
                    self.squares = parallel_map(lambda x: x * x, self.many)
                self.next(self.end)

            @step
            def end(self):
                print(sum(self.squares))

        if __name__ == "__main__":
            MapFlow()
        """,
    )
    done = workspace.run("run", check=True)
    assert "PROFILE: squares completed in" in done.stdout
    assert "14" in done.stdout


def test_profile_adds_to_a_dictionary(capsys: pytest.CaptureFixture[str]) -> None:
    times: dict[str, float] = {}
    with profile("x", times):
        pass
    before = times["x"]
    with pytest.raises(ZeroDivisionError), profile("x", times):
        raise ZeroDivisionError
    assert times["x"] >= before
    assert capsys.readouterr().out == ""
