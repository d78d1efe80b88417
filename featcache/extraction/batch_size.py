"""How many images go through the backbone at once: as many as still make it faster, evenly over a shard.

The choice is measured, so it is kept: the same recipe on the same device goes on with it, in this process and
in the next, and shards made again are byte for byte the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from featcache.backbones.lane import Lane
from featcache.backbones.runtime import Extractor
from featcache.errors import BackboneError
from featcache.extraction import memory
from featcache.recipe import Recipe, sha256_of
from featcache.store.cache import Cache

TRIED = (32, 64, 128, 256)  # beyond, little is gained, and pinned memory takes long to make
GAIN = 1.01  # a batch twice as large must be so much faster


def for_cache(asked: int | None, extractor: Extractor, cache: Cache) -> int:
    """Return the batch size for a cache; one made on this device before, in part or whole, keeps its own."""
    folder = cache.path.parent
    if asked is None:
        for facts in memory.extractions(folder, cache.name):
            if facts.get("device") == extractor.device and isinstance(facts.get("batch_size"), int):
                asked = facts["batch_size"]
    rows = max(len(part) for part in cache.shards())
    return batch_size(asked, extractor, cache.recipe, rows, folder)


def batch_size(
    asked: int | None, extractor: Extractor, recipe: Recipe, shard_rows: int, features_dir: Path
) -> int:
    """Return the batch size: the one asked for, else the one remembered, else the one that measures best.

    Args:
        asked: what the user says; None: automatic.
        extractor: the backbone on its device.
        recipe: it decides what is computed.
        shard_rows: rows of a whole shard.
        features_dir: where the choice is remembered.
    """
    if asked is not None or extractor.device == "cpu":
        return even(asked or extractor.work.chunk, shard_rows)
    key = sha256_of([recipe.fingerprint, torch.cuda.get_device_name(extractor.device), torch.__version__])
    known = memory.recall_batch_size(features_dir, key)
    if known is None:
        tried = (even(size, shard_rows) for size in TRIED)
        known = best(dict.fromkeys(tried), lambda size: _rate(extractor, recipe, size))
        memory.remember_batch_size(features_dir, key, known)
    return even(known, shard_rows)


def even(size: int, shard_rows: int) -> int:
    """Return the size of batches that fill a shard evenly, none larger than `size`.

    A batch that is not full takes a GPU as long as a full one.
    """
    return -(-shard_rows // -(-shard_rows // size))


def best(sizes: Iterable[int], rate: Callable[[int], float]) -> int:
    """Return the first size, in rising order, after which the rate grows no more.

    Args:
        sizes: to be tried.
        rate: images a second at a size; 0 where it does not fit into memory.
    """
    chosen, fastest = 1, 0.0
    for size in sizes:
        found = rate(size)
        if found <= fastest * GAIN:
            break
        chosen, fastest = size, found
    return chosen


def _rate(extractor: Extractor, recipe: Recipe, size: int) -> float:
    lane = Lane(extractor, recipe.row_dtype, size)
    try:
        seconds = lane.seconds()
    except BackboneError:
        return 0.0
    return size / seconds if lane.batch_size == size else 0.0
