"""Every setting of flowkit, and the only place that reads the environment.

A setting ``x`` is looked for in this order: the environment variable ``FLOWKIT_X``, the project file (the nearest
``flowkit.toml``, or ``[tool.flowkit]`` in ``pyproject.toml``, from the working directory upwards), the user's file
(``~/.config/flowkit/config.toml``, or ``config-<profile>.toml`` with ``FLOWKIT_PROFILE``), the default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, fields
from typing import Any

from flowkit.exceptions import UsageError, did_you_mean

PREFIX = "FLOWKIT_"
PROJECT_FILE = "flowkit.toml"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of this process.

    Parameters
    ----------
    datastore : str, optional
        The root of the datastore: a folder or a URL. Default: ``.flowkit`` found upward from the working directory,
        else made there.
    metadata : str, default "local"
        The metadata store's name in the registry.
    service_url : str, optional
        Where the metadata service is, for ``metadata = "service"``: ``http://127.0.0.1:8080`` if nothing is said.
    service_token : str, optional
        The token (or OIDC bearer token) that the service asks for. Better kept in the environment or in the user's file
        than in a project's.
    user : str, optional
        Who runs things; default: the login name.
    namespace : str, optional
        The client's namespace; default ``user:<user>``.
    decospecs : str
        Decorators for every step of every run, as for ``--with``, separated by spaces.
    max_workers : int, optional
        Local processes at once; default: the number of CPUs, at least 4.
    local_gpus : str, optional
        The GPUs that local tasks share: how many, or their ids separated by commas; default: those that are found.
    task_start : str, default "auto"
        ``fork``, ``spawn`` or ``auto``: how local tasks start.
    verify : str, default "always"
        ``always``, ``stat`` or ``off``: whether loaded content is checked against its key.
    durable : bool, default False
        fsync every manifest and what it names.
    tempdir : str, optional
        Where ``current.tempdir`` is made; default: the system's folder for temporary files.
    s3_endpoint_url : str, optional
        Of an S3-compatible service; default: AWS (or ``AWS_ENDPOINT_URL``).
    s3_encryption : str, optional
        ``AES256`` or ``aws:kms``, or ``aws:kms:<key id>``: server-side encryption of what is written.
    s3_role : str, optional
        ARN of a role to assume for S3.
    cache : str, optional
        Folder of the read cache for remote datastores; ``off`` for none. Default: ``~/.cache/flowkit``.
    cache_size : str, default "10GB"
        What the cache may hold.
    data_tools_root : str, optional
        Where ``flowkit.S3(run=…)`` keeps files; default: ``<datastore>/data``.
    package_suffixes : str, optional
        Suffixes of further files for the code package, separated by commas.
    container_image : str, optional
        The image for steps that name none; default ``python:<this version>-slim``.
    skip_install : bool, default False
        Whether containers have flowkit's dependencies already, so that nothing is installed in them.
    batch_queue, batch_image, batch_job_role, batch_execution_role : str, optional
        Of AWS Batch jobs.
    step_functions_role, eventbridge_role : str, optional
        ARNs of the role that state machines run as, and of that with which EventBridge starts them.
    kubernetes_namespace, kubernetes_image, kubernetes_service_account, kubernetes_context : str, optional
        Of Kubernetes jobs.
    argo_events_webhook_url : str, optional
        Where runs on Argo Workflows tell that they have succeeded: the webhook of an EventSource of Argo Events.
    argo_events_bus, argo_events_source, argo_events_event : str
        From where flows on Argo Workflows hear of events: the EventBus, the EventSource, and the event's name in it.
    argo_events_service_account : str, optional
        With which sensors start workflows.
    airflow_dags : str, optional
        Where DAG files go: Airflow's DAG folder, or ``s3://bucket/prefix``.
    airflow_url : str, optional
        Where Airflow's web server is. Who asks is in the environment: ``FLOWKIT_AIRFLOW_USERNAME`` and
        ``FLOWKIT_AIRFLOW_PASSWORD``, or ``FLOWKIT_AIRFLOW_TOKEN``.
    infrastructure_retries : int, default 3
        How often a task is started again after a failure that is not its own (reclaimed machine, no capacity).
    lease_seconds : int, default 60
        How long a client that runs steps elsewhere may be silent until another one may take its run over.
    profile : str, optional
        Which file of the user's settings is read.
    """

    datastore: str | None = None
    metadata: str = "local"
    service_url: str | None = None
    service_token: str | None = None
    user: str | None = None
    namespace: str | None = None
    decospecs: str = ""
    max_workers: int | None = None
    local_gpus: str | None = None
    task_start: str = "auto"
    verify: str = "always"
    durable: bool = False
    tempdir: str | None = None
    s3_endpoint_url: str | None = None
    s3_encryption: str | None = None
    s3_role: str | None = None
    cache: str | None = None
    cache_size: str = "10GB"
    data_tools_root: str | None = None
    package_suffixes: str | None = None
    container_image: str | None = None
    skip_install: bool = False
    batch_queue: str | None = None
    batch_image: str | None = None
    batch_job_role: str | None = None
    batch_execution_role: str | None = None
    step_functions_role: str | None = None
    eventbridge_role: str | None = None
    kubernetes_namespace: str | None = None
    kubernetes_image: str | None = None
    kubernetes_service_account: str | None = None
    kubernetes_context: str | None = None
    argo_events_webhook_url: str | None = None
    argo_events_bus: str = "default"
    argo_events_source: str = "flowkit-webhook"
    argo_events_event: str = "flowkit-event"
    argo_events_service_account: str | None = None
    airflow_dags: str | None = None
    airflow_url: str | None = None
    infrastructure_retries: int = 3
    lease_seconds: int = 60
    profile: str | None = None


