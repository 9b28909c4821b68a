"""Real processes through the real executor: how tasks end, what they write, and that nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowkit.datastore.logs import parse_lines, text_of
from flowkit.metadata.liveness import process_start
from flowkit.runtime.processes import children_of

PROGRAM = Path(__file__).with_name("executor_program.py")
SECONDS = 60


class Program:
    """One run of executor_program.py."""

    def __init__(self, folder, launches, **request):
        self.folder = folder / "root" / "flows" / "Made" / "1"
        config = {"run_folder": str(self.folder), "max_workers": 4, **request.pop("config", {})}
        launches = [[each, 0, 0] if isinstance(each, str) else each for each in launches]
        request = {"launches": launches, "config": config, **request}
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(request)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events = []

    def until(self, kind):
        """Read events until one of a kind comes, and return it."""
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == kind:
                return self.events[-1]
        raise AssertionError(f"no {kind}: {self.events} {self.process.stderr.read()}")

    def finish(self):
        """Wait for the program's end and return itself."""
        out, err = self.process.communicate(timeout=SECONDS)
        self.events += map(json.loads, out.splitlines())
        self.errors = err
        assert self.process.returncode == 0, (err, self.events)
        return self

    def end(self, step="", index=0):
        """Return status and reason of a launch."""
        found = [
            (each["status"], each["reason"])
            for each in self.events
            if each["event"] == "ended" and each["step"].startswith(step) and each["index"] == index
        ]
        assert len(found) == 1
        return found[0]

    def shown(self, stream=None):
        """Return the texts that came for the screen."""
        return [each["text"] for each in self.events if each["event"] == "output" and stream in (None, each["stream"])]

    def log(self, step, index=0):
        """Return the lines of a log."""
        return list(parse_lines((self.folder / step / str(index) / "0" / "log").read_bytes()))

    @property
    def notices(self):
        return self.events[-1]["notices"]


@pytest.fixture
def run(tmp_path):
    programs = []

    def run(*launches, **request):
        programs.append(Program(tmp_path, launches, **request))
        return programs[-1]

    yield run
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
        program.process.communicate(timeout=SECONDS)


