"""Which configurations a sweep tries: all points of a grid, or some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from featcache.training.grid import Grid, combinations
from featcache.training.ranking import Configuration


class Search(Protocol):
    """What suggests configurations: asked for some, told what became of them, until none is left."""

    count: int  # configurations in all

    def ask(self) -> list[dict[str, Any]]:
        """Return the values of the next configurations, which may be trained together; none at the end."""
        ...

    def tell(self, found: Sequence[Configuration]) -> None:
        """Take what became of those last asked for."""
        ...


class Points:
    """All points of a grid, or `random` of them."""

    def __init__(self, grid: Grid, random: int | None = None) -> None:
        self._points = list(combinations(grid, random))
        self.count = len(self._points)

    def ask(self) -> list[dict[str, Any]]:
        """Return all points, and then none."""
        points, self._points = self._points, []
        return points

    def tell(self, found: Sequence[Configuration]) -> None:
        """Learn nothing."""
