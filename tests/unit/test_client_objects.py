"""The client over runs that are written by hand: the tree, states, filters, namespaces, tags, errors, pickles."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from run_author import T0, Author, Bomb, author, root

from flowkit.client import (
    DataArtifact,
    Flow,
    Flowkit,
    Run,
    Step,
    Task,
    default_metadata,
    default_namespace,
    get_metadata,
    get_namespace,
    metadata,
    namespace,
)
from flowkit.client.objects import make
from flowkit.context import current
from flowkit.datastore.layout import blob_file
from flowkit.datastore.runs import read_tags
from flowkit.exceptions import (
    ArtifactError,
    DataError,
    InvalidPathspec,
    NamespaceMismatch,
    NotFound,
    StoreError,
    UsageError,
)
from flowkit.metadata.liveness import this_process
from flowkit.metadata.records import TaskRecord
from flowkit.model.transition import Transition

__all__ = ["author", "root"]


# -- the tree ---------------------------------------------------------------------------------------------------------


def test_the_tree_from_the_root_down(author: Author) -> None:
    run = author.trained()
    (flow,) = Flowkit()
    assert flow == Flow("TrainFlow")
    assert Flowkit().flows == [flow]
    assert [r.id for r in flow] == [run]
    assert flow[run] == Run(f"TrainFlow/{run}")
    assert [s.id for s in flow[run]] == ["end", "join", "train", "start"]
    assert [t.id for t in flow[run]["train"]] == ["2", "1", "0"]
    assert {a.id for a in flow[run]["train"]["1"]} == {"alpha", "score"}
    artifact = flow[run]["train"]["1"]["score"]
    assert artifact.pathspec == f"TrainFlow/{run}/train/1/score"
    assert artifact.data == 0.1
    assert artifact == DataArtifact(artifact.pathspec)
    assert hash(artifact) == hash(DataArtifact(artifact.pathspec))
    assert artifact.path_components == ["TrainFlow", run, "train", "1", "score"]
    assert [type(part).__name__ for part in (artifact.parent, artifact.parent.parent.parent.parent)] == ["Task", "Flow"]
    assert DataArtifact(artifact.pathspec).parent == Task(f"TrainFlow/{run}/train/1")
    assert repr(artifact) == f"DataArtifact('TrainFlow/{run}/train/1/score')"
    assert repr(Flowkit()) == "Flowkit()"
    assert flow.parent is None


def test_what_is_there_and_what_is_not(author: Author) -> None:
    run = author.trained()
    found = Run(f"TrainFlow/{run}")
    assert "TrainFlow" in Flowkit()
    assert "Other" not in Flowkit()
    assert run in Flow("TrainFlow")
    assert "99" not in Flow("TrainFlow")
    assert "start" in found
    assert "stop" not in found
    assert "../x" not in found
    assert 3 not in found
    assert "0" in found["start"]
    assert "1" not in found["start"]
    assert "items" in found["start"].task
    assert "item" not in found["start"].task
    for missing in (lambda: Flowkit()["X"], lambda: found["stop"], lambda: found["start"]["7"]):
        with pytest.raises(KeyError):
            missing()
    with pytest.raises(KeyError):
        found["start"].task["nothing"]


def test_names_that_begin_with_an_underscore_are_hidden_in_iteration(author: Author) -> None:
    run = Run(f"TrainFlow/{author.trained()}")
    assert "_parameters" not in [step.id for step in run]
    assert run["_parameters"].task["alpha"].data == 0.5
    task = run["start"].task
    assert "_hidden" not in [artifact.id for artifact in task]
    assert task["_hidden"].data == 1
    assert "_hidden" not in task.data
    assert "_hidden" not in repr(task.data)


def test_artifacts_as_attributes(author: Author) -> None:
    run = author.run()
    author.task(run, "start", values={"x": 1, "index": 2, "count": 3, "class": 4})
    task = Task(f"TrainFlow/{run}/start/0")
    assert task.artifacts.x.data == 1
    assert task.artifacts.index.data == 2
    assert len(task.artifacts) == 4
    assert task.artifacts._fields == ("x", "index", "count", "class")
    assert task.data.x == 1
    assert task.data.index == 2
    assert getattr(task.data, "class") == 4
    assert "x" in task.data
    assert "y" not in task.data
    assert "x" in dir(task.data)
    assert repr(task.data) == "<FlowData: x, index, count, class>"
    assert repr(task.artifacts) == "Artifacts(x, index, count, class)"
    with pytest.raises(AttributeError, match="did you mean 'count'"):
        task.data.coutn  # noqa: B018
    with pytest.raises(AttributeError, match="no artifact"):
        task.artifacts.nothing  # noqa: B018
    assert pickle.loads(pickle.dumps(task.data)).x == 1
    assert pickle.loads(pickle.dumps(task.artifacts)).x.data == 1


def test_nothing_is_unpickled_to_list_or_to_preview(author: Author) -> None:
    run = Run(f"TrainFlow/{author.trained()}")
    task = run.end_task
    assert task is not None
    assert "bomb" in [artifact.id for artifact in task]
    assert "bomb" in repr(run.data)
    assert "bomb" in task.data
    bomb = task["bomb"]
    assert bomb.type.endswith("Bomb")
    assert bomb.size > 0
    assert len(bomb.sha) == 64
    assert isinstance(bomb.preview, Mapping)
    assert task["best"].preview
    assert task["best"].type == "int"
    with pytest.raises(Exception, match="a value was loaded"):
        _ = bomb.data


# -- how things stand -------------------------------------------------------------------------------------------------


def test_a_run_that_succeeded(author: Author) -> None:
    run = Run(f"TrainFlow/{author.trained()}")
    assert run.status == "succeeded"
    assert run.successful
    assert run.finished
    assert run.failed_tasks == []
    assert run.data is not None
    assert run.data.best == 2
    assert run.end_task == Task(f"{run.pathspec}/end/0")
    assert run.finished_at == run.end_task.finished_at
    assert run.ended_at is not None
    assert run.ended_at > run.finished_at
    assert isinstance(run.created_at, datetime)
    assert run._graph_endpoints == ("start", "end")
    assert run.code is None
    assert run.trigger is None
    assert run.origin_pathspec is None
    assert Flow("TrainFlow").created_at == run.created_at


def test_a_run_that_failed_and_its_failed_tasks(author: Author) -> None:
    number = author.run()
    author.task(number, "start", transition=Transition("linear", ("train",)))
    author.failed(number, "train", attempt=0, state="pending")
    author.failed(number, "train", attempt=1)
    author.end(number, state="failed", reason="train/0: ValueError: no luck")
    run = Run(f"TrainFlow/{number}")
    assert (run.status, run.successful, run.finished, run.finished_at) == ("failed", False, False, None)
    assert run.status_reason == "train/0: ValueError: no luck"
    assert run.ended_at is not None
    assert run.data is None
    assert run.end_task is None
    (task,) = run.failed_tasks
    assert task == Task(f"TrainFlow/{number}/train/0")
    assert task.status == "failed"
    assert task.current_attempt == 1
    assert not task.finished
    assert not task.successful
    assert task.finished_at is None
    assert task.ended_at is not None
    told = task.exception
    assert told is not None
    assert (told.exception, told.type, told.kind) == ("no luck", "ValueError", "error")
    assert told.location == "flow.py:12"
    assert "ValueError: no luck" in str(told)
    assert repr(told) == "<ValueError: no luck>"
    assert str(pickle.loads(pickle.dumps(told))) == str(told)
    assert list(task) == []
    assert task.metadata_dict["attempt_ok"] == "False"
    assert run["train"].status_counts == {"failed": 1}
    first = Task(task.pathspec, attempt=0)
    assert first.status == "failed"
    assert first.exception is not None
    assert repr(first).endswith("attempt=0)")
    with pytest.raises(NotFound, match="no attempt 2"):
        Task(task.pathspec, attempt=2)
    with pytest.raises(UsageError, match="not the number"):
        Task(task.pathspec, attempt=-1)


def test_an_earlier_attempt_has_no_artifacts_and_the_last_one_has(author: Author) -> None:
    run = author.run()
    author.failed(run, "start", attempt=0, state="pending")
    author.task(run, "start", values={"x": 1}, attempt=1)
    task = Task(f"TrainFlow/{run}/start/0")
    assert task.current_attempt == 1
    assert task.successful
    assert task.exception is None
    assert task.data.x == 1
    first = Task(task.pathspec, attempt=0)
    assert (first.status, first.finished, list(first)) == ("failed", False, [])
    assert first.exception is not None
    assert first.exception.exception == "no luck"
    assert DataArtifact(f"{task.pathspec}/x", attempt=1).data == 1
    assert DataArtifact(f"{task.pathspec}/x", attempt=1).parent == Task(task.pathspec, attempt=1)
    with pytest.raises(NotFound):
        DataArtifact(f"{task.pathspec}/x", attempt=0)


def test_what_catch_kept_is_told_without_loading_it(author: Author) -> None:
    run = author.run()
    told = {"type": "ValueError", "exception": "no luck", "stacktrace": "Traceback …"}
    author.task(run, "start", values={"failure": Bomb()}, extra={"catch": told})
    task = Task(f"TrainFlow/{run}/start/0")
    assert task.finished
    assert not task.successful
    assert task.status == "succeeded"
    assert task.exception is not None
    assert (task.exception.type, str(task.exception)) == ("ValueError", "Traceback …")


def test_a_state_that_may_change_is_looked_up_again(author: Author) -> None:
    number = author.run(**this_process()._asdict())
    run = Run(f"TrainFlow/{number}")
    assert run.status == "running"
    assert run.ended_at is None
    assert not run.finished
    author.index.write([TaskRecord("TrainFlow", number, "start", "0", "running", started=T0)])
    task = run["start"].task
    assert task is not None
    assert task.status == "running"
    assert run["start"].finished_at is None
    author.task(number, "start", values={"x": 1})
    author.end(number)
    assert run.status == "succeeded"
    assert task.status == "succeeded"
    assert task.data.x == 1


def test_a_run_whose_runtime_is_gone_is_lost(author: Author) -> None:
    number = author.run()  # no process is known, and its last heartbeat was long ago
    run = Run(f"TrainFlow/{number}")
    assert run.status == "lost"
    assert "not been heard of" in (run.status_reason or "")
    assert [r.id for r in Flow("TrainFlow").runs(status="lost")] == [number]
    assert list(Flow("TrainFlow").runs(status="running")) == []


# -- listing ----------------------------------------------------------------------------------------------------------


def test_runs_are_filtered_in_the_database(author: Author) -> None:
    namespace(None)
    first = author.run(state="succeeded", tags=("exp", "v1"))
    middle = author.clock
    second = author.run(state="failed", tags=("exp",))
    third = author.run(user="bob", state="succeeded")
    flow = Flow("TrainFlow")
    ids = lambda **which: [run.id for run in flow.runs(*which.pop("tags", ()), **which)]  # noqa: E731
    assert ids() == [third, second, first]
    assert ids(tags=("exp",)) == [second, first]
    assert ids(tags=("exp", "v1")) == [first]
    assert ids(tags=("user:bob",)) == [third] == ids(user="bob")
    assert ids(status="failed") == [second]
    assert ids(status="succeeded", limit=1) == [third]
    assert ids(limit=0) == []
    assert ids(until=middle) == [first]
    assert ids(since=datetime.fromtimestamp(middle)) == [third, second]
    assert ids(since="2020-01-01") == [third, second, first]
    assert ids(until=date(2020, 1, 1)) == []
    assert flow.latest_run is not None
    assert flow.latest_run.id == third
    assert flow.latest_successful_run is not None
    assert flow.latest_successful_run.id == third


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"status": "suceeded"}, "did you mean 'succeeded"),
        ({"status": "?"}, "one of pending"),
        ({"since": "yesterday"}, "not a time"),
        ({"until": object()}, "not a time"),
        ({"limit": -1}, "not a number"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused_at_once(author: Author, options: Any, said: str) -> None:
    author.run()
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        Flow("TrainFlow").runs(**options)


def test_long_histories_come_in_pages(author: Author, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.client.flow._PAGE", 3)
    numbers = [author.run(state="succeeded") for _ in range(8)]
    assert [run.id for run in Flow("TrainFlow")] == numbers[::-1]
    assert [run.id for run in Flow("TrainFlow").runs(limit=7)] == numbers[:0:-1]


def test_listing_200_runs_with_an_artifact_each_asks_the_index_once(author: Author) -> None:
    for number in range(200):
        run = author.run()
        author.task(run, "end", values={"x": number})
        author.end(run)
    flow = Flow("TrainFlow")
    index = flow._connection.metadata
    statements: list[str] = []
    index._connection.set_trace_callback(statements.append)  # type: ignore[attr-defined]
    reads: list[str] = []
    read = flow._connection.storage.read
    flow._connection.storage.read = lambda path: reads.append(path) or read(path)  # type: ignore[method-assign, func-returns-value]
    assert [run.data.x for run in flow] == list(range(199, -1, -1))
    queries = [text for text in statements if "FROM run" in text]
    assert len(queries) == 1, queries
    assert len(reads) == 200, "one manifest for each run, and nothing else"


# -- namespaces and tags ----------------------------------------------------------------------------------------------


def test_the_namespace_is_the_users_own_unless_another_is_chosen(author: Author) -> None:
    mine, theirs = author.run(state="succeeded"), author.run(user="bob", state="succeeded")
    only_theirs = author.run(flow="Other", user="bob")
    assert get_namespace() == "user:ada"
    assert [run.id for run in Flow("TrainFlow")] == [mine]
    assert [flow.id for flow in Flowkit()] == ["TrainFlow"]
    assert Flow("TrainFlow").latest_run == Run(f"TrainFlow/{mine}")
    assert theirs not in Flow("TrainFlow")
    for wrong in (lambda: Run(f"TrainFlow/{theirs}"), lambda: Flow("Other")):
        with pytest.raises(NamespaceMismatch, match="not in the namespace 'user:ada'"):
            wrong()
    seen = Flow("TrainFlow")
    assert namespace("user:bob") == "user:bob" == get_namespace()
    assert [run.id for run in Flow("TrainFlow")] == [theirs]
    assert [run.id for run in seen] == [mine]
    assert namespace(None) is None
    assert len(list(Flow("TrainFlow"))) == 2
    assert Flow("Other").latest_run == Run(f"Other/{only_theirs}")
    assert Run(f"TrainFlow/{theirs}").is_in_namespace()
    assert default_namespace() == "user:ada"
    with pytest.raises(UsageError, match="not a namespace"):
        namespace("")


def test_a_running_step_sees_the_namespace_of_its_run(author: Author) -> None:
    current.enter({"namespace": "production:x"})
    try:
        assert get_namespace() == "production:x"
    finally:
        current.leave()


def test_tags_are_the_runs_and_can_be_changed(author: Author) -> None:
    number = author.trained()
    run = Run(f"TrainFlow/{number}")
    assert run.user_tags == frozenset()
    assert "user:ada" in run.system_tags
    assert run.tags == run.system_tags
    run.add_tag("good")
    run.add_tags(["new", "user:ada"])  # a system tag already: nothing changes
    assert run.user_tags == {"good", "new"} == Run(run.pathspec).user_tags
    run.replace_tag("new", "old")
    run.remove_tag("good")
    run.remove_tags(["never there"])
    assert run.user_tags == {"old"}
    assert read_tags(author.storage, "TrainFlow", number) == ["old"]
    run.add_tag(["a", "b"])
    run.replace_tags(["a", "b"], ["c"])
    assert run.user_tags == {"c", "old"}
    task = run["train"]["0"]
    assert task.tags == run.tags == task["score"].tags == run["train"].tags
    assert [t.id for t in run["train"].tasks("c")] == ["2", "1", "0"]
    assert list(run["train"].tasks("x")) == []
    assert list(run.steps("x")) == []
    assert len(list(run.steps("c", "user:ada"))) == 4
    assert list(Flow("TrainFlow").runs("c")) == [run]


def test_tags_that_make_no_sense_are_refused(author: Author) -> None:
    run = Run(f"TrainFlow/{author.run()}")
    for wrong in (
        lambda: run.remove_tag("user:ada"),
        lambda: run.add_tag(""),
        lambda: run.add_tag("x" * 501),
        lambda: run.add_tags("ab"),
        lambda: run.add_tags([f"t{n}" for n in range(51)]),
        lambda: run.add_tags([]),
        lambda: run.add_tag("\ud800"),
    ):
        with pytest.raises(UsageError):
            wrong()
    assert run.user_tags == frozenset()
    hostile = "'; DROP TABLE runs; -- %s ?\n\x1b[31m"
    run.add_tag(hostile)
    assert run.user_tags == {hostile}
    assert list(Flow("TrainFlow").runs(hostile)) == [run]


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (Flow, "A/1"),
        (Run, "TrainFlow"),
        (Run, "TrainFlow/1/start"),
        (Step, "TrainFlow/1"),
        (Task, "TrainFlow/1/start"),
        (DataArtifact, "TrainFlow/1/start/0"),
        (Run, "../1"),
        (Run, "TrainFlow/.."),
        (Run, "TrainFlow/\n"),
        (Run, ""),
        (Run, None),
        (Run, "TrainFlow/1;x"),
    ],
)
def test_a_path_of_the_wrong_form_is_refused(author: Author, kind: Any, path: Any) -> None:
    with pytest.raises(InvalidPathspec):
        kind(path)


def test_what_is_missing_is_named_with_the_nearest_name(author: Author) -> None:
    run = author.trained()
    for make_it, said in (
        (lambda: Flow("TrainFlw"), "did you mean 'TrainFlow'"),
        (lambda: Flow("X"), "flows here: TrainFlow"),
        (lambda: Run("TrainFlw/1"), "did you mean 'TrainFlow'"),
        (lambda: Run("TrainFlow/77"), f"its newest run is 'TrainFlow/{run}'"),
        (lambda: Step(f"TrainFlow/{run}/tarin"), "did you mean 'train'"),
        (lambda: Step("TrainFlow/77/train"), "its newest run is"),
        (lambda: Task(f"TrainFlow/{run}/train/3"), "tasks of this step: 0, 1, 2"),
        (lambda: Task(f"TrainFlow/{run}/tarin/0"), "did you mean 'train'"),
        (lambda: DataArtifact(f"TrainFlow/{run}/train/0/scroe"), "did you mean 'score'"),
    ):
        with pytest.raises(NotFound) as caught:
            make_it()
        assert not isinstance(caught.value, NamespaceMismatch)
        assert caught.value.hint is not None
        assert said in caught.value.hint


def test_no_datastore_and_an_index_that_was_lost(root: Path) -> None:
    with pytest.raises(NotFound, match="no datastore"):
        Flowkit().flows  # noqa: B018
    author = Author(root)
    author.run()
    author.index.close()
    for name in root.glob("metadata.db*"):
        name.unlink()
    with pytest.raises(StoreError, match="does not know the runs") as caught:
        Flow("TrainFlow")
    assert "flowkit metadata rebuild" in (caught.value.hint or "")


def test_a_run_that_only_the_datastore_knows_is_found_by_a_rebuild(author: Author) -> None:
    author.run()
    run = author.run()
    author.index.forget("TrainFlow", run)
    with pytest.raises(NotFound) as caught:
        Run(f"TrainFlow/{run}")
    assert "flowkit metadata rebuild" in (caught.value.hint or "")


def test_a_damaged_manifest_is_an_error_that_names_the_file(author: Author, root: Path) -> None:
    run = Run(f"TrainFlow/{author.trained()}")
    path = root / "flows" / "TrainFlow" / run.id / "end" / "0" / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"best", b"bess"))
    with pytest.raises(DataError, match="damaged") as caught:
        _ = run.data
    assert str(path) in str(caught.value)
    assert run.status == "succeeded"


def test_a_damaged_blob_is_an_error_that_names_the_artifact_and_both_hashes(author: Author, root: Path) -> None:
    run = author.run()
    author.task(run, "end", values={"big": b"x" * 100_000, "fine": 1})
    author.end(run)
    data = Run(f"TrainFlow/{run}").data
    artifact = DataArtifact(f"TrainFlow/{run}/end/0/big")
    path = root / blob_file(artifact.sha)
    path.chmod(0o644)
    path.write_bytes(b"y" * 100_000)
    with pytest.raises(ArtifactError) as caught:
        _ = artifact.data
    text = str(caught.value)
    assert "big" in text
    assert artifact.sha in text
    assert len([w for w in text.replace(",", " ").split() if len(w) == 64]) == 2
    assert data is not None
    assert data.fine == 1


def test_hostile_names_stay_names(author: Author) -> None:
    run = author.run()
    evil = "a b\n\x1b[31m/../x"
    author.task(run, "start", values={evil: 1, "fine": 2})
    task = Task(f"TrainFlow/{run}/start/0")
    assert task[evil].data == 1
    assert evil in task
    assert getattr(task.data, evil) == 1
    for shown in (repr(task.data), repr(task.artifacts), repr(task[evil])):
        assert "\n" not in shown
        assert "\x1b" not in shown
    author.index.write([TaskRecord("TrainFlow", run, "../../etc", "0", "succeeded", started=T0)])
    step = next(step for step in Run(f"TrainFlow/{run}") if step.id.startswith(".."))
    with pytest.raises(InvalidPathspec):
        _ = step.task.data


# -- pickles ----------------------------------------------------------------------------------------------------------


def test_objects_pickle_as_path_namespace_and_place(author: Author, root: Path, tmp_path: Path) -> None:
    run = Run(f"TrainFlow/{author.trained()}")
    for thing in (Flow("TrainFlow"), run, run["train"], run["train"]["1"], run["train"]["1"]["score"]):
        again = pickle.loads(pickle.dumps(thing))
        assert again == thing
        assert type(again) is type(thing)
        assert again.tags == thing.tags
    there = pickle.dumps([run, Task(f"{run.pathspec}/train/1", attempt=0)])
    script = (
        "import pickle, sys; run, task = pickle.load(sys.stdin.buffer);"
        "print(run.status, run.data.best, task.data.score, task.parent.parent == run)"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script], input=there, capture_output=True, cwd=elsewhere, check=True, timeout=60
    )
    assert done.stdout.decode().split() == ["succeeded", "2", "0.1", "True"]
    assert len(pickle.dumps(run)) < 500


# -- places -----------------------------------------------------------------------------------------------------------


def test_metadata_chooses_where_to_read(author: Author, root: Path, tmp_path: Path) -> None:
    author.run()
    assert get_metadata() == f"local@{root}"
    other = tmp_path / "other" / ".flowkit"
    there = Author(other)
    there.run(flow="There")
    there.index.close()
    here = Flow("TrainFlow")
    try:
        for text in (f"local@{other.parent}", str(other.parent), str(other), f"local@{other}"):
            assert metadata(text) == f"local@{other}" == get_metadata()
        assert [flow.id for flow in Flowkit()] == ["There"]
        assert len(list(here)) == 1
        with pytest.raises(NotFound, match="no datastore"):
            metadata(str(tmp_path / "nowhere"))
        with pytest.raises(UsageError, match="where to read"):
            metadata("")
        with pytest.raises(NotFound, match="no metadata called 'elsewhere'"):
            metadata("elsewhere@x")
    finally:
        assert default_metadata() == f"local@{root}"
    assert [flow.id for flow in Flowkit()] == ["TrainFlow"]


def test_the_factory_for_current_looks_nothing_up(author: Author) -> None:
    theirs = author.run(user="bob")
    run = make("run", f"TrainFlow/{theirs}")
    assert isinstance(run, Run)
    assert run.user_tags == frozenset()
    assert run.is_in_namespace()
    task = make("task", f"TrainFlow/{theirs}/start/0")
    assert isinstance(task, Task)
    assert task.status == "pending"
    assert task.parent.parent == run
    author.task(theirs, "start", values={"x": 1})
    assert task.data.x == 1
    assert isinstance(make("run", "TrainFlow/1000"), Run)
