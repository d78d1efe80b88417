"""What a plan of very many images costs: writing, opening, listing its shards, one shard's rows, the records.

    python bench/plans.py [--rows 1000000 10000000] [--folder DIR] [--commits] [--listing N]

The images are invented (ids of 35 bytes, train/n00000012/n0000016543_ab.JPEG), the plan and the records
are the real ones. Every step runs in a process of its own; `peak` is what its largest resident size grew by
while the step ran. Beside the plan: `--commits` writes and reads a commit record for every shard,
`--listing N` makes a folder of N empty images, and lists it as an extraction does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS_PER_SHARD = 4096
CLASSES = 1000


def size(what: str) -> int:
    """Return the resident size of this process now (VmRSS) or at most since `forget` (VmHWM), in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{what}:")[2].split()[0]) * 1024


def forget() -> int:
    """Set the kernel's record of the largest resident size back; return the size now."""
    Path("/proc/self/clear_refs").write_text("5")
    return size("VmRSS")


def names(rows: int) -> Any:
    """Return the ids as the two arrays that a plan holds, made block by block."""
    from featcache.images.names import Names

    data, ends = np.empty(rows * 35, np.uint8), np.arange(1, rows + 1, dtype=np.int64) * 35
    for first in range(0, rows, 1 << 20):
        stop = min(first + (1 << 20), rows)
        text = "".join(f"train/n{row // 1300:08d}/n{row:010d}_ab.JPEG" for row in range(first, stop))
        data[first * 35 : stop * 35] = np.frombuffer(text.encode(), np.uint8)
    return Names(data, ends)


def plan_of(rows: int) -> Any:
    from featcache.store.plan import Plan

    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (rows, 2), dtype=np.int64).view(np.uint8)
    splits = np.zeros(rows, np.uint8)
    splits[rows - rows // 20 :] = 2
    return Plan(names(rows), np.arange(rows, dtype=np.int64) * CLASSES // rows, splits, hashes)


def write(folder: Path, rows: int) -> dict[str, Any]:
    """Make a cache of so many rows; time and memory of the plan's writing alone."""
    from featcache.store.cache import Cache
    from featcache.store.records import cache_key
    from tests.kit_caches import recipe

    plan, made = plan_of(rows), recipe()
    fingerprint = "0" * 64
    dataset = {"name": "many", "fingerprint": fingerprint, "classes": [f"c{i}" for i in range(CLASSES)]}
    record = {
        "key": cache_key(made.fingerprint, fingerprint),
        "recipe": made.to_dict(),
        "dataset": {**dataset, "rows": plan.counts(), "ignored": {"count": 0, "first": []}},
        "columns": {"flatten": 512},
        "rows_per_shard": ROWS_PER_SHARD,
        "request": {},
        "versions": {},
    }
    before, start = forget(), time.perf_counter()
    cache = Cache.create(folder, record, plan)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": size("VmHWM") - before, "bytes": cache.record["plan"]["bytes"]}


def _opened(folder: Path) -> Any:
    from featcache.store.cache import Cache

    return Cache(folder)


def timed(folder: Path, what: Any) -> dict[str, Any]:
    """Return time and memory of something done with a cache that is opened before."""
    cache = _opened(folder)
    before, start = forget(), time.perf_counter()
    count = what(cache)
    return {"seconds": time.perf_counter() - start, "peak": size("VmHWM") - before, "count": count}


def one_shard(cache: Any) -> int:
    """Read what one shard's extraction reads of the plan: ids, labels and hashes of its rows."""
    part = cache.shards()[len(cache.shards()) // 2]
    rows = slice(part.first, part.stop)
    return len(cache.plan.ids[rows]) + int(cache.plan.labels[rows].sum() > 0) + cache.plan.hashes[rows].size


def commits(folder: Path, rows: int) -> dict[str, Any]:
    """Write a commit record for every shard but the last, without fsync; then ask what is left to do."""
    from featcache.store.records import Commit

    cache = _opened(folder)
    start, digest = time.perf_counter(), "0123456789abcdef" * 2
    for part in cache.shards()[:-1]:
        name = f"{part.name}-{digest[:16]}.h5"
        record = Commit(cache.key, part.name, name, 1, digest, part.first, part.stop - 1, len(part))
        (folder / "commits" / f"{part.name}.json").write_bytes(record.to_bytes())
    written = time.perf_counter() - start
    return timed(folder, lambda cache: len(cache.todo())) | {"written": written}


def listing(folder: Path, files: int) -> dict[str, Any]:
    """Make a folder of so many empty images, 1000 in a class, and list it; time and memory of the listing."""
    from featcache.images.catalogue import open_source

    root = folder / "images"
    if not root.exists():
        for row in range(files):
            place = root / "train" / f"n{row // 1000:08d}"
            if row % 1000 == 0:
                place.mkdir(parents=True)
            (place / f"n{row:010d}_ab.JPEG").touch()
    before, start = forget(), time.perf_counter()
    source = open_source(f"folder:{root}", folder)
    source.stat_digest()
    looked = time.perf_counter() - start
    data = source.open()
    listed = time.perf_counter() - start - looked
    top = size("VmHWM") - before
    data.content_hashes = np.zeros((len(data), 16), np.uint8)
    start = time.perf_counter()
    _ = data.fingerprint
    described = time.perf_counter() - start
    return {"seconds": listed, "looked": looked, "described": described, "peak": top, "count": len(data)}


STEPS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "write": write,
    "open": lambda folder, rows: timed(folder, lambda cache: len(cache.plan)),
    "shards": lambda folder, rows: timed(folder, lambda cache: len(cache.shards())),
    "todo": lambda folder, rows: timed(folder, lambda cache: len(cache.todo())),
    "one shard": lambda folder, rows: timed(folder, one_shard),
    "commits": commits,
    "listing": listing,
}


def step(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """Run one step in a process of its own."""
    command = [sys.executable, __file__, "--step", name, "--rows", str(rows), "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--commits", action="store_true")
    parser.add_argument("--listing", type=int)
    parser.add_argument("--step", choices=STEPS)
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(STEPS[asked.step](asked.folder, asked.rows[0])))
        return
    for rows in asked.rows:
        with tempfile.TemporaryDirectory(dir=asked.folder) as place:
            for name in ["write", "open", "shards", "todo", "one shard"] + ["commits"] * asked.commits:
                facts = step(name, Path(place) / "cache", rows)
                print(f"{rows:>12,} {name:<10}", _said(facts), flush=True)
    if asked.listing:
        with tempfile.TemporaryDirectory(dir=asked.folder) as place:
            print(f"{asked.listing:>12,} {'listing':<10}", _said(step("listing", Path(place), asked.listing)))


def _said(facts: dict[str, Any]) -> str:
    unit = {"peak": "MB", "bytes": "MB"}
    return "  ".join(
        f"{name} {value / 1e6:,.1f} MB" if name in unit else f"{name} {value:,.3f}"
        for name, value in facts.items()
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
