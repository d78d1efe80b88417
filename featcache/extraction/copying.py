"""Views that another finished cache of the same images has already: they are copied, the others computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DamagedError, FeatcacheError
from featcache.extraction.request import versions
from featcache.recipe import FORMAT, Recipe
from featcache.store.cache import Cache
from featcache.store.folders import caches_in
from featcache.store.plan import ShardPlan
from featcache.store.quantised import name_of
from featcache.store.records import Commit
from featcache.store.shard import FEATURES

Bad = tuple[int, str]


class Share:
    """Which views of a cache's rows are computed, and which are copied from another finished cache.

    Args:
        cache: the cache to fill.
        source: a finished cache of the same images with views that it shares, see `source_of`.
    """

    def __init__(self, cache: Cache, source: Cache | None = None) -> None:
        self._cache, self._source = cache, source
        self._commits: list[Commit] = []
        if source is not None:
            self._commits = sorted(source.commits().values(), key=lambda commit: commit.first)
        self._sound: dict[str, bool] = {}

    def new(self, part: ShardPlan) -> range:
        """Return the views of a shard's rows that have to be computed; those before them are copied."""
        views = self._cache.recipe.views_in(part.split)
        return range(self._copied(part) if self._source is not None else 0, views)

    def bad(self, part: ShardPlan) -> list[Bad]:
        """Return the rows of a shard, with reasons, that the other cache could not read."""
        return [bad for commit in self._of(part) for bad in commit.bad if part.first <= bad[0] < part.stop]

    def rows(self, part: ShardPlan, node: str, copied: int) -> NDArray[np.floating]:
        """Return the first `copied` views of a shard's rows, (n, copied, D), out of the other cache.

        Raises:
            DamagedError: a shard of it differs from what was committed.
        """
        alone = len(self._cache.columns) == 1
        found = []
        for commit in self._of(part):
            whole = self._blocks(commit)[name_of(FEATURES, node, alone)].map()
            own = slice(max(part.first, commit.first) - commit.first, part.stop - commit.first)
            found.append(whole.reshape(len(whole), -1, whole.shape[-1])[own, :copied])
        rows: NDArray[np.floating] = np.concatenate(found)
        return rows

    def _copied(self, part: ShardPlan) -> int:
        """Return how many views can be copied: none where a shard of the other cache is damaged."""
        source = self._source
        if source is None or not all(self._is_sound(commit) for commit in self._of(part)):
            return 0
        return shared(self._cache.recipe, source.recipe, part.split)

    def _of(self, part: ShardPlan) -> list[Commit]:
        return [each for each in self._commits if each.first < part.stop and part.first <= each.last]

    def _is_sound(self, commit: Commit) -> bool:
        if commit.shard not in self._sound:
            try:
                self._blocks(commit)
                self._sound[commit.shard] = True
            except DamagedError:
                self._sound[commit.shard] = False
        return self._sound[commit.shard]

    def _blocks(self, commit: Commit) -> Mapping[str, Any]:
        if self._source is None:
            raise DamagedError("There is no cache to copy from.")
        return self._source.blocks(commit)


def shared(recipe: Recipe, other: Recipe, split: str) -> int:
    """Return how many views of a split's rows two recipes that differ in their views alone have in common."""
    same = recipe.views is not None and other.views is not None and recipe.views.same_draws(other.views)
    return min(recipe.views_in(split), other.views_in(split)) if same else 1


def source_of(cache: Cache) -> Cache | None:
    """Return the finished cache that views can be copied from into a cache, see `nearest`."""
    dataset = cache.record["dataset"]["fingerprint"]
    return nearest(cache.path.parent, cache.recipe, dataset, cache.key, cache.plan.counts())


def nearest(
    features_dir: Path, recipe: Recipe, dataset: str, key: str, counts: Mapping[str, int]
) -> Cache | None:
    """Return the finished cache of the same images that has most of the views asked for already, if any.

    Its recipe differs in the views alone; caches in int8 have nothing to give, for the scales
    are a shard's own. A cache without views is always computed.

    Args:
        features_dir: where the caches are.
        recipe: the recipe asked for.
        dataset: the data set's fingerprint.
        key: of the cache asked for.
        counts: rows of each split.
    """
    if recipe.views is None or recipe.store_dtype == "int8":
        return None
    found = [
        (views_shared(recipe, other.recipe, counts), other)
        for other in _finished(features_dir)
        if other.key != key
        and other.record["dataset"]["fingerprint"] == dataset
        and plain(other.recipe) == plain(recipe)
    ]
    return max(found, key=lambda pair: (pair[0], pair[1].name), default=(0, None))[1]


def _finished(features_dir: Path) -> Iterator[Cache]:
    for folder in caches_in(features_dir):
        try:
            cache = Cache(folder)
            if cache.recipe and cache.sealed() is not None:
                yield cache
        except FeatcacheError:
            continue  # a damaged cache has nothing to give


def views_shared(recipe: Recipe, other: Recipe, counts: Mapping[str, int]) -> int:
    """Return how many views of all rows two recipes have in common, for the number of rows of each split."""
    return sum(count * shared(recipe, other, split) for split, count in counts.items())


def plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as if it had no views."""
    return {**asdict(recipe), "views": None, "format": FORMAT}


def passes_left(cache: Cache, parts: Sequence[ShardPlan]) -> int:
    """Return how many images have to go through the backbone for the shards left, views included."""
    share = Share(cache, source_of(cache))
    return sum(len(part) * len(share.new(part)) for part in parts)


def notes_of(cache: Cache) -> list[str]:
    """Return what is worth knowing about what is copied into a cache that is not finished."""
    source = source_of(cache)
    if source is None:
        return []
    count = views_shared(cache.recipe, source.recipe, cache.plan.counts())
    notes = [f"{source.name} has {count} of the views already: they are copied."]
    then, now = source.record["versions"], versions()
    if other := sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name)):
        notes.append(
            f"It was made with other versions of {', '.join(other)}: whether its rows and ours are of one "
            f"kind, featcache doctor --drift {source.name} says."
        )
    return notes
