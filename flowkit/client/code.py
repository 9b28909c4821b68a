"""The code that a run took along to where its steps ran."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.datastore.blobs import Blobs
from flowkit.datastore.layout import blob_file
from flowkit.exceptions import DataError
from flowkit.package.archive import extract, names, read, read_info
from flowkit.package.files import CODE, INFO

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage


class Code:
    """The code package of a run; it is loaded when something of it is asked for.

    Examples
    --------
    >>> print(Run("TrainFlow/12").code.flowspec)
    """

    def __init__(self, storage: Storage, recorded: Mapping[str, Any]) -> None:
        self._storage = storage
        self._recorded = recorded
        self._archive: memoryview | None = None

    @classmethod
    def of(cls, storage: Storage, extra: Mapping[str, Any]) -> Code | None:
        """Return the code that a run's ``_parameters`` manifest names; None where it names none."""
        recorded = extra.get("package")
        return cls(storage, recorded) if isinstance(recorded, Mapping) else None

    @property
    def key(self) -> str:
        """The key of the package: the same code, the same key."""
        return str(self._recorded.get("key"))

    @property
    def path(self) -> str:
        """Where the package is: a file, or a URL."""
        path = blob_file(self.key)
        return self._storage.local_path(path) or f"{self._storage.root}/{path}"

    @property
    def info(self) -> dict[str, Any]:
        """What the package says about itself: flow, program, versions of flowkit and Python."""
        return read_info(self._content())

    @property
    def script_name(self) -> str:
        """The name of the flow's file in the package."""
        program = str(self._recorded.get("program", ""))
        if not program.startswith("-m "):
            return program
        parts = program[3:].replace(".", "/")
        files = self.files
        return next((name for name in (f"{parts}.py", f"{parts}/__main__.py") if name in files), parts)

    @property
    def flowspec(self) -> str:
        """The text of the flow's file.

        Raises
        ------
        DataError
            If the package is damaged, or has no such file.
        """
        return self.read(self.script_name).decode("utf-8", "replace")

    @property
    def files(self) -> list[str]:
        """The names of the user's files, sorted; flowkit's own are left out."""
        return sorted(name for name in names(self._content()) if is_users(name))

    @property
    def tarball(self) -> tarfile.TarFile:
        """The whole package. It is not checked: `extract` unpacks it safely."""
        return tarfile.open(fileobj=io.BytesIO(self._content()), mode="r:gz")

    def read(self, name: str) -> bytes:
        """Return the content of one file.

        Raises
        ------
        DataError
            If there is none of that name.
        """
        content = read(self._content(), name)
        if content is None:
            raise DataError(f"the code package has no file '{name}'", f"it has: {', '.join(self.files[:10])}")
        return content

    def extract(self) -> tempfile.TemporaryDirectory[str]:
        """Unpack the user's files into a temporary folder, which goes away with the object that is returned.

        Raises
        ------
        DataError
            If the package is damaged or unsafe.
        """
        folder = tempfile.TemporaryDirectory(prefix="flowkit-code-")
        self.extract_to(folder.name)
        return folder

    def extract_to(self, folder: str, *, overwrite: bool = False) -> list[str]:
        """Unpack the user's files into a folder and return their names.

        Parameters
        ----------
        folder : str
            Where to; it is made where it is not there.
        overwrite : bool, default False
            Whether files that are there already are replaced.

        Raises
        ------
        Conflict
            If a file is there already.
        DataError
            If the package is damaged or unsafe.
        """
        return extract(self._content(), folder, overwrite=overwrite, wanted=is_users)

    def __repr__(self) -> str:
        return f"<Code: {self.path}>"

    def _content(self) -> memoryview:
        if self._archive is None:
            size = self._recorded.get("size")
            if not isinstance(size, int) or size < 0:
                raise DataError("what the run recorded of its code package is damaged")
            self._archive = Blobs(self._storage).get(self.key, size, "the code package")
        return self._archive


def is_users(name: str) -> bool:
    """Whether a file of a package is the user's, and not flowkit's own."""
    return name != INFO and not name.startswith(f"{CODE}/")
