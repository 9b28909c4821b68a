"""What the client looks at: where the stores are, and which of the runs there, by a tag that they must have.

Everything that is looked up by name or listed must have the tag of the current namespace, ``user:<name>`` unless
something else was chosen; the global namespace, None, shows everything.
"""

from __future__ import annotations

from flowkit.client.connection import SPINS, connect, default_place, forget, normal_place, root_at
from flowkit.context import current
from flowkit.exceptions import UsageError
from flowkit.settings import settings, user_name

_chosen: tuple[str | None] | None = None
_place: str | None = None


def namespace(ns: str | None) -> str | None:
    """Choose the namespace of the objects that are made from now on.

    Parameters
    ----------
    ns : str or None
        A tag, for example ``user:ada``; None for the global namespace, in which everything is visible.

    Returns
    -------
    str or None
        The namespace that was set.

    Raises
    ------
    UsageError
        If the name is neither None nor text.
    """
    global _chosen
    if ns is not None and (not isinstance(ns, str) or not ns):
        raise UsageError(
            f"{ns!r} is not a namespace", "give a tag such as 'user:ada', or None to see the runs of everybody"
        )
    _chosen = (ns,)
    return ns


def get_namespace() -> str | None:
    """Return the current namespace.

    It is the one chosen with `namespace`; inside a running step the run's; else the setting ``namespace``; else
    ``user:<name>``.
    """
    if _chosen is not None:
        return _chosen[0]
    if "namespace" in current:
        found: str | None = current.get("namespace")
        return found
    return settings().namespace or f"user:{user_name()}"


def default_namespace() -> str | None:
    """Forget the namespace that was chosen with `namespace`, and return the one that holds now."""
    global _chosen
    _chosen = None
    return get_namespace()


def metadata(ms: str) -> str:
    """Choose where the objects that are made from now on are read from.

    Parameters
    ----------
    ms : str
        ``local@<folder>``, or the folder alone: a datastore's root (``.flowkit``) or the folder that holds it. Or
        ``service@<url>``, or the URL alone: a metadata service; what its runs made is read from the datastore of
        the settings then.

    Returns
    -------
    str
        What was set: ``local@<root>`` or ``service@<url>``.

    Raises
    ------
    NotFound
        If there is no datastore.
    """
    global _place
    _place = normal_place(ms)
    return _place


def inspect_spin(datastore_root: str | None = None) -> str:
    """Look at the spins that were kept (``spin --persist``) instead of at runs; `default_metadata` leads back.

    Each is seen as a run ``spin-1``, ``spin-2``, … with one task.

    Parameters
    ----------
    datastore_root : str, optional
        A datastore's root, or the folder that holds it; default: where the client reads now.

    Returns
    -------
    str
        The place that was set.

    Raises
    ------
    NotFound
        If there is no datastore, or no spin was kept in it.
    """
    global _place
    place = f"{SPINS}@{root_at(normal_place(datastore_root) if datastore_root else get_metadata())}"
    forget(place)
    connect(place).storage  # noqa: B018 (opens it, or says that there is none)
    _place = place
    return place


def get_metadata() -> str:
    """Return where the client reads: what was chosen with `metadata`, else what a flow here would use."""
    return _place or default_place()


def default_metadata() -> str:
    """Forget what was chosen with `metadata`, and return where the client reads now."""
    global _place
    _place = None
    return default_place()
