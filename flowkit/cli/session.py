"""What every command of a flow starts from: the flow, the top-level options, the stores."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowkit.cli.console import Console
from flowkit.cli.invocation import PLACE, given, program
from flowkit.exceptions import FlowInvalid, Problem, StoreError
from flowkit.model.definition import FlowDefinition
from flowkit.settings import settings, user_name

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.metadata.store import MetadataStore

_MUTABLE = frozenset({"flowkit.model.configs", "flowkit.decorators.mutators"})
"""A flow has configs or mutators only where one of these modules was imported."""


@dataclass(slots=True)
class Session:
    """One command of one flow.

    Parameters
    ----------
    definition : FlowDefinition
        The flow.
    console : Console
        Where to print.
    root : str or None
        ``--datastore-root``, else the setting, else None.
    metadata : str
        The metadata store's name.
    decospecs : tuple of str
        ``--with`` of the top level and of the settings.
    options : dict
        Values of the options that flow decorators add.
    package_suffixes : str or None
        ``--package-suffixes``.
    """

    definition: FlowDefinition
    console: Console
    root: str | None = None
    metadata: str = "local"
    decospecs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    package_suffixes: str | None = None
    _prepared: bool = False
    _settled: bool = False

    def storage(self, *, create: bool = False) -> Storage:
        """Open the datastore.

        Raises
        ------
        StoreError
            If there is none and it is not to be made, or it does not work.
        """
        from flowkit.datastore.root import open_storage

        return open_storage(self.root, create=create)

    def metadata_store(self, storage: Storage) -> MetadataStore:
        """Open the metadata store that belongs to a datastore."""
        return open_metadata(self.metadata, storage, self.console)

    @property
    def dynamic(self) -> bool:
        """Whether the flow is another one once its configs are known and its mutators have acted."""
        return bool(self.definition.configs) or not _MUTABLE.isdisjoint(sys.modules)

    def settle(self, configs: Mapping[str, Any]) -> None:
        """Have the flow as it is with its configs, before its options are made.

        Parameters
        ----------
        configs : mapping
            Their values by attribute name, as they are kept with a run.
        """
        if self._settled:
            return
        self._settled = True
        from flowkit.decorators.settle import settle

        settle(self.definition, configs)

    def prepare(self, decospecs: tuple[str, ...] = ()) -> None:
        """Attach ``--with`` decorators and validate the whole flow.

        Raises
        ------
        FlowInvalid
            With every problem of the graph and of the decorators.
        """
        if self._prepared:
            return
        self._prepared = True
        from flowkit.decorators.attach import attach, configure_all
        from flowkit.model.lint import lint

        self.decospecs = tuple(dict.fromkeys((*self.decospecs, *decospecs)))
        attach(self.definition, self.decospecs)
        if "flowkit.decorators.mutators" in sys.modules:
            from flowkit.decorators.mutable import mutate

            problems = mutate(self.definition)
            if problems:
                raise FlowInvalid(problems)
        marks = {each.name for step in self.definition.steps.values() for each in step.decorators if each.gang}
        problems = lint(self.definition.graph, marks)
        problems += configure_all(self.definition, self.options)
        if problems:
            raise FlowInvalid(problems)

    def warnings(self) -> list[Problem]:
        """Return what looks like a mistake in the flow and does not keep it from running; after `prepare`."""
        from flowkit.model.dataflow import undefined_reads

        return undefined_reads(self.definition)

    @property
    def user(self) -> str:
        """Who runs the command."""
        return user_name()

    @property
    def script(self) -> str:
        """The name of the flow's file."""
        import os

        return os.path.basename(self.definition.file)

    @property
    def program(self) -> str:
        """What a command begins with that the user is told to type: it finds the same runs as this one."""
        from click import get_current_context

        context = get_current_context(silent=True)
        place = given(context.find_root(), only=PLACE) if context is not None else []
        return " ".join([program(self.definition.file), *place])


def open_metadata(name: str, storage: Storage, console: Console) -> MetadataStore:
    """Open a metadata store, and fill it from the datastore where it had to be made anew.

    Parameters
    ----------
    name : str
        Its name in the registry.
    storage : Storage
        The datastore that it is the index of.
    console : Console
        Told when the index is rebuilt.
    """
    if storage.remote:
        from flowkit.client.stores import open_index

        store = open_index(name, storage, notice=console.say)
    else:  # by far the usual case, without the client's modules
        from flowkit.metadata.opening import open_store

        store = open_store(name, storage.root, notice=console.say)
    if store.fresh:
        if _has_runs(storage):
            from flowkit.client.rebuild import rebuild

            console.say("The metadata database is new: it is being filled from the datastore.")
            rebuild(storage, store)
        store.settle()
    return store


def _has_runs(storage: Storage) -> bool:
    try:
        return next(iter(storage.children("flows")), None) is not None
    except StoreError:
        return False


def default_decospecs() -> tuple[str, ...]:
    """Return the decorators that the settings add to every step."""
    return tuple(settings().decospecs.split())


def decorator_options(definition: FlowDefinition) -> Mapping[str, Any]:
    """Return the options that the flow's decorators add, by name."""
    return {option.name: option for decorator in definition.decorators for option in decorator.options}


def root_of(kind: str | None, root: str | None) -> str | None:
    """Return the root that the options name, or the setting; nothing is imported for what is not asked for."""
    if kind is None:
        return root or settings().datastore
    from flowkit.datastore.root import chosen_root

    return chosen_root(kind, root)
