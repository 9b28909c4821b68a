"""Run a command in a container with this process's environment: ``container_row.py HOST IMAGE MEGABYTES COMMAND…``."""

import os
import signal
import subprocess
import sys

KEPT = ("PATH", "HOME", "TMPDIR")
"""Of this process, and not of the container."""


def main() -> int:
    host, image, memory, *command = sys.argv[1:]
    docker = ["docker", "--host", host] if host else ["docker"]
    name = f"flowkit-e2e-{os.getpid()}"
    variables = [part for variable in os.environ if variable not in KEPT for part in ("--env", variable)]
    options = ["--rm", "--name", name, "--network", "host", "--memory", f"{memory}m", *variables]
    process = subprocess.Popen([*docker, "run", *options, image, *command])
    signal.signal(signal.SIGTERM, lambda *_: subprocess.run([*docker, "stop", "--time", "5", name]))
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
