"""Finished caches of the same recipe, whatever their data set: what they have of an image can be copied.

The same recipe but for its views: view 0 is the image itself in every cache, and other views of one policy,
seed and sample id are the same. Caches in int8 have nothing to give, for their scales are a shard's own: a
row taken out of one and stored in another would be rounded twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DamagedError, FeatcacheError
from featcache.extraction.request import versions
from featcache.images.sample import SPLITS
from featcache.recipe import FORMAT, Recipe
from featcache.store.cache import Cache
from featcache.store.contents import NOWHERE, Contents
from featcache.store.folders import caches_in
from featcache.store.plan import Plan, ShardPlan
from featcache.store.quantised import name_of
from featcache.store.records import SHARDS, Commit
from featcache.store.shard import FEATURES, hash_of_file


class Rows:
    """The committed rows of a cache, checked before they are used.

    Args:
        cache: the cache.
        commits: of the shards that may be read.
    """

    def __init__(self, cache: Cache, commits: Sequence[Commit]) -> None:
        self.cache = cache
        self.commits = sorted(commits, key=lambda commit: commit.first)
        self._firsts = np.array([commit.first for commit in self.commits], dtype=np.int64)
        self._blocks: dict[str, Mapping[str, Any] | None] = {}

    def sound(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows (n,) lie in a shard that is as it was committed; each is read whole once."""
        good = np.zeros(len(rows), dtype=np.bool_)
        for commit, here in self._by_shard(rows):
            good[here] = self._checked(commit) is not None
        return good

    def read(self, rows: NDArray[np.int64], node: str, views: int) -> NDArray[np.floating]:
        """Return the first views of rows (n,) of a node: (n, views, D).

        Raises:
            DamagedError: a shard differs from what was committed.
        """
        width = self.cache.columns[node]
        found = np.empty((len(rows), views, width), dtype=self.cache.row_dtype)
        name = name_of(FEATURES, node, len(self.cache.columns) == 1)
        for commit, here in self._by_shard(rows):
            blocks = self._checked(commit)
            path = self.cache.path / SHARDS / commit.file
            if blocks is None or hash_of_file(path) != commit.xxh3_128:
                raise DamagedError(f"Shard {path} changed while it was copied from.", "Extract again.")
            whole = blocks[name].map()
            found[here] = whole.reshape(len(whole), -1, width)[rows[here] - commit.first, :views]
        return found

    def _by_shard(self, rows: NDArray[np.int64]) -> list[tuple[Commit, NDArray[np.int64]]]:
        """Return which of some rows lie in which shard; those in none of them are left out."""
        which = np.searchsorted(self._firsts, rows, side="right") - 1
        found = []
        for number in np.unique(which[which >= 0]).tolist():
            commit = self.commits[number]
            here = np.flatnonzero((which == number) & (rows <= commit.last))
            if len(here):
                found.append((commit, here))
        return found

    def _checked(self, commit: Commit) -> Mapping[str, Any] | None:
        if commit.shard not in self._blocks:
            try:
                self._blocks[commit.shard] = self.cache.blocks(commit)
            except DamagedError:
                self._blocks[commit.shard] = None
        return self._blocks[commit.shard]


class Sibling:
    """A finished cache, and which of its rows another cache can have.

    Args:
        cache: finished; images that it could not read are not among its rows, they are tried again.

    Raises:
        DamagedError: its plan or a commit record is damaged.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache, self.plan, commits = cache, cache.plan, list(cache.commits().values())
        self.rows = Rows(cache, commits)
        self._bad = sorted(row for commit in commits for row, _ in commit.bad)

    @property
    def name(self) -> str:
        """The cache's name."""
        return self.cache.name

    def offers(
        self, recipe: Recipe, plan: Plan, part: ShardPlan
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for the rows of a shard which row here is the same image, and how many views can be copied.

        Args:
            recipe: of the cache that copies.
            plan: its plan.
            part: the shard.

        Returns:
            rows (n,), `NOWHERE` for images that are not here, and views (n,), 0 for those.
        """
        hashes = np.asarray(plan.hashes[part.first : part.stop])
        rows = self._contents.find(hashes)
        views = np.where(rows == NOWHERE, 0, 1)
        if recipe.views_in(part.split) > 1 and same_draws(recipe, self.cache.recipe):
            for place, row in enumerate(range(part.first, part.stop)):
                own = self._by_id.get(plan.ids[row], NOWHERE)
                if own != NOWHERE and np.array_equal(self.plan.hashes[own], hashes[place]):
                    here = self.cache.recipe.views_in(SPLITS[self.plan.splits[own]])
                    rows[place], views[place] = own, min(here, recipe.views_in(part.split))
        return rows, views

    @cached_property
    def _contents(self) -> Contents:
        return Contents(self.plan.hashes, self._bad)

    @cached_property
    def _by_id(self) -> dict[str, int]:
        bad = set(self._bad)
        return {name: row for row, name in enumerate(self.plan.ids) if row not in bad}

    @cached_property
    def other_versions(self) -> list[str]:
        """The names of the libraries that it was made with other versions of."""
        then, now = self.cache.record["versions"], versions()
        return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def same_draws(recipe: Recipe, other: Recipe) -> bool:
    """Return whether views of one number and sample id are the same under both recipes."""
    return recipe.views is not None and other.views is not None and recipe.views.same_draws(other.views)


def siblings(features_dir: Path, recipe: Recipe, key: str, dataset: str) -> list[Sibling]:
    """Return the finished caches that rows can be copied from, the best first.

    The same library versions come before others, then the same data set, then the one with most views.

    Args:
        features_dir: where the caches are.
        recipe: the recipe asked for.
        key: of the cache asked for, which is none of them.
        dataset: fingerprint of the data set asked for.
    """
    if recipe.store_dtype == "int8":
        return []
    found: list[tuple[tuple[Any, ...], Sibling]] = []
    for folder in caches_in(features_dir):
        try:
            cache = Cache(folder)
            if cache.key == key or plain(cache.recipe) != plain(recipe) or cache.sealed() is None:
                continue
            one = Sibling(cache)
        except FeatcacheError:
            continue  # a damaged cache has nothing to give
        views = cache.recipe.views.count if cache.recipe.views and same_draws(recipe, cache.recipe) else 1
        same = cache.record["dataset"]["fingerprint"] == dataset
        found.append(((bool(one.other_versions), not same, -views, one.name), one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as if it had no views."""
    return {**asdict(recipe), "views": None, "format": FORMAT}
