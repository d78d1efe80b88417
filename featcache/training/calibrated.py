"""What calibrating a head did to its probabilities, as a run records it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from featcache.heads.base import Head
from featcache.store.table import Table
from featcache.training.predictions import Prediction, predict


def calibrate(head: Head, val: Table) -> tuple[dict[str, Any], list[str]]:
    """Calibrate a fitted head on the validation table; return the record of it, and notes.

    The record has `temperature`, `val` (ece_before and ece_after, 0..1) and `test`, None until `add_test`.
    """
    found = head.calibrate(val.selection, val.y)
    record = {
        "temperature": found.temperature,
        "val": {"ece_before": found.ece_before, "ece_after": found.ece_after},
        "test": None,
    }
    return record, [found.note] if found.note else []


def add_test(
    record: Mapping[str, Any] | None, head: Head, test: Table, prediction: Prediction
) -> dict[str, Any] | None:
    """Return the record of a calibration with its errors on test; `prediction` is the calibrated one."""
    if record is None:
        return None
    plain = copy(head)
    del plain.temperature_
    before, after = (each.ece() for each in (predict(plain, test), prediction))
    return {**record, "test": {"ece_before": before, "ece_after": after}}
