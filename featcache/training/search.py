"""Which configurations a sweep tries: all points of a grid, or some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from featcache.errors import OptionError
from featcache.training.grid import Grid, Range, combinations, drawn, ranges
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
    """All points of a grid, or `random` of them.

    Raises:
        OptionError: there is a range, and no number of points.
    """

    def __init__(self, grid: Grid, random: int | None = None, seed: int = 0) -> None:
        wide = ranges(grid)
        if wide and random is None:
            name = next(iter(wide))
            raise OptionError(
                f"{name} is a range, {wide[name]}: it has no end of values.",
                f"Say how many to try with --random N or --optuna N, or list them: {name}=…,….",
            )
        if wide:
            self._points = drawn(grid, random or 1, seed)
        else:
            lists = {name: values for name, values in grid.items() if not isinstance(values, Range)}
            self._points = list(combinations(lists, random, seed))
        self.count = len(self._points)

    def ask(self) -> list[dict[str, Any]]:
        """Return all points, and then none."""
        points, self._points = self._points, []
        return points

    def tell(self, found: Sequence[Configuration]) -> None:
        """Learn nothing."""
