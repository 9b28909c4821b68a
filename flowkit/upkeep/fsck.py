"""Checking a datastore and its index, and repairing what can be repaired.

What is damaged is never thrown away: a blob is put aside, under ``gc/aside/``, so that the next task that makes the
same content writes it anew. Manifests are left as they are: each counts as never committed, and a resume makes its
task again.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from flowkit.client.rebuild import rebuild
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.layout import aside_file, blob_file, last_run_file
from flowkit.datastore.manifests import read_clones, read_manifest
from flowkit.datastore.many import mapped_over, paired_with
from flowkit.datastore.runs import list_flows
from flowkit.datastore.sealed import Damaged, unseal
from flowkit.datastore.storage import BLOCK, Entry, Missing, Storage
from flowkit.exceptions import DataError, StoreError
from flowkit.metadata.records import FINAL
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.model.manifest import Manifest
from flowkit.upkeep.census import RunFacts, census, why_alive
from flowkit.upkeep.deployed import deployments
from flowkit.upkeep.scan import Place, blob_folders, contents, is_key, objects
from flowkit.upkeep.spill import Spill
from flowkit.upkeep.sweep import GRACE

Severity = Literal["error", "warning"]
_FACT = struct.Struct("<Q")
_UNKNOWN = (1 << 64) - 1
_PAGE = 1_000
_PLAIN: dict[str, type] = {"staged.json": dict, "cancel.json": dict, "index.json": list}
"""Small objects without a seal, and what they hold: others than flowkit read them, or write them by hand."""


class Finding(NamedTuple):
    """One thing that is not as it should be.

    Parameters
    ----------
    severity : str
        ``error``: something that was recorded cannot be read, or is told wrongly. ``warning``: something is left over.
    where : str
        The object's path below the root, or ``Flow/run``.
    what : str
        What is the matter, one line.
    todo : str
        What to do about it.
    repaired : bool
        Whether this check did it.
    """

    severity: Severity
    where: str
    what: str
    todo: str
    repaired: bool = False


class Checked(NamedTuple):
    """How much was looked at."""

    runs: int
    records: int
    blobs: int
    blob_bytes: int


class Check:
    """One check of a datastore.

    Parameters
    ----------
    storage : Storage
        The datastore.
    store : MetadataStore or None
        Its index, which tells who is alive; None where there is none.
    index : bool, default True
        Compare the index with the datastore. One that is shared by several datastores never is: a run that it lacks
        may have been kept from it, and one that it has may be another datastore's.
    deep : bool, default False
        Read every blob, and compare its content with its key.
    repair : bool, default False
        Repair what can be repaired.
    told : callable, optional
        Is given a line of progress now and then.

    Attributes
    ----------
    checked : Checked
        How much was looked at, after `run`.
    """

    def __init__(
        self,
        storage: Storage,
        store: MetadataStore | None,
        *,
        index: bool = True,
        deep: bool = False,
        repair: bool = False,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.checked = Checked(0, 0, 0, 0)
        self._storage = storage
        self._store = store
        self._compares = index and store is not None and not store.shared
        self._deep = deep
        self._repair = repair
        self._told = told
        self._blobs = Blobs(storage)
        self._bad: dict[str, tuple[str, bool]] = {}

    def run(self) -> Iterator[Finding]:
        """Check everything, and yield what is found.

        Raises
        ------
        StoreError
            If the datastore cannot be listed or read.
        """
        facts = {each.name: each for each in census(self._storage)}
        yield from self._runs(facts)
        with Spill(_FACT.size) as named:
            yield from self._records(named)
            yield from self._deployments(named)
            self._told(f"{self.checked.records:,} manifests and other records read")
            yield from self._all_blobs(named)
        yield from self._who_names_bad_ones()
        yield from self._clones(facts)
        yield from self._hints(facts)
        if self._compares and self._store is not None:
            yield from self._index(facts, self._store)
        yield from self._left_over()

    # -- runs -----------------------------------------------------------------------------------------------------

    def _runs(self, facts: dict[str, RunFacts]) -> Iterator[Finding]:
        count = 0
        for name, each in facts.items():
            count += each.state != "deleted"
            if each.state == "broken":
                yield Finding(
                    "error",
                    f"flows/{name}/run.json",
                    "what was recorded when the run began is missing or damaged: nothing lists the run",
                    "its tasks can be read by the client; to be rid of it, remove its folder",
                )
            elif each.unfinished:
                yield Finding(
                    "warning", f"flows/{name}", "its removal was begun and not finished", "flowkit gc --yes finishes it"
                )
            elif each.state == "unended" and not each.tasks and self._is_dead(each):
                yield Finding(
                    "warning",
                    f"flows/{name}",
                    "the run was stopped before it could begin",
                    "nothing is lost: flowkit gc --status lost removes such runs",
                )
        self.checked = self.checked._replace(runs=count)

    def _is_dead(self, facts: RunFacts) -> bool:
        return self._store is None or why_alive(self._storage, self._store, facts) is None

    # -- small objects ----------------------------------------------------------------------------------------------

    def _records(self, named: Spill) -> Iterator[Finding]:
        strange: list[Entry] = []
        places = (place for place in objects(self._storage, strange.append) if place.is_record)
        count = 0
        for place, content in contents(self._storage, places):
            count += 1
            if content is None:
                continue
            try:
                for key, size in _named(place, _parsed(place, content)):
                    named.add(bytes.fromhex(key), _FACT.pack(_UNKNOWN if size is None else size))
            except DataError as error:
                if place.parts != ("run.json",):  # told already
                    yield Finding("error", place.entry.path, error.headline, _todo(place))
        for entry in strange:
            if not entry.path.endswith("/.last"):
                yield Finding(
                    "warning", entry.path, "it belongs to no run", "look at it, and remove it if nobody needs it"
                )
        self.checked = self.checked._replace(records=count)

    def _deployments(self, named: Spill) -> Iterator[Finding]:
        strange: list[Entry] = []
        count = 0
        for found in deployments(self._storage, strange=strange.append):
            count += 1
            if found.damaged is not None:
                yield Finding("error", found.entry.path, found.damaged, "deploy the flow again")
            for _, key in found.needs:
                named.add(bytes.fromhex(key), _FACT.pack(_UNKNOWN))
        for entry in strange:
            yield Finding(
                "warning", entry.path, "it belongs to no deployment", "look at it, and remove it if nobody needs it"
            )
        self.checked = self.checked._replace(records=self.checked.records + count)

    # -- blobs ------------------------------------------------------------------------------------------------------

    def _all_blobs(self, named: Spill) -> Iterator[Finding]:
        strange: list[Entry] = []
        for prefix, blobs in blob_folders(self._storage, strange.append):
            sizes = {key: entry.size for key, entry in blobs.items()}
            wanted: dict[str, set[int]] = {}
            for key, fact in named.facts(prefix):
                wanted.setdefault(key, set()).add(_FACT.unpack(fact)[0])
            suspects = list(sizes) if self._deep else []
            for key, lengths in wanted.items():
                if key not in sizes:
                    self._bad[key] = ("is missing", False)
                elif not self._deep and lengths - {_UNKNOWN, sizes[key]}:
                    suspects.append(key)
            for key, found in paired_with(self._storage, self._blobs.key_of_stored, suspects):
                if found is not None and found != key:
                    yield from self._damaged(key, key in wanted)
                elif wanted.get(key, set()) - {_UNKNOWN, sizes[key]}:
                    self._bad[key] = (f"has {sizes[key]} bytes, and not as many as was recorded", False)
            self.checked = self.checked._replace(
                blobs=self.checked.blobs + len(sizes), blob_bytes=self.checked.blob_bytes + sum(sizes.values())
            )

        for entry in strange:
            yield Finding("warning", entry.path, "it is no blob", "look at it, and remove it if nobody needs it")

    def _damaged(self, key: str, wanted: bool) -> Iterator[Finding]:
        aside = self._repair and self._put_aside(key)
        if wanted:
            self._bad[key] = ("is damaged" + (", and was put aside" if aside else ""), aside)
        else:
            todo = "flowkit fsck --repair puts it aside"
            yield Finding("warning", blob_file(key), "its content is not what its name says", todo, aside)

    def _put_aside(self, key: str) -> bool:
        """Move a damaged blob out of the way of a new one; False where it is intact or gone by now."""
        path = blob_file(key)
        if self._blobs.key_of_stored(key) in (key, None):
            return False
        self._storage.replace(aside_file(path), _blocks(self._storage, path))
        self._storage.delete(path)
        return True

    def _who_names_bad_ones(self) -> Iterator[Finding]:
        """Go through the manifests once more, where blobs are missing or damaged, to tell whose these are."""
        if not self._bad:
            return
        places = (place for place in objects(self._storage) if place.is_record)
        told = set()
        for place, content in contents(self._storage, places):
            try:
                body = _parsed(place, content or b"")
            except DataError:
                continue
            for name, key in _names(place, body):
                if key in self._bad and (place.flow, place.run, name, key) not in told:
                    told.add((place.flow, place.run, name, key))
                    what, aside = self._bad[key]
                    task = "/".join((place.flow, place.run, *place.parts[:-1]))
                    again = "resume the run from that step" + (
                        "" if aside or "damaged" not in what else " after --repair"
                    )
                    yield Finding("error", blob_file(key), f"the content of {name} of {task} {what}", again)
        for found in deployments(self._storage):
            for name, key in found.needs:
                if key in self._bad:
                    what = f"{name} of the deployment {found.path} {self._bad[key][0]}"
                    yield Finding("error", blob_file(key), what, "deploy the flow again")

    # -- the rest ---------------------------------------------------------------------------------------------------

    def _clones(self, facts: dict[str, RunFacts]) -> Iterator[Finding]:
        for each in facts.values():
            for step in each.clones if each.state != "deleted" else ():
                try:
                    clones = read_clones(self._storage, each.flow, each.run, step)
                except (DataError, KeyError, TypeError, ValueError):  # told among the records
                    continue
                if clones is None:
                    continue
                origin, tasks = clones

                def lost(task: str, each: RunFacts = each, step: str = step) -> bool:
                    found = read_manifest(self._storage, each.flow, each.run, step, task, on_damage=lambda _: None)
                    return found is None

                missing = [
                    task for task, gone in zip(tasks, mapped_over(self._storage, lost, tasks), strict=True) if gone
                ]
                if missing:
                    yield Finding(
                        "error",
                        f"flows/{each.name}/{step}/clones.json",
                        f"{len(missing):,} tasks were taken over from {origin}, where they are not any more",
                        f"resume {each.name} from the step {step}",
                    )

    def _hints(self, facts: dict[str, RunFacts]) -> Iterator[Finding]:
        for flow in list_flows(self._storage):
            path = last_run_file(flow)
            try:
                text = self._storage.read(path).decode("ascii", "replace")
            except Missing:
                continue
            if f"{flow}/{text}" not in facts:
                if self._repair:
                    self._storage.delete(path)
                todo = "nothing depends on it: flowkit fsck --repair removes it"
                yield Finding("warning", path, f"it names a run that is not there: {text[:20]!r}", todo, self._repair)

    def _index(self, facts: dict[str, RunFacts], store: MetadataStore) -> Iterator[Finding]:
        known: set[str] = set()
        findings = []
        for flow in store.flows():
            for run, state in _indexed(store, flow.flow):
                name = f"{flow.flow}/{run}"
                known.add(name)
                each = facts.get(name)
                if each is None or each.state == "deleted":
                    findings.append((name, "the index has a run that the datastore has not"))
                elif each.state in FINAL and state != each.state:
                    findings.append((name, f"the index says that it is {state}, the datastore that it {_became(each)}"))
        for name, each in facts.items():
            if name not in known and each.state in (*FINAL, "unended"):
                findings.append((name, "the index does not have it"))
        if findings and self._repair:
            rebuild(self._storage, store)
        for name, what in sorted(findings):
            yield Finding("error", name, what, "flowkit fsck --repair, or flowkit metadata rebuild", self._repair)

    def _left_over(self) -> Iterator[Finding]:
        try:
            left = self._storage.unfinished(time.time() - GRACE, remove=self._repair)
        except StoreError as error:  # on S3 that takes a permission of its own, which few have
            self._told(f"half-written files could not be looked at: {error.headline}")
            left = []
        for entry in left:
            yield Finding(
                "warning",
                entry.path,
                f"a process that was killed left it half-written ({entry.size:,} bytes)",
                "flowkit fsck --repair, or flowkit gc --yes, removes it",
                self._repair,
            )


def _parsed(place: Place, content: bytes) -> dict[str, Any]:
    """Return the body of a record; raises DataError where it is damaged, or another task's."""
    if place.parts[-1] in _PLAIN:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Damaged("it is torn") from error
        if not isinstance(body, _PLAIN[place.parts[-1]]):
            raise Damaged("it holds something else")
        return body if isinstance(body, dict) else {}
    body = unseal(content, "it")
    if place.parts[-1] == "manifest.json":
        manifest = Manifest.from_json(body)
        named = (manifest.flow, manifest.run, manifest.step, manifest.task)
        if named != (place.flow, place.run, *place.parts[:-1]):
            raise Damaged(f"it is the manifest of another task: {'/'.join(map(str, named))}")
    return body


