"""What the stored type costs and saves: size, rate of reading, and the accuracy of a head.

    python bench/store_dtype.py CACHE [--head-rows N]

The rows of a finished cache are stored anew in float32, float16 and int8 and read back from the page cache,
and a logistic regression is trained on each (C = .01, standardised; no split but train and test).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from featcache.heads.convex import LogisticHead
from featcache.recipe import format_of
from featcache.store.cache import Cache
from featcache.store.plan import rows_of_shards
from featcache.store.records import cache_key

DTYPES = ("float32", "float16", "int8")


def stored_anew(source: Cache, dtype: str, folder: Path) -> Cache:
    """Return a cache of the same rows in another type."""
    recipe = replace(source.recipe, store_dtype=dtype, format=format_of(dtype))
    columns = source.columns
    record = {
        **{name: source.record[name] for name in ("dataset", "columns", "request", "versions")},
        "key": cache_key(recipe.fingerprint, source.record["dataset"]["fingerprint"]),
        "recipe": recipe.to_dict(),
        "rows_per_shard": rows_of_shards(max(columns.values()), dtype),
    }
    cache = Cache.create(folder / dtype, record, source.plan)
    tables = {
        (split, node): np.asarray(source.table(split, node=node, val_fraction=0).X)
        for split in source.plan.counts()
        for node in columns
    }
    for part in cache.todo():
        split = part.name.partition("-")[0]
        first = source.plan.range_of(split).start
        rows = slice(part.first - first, part.stop - first)
        cache.commit(part, {node: tables[split, node][rows].astype(cache.row_dtype) for node in columns})
    cache.seal()
    return cache


def read_rate(cache: Cache, times: int = 3) -> float:
    """Return rows per second turned into float32 in blocks of 1024, the best of a few times."""
    table, best = cache.table("train", val_fraction=0), 0.0
    for _ in range(times):
        begin = time.perf_counter()
        for start in range(0, len(table), 1024):
            table.X[start : start + 1024].astype(np.float32)
        best = max(best, len(table) / (time.perf_counter() - begin))
    return best


def accuracy(cache: Cache, limit: int | None) -> tuple[float, float]:
    """Return the accuracy on the test split and the seconds of the fit."""
    train, test = cache.table("train", val_fraction=0), cache.table("test")
    step = 1 if limit is None else max(1, len(train) // limit)
    head = LogisticHead(C=0.01).fit(train.X[::step], train.y[::step])
    return float(head.score(test.X, test.y)), head.fit_seconds_


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("cache", type=Path)
    arguments.add_argument("--head-rows", type=int)
    given = arguments.parse_args()
    source = Cache(given.cache)
    print(f"{source.name}: {source.plan.counts()} x {source.columns}, stored as {source.recipe.store_dtype}")
    print(f"{os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    print(f"{'type':<10}{'bytes a row':>12}{'rows/s read':>14}{'accuracy':>10}{'fit, s':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            cache = stored_anew(source, dtype, Path(folder))
            seal, rows = cache.sealed() or {}, len(cache.plan)
            score, seconds = accuracy(cache, given.head_rows)
            size = seal["bytes"] / rows
            print(f"{dtype:<10}{size:>12,.1f}{read_rate(cache):>14,.0f}{score:>10.4f}{seconds:>8.1f}")


if __name__ == "__main__":
    main()
