"""The configurations of a sweep in order: mean and deviation of their validation metrics over their runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Configuration:
    """One point of the grid: its values, the records of its runs, and what failed.

    There is a run for each seed, and where rows are drawn or dealt in folds, for each seed and subset.
    """

    values: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def mean(self, *where: str) -> float | None:
        """Return the mean over the runs of a number in their records, e.g. ("val", "accuracy")."""
        values = self._numbers(self.records, *where)
        return statistics.fmean(values) if values else None

    def deviation(self, *where: str) -> float | None:
        """Return the sample standard deviation (n - 1), None for fewer than two numbers.

        It is taken over the seeds, or where there are several subsets of the rows over these, each with the
        mean over its seeds.
        """
        groups = [self._numbers(group, *where) for group in self._by_subset()]
        values = [statistics.fmean(group) for group in groups if group]
        values = groups[0] if len(groups) == 1 else values
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def best(self) -> dict[str, Any] | None:
        """The record of the run with the best validation accuracy, of equal ones the least log-loss."""
        return min(
            self.records,
            key=lambda record: (-record["val"]["accuracy"], record["val"]["log_loss"]),
            default=None,
        )

    @property
    def subsets(self) -> int:
        """On how many subsets of the training rows there are runs; all of them count as one."""
        return len(self._by_subset())

    def _by_subset(self) -> list[list[dict[str, Any]]]:
        subsets: list[Any] = []
        groups: list[list[dict[str, Any]]] = []
        for record in self.records:
            subset = record.get("subset")
            if subset not in subsets:
                subsets.append(subset)
                groups.append([])
            groups[subsets.index(subset)].append(record)
        return groups

    def _numbers(self, records: Iterable[dict[str, Any]], *where: str) -> list[float]:
        values: list[Any] = list(records)
        for key in where:
            values = [value[key] for value in values if value is not None]
        return [float(value) for value in values if value is not None]


def ranked(
    members: Iterable[tuple[dict[str, Any], dict[str, Any] | None, str | None]],
) -> list[Configuration]:
    """Return configurations from (values, record or None, failure or None) of each head, the best first.

    Best is the highest mean validation accuracy, of equal ones the least mean log-loss, then the order
    given. A configuration of which a seed failed comes behind those that are whole.
    """
    found: list[Configuration] = []
    for values, record, failure in members:
        own = next((known for known in reversed(found) if known.values == values), None)
        if own is None:
            own = Configuration(values)
            found.append(own)
        own.records += [record] if record else []
        own.failures += [failure] if failure else []
    return sorted(found, key=_rank)


def _rank(configuration: Configuration) -> tuple[bool, float, float]:
    accuracy, loss = configuration.mean("val", "accuracy"), configuration.mean("val", "log_loss")
    return (
        bool(configuration.failures),
        math.inf if accuracy is None else -accuracy,
        math.inf if loss is None else loss,
    )
