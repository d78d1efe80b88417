"""A point of a learning curve: what the best configuration reaches with so many training rows."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.store.cache import Cache
from featcache.training.chosen import tested
from featcache.training.ranking import Configuration
from featcache.training.subsets import Size


@dataclass(frozen=True)
class Point:
    """A size of the training rows, and its configurations, the best on the validation split first."""

    size: Size
    configurations: list[Configuration]

    @property
    def best(self) -> Configuration:
        """The configuration chosen for this size."""
        return self.configurations[0]

    @property
    def rows(self) -> float | None:
        """Training rows, the mean over the trials."""
        return self.best.mean("train_rows")

    @property
    def trials(self) -> int:
        """How many draws of the rows there are."""
        return self.best.subsets

    def tested(self, cache: Cache) -> Point:
        """Evaluate the chosen configuration's heads on the test split, each once, and no other head."""
        records = [tested(cache, record) for record in self.best.records]
        chosen = Configuration(self.best.values, records, self.best.failures)
        return Point(self.size, [chosen, *self.configurations[1:]])
