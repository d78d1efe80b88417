"""The configurations of a sweep in order: mean and deviation of their validation metrics over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Configuration:
    """One point of the grid: its values, the records of its runs (one a seed), and what failed."""

    values: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def mean(self, *where: str) -> float | None:
        """Return the mean over the runs of a number in their records, e.g. ("val", "accuracy")."""
        values = self._numbers(*where)
        return statistics.fmean(values) if values else None

    def deviation(self, *where: str) -> float | None:
        """Return the sample standard deviation (n - 1) over the runs, None for fewer than two."""
        values = self._numbers(*where)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def best(self) -> dict[str, Any] | None:
        """The record of the run with the best validation accuracy, of equal ones the least log-loss."""
        return min(
            self.records,
            key=lambda record: (-record["val"]["accuracy"], record["val"]["log_loss"]),
            default=None,
        )

    def _numbers(self, *where: str) -> list[float]:
        values: list[Any] = list(self.records)
        for key in where:
            values = [value[key] for value in values]
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
        if not found or found[-1].values != values:
            found.append(Configuration(values))
        found[-1].records += [record] if record else []
        found[-1].failures += [failure] if failure else []
    return sorted(found, key=_rank)


def _rank(configuration: Configuration) -> tuple[bool, float, float]:
    accuracy, loss = configuration.mean("val", "accuracy"), configuration.mean("val", "log_loss")
    return (
        bool(configuration.failures),
        math.inf if accuracy is None else -accuracy,
        math.inf if loss is None else loss,
    )
