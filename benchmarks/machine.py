"""The machine, described without names, and the environment in which everything is measured."""

from __future__ import annotations

import os
import platform
import re
import tempfile

from environments import Environment


def describe() -> dict[str, str]:
    """Return what the machine is, as lines for a table."""
    return {
        "CPU": f"{_processor()}, {os.cpu_count()} cores",
        "memory": _memory(),
        "system": f"{platform.system()} {_kernel()}",
        "temporary files": _file_system(tempfile.gettempdir()),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def variables(environment: Environment, home: str) -> dict[str, str]:
    """Return the environment variables of a command: few, and nothing of the user's."""
    found = {
        "PATH": os.pathsep.join([os.path.dirname(environment.python), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": home,
        "USER": "bench",
        "LANG": "C.UTF-8",
    }
    if environment.name == "metaflow":
        found |= {"METAFLOW_USER": "bench", "METAFLOW_HOME": os.path.join(home, "metaflow")}
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 2**30:.0f} GB"


def _kernel() -> str:
    """Return the version's numbers only: what follows them may name whoever built it."""
    found = re.match(r"[\d.]*\d", platform.release())
    return found[0] if found else ""


def _file_system(path: str) -> str:
    path = os.path.realpath(path)
    best = kind = ""
    try:
        with open("/proc/self/mounts", encoding="utf-8") as file:
            for line in file:
                _, point, name, *_ = line.split(" ")
                if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                    best, kind = point, name
    except OSError:
        pass
    return kind or "unknown"