def gone(pids):
    """Wait until processes are gone, for a bounded time."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = [pid for pid in pids if process_start(pid) is not None]
        if not left:
            return True
        time.sleep(0.02)
    return False


def family(pid):
    """Return every descendant of a process."""
    found = []
    for child in children_of(pid):
        found += [child, *family(child)]
    return found


@pytest.mark.parametrize("task_start", ["fork", "spawn"])
def test_every_kind_of_end_is_told(run, task_start):
    done = run("fine", "three", "leave", "fail", "crash", "vanish", "killed", task_start=task_start).finish()
    ends = {
        "fine": (0, None),
        "three": (3, None),
        "leave": (1, None),
        "fail": (1, None),
        "crash": (-signal.SIGSEGV, None),
        "vanish": (0, None),
        "killed": (-signal.SIGKILL, None),
    }
    assert {step: done.end(step) for step in ends} == ends
    assert text_of(done.log("fine")) == "fine\n"
    assert "no more" in text_of(done.log("leave"))
    assert "ValueError: made to fail" in text_of(done.log("fail"))
    assert text_of(done.log("crash")).startswith("before\n")
    assert not (done.folder / "three").exists()
    assert not (done.folder.parents[2] / ".processes").exists() or not list(
        (done.folder.parents[2] / ".processes").iterdir()
    )
    assert done.notices == []


def test_output_comes_before_the_end_and_both_streams_keep_their_order(run):
    done = run("order").finish()
    assert [line.text for line in done.log("order")] == [str(index).encode() for index in range(200)]
    assert {line.stream for line in done.log("order")} == {"out", "err"}
    assert done.shown() == [str(index) for index in range(200)]
    assert [each["event"] for each in done.events][-2:] == ["ended", "closed"]
    assert done.events[0]["event"] == "started"


def test_ten_megabytes_without_a_newline(run):
    done = run("long_line").finish()
    assert done.end() == (0, None)
    assert text_of(done.log("long_line")) == "x" * 10_000_000


def test_binary_junk_forges_nothing(run):
    done = run("junk").finish()
    lines = [(line.stream, line.text) for line in done.log("junk")]
    whole = bytes(range(256)) + b"\n"
    out = [text for stream, text in lines if stream == "out"]
    assert out == [*whole.split(b"\n")[:-1], "grüße \\udcff".encode()]
    assert [text for stream, text in lines if stream == "err"] == [b"\xff\xfe", b"1700000000.000000 o| forged"]


@pytest.mark.parametrize("task_start", ["fork", "spawn"])
def test_a_step_may_close_stdout(run, task_start):
    done = run("no_stdout", "fine", task_start=task_start).finish()
    assert done.end("no_stdout")[0] == (0 if task_start == "fork" else done.end("no_stdout")[0])
    assert "still here" in text_of(done.log("no_stdout"))
    assert done.end("fine") == (0, None)


def test_a_log_is_cut_at_its_limit(run):
    done = run("long_line", "fine", config={"max_log_size": 100_000}).finish()
    data = (done.folder / "long_line" / "0" / "0" / "log").read_bytes()
    assert len(data) <= 100_200
    assert done.log("long_line")[-1].stream == "note"
    assert done.end("long_line") == done.end("fine") == (0, None)


@pytest.mark.parametrize("step", ["grandchild", "daemon"])
def test_what_outlives_a_task_does_not_hold_it_and_is_ended(run, step):
    done = run(step).finish()
    assert done.end() == (0, None)
    assert gone([int(done.shown("out")[0])])


def test_a_task_ends_as_an_interpreter_does(run):
    done = run("at_the_end").finish()
    assert done.end() == (0, None)
    assert text_of(done.log("at_the_end")) == "body thread\nhandler\n"
    assert done.errors.count("exit handler of the parent") == 1


def test_a_task_has_surroundings_of_its_own(run):
    done = run("surroundings", config={"note": "ü", "timeouts": {}}).finish()
    found = json.loads(done.shown("out")[0])
    descriptors = found.pop("descriptors")
    assert found == {
        "stdin": "",
        "group": True,
        # Whoever started the suite may ignore Ctrl-C (a shell's background job does); tasks then do so, too.
        "interrupt": signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
        "blocked": [],
        "value": None,
        "config": "ü",
        "index": [0],
        "node": None,
    }
    assert len(descriptors) <= 5  # three, the copy of stdout, and the listing itself


def test_a_step_with_variables_of_its_own_starts_fresh(run):
    done = run("surroundings", "fine", config={"fresh": {"surroundings": {"VALUE": "seven"}}}).finish()
    assert json.loads(next(text for text in done.shown("out") if text != "fine"))["value"] == "seven"
    assert done.notices == []


def test_random_numbers_differ_unless_the_import_seeded_them(run):
    launches = [["draw", index, 0] for index in range(3)]
    drawn = run(*launches).finish().shown("out")
    assert len(set(drawn)) == 3


def test_more_launches_than_workers(run):
    done = run(*(["fine", index, 0] for index in range(40)), config={"max_workers": 3}).finish()
    assert {done.end("fine", index) for index in range(40)} == {(0, None)}
    running = most = 0
    for each in done.events:
        running += {"started": 1, "ended": -1}.get(each["event"], 0)
        most = max(most, running)
    assert most <= 3


def test_a_gang_runs_even_when_it_is_larger_than_the_limit(run):
    done = run(["gang", 0, 4], ["fine", 0, 0], config={"max_workers": 2}).finish()
    assert done.end("gang") == (0, None)
    assert sorted(done.shown("out")) == ["fine", "node 0", "node 1", "node 2", "node 3"]
    assert text_of(done.log("gang", 2)) == "node 2\n"


def test_a_gang_fails_as_a_whole(run):
    done = run(["gang", 0, 3], config={"failing": 1}).finish()
    assert done.end("gang") == (4, None)


@pytest.mark.parametrize("task_start", ["fork", "spawn"])
def test_a_timeout_kills_the_whole_process_group(run, task_start):
    done = run("wait", config={"timeouts": {"wait": 0.1}, "timeout_grace": 0.2}, task_start=task_start).finish()
    assert done.end() == (-signal.SIGKILL, "timeout")
    assert gone(map(int, done.shown("out")[0].split()))


def test_storing_results_has_no_hard_timeout(run):
    done = run("finishing", config={"timeouts": {"finishing": 0.1}, "timeout_grace": 0.2}).finish()
    assert done.end() == (0, None)


@pytest.mark.parametrize(("how", "status"), [("gently", -signal.SIGTERM), ("now", -signal.SIGKILL)])
def test_cancel(run, how, status):
    done = run("wait", ["wait", 1, 0], config={"max_workers": 1}, cancel=how).finish()
    assert done.end("wait", 0) == (status, "cancelled")
    assert done.end("wait", 1) == (None, "cancelled")
    assert gone(map(int, done.shown("out")[0].split()))


def test_a_fork_server_that_dies_is_replaced(run):
    done = run("kill_server", ["fine", 0, 0], ["fine", 1, 0], config={"max_workers": 1}).finish()
    assert done.end("kill_server") == (None, "lost")
    assert done.end("fine", 0) == done.end("fine", 1) == (0, None)
    assert text_of(done.log("fine", 1)) == "fine\n"
    assert len(done.notices) == 1
    assert "signal 9" in done.notices[0]


def test_a_log_process_that_dies_is_replaced_and_no_task_notices(run):
    done = run("kill_log", ["fine", 0, 0], config={"max_workers": 1}).finish()
    assert done.end("kill_log") == done.end("fine") == (0, None)
    assert text_of(done.log("kill_log")).count("two") >= 19
    assert text_of(done.log("fine")) == "fine\n"
    assert any("log process" in notice for notice in done.notices)


@pytest.mark.parametrize("helpers", [["log"], ["log", "log", "server"]])
def test_helpers_may_die_at_any_moment(run, helpers):
    count = 40 if "server" in helpers else 120  # without the server each task is a fresh interpreter
    done = run(*(["short", index, 0] for index in range(count)), kill=[len(helpers), helpers]).finish()
    ends = [done.end("short", index) for index in range(count)]
    assert set(ends) <= {(0, None), (None, "lost")}
    assert ends.count((None, "lost")) <= (4 if "server" in helpers else 0)
    begun = set()
    for each in done.events[:-1]:
        if each["event"] == "output":
            assert each["index"] in begun
        elif each["event"] == "started":
            begun.add(each["index"])
        else:
            begun.remove(each["index"])


def test_few_descriptors_mean_fewer_tasks_at_once(run):
    done = run(*(["short", index, 0] for index in range(60)), config={"max_workers": 60}, descriptors=64).finish()
    assert {done.end("short", index) for index in range(60)} == {(0, None)}
    assert any("Too many open files" in notice for notice in done.notices)


def test_a_killed_runtime_leaves_no_process(run):
    program = run("wait", ["wait", 1, 0], stay=True)
    tasks = program.until("output")["text"].split() + program.until("output")["text"].split()
    everybody = [*family(program.process.pid), *map(int, tasks)]
    assert len(everybody) >= 6
    program.process.kill()
    assert gone(everybody)


def test_what_three_kills_at_once_leave_is_cleared_by_the_next_run(run):
    program = run("wait", stay=True)
    task, sleeper = map(int, program.until("output")["text"].split())
    server = children_of(program.process.pid)[0]
    helpers = [program.process.pid, server, *(each for each in children_of(server) if each != task)]
    for pid in helpers:
        os.kill(pid, signal.SIGSTOP)
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
    assert gone([*helpers, task])
    assert process_start(sleeper) is not None
    done = run("fine").finish()
    assert gone([sleeper])
    assert "left behind" in done.notices[0]


def test_a_seed_at_import_holds_for_every_task(run):
    drawn = run(*(["draw", index, 0] for index in range(3)), seed=5).finish().shown("out")
    assert len(set(drawn)) == 1


def test_a_command_line_that_is_too_long_goes_through_a_file(run):
    done = run("surroundings", task_start="spawn", padding=200_000).finish()
    assert done.end() == (0, None)
    assert os.listdir(done.folder / "surroundings" / "0" / "0") == ["log"]
    assert done.notices == []


def test_a_screen_that_does_not_keep_up_loses_lines_but_the_log_does_not(run):
    done = run("chatter", pause=1.0).finish()
    assert [line.text for line in done.log("chatter")] == [b"%d " % index + b"x" * 80 for index in range(150_000)]
    dropped = sum(int(text.split()[0][1:]) for text in done.shown("err") if "not shown" in text)
    assert dropped > 0
    assert len(done.shown("out")) + dropped == 150_000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_costs_lines_but_no_task(run):
    program = run("chatter", ["fine", 0, 0], config={"max_workers": 1, "full": True})
    done = program.finish()
    assert done.end("chatter") == done.end("fine") == (0, None)
    assert any("No space left" in notice for notice in done.notices)
    assert text_of(done.log("fine")) == "fine\n"
