"""What safety costs: hash, fsync and schema check as shares of extraction, and the rate of verified reading.

    python bench/safety.py [FOLDER]

FOLDER should be on the disk that caches go to. Extraction is taken to run at 1000 images a second with 2048
columns in float16, so that a shard of 4096 rows is due every 4.1 s. One core; medians of several shards.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featcache import atomic
from featcache.store import shard

ROWS, COLUMNS, RATE, SHARDS = 4096, 2048, 1000, 9
SECONDS = ROWS / RATE


class Timed(atomic.Calls):
    """The system's calls, with the seconds that each kind took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        for name in ("write", "fsync", "rename", "link", "open", "close", "unlink"):
            setattr(self, name, self._timed(name, getattr(super(), name)))

    def _timed(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return real(*arguments)
            finally:
                self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - begin

        return call


def once(folder: Path, number: int, features: np.ndarray) -> dict[str, float]:
    """Write one shard and its record as the store does; return the seconds of each step."""
    rows = np.arange(ROWS, dtype=np.int64)
    times, begin = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        times[name], begin = now - begin, now

    data = shard.build({"avgpool": features}, rows % 10, rows, np.zeros(ROWS, np.uint8))
    lap("build in memory")
    shard.hash_of(data)
    lap("hash")
    atomic.calls = calls = Timed()
    path = folder / f"{number}.h5"
    atomic.write(path, data)
    atomic.publish_once(folder / f"{number}.json", b"{}" * 200)
    lap("write")
    atomic.calls = atomic.Calls()
    fsync = calls.seconds["fsync"]
    times |= {"write": times["write"] - fsync, "fsync (4)": fsync}
    begin = time.perf_counter()
    shard.blocks(path, {"avgpool": COLUMNS}, "float16", ROWS)
    lap("schema check")
    shard.hash_of_file(path)
    lap("hash when read")
    np.asarray(np.memmap(path, np.uint8, mode="r")).sum(dtype=np.int64)
    lap("one pass over the bytes")
    times["GB"] = len(data) / 1e9
    return times


def main(folder: Path) -> None:
    features = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float16)
    every = [once(folder, number, features) for number in range(SHARDS + 1)][1:]
    found = {name: statistics.median(times[name] for times in every) for name in every[0]}
    size = found.pop("GB")
    print(f"a shard of {ROWS} x {COLUMNS} float16, {size * 1e3:.1f} MB, due every {SECONDS:.3f} s\n")
    for name, seconds in found.items():
        print(f"{name:<26}{seconds * 1e3:9.2f} ms {100 * seconds / SECONDS:8.3f} % of extraction")
    safety = found["hash"] + found["fsync (4)"] + found["schema check"]
    print(
        f"\nhash + fsync + schema check: {100 * safety / SECONDS:.2f} % of extraction (promised: at most 5)"
    )
    verified = size / (found["hash when read"] + found["schema check"])
    print(f"verified reading: {verified:.1f} GB/s on one core (promised: at least 1)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
