"""How fast a service is called: pauses that grow while it does not answer, and a bound on calls in a while."""

from __future__ import annotations

import random

_FACTOR = 2.0


class Backoff:
    """Pauses between tries, each about twice as long as the one before.

    Parameters
    ----------
    first : float
        Seconds of the first pause.
    most : float
        Seconds of the longest one.
    """

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._random = random.Random()
        self.failures = 0
        """How many tries in a row have failed."""

    def pause(self) -> float:
        """Count a failure and return the seconds to wait: somewhere between the half and the whole of the pause.

        Those who were turned away together do not come back together.
        """
        whole = min(self._most, self._first * _FACTOR ** min(self.failures, 30))
        self.failures += 1
        return whole * (0.5 + self._random.random() / 2)

    def reset(self) -> None:
        """Begin again: a try has worked."""
        self.failures = 0


class Bucket:
    """Lets calls through at a rate, and some at once after a rest.

    Parameters
    ----------
    rate : float
        Calls a second in the long run.
    burst : int
        Calls at once.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._level = self._burst
        self._when: float | None = None

    def take(self, now: float) -> bool:
        """Whether a call may be made at a time (of one clock); it counts if so."""
        self._fill(now)
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True

    def next_at(self, now: float) -> float:
        """When the next call may be made."""
        self._fill(now)
        return now if self._level >= 1.0 else now + (1.0 - self._level) / self._rate

    def _fill(self, now: float) -> None:
        if self._when is not None:
            self._level = min(self._burst, self._level + max(0.0, now - self._when) * self._rate)
        self._when = now