_CHOICES = {"task_start": ("auto", "fork", "spawn"), "verify": ("always", "stat", "off")}
_LEAST = {"max_workers": 1, "infrastructure_retries": 0, "lease_seconds": 1}
_TABLES = ("retention",)
"""Tables of the project file that are no settings: what they hold is read by who needs it."""
_OTHERS = frozenset({"FLOWKIT_HOME", "FLOWKIT_TASK_STREAM"})
"""Variables that are no settings and look like one."""
_ALIKE = 0.9
"""How like a setting's a name must be to be taken for a slip (`difflib`): a letter or two."""
_cached: Settings | None = None


def settings(*, reload: bool = False) -> Settings:
    """Return the settings, read once in a process.

    Raises
    ------
    UsageError
        If a settings file cannot be read, or a value has the wrong type.
    """
    global _cached
    if _cached is None or reload:
        values: dict[str, Any] = {}
        _check_profile()
        project, origin = project_file(working_folder())
        values.update(checked(*user_file()))
        values.update(checked({name: value for name, value in project.items() if name not in _TABLES}, origin))
        values.update(checked(_from_environment(), "the environment"))
        _cached = Settings(**values)
    return _cached


def retention() -> tuple[Mapping[str, Any], str]:
    """Return the table ``retention`` of the project file, which tells what `flowkit gc` removes, and the file's path.

    Raises
    ------
    UsageError
        If the file cannot be read, or it is no table.
    """
    project, origin = project_file(working_folder())
    table = project.get("retention", {})
    if not isinstance(table, Mapping):
        raise UsageError(f"{origin}: retention must be a table", "[tool.flowkit.retention] in pyproject.toml")
    return table, origin


def environment() -> MutableMapping[str, str]:
    """Return the process's environment variables (the real mapping: tasks change it)."""
    return os.environ


def variable(name: str) -> str | None:
    """Return an environment variable by its whole name; None where it is not set."""
    return os.environ.get(name)


def user_name() -> str:
    """Return who runs things: the setting ``user``, else the login name.

    Root is a name like any other: containers run as root.
    """
    configured = settings().user
    if configured:
        return configured
    for name in ("SUDO_USER", "LOGNAME", "USER", "USERNAME"):
        value = os.environ.get(name)
        if value:
            return value
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # Windows; a container's user that no table names
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def home() -> str:
    """Return the folder of the user's settings: ``$FLOWKIT_HOME`` or ``~/.config/flowkit``."""
    configured = os.environ.get("FLOWKIT_HOME")
    if configured:
        return configured
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "flowkit")


def state_folder() -> str:
    """Return the user's folder for what must not be lost and is no setting: ``~/.local/state/flowkit``."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "flowkit")


def user_file_path(profile: str | None = None) -> str:
    """Return where the user's settings are kept, for a profile or the default one."""
    profile = profile or os.environ.get("FLOWKIT_PROFILE")
    if profile and not profile.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"'{profile}' is not a profile's name", "letters, digits, - and _ only")
    return os.path.join(home(), f"config-{profile}.toml" if profile else "config.toml")


def user_file() -> tuple[Mapping[str, Any], str]:
    """Return what the user's file says, and its path."""
    path = user_file_path()
    return read_user_file(path), path


def _check_profile() -> None:
    """Refuse a profile that nobody has made: the settings that are meant would silently be missing."""
    profile = os.environ.get("FLOWKIT_PROFILE")
    if profile and not os.path.isfile(user_file_path(profile)):
        hint = did_you_mean(profile, profiles()) or f"flowkit configure set --profile {profile} makes it"
        raise UsageError(f"there is no profile '{profile}' (FLOWKIT_PROFILE): {user_file_path(profile)}", hint)


def read_user_file(path: str) -> Mapping[str, Any]:
    """Return what a user's file says, as it stands there; nothing where there is none."""
    return _read_toml(path) if os.path.isfile(path) else {}


def setting_names() -> list[str]:
    """Return the names of what a user's file can set."""
    return [entry.name for entry in fields(Settings) if entry.name != "profile"]


