"""Where DAG files are: a file or a folder of this machine, or of a bucket that Airflow takes its DAGs from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from flowkit.datastore.root import open_storage, scheme_of
from flowkit.datastore.storage import Missing
from flowkit.exceptions import StoreError, UsageError

_LARGEST = 8 * 1024 * 1024
"""Bytes of a DAG file: a larger one is none of ours."""


class Place(NamedTuple):
    """A DAG file that may be there or not.

    Parameters
    ----------
    folder : str
        A folder, or a URL that ends before the file's name.
    name : str
        The file's name.
    """

    folder: str
    name: str

    def __str__(self) -> str:
        return f"{self.folder.rstrip('/')}/{self.name}"

    @property
    def remote(self) -> bool:
        """Whether it is in a bucket."""
        return scheme_of(self.folder) is not None

    def read(self) -> str | None:
        """Return the file's text; None where there is none.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        try:
            if self.remote:
                return open_storage(self.folder).read(self.name).decode("utf-8", "replace")
            with open(str(self), encoding="utf-8", errors="replace") as file:
                return file.read(_LARGEST)
        except (Missing, FileNotFoundError):
            return None
        except OSError as error:
            raise StoreError(f"{self} cannot be read: {error.strerror or error}") from error

    def write(self, text: str) -> None:
        """Put a text in the place of the file: whoever reads it sees the old one or the new one.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        content = text.encode("utf-8")
        if self.remote:
            open_storage(self.folder).replace(self.name, [content])
            return
        try:
            os.makedirs(self.folder, exist_ok=True)
            # Not with a name that ends in .py: Airflow may look at the folder at any moment.
            descriptor, made = tempfile.mkstemp(prefix=".flowkit-", suffix=".new", dir=self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(made, 0o644)  # Airflow may run as somebody else; there is no secret in it
                os.replace(made, str(self))
            except BaseException:
                os.unlink(made)
                raise
        except OSError as error:
            raise StoreError(
                f"{self} cannot be written: {error.strerror or error}", "give a file that you may write"
            ) from error

    def remove(self) -> None:
        """Remove the file, if it is there.

        Raises
        ------
        StoreError
            If it cannot be removed.
        """
        if self.remote:
            open_storage(self.folder).delete(self.name)
            return
        try:
            os.unlink(str(self))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"{self} cannot be removed: {error.strerror or error}") from error


def normal(given: str) -> str:
    """Return where somebody said that a DAG file goes, so that it means the same from everywhere."""
    if scheme_of(given) is not None:
        return given
    path = os.path.abspath(os.path.expanduser(given))
    return f"{path}/" if given.endswith(("/", os.sep)) else path


def place(given: str, name: str) -> Place:
    """Return the DAG file of a deployment.

    Parameters
    ----------
    given : str
        ``FILE.py``, or the folder (or ``s3://bucket/prefix``) in which it gets the deployment's name.
    name : str
        The deployment's.

    Raises
    ------
    UsageError
        If there is no such kind of place.
    """
    scheme = scheme_of(given)
    if scheme not in (None, "s3"):
        raise UsageError(f"a DAG file cannot be put to {given}", "give a file, a folder or s3://bucket/prefix")
    whole = normal(given)
    folder, _, file = whole.rpartition("/")
    if file.endswith(".py") and not (scheme is None and os.path.isdir(whole)):
        return Place(folder or "/", file)
    return Place(whole.rstrip("/") or "/", f"{name}.py")


def files(given: str) -> Iterator[Place]:
    """Yield the Python files of a folder or a bucket's prefix (not below it), or the one that is given itself."""
    whole = normal(given)
    single = place(whole, "x")
    if single.name != "x.py":
        yield single
        return
    if single.remote:
        names = list(open_storage(single.folder).children(""))
    else:
        try:
            names = os.listdir(single.folder)
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise StoreError(f"{single.folder} cannot be read: {error.strerror or error}") from error
    for name in sorted(names):
        if name.endswith(".py"):
            yield Place(single.folder, name)
