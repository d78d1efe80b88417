"""How files become part of a cache: its folders, its recipe, and shards, each made visible by a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache import atomic
from featcache.store import keeping, records, sharing
from featcache.store.records import Commit


def prepare(cache: Path, settled: bool = True) -> bool:
    """Make a cache's folders, or their names durable where another process has just made them.

    Args:
        cache: its folder.
        settled: whether to make durable what is in it; if not, whoever calls does so before it goes on.

    Returns:
        Whether only this process may write.

    Raises:
        SpaceError, CacheError: they cannot be made, or another process writes where only one may.
    """
    for folder in (cache.parent, cache):
        atomic.make_folder(folder)
    for folder in (cache / records.SHARDS, cache / records.COMMITS):
        atomic.make_folder(folder, settled)
    return sharing.admit(cache)


def publish_recipe(cache: Path, record: bytes, alone: bool) -> bool:
    """Write a cache's recipe; return False if another process was first.

    Raises:
        SpaceError, CacheError: as `keeping.publish_once`.
    """
    return keeping.publish_once(cache / records.RECIPE, record, alone)


def publish_shard(cache: Path, commit: Commit, data: Sequence[memoryview], alone: bool) -> bool:
    """Write a shard, then the record that makes it visible; return False if another process was first.

    Raises:
        SpaceError, CacheError: one cannot be written; nothing half-written is visible.
    """
    path = cache / records.SHARDS / commit.file
    keeping.write(path, data)
    won = keeping.publish_once(cache / records.COMMITS / f"{commit.shard}.json", commit.to_bytes(), alone)
    if won and not keeping.there(path):  # held up for so long between the two that gc took it for an orphan
        keeping.write(path, data)
    return won
