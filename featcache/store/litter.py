"""What dead processes and caches that are gone leave behind: it can always go, no committed row is in it.

Only names that featcache itself gives are looked at, in the places where it puts them: a file of somebody
else's, a link, or another features folder inside is not seen at all.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

from featcache import atomic
from featcache.errors import FeatcacheError
from featcache.store import records
from featcache.store.recent import FOLDER, USED
from featcache.store.removal import Item, Seen, folders_in, is_folder, listed, look
from featcache.store.sharing import MARK

REST = 86_400.0
"""Seconds a file must have been at rest, where a process that is at work might still need it."""

CACHE_NAME = re.compile(r"[A-Za-z0-9._-]+--[A-Za-z0-9._-]+--[0-9a-f]{10}")
_MEMORY = ("requests", "batches", "speeds", "begun", "studies", "contents", USED)
_BY_CACHE = ("claims", "extractions")


def litter(features_dir: Path, rest: float = REST) -> list[Item]:
    """Return what can go from a features folder without any cache losing a row.

    Temporaries of processes of this machine that are dead go at once, all else only when it was at rest:
    between a shard's name and its commit record lies a moment, however long a writer is held up in it.

    Args:
        features_dir: the folder of the caches.
        rest: seconds since the last change.
    """
    since = time.time() - rest
    caches = caches_in(features_dir)
    found = [item for folder in _places(features_dir, caches) for item in _temporaries(folder, since)]
    for cache in caches:
        found += [*_marks(cache), *_orphans(cache, since)]
    names = {cache.name for cache in caches}
    found += _claims(features_dir, names, since)
    found += _forgotten(features_dir, names, since)
    return [*found, *_remains(features_dir, since)]


def caches_in(features_dir: Path) -> list[Path]:
    """Return the folders of all caches, in order of name; links to caches elsewhere are none."""
    return [folder for folder in folders_in(features_dir) if look(folder / records.RECIPE) is not None]


def _places(features_dir: Path, caches: list[Path]) -> Iterator[Path]:
    """Yield the folders that files are written to."""
    yield features_dir
    kept = features_dir / FOLDER
    yield kept
    for name in _MEMORY:
        yield kept / name
    for name in _BY_CACHE:
        yield from folders_in(kept / name)
    for cache in caches:
        yield from (cache, cache / records.SHARDS, cache / records.COMMITS)
        for run in folders_in(cache / records.HEADS):
            yield from (run, run / "checkpoints")


def _marks(cache: Path) -> Iterator[Item]:
    """Yield the mark of a dead process that alone might write into a cache."""
    file = look(cache / MARK)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if file is not None and atomic.left_by(file.path.read_text()[:200]) == atomic.DEAD:
            yield Item("temporary", file.path, "the process that wrote here is dead", (file,))


def _temporaries(folder: Path, since: float) -> Iterator[Item]:
    for file in listed(folder):
        left = atomic.left_by(file.path.name)
        if left == atomic.DEAD:
            yield Item("temporary", file.path, "the process that wrote it is dead", (file,))
        elif left == atomic.ELSEWHERE and file.newest < since:
            yield Item("temporary", file.path, "another machine left it, long ago", (file,))


def _orphans(cache: Path, since: float) -> Iterator[Item]:
    for file in listed(cache / records.SHARDS):
        name = file.path.name
        if records.FILE_NAME.fullmatch(name) and file.newest < since:
            why = _why_orphan(cache, name)
            if why:
                yield Item("orphan shard", file.path, why, (file,))


def _why_orphan(cache: Path, name: str) -> str:
    """Return why nobody needs a shard's file, "" where its commit record names it or cannot be read."""
    path = cache / records.COMMITS / f"{name.rpartition('-')[0]}.json"
    try:
        return "" if records.read_commit(path).file == name else "another file was committed in its place"
    except FileNotFoundError:
        return "it was never committed"
    except FeatcacheError:
        return ""  # verify --repair decides


def still_orphan(file: Seen) -> bool:
    """Look again, right before it is removed, whether nobody needs a shard's file."""
    return bool(_why_orphan(file.path.parent.parent, file.path.name))


def _claims(features_dir: Path, caches: set[str], since: float) -> Iterator[Item]:
    for folder in folders_in(features_dir / FOLDER / "claims"):
        files = [file for file in listed(folder) if records.SHARD_NAME.fullmatch(file.path.name)]
        gone = folder.name not in caches
        done = not gone and look(features_dir / folder.name / records.SEAL) is not None
        stale = tuple(file for file in files if gone or done or file.newest < since)
        why = (
            "the cache is gone" if gone else "the cache is finished" if done else "whoever claimed it is gone"
        )
        if stale:
            yield Item("claims", folder, why, stale, (folder,))


def _forgotten(features_dir: Path, caches: set[str], since: float) -> Iterator[Item]:
    """Yield what is remembered of caches that are gone."""
    kept = features_dir / FOLDER
    for folder in folders_in(kept / "extractions"):
        files = tuple(file for file in listed(folder) if file.path.suffix == ".json" and file.newest < since)
        if folder.name not in caches and files:
            yield Item("memory", folder, "the cache is gone", files, (folder,))
    for file in (*listed(kept / "begun"), *listed(kept / USED)):
        cache = file.path.name.removesuffix(".json") if file.path.parent.name == "begun" else file.path.name
        if CACHE_NAME.fullmatch(cache) and cache not in caches and file.newest < since:
            yield Item("memory", file.path, "the cache is gone", (file,))
    for file in listed(kept / "requests"):
        if file.newest < since and _leads_nowhere(file.path, caches):
            yield Item("memory", file.path, "the cache it leads to is gone", (file,))


def _leads_nowhere(path: Path, caches: set[str]) -> bool:
    try:
        return str(records.read(path)["cache"]) not in caches
    except (OSError, KeyError, FeatcacheError):
        return False


def _remains(features_dir: Path, since: float) -> Iterator[Item]:
    """Yield folders named like a cache that hold parts of one, but no recipe: a removal cut short."""
    for folder in folders_in(features_dir):
        if not CACHE_NAME.fullmatch(folder.name) or look(folder / records.RECIPE) is not None:
            continue
        if (folder / records.RECIPE).exists() or is_folder(folder / records.HEADS):
            continue
        files, own = own_files(folder), [path for path in folders_of(folder) if is_folder(path)]
        if all(file.newest < since for file in files) and all(path.lstat().st_ctime < since for path in own):
            yield Item("remains", folder, "parts of a cache without its recipe", files, folders_of(folder))


def own_files(cache: Path) -> tuple[Seen, ...]:
    """Return a cache's own files in the order in which they can go: what is left is always a cache, or none.

    First the seal, then what makes shards visible, the shards, the recipe, and the plan.
    """
    seal, recipe, plan = (look(cache / name) for name in (records.SEAL, records.RECIPE, records.PLAN))
    commits = [
        file
        for file in listed(cache / records.COMMITS)
        if file.path.suffix == ".json" and records.SHARD_NAME.fullmatch(file.path.stem)
    ]
    shards = [file for file in listed(cache / records.SHARDS) if records.FILE_NAME.fullmatch(file.path.name)]
    return tuple(file for file in (seal, *commits, *shards, recipe, plan) if file is not None)


def folders_of(cache: Path) -> tuple[Path, ...]:
    """Return a cache's own folders, innermost first."""
    return cache / records.SHARDS, cache / records.COMMITS, cache / records.HEADS, cache
