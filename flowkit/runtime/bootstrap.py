"""What a container runs first: a small program that needs nothing but Python.

It installs what flowkit needs and the image lacks, fetches the code package from the datastore, checks and unpacks
it, and starts the wrapper (``python -m flowkit container``, see `flowkit.runtime.container`). The program is
``bootstrap_stub.txt`` beside this file; ``python flow.py package bootstrap`` shows it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from flowkit.settings import environment, settings
from flowkit.version import __version__

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.package.files import Package

REQUIREMENTS = ("click>=8.1", "cloudpickle>=2.2", "blake3>=0.4", "tomli>=2")
"""What flowkit needs everywhere, as in setup.cfg; tomli before Python 3.11 only, which the program looks at.
What only a scheduler needs (cronsim) is not among it."""
S3_REQUIREMENTS = ("boto3>=1.36", "tenacity>=8.2")
"""What it needs for a datastore on S3, as in setup.cfg."""
CLIENT_REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "kubernetes": ("kubernetes>=28", "tenacity>=8.2"),
    "batch": S3_REQUIREMENTS,
    "service": ("requests>=2.31", "tenacity>=8.2"),
}
"""What a run's client needs besides, for the services that it talks to, as in setup.cfg."""

EXIT_CODES: dict[int, str] = {
    91: "the image lacks what flowkit needs, and nothing is to be installed (FLOWKIT_SKIP_INSTALL)",
    92: "pip could not install what flowkit needs: the container has no network, or no package index",
    93: "the container may not read the datastore: no credentials, or no permission",
    94: "the code package is not in the datastore as the container sees it",
    95: "the container cannot reach the datastore",
    96: "the code package is damaged",
}
"""How the bootstrap ends where it cannot start the task; no step's process ends with these by itself."""

_FORWARDED = ("s3_endpoint_url", "s3_encryption", "s3_role", "verify", "data_tools_root")
"""Settings that hold in a container as they do here."""


class StoredPackage(NamedTuple):
    """A code package in a datastore.

    Parameters
    ----------
    key : str
        Of its blob.
    size : int
        Bytes of the archive.
    program : str
        How the flow is started below the package's folder: ``flow.py``, or ``-m package.module``.
    flow : str
        The flow's name.
    """

    key: str
    size: int
    program: str
    flow: str


def store_package(storage: Storage, package: Package) -> StoredPackage:
    """Put a package into a datastore, unless it is there.

    Raises
    ------
    StoreError
        If it cannot be written.
    UsageError
        If a file cannot be read.
    """
    from flowkit.datastore.blobs import Blobs
    from flowkit.package.archive import pack

    with pack(package) as content:
        size = len(content)
        key = Blobs(storage).put([content], size)
    return StoredPackage(key, size, package.program, package.flow)


def container_command(
    root: str,
    package_key: str,
    flow_file: str,
    run: str,
    launch_list: str,
    *,
    install: bool,
    python: str = "python",
    timeout: float | None = None,
    max_log_size: int | None = None,
) -> list[str]:
    """Return the command of a container that carries out one row of a launch list.

    Which row is told by ``FLOWKIT_ROW`` or the index variable of the service.

    Parameters
    ----------
    root : str
        The datastore as the container reaches it: a URL, or the folder at which it is mounted.
    package_key : str
        Of the code package's blob.
    flow_file : str
        `StoredPackage.program`.
    run : str
        The run's id.
    launch_list : str
        The key of the launch list.
    install : bool
        Whether what flowkit needs is installed where the image lacks it.
    python : str, default "python"
        The interpreter in the image.
    timeout : float, optional
        Seconds that the step's code may take (``@timeout``): its process is killed shortly after.
    max_log_size : int, optional
        Bytes kept of the log.
    """
    wrapper = ["--datastore-root", root, "--program", flow_file, "--run-id", run, "--list", launch_list]
    wrapper += _limits(timeout, max_log_size)
    return _started(root, package_key, wrapper, install=install, python=python)


