"""The figures that a study may report of a system: what they are called, and where ours stand in a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featcache.errors import OptionError, unknown

WORST_CLASS = "worst_class"


@dataclass(frozen=True)
class Figure:
    """A figure: its title in a table, what it means, its unit, and ours in a run's record (None: unknown).

    `unit` is "share" (0 to 1), "number", "seconds", "gigabytes", "epoch" or "class" (a name).
    """

    title: str
    about: str
    unit: str
    ours: Callable[[Mapping[str, Any]], Any]


def _of_split(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: (record.get("test") or record.get("val") or {}).get(name)


def _of_val(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: (record.get("val") or {}).get(name)


def _cost(name: str, unit: float = 1.0) -> Callable[[Mapping[str, Any]], Any]:
    def found(record: Mapping[str, Any]) -> Any:
        value = (record.get("costs") or {}).get(name)
        return None if value is None else value / unit

    return found


def _epoch_seconds(record: Mapping[str, Any]) -> Any:
    return record["fit_seconds"] / record["epochs"] if record.get("epochs") else None


def _worst_class(record: Mapping[str, Any]) -> Any:
    return (_of_split(WORST_CLASS)(record) or {}).get("class")


FIGURES: dict[str, Figure] = {
    "accuracy": Figure("accuracy", "share of rows that are right", "share", _of_split("accuracy")),
    "log_loss": Figure("log-loss", "mean cross-entropy, in nats", "number", _of_split("log_loss")),
    "macro_precision": Figure("macro precision", "mean over classes", "number", _of_split("macro_precision")),
    "macro_recall": Figure("macro recall", "mean over classes", "number", _of_split("macro_recall")),
    "macro_f1": Figure("macro F1", "mean over classes", "number", _of_split("macro_f1")),
    "worst_class": Figure("worst class", "the class with the least F1", "class", _worst_class),
    "val_log_loss": Figure("log-loss on val", "on the validation rows", "number", _of_val("log_loss")),
    "best_epoch": Figure("best epoch", "from 1", "epoch", lambda record: record.get("best_epoch")),
    "fit_seconds": Figure("fit", "wall clock", "seconds", lambda record: record.get("fit_seconds")),
    "epoch_seconds": Figure("an epoch", "wall clock, mean", "seconds", _epoch_seconds),
    "predict_seconds": Figure("predict", "of the split", "seconds", _of_split("predict_seconds")),
    "ram_gb": Figure("RAM", "peak of the process", "gigabytes", _cost("peak_ram_bytes", 1e9)),
    "gpu_gb": Figure("GPU memory", "peak of tensors", "gigabytes", _cost("peak_gpu_bytes", 1e9)),
}
"""Every figure, by the name that study files, JSON and CSV know it by.

Of the test split where the run has seen it, else of the validation split, unless the title says otherwise.
"""


def ours(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return all figures of a run's record; unknown is None."""
    return {name: figure.ours(record) for name, figure in FIGURES.items()}


def checked(figures: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return reported figures, each known and possible.

    Raises:
        OptionError: one is unknown, or its value is none that it can have.
    """
    for name, value in figures.items():
        if name not in FIGURES:
            error = unknown("key", name, FIGURES)
            raise OptionError(f"{error.message[:-1]} in {where}.", error.hint)
        if (expected := _refused(FIGURES[name].unit, value)) is not None:
            raise OptionError(f"{name} cannot be {value!r} in {where}: expected {expected}.")
    return dict(figures)


def _refused(unit: str, value: Any) -> str | None:
    """Return what was expected of a value that cannot be, None where it can."""
    if unit == "class":
        return None if isinstance(value, str) and value else "a name"
    number = type(value) in (int, float) and math.isfinite(value) and value >= 0
    if unit == "epoch":
        return None if number and type(value) is int else "a whole number"
    if unit == "share":
        return None if number and value <= 1 else "a number from 0 to 1"
    return None if number else "a number of at least 0"
