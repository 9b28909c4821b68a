"""The virtual environments that are measured: flowkit as a wheel built from this checkout, and its peers.

They are made once (``.venv-bench-<name>`` beside the checkout's own) and made again when what belongs into them has
changed. All of them get the same versions of numpy, pandas, pyarrow and scikit-learn.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRARIES = ("numpy", "pandas", "pyarrow", "scikit-learn")
PACKAGES = {"flowkit": "flowkit", "metaflow": "metaflow==2.19.*", "luigi": "luigi"}
"""Who is measured, flowkit first, with what pip is asked for."""
LABELS = {"flowkit": "flowkit", "metaflow": "Metaflow", "luigi": "Luigi"}
_SOURCES = ("flowkit", "plugins", "metadata_service", "tutorials")
_DESCRIPTION = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
_VERSIONS = (
    "import importlib.metadata as m, json, platform, sys\n"
    "print(json.dumps({'python': platform.python_version(), **{n: m.version(n) for n in sys.argv[1:]}}))"
)


@dataclass(frozen=True)
class Environment:
    """One virtual environment.

    Parameters
    ----------
    name : str
        A key of `PACKAGES`.
    python : str
        Path of its interpreter.
    versions : dict of str to str
        Of Python and of the packages that matter.
    """

    name: str
    python: str
    versions: dict[str, str]


def environments(names: list[str], source: str = ROOT) -> dict[str, Environment]:
    """Make what is missing or stale, and return the environments by name; flowkit must be among the names.

    The wheel is built from the folder `source`: this checkout, or another one.
    """
    made: dict[str, Environment] = {}
    pinned: list[str] = []
    for name in sorted(names, key=list(PACKAGES).index):
        made[name] = _environment(name, pinned, source)
        if not pinned:
            pinned = [f"{library}=={made[name].versions[library]}" for library in LIBRARIES]
    return made


def _environment(name: str, pinned: list[str], source: str) -> Environment:
    folder = os.path.join(ROOT, f".venv-bench-{name}")
    python = os.path.join(folder, "bin", "python")
    stamp = os.path.join(folder, "bench.json")
    wanted = {"python": sys.version, "libraries": list(LIBRARIES), "package": PACKAGES[name], "pinned": pinned}
    digest = _digest(source) if name == "flowkit" else ""
    known = _read(stamp)
    if known.get("wanted") != wanted:
        _say(f"making the environment of {LABELS[name]}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        known = {}
        packages = [*(pinned or LIBRARIES), "setuptools>=70.1", "wheel"]
        _pip(python, *packages, *([] if name == "flowkit" else [PACKAGES[name]]))
    if known.get("source") != digest:
        if name == "flowkit":
            _say("building and installing the wheel")
            _install_wheel(python, source, fresh=not known)
        with open(stamp, "w", encoding="utf-8") as file:
            json.dump({"wanted": wanted, "source": digest}, file)
    said = subprocess.run(
        [python, "-c", _VERSIONS, name, *LIBRARIES], check=True, capture_output=True, text=True, cwd=folder
    ).stdout
    return Environment(name, python, json.loads(said))


def _install_wheel(python: str, source: str, *, fresh: bool) -> None:
    """Build a copy of the sources, so that nothing is left in the checkout, and install the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "source")
        os.mkdir(copy)
        for name in _DESCRIPTION:
            shutil.copy(os.path.join(source, name), copy)
        leave_out = shutil.ignore_patterns("__pycache__", ".flowkit")
        for name in _SOURCES:
            shutil.copytree(os.path.join(source, name), os.path.join(copy, name), ignore=leave_out)
        wheels = os.path.join(folder, "wheels")
        command = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", wheels, copy]
        subprocess.run(command, check=True, env=_pip_environment())
        (wheel,) = os.listdir(wheels)
        path = os.path.join(wheels, wheel)
        if fresh:  # with all that flowkit needs
            _pip(python, path)
        _pip(python, "--no-deps", "--force-reinstall", path)


def _digest(source: str) -> str:
    """Return a hash of everything that goes into the wheel."""
    found = hashlib.sha256()
    for name in (*_DESCRIPTION, *_SOURCES):
        for path in _files(os.path.join(source, name)):
            found.update(os.path.relpath(path, source).encode() + b"\0")
            with open(path, "rb") as file:
                found.update(hashlib.sha256(file.read()).digest())
    return found.hexdigest()


def _files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".flowkit")]
        found += [os.path.join(folder, name) for name in names]
    return sorted(found)


def _pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "install", "--quiet", *arguments]
    for pause in (5, 20, None):  # an index that is busy for a moment
        done = subprocess.run(command, env=_pip_environment(), check=pause is None)
        if done.returncode == 0 or pause is None:
            return
        time.sleep(pause)


def _pip_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _read(path: str) -> dict[str, object]:
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
