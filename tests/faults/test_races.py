"""Any number of processes may build one cache, and readers see only what is committed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import CacheError
from featcache.store import records
from featcache.store.cache import Cache
from featcache.training.ledger import Ledger
from tests.faults import toys
from tests.faults.processes import fork, kill, wait
from tests.faults.test_kills import ATOMIC, _write
from tests.faults.trials import draw, numbers, tally
from tests.kit_caches import features
from tests.kit_images import tree

RACES = "Any number of processes may build one cache; each row once"
COUNTS = {"train": 90, "val": 12, "test": 30}


@pytest.mark.timeout(1200)
def test_writers_race_and_readers_read(place: Path) -> None:
    toys.commit_all(toys.start(place / "whole", COUNTS))
    whole = tree(next((place / "whole").glob("*--*")))
    with tally(RACES, "8 writers and 2 readers at once, up to 3 writers killed") as found:
        for trial in numbers(10, 200):
            rng, here = draw("race", trial), place / str(trial)
            readers = [fork(_read, here) for _ in range(2)]
            writers = [fork(_write, here, COUNTS, seed) for seed in range(8)]
            doomed = rng.sample(writers, rng.randint(0, 3))
            for writer in doomed:
                time.sleep(rng.random() * 0.02)
                assert kill(writer) in (0, -signal.SIGKILL)
            codes = [wait(writer) for writer in writers if writer not in doomed]
            assert codes == [0] * len(codes), f"trial {trial}: a writer failed"
            toys.commit_all(toys.start(here, COUNTS))
            assert [wait(reader) for reader in readers] == [0, 0], f"trial {trial}: a reader saw wrong rows"
            assert tree(next(here.glob("*--*"))) == whole
            found.add("equal to one writer's, bit for bit")


def _read(here: Path) -> None:
    """Read whatever is committed until the seal is there; anything but the truth raises."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        folder = next((path for path in here.glob("*--*") if (path / records.RECIPE).exists()), None)
        if folder is None:
            time.sleep(0.001)
            continue
        cache = Cache(folder)
        for commit in cache.commits().values():
            rows = np.arange(commit.first, commit.last + 1)
            block = cache.blocks(commit)["features"]
            assert np.array_equal(block.map(), features(rows, toys.WIDTH))
        try:
            toys.check_rows(cache, COUNTS)
        except CacheError as error:
            assert "not finished" in error.message, error
        else:
            return
    raise AssertionError("the cache was never finished")


@pytest.mark.timeout(1200)
def test_two_writers_of_one_ledger_are_killed(place: Path) -> None:
    cache = toys.start(place)
    toys.commit_all(cache)
    ledger = Ledger(place)
    acknowledged: set[str] = set()
    with tally(ATOMIC, "SIGKILL at random moments of two processes writing one ledger") as found:
        for trial in numbers(6, 300):
            rng = draw("ledger", trial)
            told = [place / f"told-{trial}-{number}" for number in range(2)]
            writers = [fork(_record, cache, trial, number, path) for number, path in enumerate(told)]
            time.sleep(rng.random() * 0.15)
            codes = [kill(writer) for writer in writers]
            assert all(code in (0, -signal.SIGKILL) for code in codes)
            for path in told:
                # A line that the kill cut short was not told to the end.
                lines = path.read_text().splitlines(keepends=True) if path.exists() else []
                acknowledged |= {line.strip() for line in lines if line.endswith("\n")}
            there = {row["run"] for row in ledger.runs()}
            assert acknowledged <= there, f"trial {trial}: lost {acknowledged - there}"
            found.add("none lost")
    assert acknowledged


def _record(cache: Cache, trial: int, number: int, told: Path) -> None:
    ledger = Ledger(cache.path.parent)
    for each in range(20):
        run = f"ridge-{trial:03x}{number}{each:04x}"
        ledger.record({**toys.facts(cache), "run": run})
        with told.open("a") as file:
            file.write(f"{run}\n")
