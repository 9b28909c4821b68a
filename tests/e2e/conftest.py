"""The suite that needs a Docker daemon: `make test-docker` starts one, makes an image, and says which by a variable."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

IMAGE = os.environ.get("FLOWKIT_E2E_IMAGE", "")
BATCH = Path(__file__).resolve().parent.parent / "plugins" / "batch"

if not IMAGE:  # "make test" runs everything else
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def image() -> str:
    """An image with Python and what flowkit needs, without flowkit."""
    return IMAGE


@pytest.fixture
def docker(workspace):
    """A workspace whose steps with @docker run in the image."""
    workspace.env.update(FLOWKIT_CONTAINER_IMAGE=IMAGE, FLOWKIT_SKIP_INSTALL="true")
    return workspace


@pytest.fixture(scope="session")
def batch_in_containers() -> Iterator[object]:
    """AWS Batch whose jobs are containers on this machine's network."""
    sys.path.insert(0, str(BATCH))
    import batch_service

    # The runner starts processes; these start containers.
    start, plain = Path(__file__).with_name("container_row.py"), batch_service._container

    def in_container(job):
        properties, overrides = plain(job)
        command = list(overrides.get("command") or properties.get("command") or ())
        needs = {item["type"]: item["value"] for item in properties.get("resourceRequirements", ())}
        row = [os.environ.get("DOCKER_HOST", ""), properties["image"], needs.get("MEMORY", "1024")]
        return properties, {**overrides, "command": [sys.executable, str(start), *row, *command]}

    batch_service._container = in_container
    try:
        with batch_service.opened() as service:
            yield service
    finally:
        batch_service._container = plain
        sys.path.remove(str(BATCH))
