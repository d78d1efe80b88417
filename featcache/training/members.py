"""The heads of a sweep, one for every configuration, subset of the rows and seed; which train together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.errors import OptionError
from featcache.heads.base import Head
from featcache.heads.catalogue import create
from featcache.training.subsets import Subset


@dataclass
class Member:
    """One head of a sweep: its configuration's values, its rows, and its run's record or what failed."""

    values: dict[str, Any]
    head: Head
    subset: Subset | None = None
    record: dict[str, Any] | None = None
    run: str = ""  # the id that its run will have, once it is in training
    failure: str | None = None

    @property
    def epochs(self) -> int:
        """Epochs at most, 1 for a head that is not trained by epochs."""
        return int(getattr(self.head, "epochs", 1))

    def epochs_of(self, epoch: int) -> int:
        """Return how many of them a report's epoch means; a solver's passes say nothing."""
        return min(epoch, self.epochs) if hasattr(self.head, "epochs") else 0


def members_of(
    kind: str,
    fixed: Mapping[str, Any],
    values: Iterable[dict[str, Any]],
    seeds: int,
    subsets: Sequence[Subset | None] = (None,),
) -> list[Member]:
    """Return a head of each configuration for every subset and each of `seeds` seeds.

    Raises:
        HeadError: the kind or an option is unknown, or a value has the wrong type or range.
        OptionError: several seeds are asked of a kind that draws no random numbers.
    """
    members = []
    for point in values:
        for subset in subsets:
            for number in range(seeds):
                head = create(kind, **fixed, **point)
                if seeds > 1 and not head.draws:
                    raise OptionError(
                        f"A {kind} head draws no random numbers: one seed is enough.", "Leave seeds out."
                    )
                if seeds > 1:
                    head.set_params(seed=head.get_params()["seed"] + number)
                members.append(Member(point, head, subset))
    return members


def by_subset(members: Iterable[Member]) -> dict[Subset | None, list[Member]]:
    """Return the members of each subset, subsets in the order of their first members."""
    groups: dict[Subset | None, list[Member]] = {}
    for member in members:
        groups.setdefault(member.subset, []).append(member)
    return groups


def batches(
    members: Iterable[Member], shape: tuple[int, int], classes: int, memory: int
) -> Iterator[list[Member]]:
    """Yield members that can train together on a table of `shape` (N, D), in batches of about equal size.

    A batch has as many as take `memory` bytes.
    """
    from featcache.heads.together import bytes_of, key

    groups: dict[Any, list[Member]] = {}
    for number, member in enumerate(members):
        own = key(member.head)
        groups.setdefault(("alone", number) if own is None else own, []).append(member)
    for group in groups.values():
        most = max(1, memory // bytes_of(group[0].head, shape[1], classes, shape[0]))
        count = -(-len(group) // most)
        for number in range(count):
            yield group[len(group) * number // count : len(group) * (number + 1) // count]
