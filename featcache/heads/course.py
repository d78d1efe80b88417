"""The course of one head's training: its epochs so far, early stopping, and the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featcache.errors import HeadError
from featcache.heads.state import Settings
from featcache.stopping import EarlyStopping


class Course:
    """What one head has been through; `add` an epoch after the other until it is `done`.

    `history` has a row of metrics an epoch; `best` the weights of the best epoch, where one is selected.
    """

    def __init__(self, settings: Settings, validates: bool) -> None:
        self.settings = settings
        self.validates = validates
        self.stopping = EarlyStopping(settings.monitor, settings.patience, settings.min_delta)
        self.history: list[dict[str, Any]] = []
        self.best: list[Tensor] | None = None

    @property
    def selects(self) -> bool:
        """Whether validation chooses the epoch whose weights are kept; otherwise the last epoch's are."""
        return self.validates and self.settings.patience is not None

    @property
    def done(self) -> bool:
        """Whether the epochs are done or the patience is used up."""
        return len(self.history) >= self.settings.epochs or (self.selects and self.stopping.should_stop)

    @property
    def best_epoch(self) -> int:
        """The epoch (1-based) whose weights are kept: the best by validation, or else the last."""
        return self.stopping.best_epoch if self.selects else len(self.history)

    def add(self, metrics: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
        """Take the metrics of an epoch and the weights after it, which are copied if they are the best.

        Raises:
            HeadError: a loss is no longer a number.
        """
        self._check(metrics)
        row = {**metrics, "lr": self.settings.lr}
        self.history.append(row)
        better = self.validates and self.stopping.update(row["epoch"], row[self.settings.monitor])
        if better and self.selects:
            self.best = [parameter.clone() for parameter in parameters]

    def kept(self, parameters: Sequence[Tensor]) -> list[NDArray[np.float32]]:
        """Return copies of the weights to keep: the best epoch's, or those given where nothing selects."""
        return [array(value) for value in (self.best if self.best is not None else parameters)]

    def _check(self, metrics: Mapping[str, Any]) -> None:
        for name in ("train_loss", "val_loss"):
            if metrics[name] is not None and not math.isfinite(metrics[name]):
                raise HeadError(
                    f"{name} became {metrics[name]} in epoch {metrics['epoch']} "
                    f"with lr={self.settings.lr:g}.",
                    "Take a smaller lr" + (", or standardise." if not self.settings.standardize else "."),
                )


def array(tensor: Tensor) -> NDArray[Any]:
    """Return a copy of a tensor of any device as an array."""
    return np.array(tensor.cpu().numpy())
