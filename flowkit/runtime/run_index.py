"""What a runtime writes of its run into the index: whole batches, kept while the index does not work.

An index may deliver what it is given by threads of its own (`MetadataStore.attend`): a loop then waits for it only
when everything is over, and not for long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowkit.exceptions import StoreError
from flowkit.metadata.outputs import output_of
from flowkit.metadata.records import Record, RunRecord
from flowkit.metadata.store import MetadataStore
from flowkit.model.manifest import Manifest

DELIVERY_SECONDS = 3.0
"""How long the end of a run waits for records that are on their way."""


class RunIndex:
    """Writes the records of one run, and tells once when that does not work.

    Parameters
    ----------
    store : MetadataStore
        The index.
    notice : callable
        Is given a line for the user.
    """

    def __init__(self, store: MetadataStore, notice: Callable[[str], None]) -> None:
        self._store = store
        self._notice = notice
        self._records: list[Record] = []
        self._works = True
        self.outputs = store.outputs

    def begin(self, record: RunRecord) -> None:
        """Have the first record of the run written by the next `flush`: this process works on it from now on."""
        self._store.attend(record)
        self._records.append(record)

    def add_output(self, manifest: Manifest) -> None:
        """Have what a task made and read written by the next `flush`, where the index wants it."""
        if self.outputs:
            self._records.append(output_of(manifest))

    def add(self, *records: Record) -> None:
        """Have records written by the next `flush`."""
        self._records += records

    def extend(self, records: Sequence[Record]) -> None:
        """Have many records written by the next `flush`."""
        self._records += records

    def drop(self) -> None:
        """Forget what was not written."""
        self._records = []
        self._store.abandon()

    def flush(self, *, last: bool = False) -> None:
        """Write what was added; what cannot be written is kept for the next time, of which the `last` one has none."""
        if self._records:
            self._write(last=last)
        left = self._store.deliver(DELIVERY_SECONDS) if last else None
        for text in self._store.news():
            self._notice(text)
        if left is not None:
            self._notice(left)

    def _write(self, *, last: bool) -> None:
        try:
            self._store.write(self._records)
        except StoreError as error:
            # The datastore is the truth: a run does not fail because its index cannot be written.
            self._broken(error)
            if last:
                self._notice("Records of this run are missing; add them with: flowkit metadata rebuild")
            return
        self._works = True
        self._records = []

    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Note that the run's owner is alive."""
        try:
            self._store.heartbeat(flow, run, when)
        except StoreError as error:
            self._broken(error)

    def _broken(self, error: StoreError) -> None:
        if self._works:
            self._notice(f"The metadata cannot be written, the run goes on: {error.headline}")
        self._works = False
