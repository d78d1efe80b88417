"""What need not be computed: rows that finished caches of the same recipe have, and images that are equal.

One question, asked once for every shard: which views of which rows can be copied, and from where? What is
left is computed. Rows are found by the content of their images, so that it does not matter what an image is
called, which class and split it is in, or which data set it was met in first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.siblings import Sibling, siblings
from featcache.extraction.twins import Twins
from featcache.extraction.views import Wanted
from featcache.recipe import Recipe
from featcache.store.cache import Cache
from featcache.store.plan import Plan, ShardPlan

Features = dict[str, NDArray[np.floating]]
"""Node → (n, V, D)."""


@dataclass(frozen=True)
class Copy:
    """Rows of a shard whose first views are copied from one cache."""

    sibling: Sibling
    places: NDArray[np.int64]  # in the shard
    rows: NDArray[np.int64]  # in the other cache
    views: int


@dataclass(frozen=True)
class Division:
    """What of a shard is computed, and what is copied from where."""

    wanted: list[Wanted]
    copies: list[Copy] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)  # (place, row), see `Twins.of`
    after: frozenset[str] = frozenset()  # shards of this cache that must be committed first

    @property
    def copied(self) -> int:
        """How many views are copied."""
        return len(self.twins) + sum(len(copy.places) * copy.views for copy in self.copies)

    @property
    def left(self) -> int:
        """How many views are computed."""
        return sum(len(one.rows) * len(one.views) for one in self.wanted)


class Share:
    """Which views of a cache's rows are computed, and which are copied.

    Args:
        recipe: of the cache.
        plan: its plan.
        shards: all that are planned.
        cache: the cache; None where there is none yet.
        sources: finished caches of the same recipe, see `siblings`; the first that has most views of an image
            gives them.
        check: whether a shard is read and compared with its hash before anything is planned to come from it;
            if not, nothing can be copied, only counted.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        shards: Sequence[ShardPlan],
        cache: Cache | None = None,
        sources: Sequence[Sibling] = (),
        check: bool = True,
    ) -> None:
        self._recipe, self._plan, self._sources, self._check = recipe, plan, list(sources), check
        self._twins = Twins(plan, shards, cache, check)
        self._divided: dict[str, Division] = {}
        self.copied = 0  # views of the shards that were asked for
        self.left: dict[str, int] = {}  # views that are computed, by the name of such a shard

    def of(self, part: ShardPlan) -> Division:
        """Return what of a shard is computed and what copied; decided when it is first asked for."""
        if part.name not in self._divided:
            self._divided[part.name] = division = self._divide(part)
            self._twins.begin(part)
            self.copied += division.copied
            self.left[part.name] = division.left
        return self._divided[part.name]

    def wanted(self, part: ShardPlan) -> list[Wanted]:
        """Return the rows of a shard that are to be computed, with the views of each."""
        return self.of(part).wanted

    def fill(self, part: ShardPlan, rows: Features, bad: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Put what is copied into a shard of which the rest is there, and zeros for bad images.

        Args:
            part: the shard.
            rows: node → (n, V, D).
            bad: (row, reason) of the images that could not be read.

        Returns:
            The same with the images that equal one of these, in order.

        Raises:
            DamagedError: a shard that was whole before has changed.
        """
        division, lost = self._divided.pop(part.name), dict(bad)
        for copy in division.copies:
            for node, whole in rows.items():
                whole[copy.places, : copy.views] = copy.sibling.rows.read(copy.rows, node, copy.views)
        pairs = np.array(division.twins, dtype=np.int64).reshape(-1, 2)
        here = (part.first <= pairs[:, 1]) & (pairs[:, 1] < part.stop)
        other, own = pairs[~here], pairs[here]
        if len(other):
            for node, whole in rows.items():
                whole[other[:, 0], 0] = self._twins.read(other[:, 1], node)
            why = self._twins.bad(other[:, 1])
            lost |= {part.first + place: why[row] for place, row in other.tolist() if row in why}
        for whole in rows.values():
            whole[own[:, 0], 0] = whole[own[:, 1] - part.first, 0]
        lost |= {part.first + place: lost[row] for place, row in own.tolist() if row in lost}
        for whole in rows.values():
            whole[[row - part.first for row in lost]] = 0
        return sorted(lost.items())

    def _divide(self, part: ShardPlan) -> Division:
        count = len(part)
        most = self._recipe.views_in(part.split)
        source, where = np.full(count, -1), np.zeros(count, dtype=np.int64)
        views = np.zeros(count, dtype=np.int64)
        for number, sibling in enumerate(self._sources):
            if (views == most).all():
                break
            rows, there = sibling.offers(self._recipe, self._plan, part)
            better = np.flatnonzero(there > views)
            if self._check and len(better):
                better = better[sibling.rows.sound(rows[better])]
            source[better], where[better], views[better] = number, rows[better], there[better]
        copies = [
            Copy(self._sources[number], places, where[places], count)
            for (number, count), places in _grouped(source, views)
            if count
        ]
        twins = self._twins.of(part, views == 0)
        after = self._twins.before(row for _, row in twins if not part.first <= row < part.stop)
        views[[place for place, _ in twins]] = 1
        wanted = [
            Wanted(part.first + places, range(count, most))
            for (count,), places in _grouped(views)
            if count < most
        ]
        return Division(wanted, copies, twins, frozenset(after))


def _grouped(*values: NDArray[np.int64]) -> list[tuple[tuple[int, ...], NDArray[np.int64]]]:
    """Return (values, places) of the places (n,) that have the same values, by value."""
    pairs = np.stack(values, axis=1)
    return [
        (tuple(pair.tolist()), np.flatnonzero((pairs == pair).all(axis=1)))
        for pair in np.unique(pairs, axis=0)
    ]


def share_of(cache: Cache, sources: Sequence[Sibling] | None = None, check: bool = True) -> Share:
    """Return what of a cache need not be computed, from the caches beside it unless others are given."""
    found = siblings_of(cache) if sources is None else sources
    return Share(cache.recipe, cache.plan, cache.shards(), cache, found, check)


def siblings_of(cache: Cache) -> list[Sibling]:
    """Return the finished caches beside a cache that rows can be copied from, the best first."""
    return siblings(cache.path.parent, cache.recipe, cache.key, cache.record["dataset"]["fingerprint"])


@dataclass
class Expected:
    """What is expected of some shards before a byte of the other caches was read, in views of images."""

    left: int = 0  # to be computed
    twins: int = 0  # copied from an equal image
    copied: int = 0  # copied, twins among them
    sources: dict[str, int] = field(default_factory=dict)  # copied, by the name of the other cache
    others: dict[str, list[str]] = field(default_factory=dict)  # libraries that it has other versions of

    def notes(self) -> list[str]:
        """Return what is worth knowing about what is copied."""
        notes = []
        if self.sources:
            names = ", ".join(f"{count} from {name}" for name, count in self.sources.items())
            notes.append(f"Copied, not computed: {names}; {self.left} left to compute.")
        if self.twins:
            notes.append(f"{self.twins} equal another image byte for byte and are computed once.")
        for name, libraries in self.others.items():
            notes.append(
                f"{name} was made with other versions of {', '.join(libraries)}: whether its rows and ours "
                f"are of one kind, featcache doctor --drift {name} says."
            )
        return notes


def expected(share: Share, parts: Iterable[ShardPlan]) -> Expected:
    """Return what is expected of some shards, by a share that checks nothing."""
    found = Expected()
    for part in parts:
        division = share.of(part)
        found.left += division.left
        found.twins += len(division.twins)
        found.copied += division.copied
        for copy in division.copies:
            name = copy.sibling.name
            found.sources[name] = found.sources.get(name, 0) + len(copy.places) * copy.views
            if libraries := copy.sibling.other_versions:
                found.others[name] = libraries
    return found


def expected_of(
    cache: Cache, parts: Sequence[ShardPlan], sources: Sequence[Sibling] | None = None
) -> Expected:
    """Return what is expected of the shards left of a cache, from the caches beside it."""
    return expected(share_of(cache, sources, check=False), parts)


def passes_left(cache: Cache, parts: Sequence[ShardPlan]) -> int:
    """Return how many images have to go through the backbone for the shards left, views included."""
    return expected_of(cache, parts).left
