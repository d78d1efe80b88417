"""What was committed survives the death of any process, at any moment, and the rest is done again."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from featcache import atomic
from featcache.errors import RunError
from featcache.heads.state import FORMAT, TrainingState
from featcache.store import records
from featcache.store.cache import Cache
from featcache.training import checkpoints, runs
from tests.faults import toys
from tests.faults.calls import Killing, number_of_calls
from tests.faults.damage import snapshot
from tests.faults.processes import apart, fork, kill
from tests.faults.trials import PART, draw, numbers, tally
from tests.kit_caches import features
from tests.kit_images import tree

SURVIVES = "A committed shard survives any crash of any process"
ATOMIC = "Saving a head, a checkpoint, the ledger is atomic"
SMALL = {"train": 5}


def _killed(work: object, at: int, after: bool) -> bool:
    """Do some work in a process that is killed at a call; return whether it came to that."""

    def dying() -> None:
        atomic.calls = Killing(at, after)
        work()  # type: ignore[operator]

    code = apart(dying)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_killed_before_and_after_every_call_of_one_shard(place: Path) -> None:
    toys.commit_all(toys.start(place / "whole", SMALL))
    whole = tree(next((place / "whole").glob("*--*")))

    def work() -> None:
        toys.commit_all(toys.start(here, SMALL))

    here = place / "count"
    calls = number_of_calls(work)
    with tally(SURVIVES, "SIGKILL before and after every file call of one shard") as found:
        for repeat in numbers(1, 10):
            for at in range(1, len(calls) + 1):
                for after in (False, True):
                    here = place / f"{repeat}-{at}-{after}"
                    assert _killed(work, at, after), f"call {at} of {len(calls)} was not made"
                    before = toys.committed(here)
                    for path in here.glob("*--*"):
                        if (path / records.RECIPE).exists():
                            cache = Cache(path)
                            assert {name for name, why in _verified(cache) if not why} == before
                    toys.commit_all(toys.start(here, SMALL))
                    assert tree(next(here.glob("*--*"))) == whole, f"call {at} {calls[at - 1]} {after}"
                    found.add("resumed to the uninterrupted cache, bit for bit")


def _verified(cache: Cache) -> list[tuple[str, str]]:
    return [(part.name, why) for part, why in cache.verify()]


def test_killed_before_and_after_every_call_of_one_head(place: Path) -> None:
    cache = toys.start(place)
    toys.commit_all(cache)
    head = toys.head_bytes(cache)
    bare = snapshot(cache.path)
    folder = runs.folder_of(cache.path, toys.RUN)
    calls = number_of_calls(lambda: toys.write_run(cache, head))
    with tally(ATOMIC, "SIGKILL before and after every file call of one head") as found:
        for _ in numbers(1, 50):
            for at in range(1, len(calls) + 1):
                for after in (False, True):
                    shutil.rmtree(cache.path / records.HEADS)
                    assert _killed(lambda: toys.write_run(cache, head), at, after)
                    try:
                        toys.check_run(cache, head)
                        found.add("whole")
                    except RunError:
                        assert list(runs.all_runs(place)) == []
                        found.add("not there")
                    toys.write_run(cache, head)
                    toys.check_run(cache, head)
    assert {path: data for path, data in snapshot(cache.path).items() if folder not in path.parents} == bare


def test_killed_while_test_predictions_are_added(place: Path) -> None:
    cache = toys.start(place)
    toys.commit_all(cache)
    head = toys.head_bytes(cache)
    folder = runs.folder_of(cache.path, toys.RUN)
    added = {name.replace("val", "test"): array for name, array in toys.PREDICTIONS.items()}

    def work() -> None:
        runs.add_predictions(folder, runs.read_run(folder), added)

    toys.write_run(cache, head)
    calls = number_of_calls(work)
    with tally(ATOMIC, "SIGKILL at every file call while a run gets test predictions") as found:
        for _ in numbers(1, 50):
            for at in range(1, len(calls) + 1):
                for after in (False, True):
                    toys.write_run(cache, head)
                    assert _killed(work, at, after)
                    record = runs.read_run(folder)
                    names = {name.partition("/")[0] for name in runs.read_predictions(folder, record)}
                    assert names in ({"val"}, {"val", "test"})
                    found.add("with them" if "test" in names else "as it was")


def test_killed_at_every_call_of_a_checkpoint(place: Path) -> None:
    def state(epoch: int) -> TrainingState:
        return TrainingState({"w": np.full(5, epoch, np.float32)}, {"format": FORMAT, "epoch": epoch})

    def work() -> None:
        checkpoints.keep(place, state(3), 2)

    def prepare() -> None:
        shutil.rmtree(place / checkpoints.FOLDER, ignore_errors=True)
        for epoch in (1, 2):
            checkpoints.keep(place, state(epoch), 2)

    prepare()
    calls = number_of_calls(work)
    with tally(ATOMIC, "SIGKILL before and after every file call of a checkpoint") as found:
        for _ in numbers(1, 50):
            for at in range(1, len(calls) + 1):
                for after in (False, True):
                    prepare()
                    assert _killed(work, at, after)
                    latest = checkpoints.latest(place)
                    assert latest is not None and latest.epoch in (2, 3)
                    assert (latest.tensors["w"] == latest.epoch).all()
                    found.add("the new one" if latest.epoch == 3 else "the one before")


@pytest.mark.timeout(1200)
def test_killed_at_random_moments_by_ones_and_many(place: Path) -> None:
    counts = {"train": 60, "val": 6, "test": 30}
    toys.commit_all(toys.start(place / "whole", counts))
    whole = tree(next((place / "whole").glob("*--*")))
    trials = len(numbers(50, 1000))
    resumed, kills = 0, 0
    with tally(SURVIVES, "SIGKILL at random moments, 1 to 8 writers, resumed to the end") as found:
        while kills < trials:
            rng = draw("moments", PART, resumed)
            here = place / f"part{resumed}"
            seen: dict[str, bytes] = {}
            while not _finished(here):
                writers = [fork(_write, here, counts, rng.random()) for _ in range(rng.randint(1, 8))]
                time.sleep(rng.random() * 0.04)
                codes = [kill(writer) for writer in writers]
                assert set(codes) <= {0, -signal.SIGKILL}
                for _ in range(codes.count(-signal.SIGKILL)):
                    found.add("killed")
                there = {path.name: path.read_bytes() for path in here.glob(f"*/{records.COMMITS}/*.json")}
                assert seen.items() <= there.items(), f"a commit was lost or changed, resumption {resumed}"
                seen = there
            kills = found.trials
            toys.commit_all(toys.start(here, counts))
            assert tree(next(here.glob("*--*"))) == whole
            toys.check_rows(Cache(next(here.glob("*--*"))), counts)
            resumed += 1
        found.counts["caches finished to the same bytes, none lost"] = resumed


def _finished(here: Path) -> bool:
    return any((path / records.SEAL).exists() for path in here.glob("*--*"))


def _write(here: Path, counts: dict[str, int], seed: float) -> None:
    """What one of several writers does: make or open the cache, commit what is missing in an own order."""
    cache = toys.start(here, counts)
    parts = cache.todo()
    draw("order", seed).shuffle(parts)
    for part in parts:
        if not (cache.path / records.COMMITS / f"{part.name}.json").exists():
            time.sleep(0.002)  # the backbone's time
            cache.commit(part, {"flatten": features(part.rows, toys.WIDTH)})
    if not cache.todo():
        cache.seal()
