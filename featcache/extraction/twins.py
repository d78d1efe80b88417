"""Images that a data set holds more than once: computed once, copied within the cache.

Whoever needs a row that equals another byte for byte takes it from a shard that is committed, or that this
very process has begun before and so will commit first. What another process has in hand is not waited for:
then the image is computed twice, and nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.siblings import Rows
from featcache.store import records
from featcache.store.cache import Cache
from featcache.store.contents import NOWHERE, Contents
from featcache.store.plan import Plan, ShardPlan
from featcache.store.records import Commit


class Twins:
    """Where in a cache itself the row of an equal image is.

    Args:
        plan: of the cache.
        shards: all that are planned, in order.
        cache: the cache; None where there is none yet.
        check: whether to read the shards that rows are to be copied from.
    """

    def __init__(
        self, plan: Plan, shards: Sequence[ShardPlan], cache: Cache | None, check: bool = True
    ) -> None:
        self._cache, self._shards, self._check = cache, list(shards), check
        self._groups = Contents(plan.hashes).repeated()
        self._of = {row: number for number, rows in enumerate(self._groups) for row in rows.tolist()}
        self._firsts = np.array([part.first for part in self._shards], dtype=np.int64)
        self._begun: set[str] = set()  # shards that this process makes
        self._done: dict[str, Commit] = {}
        if self._groups and cache is not None:
            self._done = cache.commits()
        self._committed = None if cache is None else Rows(cache, list(self._done.values()))

    def begin(self, part: ShardPlan) -> None:
        """Take note that this process makes a shard: shards begun later may copy from it."""
        if self._groups:
            self._begun.add(part.name)

    def of(self, part: ShardPlan, needed: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Return (place, row) of the images of a shard that need not be computed.

        Args:
            part: the shard.
            needed: (n,) whether the image in this place of it has nothing else to be copied from.

        Returns:
            The place in the shard, and the row of the plan that is the same image: of another shard, or one
            that stands before it in this one.
        """
        found: list[tuple[int, int]] = []
        here: dict[int, int] = {}  # group → the first row of it in this shard
        if not self._groups:
            return found
        for place, row in enumerate(range(part.first, part.stop)):
            group = self._of.get(row)
            if group is None:
                continue
            first = here.setdefault(group, row)
            if needed[place]:
                other = first if first != row else self._elsewhere(group, part)
                if other != NOWHERE:
                    found.append((place, other))
        return found

    def before(self, rows: Iterable[int]) -> set[str]:
        """Return the shards of rows that this process has begun itself: they must be committed first."""
        return {name for row in rows if (name := self._part(row).name) in self._begun}

    def read(self, rows: NDArray[np.int64], node: str) -> NDArray[np.floating]:
        """Return view 0 of rows (n,) of committed shards: (n, D).

        Raises:
            DamagedError: a shard differs from what was committed.
        """
        return Rows(self._whole(), self._commits(rows)).read(rows, node, 1)[:, 0]

    def bad(self, rows: NDArray[np.int64]) -> dict[int, str]:
        """Return why some of the rows of committed shards could not be read."""
        return {row: why for commit in self._commits(rows) for row, why in commit.bad if row in rows}

    def _elsewhere(self, group: int, part: ShardPlan) -> int:
        """Return the first equal row of a shard that is committed, or will be before this one."""
        for row in self._groups[group].tolist():
            other = self._part(row)
            if other.name == part.name:
                continue
            if other.name in self._begun:
                return int(row)
            commit = self._done.get(other.name)
            if commit is not None and row not in dict(commit.bad) and self._is_sound(row):
                return int(row)
        return NOWHERE

    def _is_sound(self, row: int) -> bool:
        return not self._check or (
            self._committed is not None and bool(self._committed.sound(np.array([row]))[0])
        )

    def _part(self, row: int) -> ShardPlan:
        return self._shards[int(np.searchsorted(self._firsts, row, side="right")) - 1]

    def _commits(self, rows: NDArray[np.int64]) -> list[Commit]:
        folder = self._whole().path / records.COMMITS
        return [
            records.read_commit(folder / f"{name}.json")
            for name in sorted({self._part(row).name for row in rows.tolist()})
        ]

    def _whole(self) -> Cache:
        if self._cache is None:
            raise ValueError("There is no cache to read from.")
        return self._cache
