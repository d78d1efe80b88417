"""Predictions of a head on a table, with a probability for every class of the data set, and their metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import metrics
from featcache.heads.base import Head
from featcache.heads.scoring import probabilities_of
from featcache.store.table import Table


@dataclass(frozen=True)
class Prediction:
    """Probabilities of one split.

    `proba` is (N, C) float32 over the classes of the data set; a class the head never saw has 0.
    """

    split: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    proba: NDArray[np.float32]
    seconds: float
    views: int = 1  # that each probability is the mean over

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays as they are stored."""
        names: dict[str, NDArray[Any]] = {"row": self.rows, "label": self.labels, "proba": self.proba}
        return {f"{self.split}/{name}": array for name, array in names.items()}

    def ece(self) -> float:
        """Return the expected calibration error, 0..1."""
        return metrics.expected_calibration_error(self.labels, self.proba)

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the metrics of the split and the seconds it took to predict."""
        found = metrics.summary(self.labels, self.proba, classes)
        views = {"views": self.views} if self.views > 1 else {}
        return {**found, "predict_seconds": round(self.seconds, 4), **views}


def predict(head: Head, table: Table) -> Prediction:
    """Return the head's probabilities on a table; of one with every view the mean over a sample's views."""
    begin = time.perf_counter()
    known = head.predict_proba(table.selection)
    return _prediction(head, table, known, time.perf_counter() - begin)


def predict_all(heads: Sequence[Head], table: Table) -> list[Prediction]:
    """Return what `predict` returns for each of several heads; the time is each one's equal share.

    Raises:
        HeadError: they do not standardise alike (see `probabilities_of`).
    """
    begin = time.perf_counter()
    known = probabilities_of(heads, table.selection)
    share = (time.perf_counter() - begin) / max(1, len(heads))
    return [_prediction(head, table, proba, share) for head, proba in zip(heads, known, strict=True)]


def _prediction(head: Head, table: Table, known: NDArray[Any], seconds: float) -> Prediction:
    views = table.views if table.every_view else 1
    proba = np.zeros((len(table), len(table.classes)), dtype=np.float32)
    proba[:, head.classes_.astype(np.int64)] = known.reshape(len(table), views, -1).mean(axis=1)
    return Prediction(table.split, table.rows, table.y, proba, seconds, views)
