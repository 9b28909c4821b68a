"""One attempt of one task, the same wherever it runs: in a forked child, a fresh interpreter, a container.

`run_attempt` opens the parents' manifests, builds ``self``, runs the step inside its decorators, stores what changed
and writes the manifest last. What it returns is the exit status of the task's process: 0 when the task has a
committed result, 1 when the attempt failed (then ``failed.json`` says how).
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flowkit import context
from flowkit.datastore.artifacts import ArtifactReader, ArtifactSet, ArtifactWriter, save_pack
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.manifests import read_failure, read_manifest, write_failure, write_manifest
from flowkit.datastore.root import open_storage
from flowkit.datastore.storage import Storage
from flowkit.decorators.contract import TaskContext
from flowkit.exceptions import DataError, FailureHandledByCatch, InvalidNext, StoreError
from flowkit.model.coordinates import TaskRef
from flowkit.model.definition import FlowDefinition, StepDefinition
from flowkit.model.graph import Node
from flowkit.model.inputs import Inputs
from flowkit.model.launch import Launch, spans_text
from flowkit.model.manifest import Artifact, Manifest
from flowkit.model.next import Next, next_by_source, read_next
from flowkit.model.transition import Frame, Transition
from flowkit.runtime import streams
from flowkit.runtime.binding import Binding, Foreach, InputBinding
from flowkit.runtime.failures import describe
from flowkit.runtime.gang import node_coordinates, publish, stage, wait_for_nodes
from flowkit.runtime.redaction import Redactor, close_lines
from flowkit.runtime.usage import Meter
from flowkit.settings import variable

PARAMETERS_STEP = "_parameters"
"""The pseudo step whose one task holds the run's parameters, constants and settings."""


def run_attempt(
    definition: FlowDefinition,
    config: Mapping[str, Any],
    launch: Launch,
    node: int | None,
    *,
    forked: bool = True,
    on_failure: Callable[[BaseException], None] | None = None,
) -> int:
    """Carry out one attempt in this process.

    Parameters
    ----------
    definition : FlowDefinition
        The flow.
    config : mapping
        What holds for the whole run (see `flowkit.runtime.runtime.task_config`): plain JSON values.
    launch : Launch
        What to do.
    node : int or None
        Which node of a gang this is; None for a plain task.
    forked : bool, default True
        Whether this process is a fork of one that had imported the flow, and not a fresh interpreter.
    on_failure : callable, optional
        Is given what the step raised, when it has been recorded.

    Returns
    -------
    int
        0 if the task has a committed result (of this attempt or of an earlier one), else 1.
    """
    return run_as_attempt(Attempt(definition, config, launch, node, Meter(forked=forked)), on_failure)


def run_as_attempt(attempt: Attempt, on_failure: Callable[[BaseException], None] | None = None) -> int:
    """Carry out an attempt that was put together; see `run_attempt`."""
    try:
        attempt.run()
    except BaseException as error:
        # The border of the user's code: whatever it raises, SystemExit included, is this attempt's failure.
        attempt.fail(error)
        if on_failure is not None:
            on_failure(error)
        return 1
    finally:
        close_lines()
        context.current.leave()
    return 0


