"""What a repair does to a cache: takes back what is damaged, so that it is computed or written again."""

from __future__ import annotations

from featcache.errors import DamagedError
from featcache.store import keeping, plan_file, records, sealed
from featcache.store.cache import Cache
from featcache.store.plan import Plan, ShardPlan


def discard_damaged_records(cache: Cache) -> None:
    """Remove commit records that cannot be read or do not fit, and the seal: those shards are todo.

    Raises:
        CacheError: the file system refuses.
    """
    planned = {part.name: part for part in cache.shards()}
    for path in sorted((cache.path / records.COMMITS).glob("*.json")):
        try:
            commit = records.read_commit(path)
            part = planned.get(commit.shard)
            good = commit.key == cache.key and part is not None and commit.fits(part.first, part.stop)
        except DamagedError:
            good = False
        if not good:
            keeping.remove(path)
            keeping.remove(cache.path / records.SEAL)
    try:
        sealed.check_sealed(cache.path, cache.key)
    except DamagedError:
        keeping.remove(cache.path / records.SEAL)


def discard(cache: Cache, part: ShardPlan) -> None:
    """Take back the commit of one damaged shard, so that it is computed again.

    Raises:
        CacheError: the file system refuses.
    """
    keeping.remove(cache.path / records.SEAL)
    keeping.remove(cache.path / records.COMMITS / f"{part.name}.json")


def restore_plan(cache: Cache, plan: Plan) -> bool:
    """Write the plan again if it is the one the cache was made with; return whether it is.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    return plan_file.restore_plan(cache.path, plan, cache.record["plan"])
