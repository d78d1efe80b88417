"""Which whole caches may go on request, and why others may not.

A cache may go if nothing needs it and it could be had again: it has no runs, nobody is at work in it, and its
rows are in another finished cache or can be computed from images that are still there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import FeatcacheError
from featcache.store import records
from featcache.store.cache import Cache
from featcache.store.litter import REST, caches_in, folders_of, litter, own_files
from featcache.store.recent import FOLDER, USED
from featcache.store.removal import Item, Seen, folders_in, look

WhyLast = Callable[[Cache], str]
"""Says why a cache could not be computed again, "" where it can."""


@dataclass
class Held:
    """A cache as retention sees it: its files, when it was last used, whether it is finished."""

    path: Path
    files: tuple[Seen, ...]
    used: float  # s since the epoch
    changed: float
    cache: Cache | None  # None: it cannot be read
    finished: bool
    runs: int

    @property
    def bytes(self) -> int:
        """The size of its files but those of runs."""
        return sum(file.freed for file in self.files)

    @cached_property
    def rows(self) -> NDArray[np.void]:
        """The content hash of every image that could be read, sorted, each once: (N,) of 16 bytes.

        Raises:
            DamagedError: the plan or a commit record is damaged.
        """
        hashes = np.empty((0, 16), np.uint8) if self.cache is None else np.array(self.cache.plan.hashes)
        bad = [row for one in self.cache.commits().values() for row, _ in one.bad] if self.cache else []
        good = np.delete(hashes, bad, axis=0)
        return np.unique(np.ascontiguousarray(good).view(np.dtype((np.void, 16))).reshape(-1))


@dataclass(frozen=True)
class Wish:
    """What is to go, besides litter.

    Attributes:
        older_than: caches that were not used for so many seconds.
        max_size: of what was used longest ago as much as is over so many bytes.
        unfinished: caches that were never finished.
        superseded: caches all of whose rows another finished cache of the same recipe has.
    """

    older_than: float | None = None
    max_size: int | None = None
    unfinished: bool = False
    superseded: bool = False


@dataclass
class Choice:
    """What may go, and what was wished for and may not: cache → why."""

    items: list[Item] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    copies: dict[Path, Path] = field(default_factory=dict)  # cache that goes → the one that has its rows
    left: int = 0  # bytes of the caches that stay


def find(features_dir: Path, wish: Wish, why_last: WhyLast, rest: float = REST) -> tuple[list[Item], Choice]:
    """Return all that goes, litter and chosen caches, and the choice; nothing is named twice."""
    choice = choose(features_dir, wish, why_last, rest)
    going = {item.path for item in choice.items}
    left = [item for item in litter(features_dir, rest) if not going & {item.path, *item.path.parents}]
    return [*left, *choice.items], choice


def held(features_dir: Path) -> list[Held]:
    """Return all caches of a features folder, the one used longest ago first."""
    return sorted((_held(path) for path in caches_in(features_dir)), key=lambda one: (one.used, one.path))


def _held(path: Path) -> Held:
    files = own_files(path)
    mark = look(path.parent / FOLDER / USED / path.name)
    changed = max((file.newest for file in files), default=0.0)
    runs = sum(1 for _ in folders_in(path / records.HEADS))
    used = changed if mark is None else max(changed, mark.newest)
    try:
        cache = Cache(path)
        finished = cache.sealed() is not None
    except FeatcacheError:
        return Held(path, files, used, changed, None, False, runs)
    return Held(path, files, used, changed, cache, finished, runs)


def choose(features_dir: Path, wish: Wish, why_last: WhyLast, rest: float = REST) -> Choice:
    """Return which caches go and which of those wished away stay.

    Args:
        features_dir: the folder of the caches.
        wish: what is to go.
        why_last: says why a cache could not be computed again.
        rest: an unfinished cache that changed within so many seconds may have a process at work in it.
    """
    now, choice = time.time(), Choice()
    staying = held(features_dir)
    choice.left = sum(one.bytes for one in staying)
    for one in list(staying):
        why = _wished(one, wish, staying, now, choice.left)
        if not why:
            continue
        others = [other for other in staying if other is not one]
        copy = _copy(one, others)
        hindrance = (
            "it has the rows of a cache that goes"
            if one.path in choice.copies.values()
            else _hindrance(one, copy, why_last, now - rest)
        )
        if hindrance:
            choice.kept[one.path.name] = hindrance
            continue
        staying = others
        choice.left -= one.bytes
        if copy is not None:
            choice.copies[one.path] = copy.path
        choice.items.append(Item("cache", one.path, why, one.files, folders_of(one.path)))
    return choice


def _wished(one: Held, wish: Wish, staying: Sequence[Held], now: float, left: int) -> str:
    """Return why a cache is to go, "" where it is not."""
    if wish.unfinished and one.cache is not None and not one.finished:
        return "unfinished"
    if wish.superseded and (copy := _copy(one, [other for other in staying if other is not one])):
        return f"all its rows are in {copy.path.name}"
    if wish.older_than is not None and now - one.used > wish.older_than:
        return f"not used for {(now - one.used) / 86_400:.1f} days"
    if wish.max_size is not None and left > wish.max_size:
        return "used longest ago, and there is too much"
    return ""


def _copy(one: Held, others: Iterable[Held]) -> Held | None:
    """Return another finished cache of the same recipe that has all rows of this one."""
    if one.cache is None:
        return None
    for other in others:
        same = other.cache is not None and other.cache.recipe.fingerprint == one.cache.recipe.fingerprint
        try:
            if same and other.finished and bool(np.isin(one.rows, other.rows).all()):
                return other
        except FeatcacheError:
            continue  # a plan that cannot be read is no plan of a copy
    return None


def _hindrance(one: Held, copy: Held | None, why_last: WhyLast, since: float) -> str:
    if one.runs:
        return f"{one.runs} runs of it need it" if one.runs > 1 else "1 run of it needs it"
    if one.cache is None:
        return "it is damaged: see featcache verify"
    if not one.finished and one.changed > since:
        return "it is unfinished and changed lately: a process may be at work in it"
    why = "" if copy is not None else why_last(one.cache)
    return f"it may be the last copy: {why}" if why else ""
