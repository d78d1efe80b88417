"""Early stopping: when to stop, and which epoch was best."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featcache.errors import OptionError

MONITORS = {"val_loss": -1.0, "val_accuracy": 1.0}  # the sign that makes larger better


@dataclass
class EarlyStopping:
    """Stop after `patience` epochs in a row that improve `monitor` by no more than `min_delta`.

    The rule is that of Keras and Lightning: an epoch counts as better only if it beats the best
    one so far by more than `min_delta`. `patience=None` never stops but still names the best epoch.

    Raises:
        OptionError: the monitor is unknown, or patience or min_delta is negative.
    """

    monitor: str = "val_loss"
    patience: int | None = 5
    min_delta: float = 1e-3
    best: float = -math.inf  # of sign * value
    best_epoch: int = 0
    waited: int = 0

    def __post_init__(self) -> None:
        if self.monitor not in MONITORS:
            raise OptionError(f"Unknown monitor {self.monitor!r}.", f"Known: {', '.join(MONITORS)}.")
        if self.patience is not None and self.patience < 1:
            raise OptionError(f"patience must be at least 1, got {self.patience}.")
        if self.min_delta < 0:
            raise OptionError(f"min_delta must not be negative, got {self.min_delta}.")

    def update(self, epoch: int, value: float) -> bool:
        """Take the value of an epoch (1-based); return whether it is the best so far.

        A value that is not a number is never the best.
        """
        score = MONITORS[self.monitor] * value
        if score > self.best + self.min_delta or (self.best == -math.inf and not math.isnan(score)):
            self.best, self.best_epoch, self.waited = score, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience
