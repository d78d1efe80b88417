"""Changed shards, records, plans and heads by the thousand: only our own errors come out, no wrong rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import DamagedError, FeatcacheError
from featcache.heads import packing, saving
from featcache.store import records, shard
from featcache.store.cache import Cache
from featcache.store.plan import Plan
from featcache.training import checkpoints, runs
from tests.faults import fuzzing, strangers, toys
from tests.faults.processes import apart
from tests.faults.trials import draw, numbers, tally

FUZZ = "Only our own error comes out of any input"
BATCH, SLOW = 500, 20.0


def _fuzz(kind: str, trials: range, one: Callable[[Any, int], str]) -> None:
    """Try inputs in processes of their own, so that a crash of a library is seen and its input known."""
    with tally(FUZZ, kind) as found:
        for first in range(0, len(trials), BATCH):
            inputs = trials[first : first + BATCH]

            def batch(inputs: range = inputs) -> None:
                for number in inputs:
                    begin = time.monotonic()
                    try:
                        one(draw(kind, number), number)
                    except FeatcacheError:
                        pass
                    except BaseException:
                        print(f"{kind}: input {number}")
                        raise
                    assert time.monotonic() - begin < SLOW, f"{kind}: input {number} was slow"

            code = apart(batch)
            assert code == 0, f"{kind}: inputs from {inputs[0]} on: exit code {code}"
            for _ in inputs:
                found.add("inputs refused or harmless")


@pytest.fixture
def cache(place: Path) -> Cache:
    made = toys.start(place / "features")
    toys.commit_all(made)
    toys.write_run(made, toys.head_bytes(made))
    return made


@pytest.mark.timeout(3000)
def test_shards(cache: Cache, place: Path) -> None:
    good = sorted((cache.path / records.SHARDS).iterdir())[0].read_bytes()
    columns, path = {"flatten": toys.WIDTH}, place / "fuzzed.h5"

    def one(rng: Any, number: int) -> str:
        path.write_bytes(fuzzing.changed_bytes(good, rng, 2600))
        for block in shard.blocks(path, columns, "float16", toys.ROWS_PER_SHARD).values():
            assert block.offset + block.nbytes <= path.stat().st_size
            block.map().sum()
        return ""

    _fuzz("shards, bytes changed, opened without their hash", numbers(1500, 40_000), one)


@pytest.mark.timeout(3000)
def test_records(cache: Cache) -> None:
    run = runs.folder_of(cache.path, toys.RUN)
    paths = [cache.path / records.RECIPE, cache.path / records.SEAL, run / runs.RUN]
    paths += sorted((cache.path / records.COMMITS).iterdir())
    good = {path: path.read_bytes() for path in paths}

    def one(rng: Any, number: int) -> str:
        path = rng.choice(paths)
        record = json.loads(good[path])
        record.pop("sha256")
        for _ in range(rng.choice((1, 1, 2))):
            record = fuzzing.changed_value(record, rng)
        try:
            if path.name == records.RECIPE and isinstance(record, dict) and rng.random() < 0.8:
                fingerprint = record["dataset"]["fingerprint"]
                record["key"] = records.cache_key(records.sha256_of(record["recipe"]), fingerprint)
            data = strangers.signed(record) if isinstance(record, dict) else json.dumps(record).encode()
        except (KeyError, TypeError, ValueError):
            return ""
        path.write_bytes(data)
        try:
            toys.check_rows(Cache(cache.path))
            runs.read_predictions(run, runs.read_run(run))
        except AssertionError as error:
            # Other classes are what a stranger's record may say; other rows are not.
            assert "classes" in str(error) or path.name == records.RECIPE, error
        finally:
            path.write_bytes(good[path])
        return ""

    _fuzz("records, structure changed, with fitting checksums", numbers(1500, 40_000), one)


@pytest.mark.timeout(3000)
def test_plans(cache: Cache) -> None:
    good = (cache.path / records.PLAN).read_bytes()
    same = Plan.from_bytes(good)

    def one(rng: Any, number: int) -> str:
        plan = Plan.from_bytes(fuzzing.changed_bytes(good, rng))
        # The archive's own checksums hold: what is accepted is what was written.
        assert list(plan.ids) == list(same.ids) and np.array_equal(plan.labels, same.labels)
        return ""

    _fuzz("plans, bytes changed, opened without their hash", numbers(1000, 20_000), one)


@pytest.mark.timeout(3000)
def test_heads(cache: Cache) -> None:
    good = toys.head_bytes(cache)
    meta, arrays = packing.meta_of(good, 1), packing.arrays_of(good)

    def one(rng: Any, number: int) -> str:
        if number % 2:
            data = fuzzing.changed_bytes(good, rng, 1600)
            head = saving.loads(data)
            assert saving.dumps(head, saving.context_of(data)) == good, "a changed head was taken"
        else:
            changed = fuzzing.changed_value(meta, rng)
            if isinstance(changed, dict):
                try:
                    data = packing.pack(arrays, changed)
                except (FeatcacheError, UnicodeError):
                    return ""
                saving.loads(data).predict(np.zeros((2, toys.WIDTH), np.float32))
        return ""

    _fuzz("heads, bytes and description changed", numbers(1500, 20_000), one)


def test_checkpoints(place: Path) -> None:
    from featcache.heads.state import FORMAT, TrainingState

    state = TrainingState({"w": np.arange(50, dtype=np.float32)}, {"format": FORMAT, "epoch": 1})
    checkpoints.keep(place, state, 1)
    (path,) = checkpoints.paths(place)
    good = path.read_bytes()

    def one(rng: Any, number: int) -> str:
        path.write_bytes(fuzzing.changed_bytes(good, rng))
        latest = checkpoints.latest(place)
        assert latest is not None and np.array_equal(latest.tensors["w"], state.tensors["w"])
        return ""

    _fuzz("checkpoints, bytes changed", numbers(500, 10_000), one)
    path.write_bytes(good[:-1])
    with pytest.raises(DamagedError):
        checkpoints.latest(place)
