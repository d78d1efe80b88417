"""How long a sweep will go on: what is left of its work, at the pace so far."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Work, in any unit, that is `expected` in all and `finished` so far, since the first was expected."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start: float | None = None
        self.expected = self.finished = 0.0

    def expect(self, work: float) -> None:
        """Take note of more work to come."""
        if self._start is None:
            self._start = self._clock()
        self.expected += work

    def finish(self, work: float) -> None:
        """Take note of work that was done, or that was spared."""
        self.finished += work

    def seconds_left(self, running: float = 0.0, unknown: float = 0.0) -> float | None:
        """Return how long the rest takes, None before any work is done.

        Args:
            running: work done within what is not finished.
            unknown: work to come that is not expected yet, as a share of that which is.
        """
        done = self.finished + running
        if self._start is None or done <= 0:
            return None
        left = self.expected * (1 + unknown) - done
        return (self._clock() - self._start) * max(0.0, left) / done
