"""Where the results of spins are kept: a root of its own inside of a datastore's, so that no run is mixed with them."""

from __future__ import annotations

import os

from flowkit.datastore.local import LocalStorage
from flowkit.datastore.root import machine_folder
from flowkit.datastore.storage import Storage
from flowkit.exceptions import NotFound

FOLDER = "spins"


def open_spins(storage: Storage, *, create: bool = False) -> LocalStorage:
    """Return the datastore of the spins on a datastore's runs: below a local root, else in the user's cache folder.

    Raises
    ------
    NotFound
        If nothing was kept there yet and it is not to be made.
    """
    path = os.path.join(machine_folder(storage), FOLDER)
    if create:
        os.makedirs(path, exist_ok=True)
    elif not os.path.isdir(path):
        raise NotFound(f"no spin was kept in {storage.root}", "python flow.py spin STEP --persist keeps one")
    return LocalStorage(path)