def profiles() -> list[str]:
    """Return the profiles that have a file of their own, sorted."""
    try:
        names = os.listdir(home())
    except OSError:
        return []
    return sorted(name[7:-5] for name in names if name.startswith("config-") and name.endswith(".toml"))


def working_folder() -> str | None:
    """Return the working directory; None where somebody has deleted it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def project_file(folder: str | None) -> tuple[Mapping[str, Any], str]:
    """Return what the nearest project file says, from a folder upwards, and its path."""
    while folder is not None:
        path = os.path.join(folder, PROJECT_FILE)
        if os.path.isfile(path):
            return _read_toml(path), path
        path = os.path.join(folder, "pyproject.toml")
        if os.path.isfile(path) and _mentions_flowkit(path):
            return _read_toml(path).get("tool", {}).get("flowkit", {}), path
        parent = os.path.dirname(folder)
        folder = parent if parent != folder else None
    return {}, ""


def foreign_variables() -> list[tuple[str, str]]:
    """Return the ``METAFLOW_*`` variables that are set and mean something to flowkit under another name."""
    known = {
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": "FLOWKIT_DATASTORE",
        "METAFLOW_DATASTORE_SYSROOT_S3": "FLOWKIT_DATASTORE",
        "METAFLOW_DEFAULT_METADATA": "FLOWKIT_METADATA",
        "METAFLOW_USER": "FLOWKIT_USER",
        "METAFLOW_PROFILE": "FLOWKIT_PROFILE",
        "METAFLOW_HOME": "FLOWKIT_HOME",
        "METAFLOW_DEFAULT_DECOSPECS": "FLOWKIT_DECOSPECS",
        "METAFLOW_DECOSPECS": "FLOWKIT_DECOSPECS",
        "METAFLOW_TEMPDIR": "FLOWKIT_TEMPDIR",
        "METAFLOW_RUN_MAX_WORKERS": "FLOWKIT_MAX_WORKERS",
    }
    found = [(name, known[name]) for name in known if os.environ.get(name)]
    found += [(n, PREFIX + n[9:]) for n in sorted(os.environ) if n.startswith("METAFLOW_RUN_") and n not in known]
    return found


def mistyped_variables() -> list[tuple[str, str]]:
    """Return the ``FLOWKIT_*`` variables that mean nothing and look like a setting, each with that setting's."""
    known = {PREFIX + entry.name.upper() for entry in fields(Settings)}
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in known and name not in _OTHERS]
    if not unknown:
        return []
    from difflib import get_close_matches

    near = [(name, get_close_matches(name, known, 1, _ALIKE)) for name in sorted(unknown)]
    return [(name, match[0]) for name, match in near if match]


def _from_environment() -> dict[str, Any]:
    found = {}
    for entry in fields(Settings):
        text = os.environ.get(PREFIX + entry.name.upper())
        if text:
            found[entry.name] = text
    return found


def checked(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return settings with values of the right types, from what was read as text or TOML.

    Parameters
    ----------
    values : mapping
        By name.
    origin : str
        Where they come from, for errors.

    Raises
    ------
    UsageError
        If there is no such setting, or a value cannot be one of it.
    """
    known = {entry.name for entry in fields(Settings)}
    out: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{origin}: there is no setting '{name}'", did_you_mean(name, known))
        out[name] = _typed(name, value, origin)
    return out


def _typed(name: str, value: Any, origin: str) -> Any:
    shown = PREFIX + name.upper() if origin == "the environment" else name
    if name in ("durable", "skip_install"):
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            return str(value).lower() in ("1", "true", "yes", "on")
        raise UsageError(f"{origin}: {shown} must be true or false, not {value!r}")
    if name in _LEAST:
        if str(value).isascii() and str(value).isdigit() and int(value) >= _LEAST[name]:
            return int(value)
        least = "above 0" if _LEAST[name] else "of 0 or more"
        raise UsageError(f"{origin}: {shown} must be a whole number {least}, not {value!r}")
    if name == "local_gpus" and isinstance(value, int | list) and not isinstance(value, bool):
        return "".join(f"{item}," for item in value) if isinstance(value, list) else str(value)
    if not isinstance(value, str):
        raise UsageError(f"{origin}: {shown} must be text, not {value!r}")
    if name == "service_url" and not value.startswith(("http://", "https://")):
        raise UsageError(f"{origin}: {shown} must begin with http:// or https://, not be {_without_secrets(value)!r}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise UsageError(f"{origin}: {shown} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
    return value


def _without_secrets(url: str) -> str:
    """Return what may be a URL without a user's name and password."""
    return url.rpartition("@")[2] if "@" in url else url


def _mentions_flowkit(path: str) -> bool:
    with open(path, "rb") as file:
        return b"tool.flowkit" in file.read()


def _read_toml(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the settings file {path} cannot be read: {error}", "mend or remove it") from error
