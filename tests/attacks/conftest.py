"""Lets the attacks import what they share (`attack_tools`), and tells the short form from the long one.

The short form is part of ``make test``. With ``FLOWKIT_SOAK=1`` (``make soak``) the same attacks go on for many more
rounds; what each round does follows from its number, so a round that fails can be repeated.
"""

from __future__ import annotations

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from attack_tools import SOAK


@pytest.fixture(scope="session")
def soak() -> bool:
    """Whether this is the long form."""
    return SOAK


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test with ``@pytest.mark.rounds(short, long)`` a seed for each round."""
    marker = metafunc.definition.get_closest_marker("rounds")
    if marker is not None:
        short, long = marker.args
        metafunc.parametrize("seed", range(long if SOAK else short))


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "rounds(short, long): how many rounds, in the short form and in the long one")
