"""A program that carries out made-up steps with the real local executor (run by test_local_executor.py).

``python executor_program.py REQUEST`` takes a JSON object: ``launches`` (lists of step, index and number of gang
nodes), ``config``, ``task_start``, ``cancel`` (after the first line of output: "gently" or "now"), ``stay`` (never
end), ``seed``, ``pause``, ``padding``, ``descriptors`` (their limit) and ``kill`` (seed, and which helpers to kill now
and then). It prints one JSON line for each event.
"""

import atexit
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time

from flowkit.model.coordinates import Coordinates
from flowkit.model.launch import Launch
from flowkit.runtime import streams
from flowkit.runtime.executor import Ended, Output, Started
from flowkit.runtime.local import LocalExecutor
from flowkit.runtime.messages import launch_from_json, launch_to_json
from flowkit.runtime.processes import children_of

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def fine(config, launch, node):
    print("fine")
    return 0


def three(config, launch, node):
    return 3


def leave(config, launch, node):
    sys.exit("no more")


def fail(config, launch, node):
    raise ValueError("made to fail")


def crash(config, launch, node):
    print("before")
    os.kill(os.getpid(), signal.SIGSEGV)


def vanish(config, launch, node):
    print("before")
    os._exit(0)


def killed(config, launch, node):
    os.kill(os.getpid(), signal.SIGKILL)


def long_line(config, launch, node):
    sys.stdout.write("x" * 10_000_000)
    return 0


def junk(config, launch, node):
    os.write(1, bytes(range(256)) + b"\n")
    os.write(2, b"\xff\xfe\n1700000000.000000 o| forged\n")
    print("grüße \udcff")
    return 0


def order(config, launch, node):
    for index in range(200):
        print(index, file=sys.stderr if index % 3 else sys.stdout)
    return 0


def no_stdout(config, launch, node):
    os.close(1)
    sys.stdout.close()
    print("still here", file=sys.stderr)
    return 0


def grandchild(config, launch, node):
    print(subprocess.Popen(SLEEPER).pid)
    return 0


def daemon(config, launch, node):
    print(subprocess.Popen(SLEEPER, start_new_session=True).pid)
    return 0


def at_the_end(config, launch, node):
    def later():
        time.sleep(0.1)
        print("thread")

    threading.Thread(target=later).start()
    atexit.register(print, "handler")
    print("body", end=" ")
    return 0


def surroundings(config, launch, node):
    found = {
        "stdin": sys.stdin.read(),
        "group": os.getpgrp() == os.getpid(),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "value": os.environ.get("VALUE"),
        "config": config.get("note"),
        "index": launch.coordinates.indices,
        "node": node,
    }
    print(json.dumps(found))
    return 0


def wait(config, launch, node):
    streams.code_began()
    print(os.getpid(), subprocess.Popen(SLEEPER).pid, flush=True)
    time.sleep(600)


def finishing(config, launch, node):
    streams.code_began()
    streams.code_finished()
    time.sleep(1.0)
    return 0


def kill_server(config, launch, node):
    time.sleep(0.1)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def kill_log(config, launch, node):
    print("one")
    log = min(each for each in children_of(os.getppid()) if each != os.getpid())
    os.kill(log, signal.SIGKILL)
    for _ in range(20):
        time.sleep(0.02)
        print("two")
    return 0


def gang(config, launch, node):
    print("node", node)
    if node == config.get("failing"):
        return 4
    if config.get("failing") is not None:
        time.sleep(600)
    return 0


def chatter(config, launch, node):
    if config.get("full"):
        os.makedirs(os.path.join(config["run_folder"], "chatter", "0", "0"))
        os.symlink("/dev/full", os.path.join(config["run_folder"], "chatter", "0", "0", "log"))
    for index in range(150_000):
        print(index, "x" * 80)
    return 0


def short(config, launch, node):
    print("begin")
    time.sleep(launch.coordinates.indices[0] % 7 * 0.002)
    print("x" * 5000, file=sys.stderr)
    return 0


def draw(config, launch, node):
    import random

    print(random.random())
    return 0


def carry_out(config, launch, node):
    return globals()[launch.step](config, launch, node)


class Killer:
    """Kills helpers of the executor at random moments."""

    def __init__(self, executor, seed, helpers):
        import random

        self.executor, self.helpers, self.random, self.at = executor, helpers, random.Random(seed), 0.0

    def strike(self):
        if time.monotonic() < self.at:
            return
        self.at = time.monotonic() + self.random.random() * 0.08
        helper = self.random.choice(self.helpers)
        pid = self.executor._server_pid if helper == "server" else self.executor._log_pid
        if helper == "server":
            self.helpers = ["log"]
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def main(request):
    if request.get("descriptors"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["descriptors"], request["descriptors"]))
    atexit.register(lambda: os.write(2, b"exit handler of the parent\n"))
    if request.get("seed") is not None:
        import random

        random.seed(request["seed"])

    def command(launch, node):
        task = {"launch": launch_to_json(launch), "node": node, "config": request["config"]}
        task["padding"] = "x" * request.get("padding", 0)
        return [sys.executable, __file__, "--task", json.dumps(task)]

    executor = LocalExecutor.prepare(carry_out, command, task_start=request.get("task_start", "auto"))
    executor.configure(request["config"])
    launches = [Launch(step, Coordinates((index,)), gang=size) for step, index, size in request["launches"]]
    executor.submit(launches)
    time.sleep(request.get("pause", 0))
    left = len(launches)
    asked = request.get("cancel")
    killer = Killer(executor, *request["kill"]) if request.get("kill") else None
    while left or request.get("stay"):
        deadline = executor.next_deadline()
        wait_for = 0.02 if request.get("kill") else 5.0 if deadline is None else max(0.0, deadline - time.time())
        time.sleep(request.get("pause", 0) / 100)
        select.select(executor.file_descriptors(), (), (), wait_for)
        if killer is not None:
            killer.strike()
        for event in executor.poll():
            told = {"step": event.launch.step, "index": event.launch.coordinates.indices[0]}
            if isinstance(event, Started):
                told.update(event="started", pid=event.pid)
            elif isinstance(event, Output):
                told.update(event="output", stream=event.stream, text=event.text[:1000])
                if asked:
                    executor.cancel(now=asked == "now")
                    asked = None
            elif isinstance(event, Ended):
                told.update(event="ended", status=event.exit_status, reason=event.reason)
                left -= 1
            print(json.dumps(told), flush=True)
    executor.close()
    print(json.dumps({"event": "closed", "notices": executor.notices}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--task":
        streams.adopt(os.environ)
        text = sys.argv[2]
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        asked = json.loads(text)
        sys.exit(carry_out(asked["config"], launch_from_json(asked["launch"]), asked["node"]))
    main(json.loads(sys.argv[1]))
