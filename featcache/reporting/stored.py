"""What a run stored of a split, checked before it is shown: its metrics and its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DamagedError
from featcache.training import runs


def check_metrics(record: Mapping[str, Any], split: str) -> None:
    """Refuse metrics that are not what a report shows; a record may come from anyone.

    Raises:
        DamagedError: one is missing or of another type.
    """
    found = record[split]
    worst = found.get("worst_class")
    whole = (
        all(_number(found.get(name)) for name in ("accuracy", "top5", "macro_f1", "log_loss", "ece"))
        and isinstance(worst, Mapping)
        and isinstance(worst.get("class"), str)
        and _number(worst.get("f1"))
        and isinstance(record.get("notes", []), list)
    )
    if not whole:
        raise DamagedError(f"The metrics of {record['run']} on {split} are not whole.", "Train it again.")


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def predictions_of(
    folder: Path, record: Mapping[str, Any], split: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return rows (N,), labels (N,) and probabilities (N, C) of a run's stored predictions on a split.

    Raises:
        DamagedError: they are missing, differ from what was written, or contradict each other.
    """
    stored = runs.read_predictions(folder, record)
    try:
        rows, labels, proba = (stored[f"{split}/{name}"] for name in ("row", "label", "proba"))
    except KeyError as error:
        raise DamagedError(f"The predictions in {folder} lack {error}.", "Train the head again.") from None
    fits = proba.ndim == 2 and len(rows) == len(labels) == len(proba) > 0
    if not fits or labels.min() < 0 or labels.max() >= proba.shape[1] or not np.isfinite(proba).all():
        raise DamagedError(f"The predictions in {folder} contradict each other.", "Train the head again.")
    return rows, labels, proba
