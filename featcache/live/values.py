"""What is told of a run elsewhere: options as plain values, epochs and results as named numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Plain = str | int | float | bool

_NAMED = ("dataset", "cache", "backbone", "node", "head")
_EPOCH = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/val",
    "lr": "epoch/lr",
    "seconds": "epoch/seconds",
}
_METRICS = ("accuracy", "top5", "macro_precision", "macro_recall", "macro_f1", "log_loss", "ece")
_COSTS = (
    "fit_seconds",
    "predict_seconds",
    "peak_ram_bytes",
    "peak_gpu_bytes",
    "parameters_trained",
    "parameters",
    "disk_bytes",
)


def options(facts: Mapping[str, Any]) -> dict[str, Plain]:
    """Return all options of a run by name: its head's as they are, others after what they are of."""
    found: dict[str, Plain] = {name: str(facts[name]) for name in _NAMED if facts.get(name)}
    for lead, values in (("", "params"), ("split.", "split"), ("rows.", "subset"), ("views.", "views")):
        for name, value in (facts.get(values) or {}).items():
            found[f"{lead}{name}"] = _plain(value)
    return found


def epoch(row: Mapping[str, Any]) -> dict[str, float]:
    """Return an epoch's numbers by name; what is unknown is left out."""
    return _known({tag: row.get(name) for name, tag in _EPOCH.items()})


def results(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what came of a run by name: metrics of every split it saw, and its costs."""
    found: dict[str, Any] = {}
    for split in ("cv", "val", "test"):
        metrics = record.get(split) or {}
        found |= {f"{split}/{name}": metrics.get(name) for name in _METRICS}
    costs = record.get("costs") or {}
    found |= {f"cost/{name}": costs.get(name) for name in _COSTS}
    return _known({**found, "best_epoch": record.get("best_epoch")})


def _known(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _plain(value: Any) -> Plain:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return "-".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
