"""Small caches made without a backbone, for the tests of what reads and writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.images.sample import SPLITS
from featcache.recipe import Node, Preprocess, Recipe, Views, Weights, format_of, sha256_of
from featcache.store.cache import Cache
from featcache.store.plan import Plan
from featcache.store.records import cache_key


def recipe(
    nodes: dict[str, str] | None = None,
    store_dtype: str = "float16",
    sha: str = "0" * 64,
    views: Views | None = None,
) -> Recipe:
    chosen = nodes or {"flatten": "flatten"}
    return Recipe(
        backbone="resnet18",
        weights=Weights("random:0", sha),
        nodes=tuple(Node(name, pool) for name, pool in chosen.items()),
        preprocess=Preprocess("auto", 256, 224),
        store_dtype=store_dtype,
        format=format_of(store_dtype, views),
        views=views,
    )


def plan(counts: dict[str, int], classes: int = 3, seed: int = 0) -> Plan:
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.full(counts.get(s, 0), i, np.uint8) for i, s in enumerate(SPLITS)])
    ids = [f"{SPLITS[code]}/{row:06d}.png" for row, code in enumerate(codes.tolist())]
    labels = (np.arange(len(codes)) % classes).astype(np.int64)
    return Plan(ids, labels, codes, rng.integers(0, 256, (len(codes), 16), dtype=np.uint8))


def features(rows: np.ndarray, width: int, dtype: str = "float16") -> np.ndarray:
    """Features that say which row they are: column j of row i is (i * 7 + j) % 251, plus the row's class."""
    values = (rows[:, None] * 7 + np.arange(width)) % 251
    return values.astype(dtype)


def empty_cache(
    folder: Path,
    counts: dict[str, int],
    columns: dict[str, int] | None = None,
    rows_per_shard: int = 8,
    store_dtype: str = "float16",
    name: str = "toys",
    views: Views | None = None,
) -> Cache:
    columns = columns or {"flatten": 16}
    made = recipe(dict.fromkeys(columns, "flatten"), store_dtype, views=views)
    rows = plan(counts)
    fingerprint = sha256_of([name, list(rows.ids), rows.labels.tolist(), rows.hashes.tolist()])
    key = cache_key(made.fingerprint, fingerprint)
    record = {
        "key": key,
        "recipe": made.to_dict(),
        "dataset": {
            "name": name,
            "fingerprint": fingerprint,
            "classes": ["ape", "bee", "cat"],
            "rows": rows.counts(),
            "ignored": {"count": 0, "first": []},
        },
        "columns": columns,
        "rows_per_shard": rows_per_shard,
        "request": {},
        "versions": {},
    }
    return Cache.create(folder / f"{name}--resnet18--{key[:10]}", record, rows)


def fill(cache: Cache, bad: dict[int, str] | None = None) -> Cache:
    """Commit every shard and seal."""
    for part in cache.todo():
        here = [(row, reason) for row, reason in (bad or {}).items() if part.first <= row < part.stop]
        arrays = {
            node: features(part.rows, width, cache.recipe.store_dtype)
            for node, width in cache.columns.items()
        }
        cache.commit(part, arrays, here)
    cache.seal()
    return cache


def separable_cache(
    folder: Path,
    n: int = 240,
    width: int = 12,
    seed: int = 0,
    test: int = 60,
    name: str = "easy",
    store_dtype: str = "float16",
) -> Cache:
    """A finished cache whose three classes a head can tell apart."""
    cache = empty_cache(folder, {"train": n, "test": test}, {"flatten": width}, 64, store_dtype, name)
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, width)) * 2
    for part in cache.todo():
        labels = cache.plan.labels[part.first : part.stop]
        noise = np.random.default_rng([seed, part.first]).normal(size=(len(part), width))
        cache.commit(part, {"flatten": (centres[labels] + noise).astype(cache.row_dtype)})
    cache.seal()
    return cache
