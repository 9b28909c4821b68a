"""How long the scheduler alone takes for a very wide foreach, and how much memory; nothing runs.

Usage: python benchmarks/scheduler_scale.py [WIDTH] [--slots N] [--steps N] [--resume] [--json]

Prints seconds and peak memory for a foreach of WIDTH children (1,000,000 by default) with a body of N steps and a
join. With --resume the origin of a resume is that run without its last child, and the plan is measured too.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import deque

from flowkit.exceptions import Location
from flowkit.model.coordinates import TaskRef
from flowkit.model.graph import Graph, Node
from flowkit.model.launch import Launch
from flowkit.model.transition import Transition
from flowkit.runtime.resume import OriginTask, plan
from flowkit.runtime.scheduler import Scheduler

HERE = Location(__file__, 1)


def wide_flow(steps: int) -> Graph:
    """Return the graph start -> foreach of a chain of steps -> join -> end."""
    body = [f"body{number}" for number in range(steps)]
    nodes = {
        "start": Node("start", "foreach", HERE, (body[0],), variable="items", matching_join="join"),
        "join": Node("join", "linear", HERE, ("end",), is_join=True, arguments=2, sources=(body[-1],)),
        "end": Node("end", "end", HERE, sources=("join",)),
    }
    for name, target, source in zip(body, [*body[1:], "join"], ["start", *body], strict=False):
        nodes[name] = Node(name, "linear", HERE, (target,), sources=(source,), depth=1, splits=("start",))
    return Graph("Wide", nodes, "start", "end")


def transitions(graph: Graph, width: int) -> dict[str, Transition]:
    """Return what each step does at its end."""
    out = {name: Transition("linear", node.targets) for name, node in graph.nodes.items()}
    out["start"] = Transition("foreach", graph["start"].targets, width, "items")
    out["end"] = Transition("end")
    return out


def drive(scheduler: Scheduler, ends: dict[str, Transition], slots: int | None) -> int:
    """Run the scheduler to its end with `slots` tasks at a time; return the number of launches."""
    scheduler.start()
    running: deque[Launch] = deque()
    launched = 0
    while scheduler.state == "running":
        room = None if slots is None else slots - len(running)
        taken = scheduler.take("local", room, 0.0)
        launched += len(taken)
        running.extend(taken)
        launch = running.popleft()
        scheduler.finished(TaskRef(launch.step, launch.coordinates), launch.attempt, ends[launch.step], 0.0)
    return launched


def measured(label: str, started: float) -> None:
    """Print one line; the processor's time beside the clock's tells how busy the machine was with other things."""
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megabytes = peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    print(f"{label:<44} {seconds:7.2f} s ({time.process_time():6.2f} s CPU so far) {megabytes:6.0f} MB peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("width", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--slots", type=int, default=64, help="tasks at a time; 0 for all that is ready")
    parser.add_argument("--steps", type=int, default=1, help="steps of the body")
    parser.add_argument("--resume", action="store_true", help="measure a resume of that run instead")
    parser.add_argument("--json", action="store_true", help="print the seconds as JSON instead (not with --resume)")
    options = parser.parse_args()
    width, slots = options.width, options.slots or None
    graph = wide_flow(options.steps)
    ends = transitions(graph, width)
    label = f"{width:,} children, {options.steps} step(s), {options.slots or 'all'} at a time"
    if not options.resume:
        started = time.perf_counter()
        scheduler = Scheduler(graph, {}, max_width=width)
        launched = drive(scheduler, ends, slots)
        assert scheduler.state == "succeeded", scheduler.state
        assert launched == width * options.steps + 3, launched
        if options.json:
            print(json.dumps({"": time.perf_counter() - started}))
        else:
            measured(label, started)
        return
    last = str(width - 1)
    origin = {("start", "0"): OriginTask(ends["start"])}
    for step in graph.nodes:
        if step.startswith("body"):
            origin.update({(step, str(index)): OriginTask(ends[step]) for index in range(width) if str(index) != last})
    started = time.perf_counter()
    outcome = plan(graph, origin, run="Wide/1")
    measured(f"plan of a resume: {outcome.cloned:,} cloned", started)
    started = time.perf_counter()
    scheduler = Scheduler(graph, {}, max_width=width, clones=outcome.transitions)
    launched = drive(scheduler, ends, slots)
    assert scheduler.state == "succeeded", scheduler.state
    assert launched == options.steps + 2, launched
    measured("the resumed run", started)


if __name__ == "__main__":
    main()