def _named(place: Place, body: dict[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Yield the keys of the blobs that a record needs, with their sizes where it knows them."""
    for _, key, size in _needs(place, body):
        if is_key(key):
            yield key, size


def _names(place: Place, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, key, _ in _needs(place, body):
        if isinstance(key, str):
            yield name, key


def _needs(place: Place, body: dict[str, Any]) -> Iterator[tuple[str, Any, int | None]]:
    """Yield what a record needs: what to call it, its key, its size."""
    if place.parts[0] == ".launches":
        if "key" in body:
            yield "a launch list", body["key"], None
        return
    if place.parts[-1] not in ("manifest.json", "staged.json"):
        return
    try:
        manifest = Manifest.from_json(body)
    except DataError:
        return
    for name, artifact in manifest.artifacts.items():
        if artifact.inline is None:
            yield f"the artifact '{name}'", artifact.key, artifact.size if isinstance(artifact.size, int) else None
    for pack in (manifest.transition.pack, *(frame.pack for frame in manifest.frames)):
        if isinstance(pack, str):
            yield "the items of a foreach", pack.partition("-")[0], None
    package = manifest.extra.get("package")
    if isinstance(package, dict):
        yield "the code package", package.get("key"), None


def _indexed(store: MetadataStore, flow: str) -> Iterator[tuple[str, str]]:
    before: str | None = None
    while True:
        page = store.runs(flow, RunFilter(before=before, limit=_PAGE))
        yield from ((record.run, record.state) for record in page)
        if len(page) < _PAGE:
            return
        before = page[-1].run


def _blocks(storage: Storage, path: str) -> Iterator[bytes]:
    offset = 0
    while block := storage.read_range(path, offset, BLOCK):
        offset += len(block)
        yield block


def _became(facts: RunFacts) -> str:
    return "was cancelled" if facts.state == "cancelled" else facts.state


def _todo(place: Place) -> str:
    if place.parts[-1] == "manifest.json":
        return f"it counts as never committed: resume the run from the step '{place.parts[0]}'"
    if place.parts[-1] == "clones.json":
        return "resume the run that this one resumed"
    return "it counts as never written: nothing to do"
