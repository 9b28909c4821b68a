"""Runs removed by rules, and blobs that nothing names: beside writers, killed anywhere, nothing named is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from flowkit import FlowSpec
from flowkit import step as flow_step
from flowkit.datastore import layout, sweeping
from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.lease import Lease
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import read_clones, read_manifest, write_clones, write_manifest
from flowkit.datastore.packs import save_pack
from flowkit.datastore.runs import (
    bury_run,
    claim_run,
    list_runs,
    list_steps,
    list_tasks,
    read_run,
    write_end,
    write_tags,
)
from flowkit.datastore.sealed import read_sealed
from flowkit.datastore.storage import Chunks, Entry, Info, Storage
from flowkit.exceptions import Conflict, FlowkitError, NotFound, UsageError
from flowkit.metadata.liveness import this_process
from flowkit.metadata.memory import MemoryMetadata
from flowkit.metadata.records import RunRecord
from flowkit.metadata.store import RunFilter
from flowkit.model.definition import define
from flowkit.model.manifest import Manifest
from flowkit.model.transition import Transition
from flowkit.runtime.start import RunRequest, begin
from flowkit.upkeep.deletion import make_plan, plan_one
from flowkit.upkeep.gc import clean, preview
from flowkit.upkeep.retention import Rule, Rules, parse_age, parse_rules
from flowkit.upkeep.spill import Spill
from flowkit.upkeep.turn import take_turn

FLOW = "Train"
DAY = 86400.0
ALL = Rules(Rule(keep=0))
NONE = Rules()


class World:
    """A datastore with its index, and what people do with it."""

    def __init__(self, storage: Storage, store: MemoryMetadata | None = None) -> None:
        self.storage = storage
        self.store = store or MemoryMetadata()
        self.blobs = Blobs(storage)

    def begin(self, ago: float = 2 * DAY, origin: str | None = None, **fields: Any) -> str:
        record = {"user": "ada", "created": time.time() - ago, "origin": origin, **fields}
        run = claim_run(self.storage, FLOW, record)
        tags = tuple(fields.get("tags", ()))
        self.store.write([RunRecord(FLOW, run, "ada", "running", record["created"], origin=origin, tags=tags)])
        return run

    def commit(self, run: str, place: str, task: str = "0", **values: str) -> Manifest:
        writer = ArtifactWriter(self.blobs)
        artifacts = {name: writer.save(name, value * 3000, step=place) for name, value in values.items()}
        manifest = Manifest(FLOW, run, place, task, 0, artifacts, Transition("linear", ("end",)))
        assert write_manifest(self.storage, manifest)
        return manifest

    def end(self, run: str, state: str = "succeeded", ago: float = 2 * DAY) -> None:
        write_end(self.storage, FLOW, run, {"state": state, "reason": None, "finished": time.time() - ago})
        record = self.store.run(FLOW, run)
        assert record is not None
        self.store.write([record._replace(state=state, finished=time.time() - ago)])  # type: ignore[arg-type]

    def run(self, text: str = "a", state: str = "succeeded", ago: float = 2 * DAY, tags: tuple[str, ...] = ()) -> str:
        run = self.begin(ago, tags=list(tags))
        self.commit(run, "_parameters")
        self.commit(run, "start", x=text)
        self.commit(run, "train", y=text + text)
        self.end(run, state, ago)
        return run

    def resume(self, origin: str, text: str = "a") -> str | None:
        """As `flowkit.runtime.start.begin` and what follows it: a run that takes ``start`` over, and passes it on."""
        taken = read_manifest(self.storage, FLOW, origin, "start", "0")
        if taken is None:
            return None
        run = self.begin(0, f"{FLOW}/{origin}")
        if read_run(self.storage, FLOW, origin) is None:
            bury_run(self.storage, FLOW, run)
            return None
        self.commit(run, "_parameters")
        write_clones(self.storage, FLOW, run, "start", f"{FLOW}/{taken.run}", {"0": "0"})
        parent = read_manifest(self.storage, FLOW, run, "start", "0")
        assert parent is not None
        made = ArtifactWriter(self.blobs).save("y", text * 3000, step="train")
        artifacts = {**parent.artifacts, "y": made}
        write_manifest(self.storage, Manifest(FLOW, run, "train", "0", 0, artifacts, Transition("end")))
        self.end(run, ago=0)
        return run

    def age(self, days: float = 2) -> None:
        """Have everything happen so many days earlier."""
        when = time.time() - days * DAY
        for entry in self.storage.walk(""):
            file = self.storage.local_path(entry.path)
            assert file is not None
            if not entry.path.endswith(".last"):
                os.utime(file, (when, when))

    def runs(self) -> list[str]:
        return [run for run in list_runs(self.storage, FLOW) if read_run(self.storage, FLOW, run) is not None]

    def blob_count(self) -> int:
        return sum(1 for _ in self.storage.walk(layout.BLOBS))

    def check(self) -> None:
        """Everything that a manifest of a run that is there names can be read."""
        for run in self.runs():
            for step in list_steps(self.storage, FLOW, run):
                clones = read_clones(self.storage, FLOW, run, step)
                for task in (*list_tasks(self.storage, FLOW, run, step), *(clones[1] if clones else ())):
                    manifest = read_manifest(self.storage, FLOW, run, step, task)
                    if manifest is None:
                        assert clones is None, f"{run}/{step}/{task} was taken over and is gone"
                        continue
                    for artifact in manifest.artifacts.values():
                        if artifact.inline is None:
                            self.blobs.get(artifact.key, artifact.size, f"{run}/{step}/{task}")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(LocalStorage(str(tmp_path), durable=False))


def gone(world: World, rules: Rules = ALL) -> list[str]:
    return sorted(each.facts.run for each in clean(world.storage, world.store, rules).runs)


def test_nothing_goes_without_a_rule(world: World) -> None:
    world.run("a")
    world.run("b", "failed", ago=1000 * DAY)
    world.age()
    found = clean(world.storage, world.store, NONE)
    assert (found.runs, found.unused.blobs) == ((), 0)
    assert world.runs() == ["1", "2"]


def test_a_run_goes_with_all_that_it_has_and_nothing_else(world: World) -> None:
    world.run("a")
    world.run("b")
    shared = world.run("a")
    world.storage.create(f"{layout.data_folder(FLOW, '2')}/table.csv", [b"1,2"])
    world.storage.create(f"{layout.data_folder(FLOW, '3')}/table.csv", [b"1,2"])
    world.age()
    before = world.blob_count()
    found = preview(world.storage, world.store, Rules(Rule(keep=1)))
    assert (world.blob_count(), world.runs()) == (before, ["1", "2", "3"])
    done = clean(world.storage, world.store, Rules(Rule(keep=1)))
    assert [each.facts.run for each in done.runs] == [each.facts.run for each in found.runs]
    assert (done.removed, done.unused) == (found.removed, found.unused)
    assert (done.removed.runs, done.removed.tasks, done.unused.blobs) == (2, 6, 2)
    assert world.runs() == [shared]
    assert [record.run for record in world.store.runs(FLOW, RunFilter())] == [shared]
    assert world.blob_count() == before - 2
    world.check()
    left = {entry.path for entry in world.storage.walk("") if "/2/" in entry.path or "/1/" in entry.path}
    assert left == {layout.run_file(FLOW, "1"), layout.run_file(FLOW, "2")}
    assert not os.path.exists(f"{world.storage.root}/{layout.run_folder(FLOW, '2')}/start")
    tombstone = read_sealed(world.storage, layout.run_file(FLOW, "2"))
    assert tombstone is not None
    assert sorted(tombstone) == ["deleted", "flow", "run"]
    assert claim_run(world.storage, FLOW, {}) == "4"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(older_than=50 * DAY), ["1", "2"]),
        (Rule(older_than=500 * DAY), []),
        (Rule(keep=2), ["1", "2"]),
        (Rule(keep=4), []),
        (Rule(keep=0, keep_tags=("paper",)), ["1", "3", "4"]),
        (Rule(only_tags=("paper",)), ["2"]),
        (Rule(only_tags=("paper", "other")), []),
        (Rule(states=("failed",)), ["1", "3"]),
        (Rule(states=("failed",), keep=3), ["1"]),
        (Rule(states=("cancelled", "lost"), older_than=0.0), []),
        (Rule(keep_tags=("paper",)), []),
    ],
)
def test_rules(world: World, rule: Rule, expected: list[str]) -> None:
    world.run("a", "failed", ago=100 * DAY)
    world.run("b", tags=("t",), ago=90 * DAY)
    write_tags(world.storage, FLOW, "2", ["paper"])
    world.store.change_tags(FLOW, "2", ["paper"], ["t"])
    world.run("c", "failed", ago=10 * DAY)
    world.run("d", ago=5 * DAY)
    assert gone(world, Rules(rule)) == expected
    assert world.runs() == [run for run in ("1", "2", "3", "4") if run not in expected]


def test_tags_that_only_the_index_knows_of_count(world: World) -> None:
    """A service changes tags without the datastore."""
    world.run("a")
    world.run("b", tags=("trash",))
    world.store.change_tags(FLOW, "1", ["paper"], [])
    assert gone(world, Rules(Rule(keep=0, keep_tags=("paper",)))) == ["2"]
    world.run("c", tags=("trash",))
    world.store.change_tags(FLOW, "3", [], ["trash"])
    assert gone(world, Rules(Rule(only_tags=("trash",)))) == []
    world.store.change_tags(FLOW, "3", ["trash"], [])
    assert gone(world, Rules(Rule(only_tags=("trash",)))) == ["3"]


def test_rules_of_one_flow(world: World) -> None:
    world.run("a")
    assert gone(world, Rules(Rule(keep=0), {FLOW: Rule(keep=5)})) == []
    assert gone(world, Rules(Rule(keep=5), {FLOW: Rule(keep=0)}, only="Other")) == []
    assert gone(world, Rules(Rule(keep=5), {FLOW: Rule(keep=0)}, only=FLOW)) == ["1"]


def test_rules_of_a_project() -> None:
    rules = parse_rules({"older_than": "2w", "keep": 3, "flows": {"A": {"keep": 1, "states": ["failed"]}}}, "f.toml")
    assert rules.of("B") == Rule(14 * DAY, 3)
    assert rules.of("A") == Rule(14 * DAY, 1, states=("failed",))
    assert parse_rules({}, "f.toml").of("A").removes is False
    wrong: list[dict[str, Any]] = [
        {"older": "2w"},
        {"older_than": 14},
        {"older_than": "14 days"},
        {"keep": -1},
        {"keep": True},
        {"keep_tags": "paper"},
        {"states": ["running"]},
        {"flows": {"A": 1}},
        {"flows": {"A": {"kep": 1}}},
    ]
    for table in wrong:
        with pytest.raises(UsageError, match="retention"):
            parse_rules(table, "f.toml")
    assert [parse_age(text, "x") for text in ("90s", "2m", "3h", "1d", "1w")] == [90, 120, 10800, DAY, 7 * DAY]


def test_a_run_stays_while_somebody_works_on_it(world: World) -> None:
    owner = this_process()._asdict()
    mine = world.begin(5 * DAY, **owner)  # its process lives
    world.commit(mine, "_parameters")
    leased = world.run("b", "failed")
    lease = Lease.acquire(world.storage, FLOW, leased, {"user": "ada", "host": "elsewhere", "pid": 1})
    elsewhere = world.begin(5 * DAY)  # jobs at a service, which go on without their client
    world.storage.create(f"{layout.launches_folder(FLOW, elsewhere)}/fk-job.json", [b"{}"])
    dead = world.begin(5 * DAY)
    world.age()
    lease.renew()
    assert gone(world) == [dead]
    found = clean(world.storage, world.store, ALL)
    assert {each.facts.run for each in found.kept} == {mine, leased, elsewhere}
    lease.release()
    world.age(30)
    assert gone(world) == [leased, elsewhere]
    young = world.begin(5 * DAY)
    assert gone(world) == []
    assert young in world.runs()


def test_a_run_stays_while_one_that_stays_has_tasks_of_it(world: World) -> None:
    first = world.run("a")
    second = world.resume(first)
    assert second is not None
    third = world.resume(second)  # which takes the task over from the first one, where it is
    other = world.run("b", ago=0)
    world.age()
    assert third is not None
    found = clean(world.storage, world.store, Rules(Rule(keep=2)))
    assert [each.facts.run for each in found.runs] == [second]
    assert [(each.facts.run, each.why) for each in found.kept] == [(first, f"{FLOW}/{third} has tasks of it")]
    world.check()
    assert gone(world) == [first, third, other]
    assert clean(world.storage, world.store, NONE).unused.blobs == 0  # they went in the same command
    assert world.blob_count() == 0


def test_a_run_whose_list_of_clones_is_damaged_keeps_its_origin(world: World) -> None:
    first = world.run("a")
    second = world.resume(first)
    assert second is not None
    world.storage.replace(layout.clones_file(FLOW, second, "start"), [b"torn"])
    assert gone(world, Rules(Rule(keep=1))) == []


def test_a_run_of_which_the_origin_is_being_removed_does_not_begin(world: World) -> None:
    class Plain(FlowSpec):
        @flow_step
        def start(self):
            self.next(self.end)

        @flow_step
        def end(self):
            pass

    definition = define(Plain)
    origin = begin(world.storage, definition, RunRequest("ada")).record.run
    begun = begin(world.storage, definition, RunRequest("ada", origin=f"Plain/{origin}"))
    assert begun.record.run == "2"
    bury_run(world.storage, "Plain", origin, read_run(world.storage, "Plain", origin))
    with pytest.raises(Conflict, match="being removed"):
        begin(world.storage, definition, RunRequest("ada", origin=f"Plain/{origin}"))
    assert read_run(world.storage, "Plain", "3") is None


def test_a_resume_that_has_not_begun_keeps_its_origin(world: World) -> None:
    first = world.run("a")
    world.begin(0, f"{FLOW}/{first}")
    assert gone(world) == []


def test_a_resume_that_comes_while_its_origin_goes(tmp_path: Path) -> None:
    """At any point of the removal: either it finds all of its origin, or it is refused."""
    outcomes = []
    for point in range(200):
        root = tmp_path / str(point)
        root.mkdir()
        world = World(LocalStorage(str(root), durable=False))
        origin = world.run("a")
        world.age()
        resumed: list[str | None] = []
        between = Between(
            str(root), point, lambda w=world, origin=origin, resumed=resumed: resumed.append(w.resume(origin))
        )
        clean(between, world.store, Rules(Rule(older_than=DAY)))
        if between.thread is None:
            break
        between.thread.join(60)
        world.check()
        assert (resumed[0] is not None) <= (origin in world.runs())
        outcomes.append("kept" if resumed[0] is not None else "refused")
    assert outcomes[0] == "kept"
    assert outcomes[-1] == "refused"


def test_one_run_is_removed_on_demand(world: World) -> None:
    first = world.run("a")
    second = world.resume(first)
    with pytest.raises(Conflict, match=f"{FLOW}/{second} has tasks of it"):
        plan_one(world.storage, world.store, FLOW, first, time.time())
    with pytest.raises(NotFound):
        plan_one(world.storage, world.store, FLOW, "99", time.time())
    plan = plan_one(world.storage, world.store, FLOW, str(second), time.time())
    assert [each.facts.run for each in plan.doomed] == [second]


def test_everything_that_names_a_blob_keeps_it(world: World) -> None:
    pack, _ = save_pack(world.blobs, [bytes(3000), bytes(4000)])
    package = world.blobs.put([b"code" * 1000], 4000)
    launches = world.blobs.put([b"list" * 1000], 4000)
    staged = world.blobs.put([b"node" * 1000], 4000)
    damaged = world.blobs.put([b"torn" * 1000], 4000)
    unknown = world.blobs.put([b"card" * 1000], 4000)
    unused = world.blobs.put([b"free" * 1000], 4000)
    run = world.begin()
    transition = Transition("foreach", ("train",), 2, "xs", None, pack)
    write_manifest(world.storage, Manifest(FLOW, run, "start", "0", 0, {}, transition))
    write_manifest(
        world.storage,
        Manifest(
            FLOW, run, "_parameters", "0", 0, {}, Transition("end"), extra={"package": {"key": package, "size": 4000}}
        ),
    )
    world.storage.create(f"{layout.launches_folder(FLOW, run)}/fk-x.json", [b'{"key":"%s"}' % launches.encode()])
    folder = layout.attempt_folder(FLOW, run, "train", "1", 0)
    world.storage.create(f"{folder}/staged.json", [b'{"artifacts":{"x":{"key":"%s"}}}' % staged.encode()])
    world.storage.create(layout.manifest_file(FLOW, run, "train", "7"), [b'{"blake3":"', damaged.encode()])
    world.storage.create(f"{layout.run_folder(FLOW, run)}/cards.json", [b"[%s]" % unknown.encode()])
    spun = world.blobs.put([b"spin" * 1000], 4000)
    world.storage.create(f"spins/{layout.manifest_file(FLOW, '1', 'a', '0')}", [b"[%s]" % spun.encode()])
    world.age()
    found = clean(world.storage, world.store, NONE)
    assert found.unused == (1, 4000)
    assert world.storage.info(layout.blob_file(unused)) is None
    for key in (pack.partition("-")[0], package, launches, staged, damaged, unknown, spun):
        assert world.storage.info(layout.blob_file(key)) is not None


def test_young_blobs_and_files_are_spared(world: World) -> None:
    old = world.blobs.put([b"a" * 4000], 4000)
    stranger = f"{layout.BLOBS}/ab/notes.txt"
    world.storage.create(stranger, [b"mine"])
    world.storage.create(".tmp2", [b""])
    folder = Path(world.storage.root) / ".tmp"
    (folder / "dead").write_bytes(b"half")
    world.age()
    os.utime(folder / "dead", (0, 0))
    (folder / "alive").write_bytes(b"half")
    young = world.blobs.put([b"b" * 4000], 4000)
    asked_for = world.blobs.put([b"c" * 4000], 4000)
    world.age()
    assert world.blobs.put([b"c" * 4000], 4000) == asked_for
    assert world.blobs.put([b"b" * 4000], 4000) == young
    found = clean(world.storage, world.store, NONE)
    assert found.unused.blobs == 1
    assert found.unfinished == (1, 4)
    assert world.storage.info(layout.blob_file(old)) is None
    assert world.storage.info(layout.blob_file(young)) is not None
    assert world.storage.info(stranger) is not None
    assert [file.name for file in folder.iterdir()] == ["alive"]


def test_a_grace_period_that_is_not_safe_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match="too short"):
        clean(world.storage, world.store, NONE, 3600.0)


def test_one_at_a_time(world: World) -> None:
    turn = take_turn(world.storage)
    with pytest.raises(Conflict, match="another process cleans this datastore"):
        clean(world.storage, world.store, NONE)
    turn.keep()
    turn.release()
    clean(world.storage, world.store, NONE)


def test_what_cannot_be_read_stops_the_sweep(world: World) -> None:
    """A manifest that is there and cannot be read may name anything: nothing is removed then."""
    world.blobs.put([b"a" * 4000], 4000)
    run = world.run("b")
    world.age()
    unreadable = layout.manifest_file(FLOW, run, "start", "0")

    class Sick(LocalStorage):
        def read(self, path: str) -> bytes:
            if path == unreadable:
                raise FlowkitError("the disk has a fault")
            return super().read(path)

    before = world.blob_count()
    with pytest.raises(FlowkitError, match="fault"):
        clean(Sick(world.storage.root, durable=False), world.store, NONE)
    assert world.blob_count() == before


def test_a_damaged_run_stays(world: World) -> None:
    run = world.run("a")
    world.storage.replace(layout.run_file(FLOW, run), [b"torn"])
    world.age()
    found = clean(world.storage, world.store, ALL)
    assert (found.runs, found.unused.blobs) == ((), 0)


# -- beside writers ----------------------------------------------------------------------------------------------------


class Between(LocalStorage):
    """Does something once, in the middle of a call of a sweep: before it is carried out, or after."""

    def __init__(self, root: str, point: int, action: Callable[[], object]) -> None:
        super().__init__(root, durable=False)
        self._left = point
        self._action = action
        self.thread: threading.Thread | None = None

    def _count(self) -> None:
        self._left -= 1
        if self._left == -1:
            # In a thread, since a writer may wait for the sweep, which goes on meanwhile.
            self.thread = threading.Thread(target=self._action)
            self.thread.start()
            self.thread.join(0.1)

    def read(self, path: str) -> bytes:
        self._count()
        return super().read(path)

    def info(self, path: str) -> Info | None:
        self._count()
        found = super().info(path)
        self._count()
        return found

    def walk(self, path: str) -> Iterator[Entry]:
        self._count()
        yield from super().walk(path)
        self._count()

    def replace(self, path: str, content: Chunks) -> None:
        self._count()
        super().replace(path, content)
        self._count()

    def delete(self, path: str) -> None:
        self._count()
        super().delete(path)
        self._count()

    def delete_older(self, path: str, before: float) -> bool:
        self._count()
        info = self.info(path)
        if info is None or info.modified >= before:
            return False
        self._count()
        self.delete(path)
        return True


class Killed(BaseException):
    """The process is gone: nothing of it runs any more, `finally` neither."""


class Mortal(Between):
    """A storage whose process is killed at some point: from then on it does nothing any more."""

    dies = 1 << 60

    def _count(self) -> None:
        self.dies -= 1
        if self.dies < 0:
            raise Killed
        super()._count()


Step = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["run", "resume", "unended"]), st.integers(0, 5), st.integers(0, 3)),
        st.tuples(st.just("age"), st.just(0), st.just(0)),
        st.tuples(st.sampled_from(["gc", "gc", "killed"]), st.integers(0, 4), st.integers(0, 120)),
        st.tuples(st.just("gc beside"), st.integers(0, 11), st.integers(0, 120)),
        st.tuples(st.just("killed beside"), st.integers(0, 11), st.integers(0, 200)),
    ),
    min_size=2,
    max_size=12,
)
TEXTS = "abcd"


@example_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_nothing_that_a_manifest_names_is_lost(steps: list[Step], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    world = World(LocalStorage(str(root), durable=False))
    for kind, what, point in steps:
        if kind == "run":
            world.run(TEXTS[what % 4], ago=point * DAY)
        elif kind == "unended":
            world.commit(world.begin(3 * DAY), "start", x=TEXTS[what % 4])
        elif kind == "resume":
            act(world, "resume", what)
        elif kind == "age":
            world.age()
        else:
            collect(world, kind, what, point)
        world.check()
    world.age()
    clean(world.storage, world.store, NONE)
    world.check()
    named = {
        artifact.key
        for run in world.runs()
        for step in list_steps(world.storage, FLOW, run)
        for task in list_tasks(world.storage, FLOW, run, step)
        for manifest in (read_manifest(world.storage, FLOW, run, step, task),)
        if manifest is not None
        for artifact in manifest.artifacts.values()
        if artifact.inline is None
    }
    assert {entry.path.rpartition("/")[2] for entry in world.storage.walk(layout.BLOBS)} == named


def act(world: World, kind: str, what: int) -> None:
    """Write a run of content that may be there already, or resume one."""
    runs = world.runs()
    if kind == "resume" and runs:
        world.resume(runs[what % len(runs)], TEXTS[what % 4])
    else:
        world.run(TEXTS[what % 4], ago=0)


def collect(world: World, kind: str, what: int, point: int) -> None:
    rules = Rules(Rule(keep=what % 5))
    writer = World(LocalStorage(world.storage.root, durable=False), world.store)
    beside = (lambda: act(writer, "resume" if what > 5 else "run", what)) if "beside" in kind else (lambda: None)
    storage = Mortal(world.storage.root, point, beside)
    if "killed" in kind:
        storage.dies = (point * 7) % 150
    try:
        clean(storage, world.store, rules)
    except Killed:
        # What a minute without a sign of life would do: nobody waits for it here.
        world.storage.delete(layout.upkeep_lease())
        world.storage.delete(layout.sweep_file())
    finally:
        if storage.thread is not None:
            storage.thread.join(60)
            assert not storage.thread.is_alive()


def test_a_writer_waits_for_the_sweep_that_may_remove_what_it_found(world: World) -> None:
    content = b"a" * 4000
    key = world.blobs.put([content], 4000)
    world.age()
    for point in range(200):
        done: list[str] = []
        writer = Blobs(LocalStorage(world.storage.root, durable=False))
        between = Between(
            world.storage.root, point, lambda writer=writer, done=done: done.append(writer.put([content], 4000))
        )
        clean(between, world.store, NONE)
        if between.thread is None:
            break
        between.thread.join(60)
        assert done == [key]
        assert world.storage.read(layout.blob_file(key)) == content
        world.age()
    assert point > 10


def test_the_announcement_of_a_dead_sweep_holds_nobody_up_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "PATIENCE", 0.05)
    monkeypatch.setattr(sweeping, "_LOOK_EVERY", 0.01)
    key = world.blobs.put([b"a" * 4000], 4000)
    sweeping.Announcement(world.storage).make(key[:2])
    sweeping.outwait(world.storage, "00" + key[2:] if key[:2] != "00" else "11" + key[2:])  # not in its way
    assert world.storage.info(layout.sweep_file()) is not None
    world.age()
    world.blobs.put([b"a" * 4000], 4000)
    assert world.storage.info(layout.sweep_file()) is None


def test_an_announcement_holds_only_for_so_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    announcement = sweeping.Announcement(world.storage)
    assert not announcement.holds
    announcement.make("ab")
    assert announcement.holds
    monkeypatch.setattr(sweeping, "_TRUSTED", 0.0)
    assert not announcement.holds
    announcement.withdraw()
    assert not announcement.holds


# -- killed for good ---------------------------------------------------------------------------------------------------

DEADLY = """
import os, signal, sys
from flowkit.datastore.local import LocalStorage
from flowkit.metadata.sqlite import SqliteMetadata
from flowkit.upkeep.gc import clean
from flowkit.upkeep.retention import Rule, Rules

