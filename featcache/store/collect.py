"""Doing it: what litter and retention found is looked at once more, and removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featcache import atomic
from featcache.errors import CacheError, FeatcacheError
from featcache.store import records
from featcache.store.cache import Cache
from featcache.store.litter import own_files, still_orphan
from featcache.store.removal import Item, fold, folders_in, is_folder, remove


@dataclass
class Collected:
    """What was removed, and what was left after all."""

    bytes: int = 0
    removed: list[Path] = field(default_factory=list)
    left: dict[Path, str] = field(default_factory=dict)  # path → why


def collect(items: Iterable[Item], copies: Mapping[Path, Path]) -> Collected:
    """Remove what was found, as far as it is still as it was found.

    Args:
        items: what `litter` and `choose` returned.
        copies: cache that goes → the one that has its rows, which is read whole before.

    Raises:
        CacheError: a file may not be removed.
    """
    done = Collected()
    for item in items:
        why = _changed(item, copies)
        if why:
            done.left[item.path] = why
            continue
        try:
            done.bytes += _remove_cache(item) if item.kind == "cache" else sum(map(remove, item.files))
            fold(item.folders)
        except OSError as error:
            raise CacheError(
                f"Cannot remove {item.path}: {error.strerror or error}.",
                "What was not removed is as it was; check the folder's permissions.",
            ) from error
        done.removed.append(item.path)
        if item.kind in ("cache", "remains") and is_folder(item.path):
            done.left[item.path] = "featcache's files are gone; the folder stays for what others put into it"
    return done


def _changed(item: Item, copies: Mapping[Path, Path]) -> str:
    """Return why an item has to stay after all."""
    if item.kind == "orphan shard" and not all(map(still_orphan, item.files)):
        return "it was committed since"
    if item.kind == "cache":
        if own_files(item.path) != item.files or any(folders_in(item.path / records.HEADS)):
            return "it changed since it was looked at"
        if item.path in copies:
            return _why_no_copy(copies[item.path])
    return ""


def _why_no_copy(path: Path) -> str:
    """Return why a cache cannot stand in for another; every byte of it is read."""
    try:
        cache = Cache(path)
        wrong = next((why for _, why in cache.verify() if why), "")
        return wrong or ("" if cache.sealed() is not None else f"{path.name} is not finished")
    except FeatcacheError as error:
        return error.message


def _remove_cache(item: Item) -> int:
    """Remove a cache; power may fail on the way, and what is then left is an unfinished cache, or none."""
    visible = [
        file for file in item.files if file.path.suffix == ".json" and file.path.name != records.RECIPE
    ]
    freed = sum(map(remove, visible))
    for folder in (item.path / records.COMMITS, item.path):
        if is_folder(folder):
            atomic.settle(folder)
    return freed + sum(remove(file) for file in item.files if file not in visible)
