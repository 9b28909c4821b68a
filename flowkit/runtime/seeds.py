"""Random state: forked tasks must not all draw the same numbers, unless the flow was seeded when it was imported.

A fresh interpreter that imports the flow has either fresh random states or those that the import seeded; a forked
task gets the same. Generator objects that a module made itself are copied as they are.

Python gives ``random`` a new state in every forked process by itself, so that one is put back where it was seeded;
the others are renewed where they were not.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

_WORDS = 624
"""The size of the Mersenne Twister's state."""
_MOST_BLOCKS = 64
_SEED_CALL = re.compile(r"(?<![\w.])(?:random\.)?seed\(")


class Seeds:
    """What the import of the flow did to the global generators; to be made right after it and before any fork.

    Parameters
    ----------
    before : tuple, optional
        ``random.getstate()`` from before the import of the flow. Where it is not known, the text of the program
        and of its modules tells whether they call ``random.seed``.
    """

    def __init__(self, before: tuple[Any, ...] | None = None) -> None:
        self.random: tuple[Any, ...] | None = None
        if "random" in sys.modules and _random_seeded(before):
            self.random = sys.modules["random"].getstate()
        self.numpy = _numpy_unseeded()
        self.torch = _torch_unseeded()

    def renew(self) -> None:
        """Give this process the random states of a fresh interpreter (in a task, right after the fork)."""
        if self.random is not None:
            sys.modules["random"].setstate(self.random)
        if self.numpy:
            sys.modules["numpy.random"].seed()
        if self.torch:
            # Not torch.manual_seed, which also touches CUDA.
            sys.modules["torch"].default_generator.manual_seed(int.from_bytes(os.urandom(6), "little") | 1 << 40)


def _random_seeded(before: tuple[Any, ...] | None) -> bool:
    random: Any = sys.modules["random"]
    now = random.getstate()
    if before is None or before == now:
        return _program_seeds()
    if now[0] != before[0] or len(before[1]) != _WORDS + 1:
        return True
    if now[1][:_WORDS] == before[1][:_WORDS]:
        return False  # only drawn from
    # Drawing many numbers makes a new block of the same sequence; seeding leaves the sequence.
    probe = random.Random()
    probe.setstate(before)
    for _ in range(_MOST_BLOCKS):
        probe.getrandbits(32 * _WORDS)
        if probe.getstate()[1][:_WORDS] == now[1][:_WORDS]:
            return False
    return True


def _program_seeds() -> bool:
    """Whether the program's own text calls ``seed``: its file, and the modules that lie beside it."""
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    if not program:
        return False
    folder = os.path.dirname(os.path.abspath(program)) + os.sep
    files = [program]
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.startswith(folder) and file.endswith(".py") and not _installed(file):
            files.append(file)
    return any(_calls_seed(file) for file in files)


def _installed(file: str) -> bool:
    return f"{os.sep}site-packages{os.sep}" in file or file.startswith(os.path.dirname(os.__file__) + os.sep)


def _calls_seed(file: str) -> bool:
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            return _SEED_CALL.search(text.read()) is not None
    except OSError:
        return False


def _numpy_unseeded() -> bool:
    mtrand: Any = sys.modules.get("numpy.random.mtrand")
    if mtrand is None:
        return False
    generator = mtrand._rand._bit_generator
    # numpy.random.seed(...) drops the seed sequence that the generator was made with.
    return getattr(generator, "seed_seq", getattr(generator, "_seed_seq", None)) is not None


def _torch_unseeded() -> bool:
    torch: Any = sys.modules.get("torch")
    generator = getattr(torch, "default_generator", None)
    # Its own first seed has 53 random bits; people's seeds are small numbers.
    return generator is not None and generator.initial_seed() >= 1 << 32
