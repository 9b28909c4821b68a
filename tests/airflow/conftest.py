"""The suite that needs a real Airflow: `make test-airflow` installs both lines, each into an environment of its own,
and says where they are by a variable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from airflow_runs import PYTHONS

if not PYTHONS:  # "make test" runs everything else
    collect_ignore_glob = ["test_*.py"]
