"""What a runtime writes of its run into the index: whole batches, kept while the index does not work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowkit.exceptions import StoreError
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata.store import MetadataStore


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
        self._records: list[RunRecord | TaskRecord] = []
        self._works = True

    def add(self, *records: RunRecord | TaskRecord) -> None:
        """Have records written by the next `flush`."""
        self._records += records

    def extend(self, records: Sequence[RunRecord | TaskRecord]) -> None:
        """Have many records written by the next `flush`."""
        self._records += records

    def drop(self) -> None:
        """Forget what was not written."""
        self._records = []

    def flush(self, *, last: bool = False) -> None:
        """Write what was added; what cannot be written is kept for the next time, of which the `last` one has none."""
        if not self._records:
            return
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