def deployed_command(
    root: str,
    package_key: str,
    program: str,
    *,
    step: str | None,
    install: bool,
    python: str = "python",
    timeout: float | None = None,
    max_log_size: int | None = None,
    template: str | None = None,
    record: bool = True,
) -> list[str]:
    """Return the command of a container that a foreign scheduler starts: which run and task, its environment tells.

    The variables are those of `flowkit.deployer.target`.

    Parameters
    ----------
    root, package_key, program, install, python, timeout, max_log_size
        As for `container_command`.
    step : str or None
        The step whose tasks it carries out; None for the command that ends a run.
    template : str, optional
        What a run begins from (`flowkit.runtime.deployed.store_template`): for the start step, and for the end.
    record : bool, default True
        Whether tasks write their records to the metadata store.
    """
    wrapper = ["--datastore-root", root, "--program", program, *(["--end"] if step is None else ["--step", step])]
    if template is not None:
        wrapper += ["--template", template]
    if record:
        wrapper.append("--record")
    wrapper += _limits(timeout, max_log_size)
    return _started(root, package_key, wrapper, install=install, python=python)


def client_command(
    root: str,
    package_key: str,
    program: str,
    *,
    deployment: str,
    top: Sequence[str],
    run: Sequence[str],
    needs: Iterable[str] = (),
    install: bool,
    python: str = "python",
) -> list[str]:
    """Return the command of a container that is the client of a whole run: ``python flow.py run``.

    Which run, and its parameters, the environment tells: ``FLOWKIT_DEPLOYED_RUN`` and ``FLOWKIT_PARAMETER_…``
    (`flowkit.model.deployed`). Where that run was begun by an earlier container, it goes on with it
    (`flowkit.cli.client`).

    Parameters
    ----------
    root, package_key, program, install, python
        As for `container_command`.
    deployment : str
        ``TARGET/NAME``.
    top, run : sequence of str
        The words before ``run``, and those after it.
    needs : iterable of str
        Keys of `CLIENT_REQUIREMENTS`: what the client talks to besides the datastore.
    """
    wrapper = ["--datastore-root", root, "--program", program, "--deployment", deployment]
    wrapper += ["--top", json.dumps(list(top)), "--run", json.dumps(list(run))]
    more = [each for name in sorted(set(needs)) for each in CLIENT_REQUIREMENTS.get(name, ())]
    return _started(root, package_key, wrapper, install=install, python=python, command="client", more=more)


def _limits(timeout: float | None, max_log_size: int | None) -> list[str]:
    wrapper = []
    if timeout is not None:
        wrapper += ["--timeout", f"{timeout:g}"]
    if max_log_size is not None:
        wrapper += ["--max-log-size", str(max_log_size)]
    return wrapper


def _started(
    root: str,
    package_key: str,
    wrapper: list[str],
    *,
    install: bool,
    python: str,
    command: str = "container",
    more: Iterable[str] = (),
) -> list[str]:
    needs = dict.fromkeys([*REQUIREMENTS, *(S3_REQUIREMENTS if root.startswith("s3://") else ()), *more])
    fixed = [root, package_key, __version__, "1" if install else "0", " ".join(needs)]
    return [python, "-c", stub(), *fixed, command, *wrapper]


def container_environment(root: str, *, user: str) -> dict[str, str]:
    """Return the environment variables of every container of a run: settings, and no secret.

    Parameters
    ----------
    root : str
        The datastore as the container reaches it.
    user : str
        Who started the run.
    """
    given = settings()
    found = {
        "FLOWKIT_DATASTORE": root,
        "FLOWKIT_USER": user,
        "FLOWKIT_CACHE": "off",  # a container reads what it reads once
    }
    for name in _FORWARDED:
        value = getattr(given, name)
        if value is not None:
            found[f"FLOWKIT_{name.upper()}"] = str(value)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION"):
        value = environment().get(name)
        if value:
            found[name] = value
    if given.durable:
        found["FLOWKIT_DURABLE"] = "true"
    return found


def stub() -> str:
    """Return the program that a container runs first."""
    with open(os.path.join(os.path.dirname(__file__), "bootstrap_stub.txt"), encoding="ascii") as file:
        return file.read()


def shown(command: list[str]) -> str:
    """Return a container's command as people read it: the program first, then what it is called with."""
    at = command.index("-c") + 1
    call = " ".join([*command[: at - 1], "-c", "<the program above>", *map(shlex.quote, command[at + 1 :])])
    return f"{command[at]}\n# {call}"