class Attempt:
    """The state of one attempt while it runs.

    Parameters
    ----------
    definition, config, launch
        As for `run_attempt`.
    gang_node : int or None
        Which node of a gang this is.
    meter : Meter
        What it uses.
    storage : Storage, optional
        Where its run is; default: the root that `config` names.
    """

    def __init__(
        self,
        definition: FlowDefinition,
        config: Mapping[str, Any],
        launch: Launch,
        gang_node: int | None,
        meter: Meter,
        storage: Storage | None = None,
    ) -> None:
        self.started = time.time()
        self.meter = meter
        self.definition = definition
        self.config = config
        self.launch = launch
        self.gang_node = gang_node
        self.step: StepDefinition = definition.steps[launch.step]
        self.node: Node = definition.graph[launch.step]
        self.flow_name: str = config["flow"]
        self.run_id: str = config["run"]
        self.coordinates = launch.coordinates if gang_node is None else node_coordinates(launch.coordinates, gang_node)
        self.task = str(self.coordinates)
        self.storage = open_storage(config["root"], create=False) if storage is None else storage
        self.blobs = Blobs(self.storage)
        self.reader = ArtifactReader(self.blobs)
        self.writer = ArtifactWriter(self.blobs)
        self.redactor = Redactor()
        self.extra: dict[str, Any] = {}
        self.input_reads: list[str] = []
        self.inputs: Inputs | None = None

    # -- the attempt ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the step and commit; raises what the step raised."""
        parents = self._single_parent()
        frames = self._frames(parents)
        foreach = Foreach(frames, self.blobs)
        inherited = self.inherited(parents)
        binding = Binding(
            self.definition, self.node, ArtifactSet(self.reader, self.writer, inherited, self.step.name), foreach
        )
        flow: Any = object.__new__(self.definition.cls)
        object.__setattr__(flow, "_binding", binding)
        binding.own = flow.__dict__
        if self.node.is_join:
            self.inputs = self._open_inputs()
        self._enter_context()
        # A hard timeout counts for the step's code, not for storing what it made.
        streams.code_began()
        try:
            self._run_layers(flow, binding)
        finally:
            streams.code_finished()
        self.commit(self._finish(flow, binding, frames))

    def _run_layers(self, flow: Any, binding: Binding) -> None:
        """Run the step inside its decorators, the first one written outermost."""
        task = self._task_context(flow, binding)

        def layer(index: int) -> None:
            if index < len(self.step.decorators):
                self.step.decorators[index].around(task, lambda: layer(index + 1))
            else:
                (task.body or functools.partial(self._run_body, flow))()

        layer(0)
        if binding.next is None and self.node.kind != "end":
            raise InvalidNext(
                f"step '{self.node.name}' ended without self.next",
                "every step but the last ends in self.next(self.<step>)",
                self.node.location,
            )

    def _run_body(self, flow: Any) -> None:
        if self.launch.kind == "fallback":
            raise FailureHandledByCatch(
                f"the process of {self.launch.step}/{self.task} ended without a word: "
                f"{self._last_failure().get('message', 'nobody knows how')}"
            )
        function = getattr(flow, self.step.name)
        if self.node.is_join:
            function(self.inputs)
        else:
            function()

    def fail(self, error: BaseException) -> None:
        """Record how the attempt ended and tell the task's log."""
        failure = describe(
            error, self.definition.file, attempt=self.launch.attempt, started=self.started, ended=time.time()
        )
        failure = replace(failure, usage=self.meter.read())
        hidden = failure.from_json(self.redactor.json(failure.to_json())) if self.redactor.values else failure
        if isinstance(error, KeyboardInterrupt):
            hidden = type(hidden).from_json({**hidden.to_json(), "kind": "cancelled", "message": "interrupted"})
        if hidden.traceback:
            _tell(hidden.traceback)
        try:
            write_failure(self.storage, self.flow_name, self.run_id, self.launch.step, self.task, hidden)
        except StoreError as problem:
            _tell(f"How it failed could not be recorded: {problem.headline}\n")

    # -- what goes in ---------------------------------------------------------------------------------------------

    def read(self, ref: TaskRef) -> Manifest:
        """Return the manifest of a parent."""
        return self.read_of(self.run_id, ref)

    def read_of(self, run: str, ref: TaskRef) -> Manifest:
        """Return the manifest of a task of a run."""
        manifest = read_manifest(self.storage, self.flow_name, run, ref.step, str(ref.coordinates))
        if manifest is None:
            raise DataError(
                f"the result of {self.flow_name}/{run}/{ref} is missing or damaged",
                f"run it again: python {os.path.basename(self.definition.file)} resume {ref.step} "
                f"--origin-run-id {run}",
            )
        return manifest

    def _parameters(self) -> Manifest:
        return Manifest.from_json(self.config["parameters"])

    def _single_parent(self) -> Manifest | None:
        """The one task before this one; for a join the task that opened what it closes; None for the start."""
        if self.node.is_join:
            return self.read(self.launch.split) if self.launch.split is not None else None
        first = next(self.launch.parent_refs(), None)
        return None if first is None or first.step == PARAMETERS_STEP else self.read(first)

    def _frames(self, parent: Manifest | None) -> tuple[Frame, ...]:
        if parent is None:
            return ()
        if self.node.is_join:
            return parent.frames
        if parent.transition.kind in ("foreach", "parallel"):
            made = parent.transition
            index = self.coordinates.indices[-1]
            return (*parent.frames, Frame(parent.step, made.variable, index, made.width or 0, made.pack))
        return parent.frames

    def inherited(self, parent: Manifest | None) -> dict[str, Artifact]:
        """Return the artifacts that the task begins with."""
        own = dict(self._parameters().artifacts)
        # A parameter's value is that of this run, also where the parent was cloned from a run with another one.
        return own if parent is None or self.node.is_join else {**parent.artifacts, **own}

    def _open_inputs(self) -> Inputs:
        refs = list(self.launch.parent_refs())
        positions: dict[str, int] = {}
        for position, ref in enumerate(refs):
            positions.setdefault(ref.step, position)

        manifests = self._manifests_of(refs)

        def open_input(position: int) -> Any:
            ref = refs[position]
            manifest = manifests(position)
            artifacts = ArtifactSet(self.reader, self.writer, self.input_artifacts(ref, manifest))
            flow: Any = object.__new__(self.definition.cls)
            foreach = Foreach(manifest.frames, self.blobs)
            binding = InputBinding(
                self.definition, ref.step, str(ref.coordinates), artifacts, foreach, self.input_reads
            )
            object.__setattr__(flow, "_binding", binding)
            return flow

        return Inputs(len(refs), open_input, positions)

    def input_artifacts(self, ref: TaskRef, manifest: Manifest) -> dict[str, Artifact]:
        """Return the artifacts of one input of a join."""
        return dict(manifest.artifacts)

    def _manifests_of(self, refs: list[TaskRef]) -> Callable[[int], Manifest]:
        """Return what reads the manifest of an input: of a remote root some ahead, one by one."""
        if not self.storage.remote:
            return lambda position: self.read(refs[position])
        from flowkit.datastore.many import ReadAhead

        return ReadAhead(self.storage, self.read, refs).__getitem__

    def _last_failure(self) -> dict[str, Any]:
        before = self.launch.attempt - 1
        found = read_failure(self.storage, self.flow_name, self.run_id, self.launch.step, self.task, before)
        return found.to_json() if found is not None else {}

    def _enter_context(self) -> None:
        config = self.config
        run_path = f"{self.flow_name}/{self.run_id}"
        pathspec = f"{run_path}/{self.launch.step}/{self.task}"
        values: dict[str, Any] = {
            "flow_name": self.flow_name,
            "run_id": self.run_id,
            "step_name": self.launch.step,
            "task_id": self.task,
            "retry_count": self.launch.attempt,
            "origin_run_id": config.get("origin"),
            "pathspec": pathspec,
            "namespace": config.get("namespace"),
            "username": config["user"],
            "tags": frozenset(config.get("tags", ())),
            "parameter_names": sorted(self.definition.parameters),
            "datastore_root": self.storage.root,
            "is_parallel": False,
        }
        for decorator in self.definition.decorators:
            values.update(decorator.current())
        extra = config["parameters"]["extra"]
        if extra.get("trigger"):
            from flowkit.decorators.events import started_by

            values["trigger"] = started_by(extra)
        lazy: dict[str, Callable[[], Any]] = {
            "tempdir": _tempdir,
            "run": lambda: self._client("run", run_path),
            "task": lambda: self._client("task", pathspec),
            "graph": self._graph,
            "graph_info": self._graph,
        }
        notice = variable(context.SPOT_NOTICE_VARIABLE)
        if notice is not None:
            values["spot_termination_notice"] = notice
        context.current.enter(values, lazy)

    def _graph(self) -> Any:
        """The graph as plain values, the form in which it is stored with the run."""
        return self.config["parameters"]["extra"].get("graph")

    def _client(self, kind: str, pathspec: str) -> Any:
        if context.client_factory is None:
            raise AttributeError(f"current.{kind} needs the client, which this process does not have")
        return context.client_factory(kind, pathspec, self.storage.root)

    def _task_context(self, flow: Any, binding: Binding) -> TaskContext:
        def set_transition(*targets: str) -> None:
            if binding.next is None:
                bound = tuple(getattr(flow, name) for name in targets)
                binding.next = read_next(flow, self.node, self.definition.graph, bound, {})

        gang = None
        if self.gang_node is not None:
            gang = {
                "size": self.launch.gang,
                "node": self.gang_node,
                "control_task": str(self.launch.coordinates),
                "main_ip": main_address(),
            }
        return TaskContext(
            flow=flow,
            inputs=self.inputs,
            run=self.run_id,
            step=self.launch.step,
            task=self.task,
            node=self.node,
            attempt=self.launch.attempt,
            retries=int(self.config.get("retries", {}).get(self.launch.step, 0)),
            fallback=self.launch.kind == "fallback",
            failure=self._last_failure() if self.launch.kind == "fallback" else None,
            extra=self.extra,
            redact=self.redactor.hide,
            set_transition=set_transition,
            gang=gang,
            change_next=functools.partial(self._change_next, flow, binding),
        )

    def _change_next(
        self, flow: Any, binding: Binding, options: Mapping[str, Any], *, only_missing: bool = False
    ) -> None:
        """Do what the source's ``self.next`` says, with other options; what the step itself asked for counts first."""
        if self.node.kind == "end" or (only_missing and binding.next is not None):
            return
        binding.next = next_by_source(flow, self.node, self.definition.graph, options)

    # -- what comes out -------------------------------------------------------------------------------------------

    def _finish(self, flow: Any, binding: Binding, frames: tuple[Frame, ...]) -> Manifest:
        transition = self._transition(flow, binding.next)  # first: it turns an iterator into the list of its items
        values = {name: value for name, value in flow.__dict__.items() if name != "_binding"}
        artifacts = binding.set.finish(values, binding.deleted)
        written = [item for name, item in artifacts.items() if binding.set.inherited.get(name) is not item]
        self.extra["written"] = [len(written), sum(item.size for item in written)]
        if self.redactor.values:
            artifacts = {name: self._redacted(artifact) for name, artifact in artifacts.items()}
        self.extra["usage"] = self.meter.read()
        return Manifest(
            flow=self.flow_name,
            run=self.run_id,
            step=self.launch.step,
            task=self.task,
            attempt=self.launch.attempt,
            artifacts=artifacts,
            transition=transition,
            frames=frames,
            parents=spans_text(self.launch.parents),
            reads=self._reads(binding),
            started=self.started,
            ended=time.time(),
            gang=self.launch.gang if self.gang_node == 0 else 0,
            extra=self.redactor.json(self.extra) if self.redactor.values else self.extra,
        )

    def _transition(self, flow: Any, asked: Next | None) -> Transition:
        if asked is None:
            return Transition("end")
        if asked.kind != "foreach":
            return Transition(asked.kind, asked.targets, asked.width, asked.variable, asked.case)
        variable = asked.variable or ""
        try:
            items = getattr(flow, variable)
        except AttributeError:
            raise InvalidNext(
                f"step '{self.node.name}': foreach='{variable}', but self.{variable} is not set",
                f"set self.{variable} before self.next",
                self.node.next_location,
            ) from None
        try:
            iter(items)
        except TypeError:
            raise InvalidNext(
                f"step '{self.node.name}': foreach='{variable}', but self.{variable} is of type "
                f"{type(items).__name__}, which cannot be iterated over",
                "a foreach takes a list or anything else with items",
                self.node.next_location,
            ) from None
        if iter(items) is items:
            # A generator can be used up once only: from here on the artifact is the list of its items.
            items = list(items)
            object.__setattr__(flow, variable, items)
        pack, width = save_pack(self.blobs, items, step=self.step.name, name=variable)
        return Transition("foreach", asked.targets, width, variable, None, pack)

    def _redacted(self, artifact: Artifact) -> Artifact:
        preview = self.redactor.json(artifact.preview)
        return Artifact.from_json({**artifact.to_json(), "preview": preview})

    def _reads(self, binding: Binding) -> dict[str, list[str]]:
        reads = {
            "artifacts": [*binding.set.reads, *sorted(binding.absent)],
            "inputs": self.input_reads,
            "parameters": sorted(binding.parameters_read),
            "foreach": sorted(binding.foreach.reads),
            "current": sorted(context.current.leave()),
        }
        if self.inputs is not None and self.inputs.length_read:
            reads["foreach"].append("len(inputs)")
        return {kind: names for kind, names in reads.items() if names}

    def commit(self, manifest: Manifest) -> None:
        """Make the attempt the task's result, if it is the first that gets there."""
        if self.gang_node is not None and self.gang_node > 0:
            stage(self.storage, manifest)
            return
        if self.gang_node == 0:
            control = str(self.launch.coordinates)
            wait_for_nodes(
                self.storage,
                self.flow_name,
                self.run_id,
                self.launch.step,
                control,
                self.launch.attempt,
                self.launch.gang,
            )
        if not write_manifest(self.storage, manifest):
            _tell("Another attempt of this task has committed its result already; this one is dropped.\n")
            return
        if manifest.gang:
            publish(self.storage, manifest)


def _tell(text: str) -> None:
    """Write to the task's stderr; a step may have closed it."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        try:
            os.write(2, text.encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # nobody is left to tell; the failure is recorded all the same


def main_address() -> str:
    """Return where the main node of this task's gang is: as the service tells it, else this machine."""
    return variable("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS") or variable("FLOWKIT_MAIN_HOST") or "127.0.0.1"


def _tempdir() -> str:
    from flowkit.settings import settings

    configured = settings().tempdir
    if configured:
        return configured
    import tempfile

    return tempfile.gettempdir()