left = int(sys.argv[2])

class Deadly(LocalStorage):
    def _write(self, path, content):
        die()
        return super()._write(path, content)
    def delete(self, path):
        die()
        super().delete(path)
        die()

def die():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

store = SqliteMetadata(sys.argv[1])
clean(Deadly(sys.argv[1], durable=False), store, Rules(Rule(keep=1)))
store.close()
"""


def test_a_sweep_that_is_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    world = World(LocalStorage(str(tmp_path), durable=False))
    for text in "abcd":
        world.run(text)
    kept = world.resume("2")
    world.blobs.put([b"x" * 4000], 4000)
    world.age()
    codes = []
    for point in (3, 11, 24, 40, 1000):
        child = subprocess.run([sys.executable, "-c", DEADLY, str(tmp_path), str(point)], timeout=60, check=False)
        codes.append(child.returncode)
        world.check()
    assert codes[0] == -signal.SIGKILL
    assert codes[-1] == 0
    assert world.runs() == ["2", kept]
    assert world.storage.info(layout.sweep_file()) is None
    found = preview(world.storage, world.store, NONE)
    assert (found.runs, found.unused.blobs) == ((), 0)


# -- many --------------------------------------------------------------------------------------------------------------


def test_more_facts_than_fit_into_memory_are_kept_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowkit.upkeep import spill

    monkeypatch.setattr(spill, "_HELD", 50)
    keys = [os.urandom(32) for _ in range(500)]
    with Spill(4) as facts:
        for number, key in enumerate(keys):
            facts.add(key, number.to_bytes(4, "big"))
            facts.add(keys[0], b"same")
        found = [fact for prefix in spill.PREFIXES for fact in facts.facts(prefix)]
        assert {(key, extra) for key, extra in found} == {
            *((key.hex(), number.to_bytes(4, "big")) for number, key in enumerate(keys)),
            (keys[0].hex(), b"same"),
        }
        assert facts.keys("zz") == set()


def test_the_plan_of_an_empty_datastore(world: World) -> None:
    assert make_plan(world.storage, world.store, ALL, time.time()).doomed == []
    assert clean(world.storage, world.store, ALL).removed.runs == 0
