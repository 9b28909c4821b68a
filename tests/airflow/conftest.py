"""The suite that needs a real Airflow: `make test-airflow` installs both lines, each into an environment of its own,
and says where they are by a variable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).parent))
from airflow_runs import PYTHONS

if not PYTHONS:  # "make test" runs everything else
    collect_ignore_glob = ["test_*.py"]

if TYPE_CHECKING:
    from batch_service import BatchService


@pytest.fixture(scope="session")
def account() -> Iterator[BatchService]:
    """S3 and Batch, once for a process: what moto records is the process's."""
    from batch_service import opened

    with opened() as service:
        yield service
