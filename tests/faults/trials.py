"""How many trials there are, what chance draws in them, and the table of what came out."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

FULL = os.environ.get("FEATCACHE_FAULTS", "fast") == "full"
SEED = int(os.environ.get("FEATCACHE_FAULTS_SEED", "1"))
SHARE = float(os.environ.get("FEATCACHE_FAULTS_SHARE", "1"))  # of the full column
PART, PARTS = (int(each) for each in os.environ.get("FEATCACHE_FAULTS_PART", "1/1").split("/"))


def count(fast: int, full: int) -> int:
    """Return the number of trials of all parts together."""
    return max(fast, round(full * SHARE)) if FULL else fast


def numbers(fast: int, full: int) -> range:
    """Return the numbers of this part's trials: with 1/1, the default, those of all."""
    return range(PART - 1, count(fast, full), PARTS)


def mine(whole: Sequence[Any]) -> Sequence[Any]:
    """Return what of a list is this part's."""
    return whole[PART - 1 :: PARTS]


def draw(*what: object) -> random.Random:
    """Return the chance of one test or trial: the same for the same seed and names."""
    return random.Random(f"{SEED} {what}")


@dataclass
class Tally:
    """One row of the table: what was promised, what was done to it, how often, and what came out."""

    promise: str
    fault: str
    trials: int = 0
    seconds: float = 0.0
    outcome: str = "FAILED"
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str) -> None:
        """Count a trial and its outcome."""
        self.trials += 1
        self.counts[what] = self.counts.get(what, 0) + 1

    def said(self) -> str:
        """Return what came out, as the table says it."""
        return ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))


ROWS: list[Tally] = []


@contextmanager
def tally(promise: str, fault: str) -> Iterator[Tally]:
    """Count the trials of a test; a test that fails is in the table as failed."""
    row, begin = Tally(promise, fault), time.perf_counter()
    ROWS.append(row)
    try:
        yield row
        row.outcome = row.said()
    finally:
        row.seconds = time.perf_counter() - begin


def table(rows: Iterable[Tally] | None = None) -> str:
    """Return the table of results as Markdown."""
    lines = ["| promise | fault | trials | outcome | s |", "|---|---|---:|---|---:|"]
    for row in ROWS if rows is None else rows:
        lines.append(f"| {row.promise} | {row.fault} | {row.trials} | {row.outcome} | {row.seconds:.1f} |")
    return "\n".join(lines)
