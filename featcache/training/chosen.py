"""What is made of a run that a sweep has chosen: its numbers on the test split, and a calibrated copy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from featcache.errors import CacheError
from featcache.heads import saving
from featcache.store.cache import Cache
from featcache.store.records import HEADS
from featcache.training import calibrated, fit, runs
from featcache.training.evaluate import evaluate
from featcache.training.predictions import predict
from featcache.training.subsets import from_record

_SAME = ("key", "node", "head", "params", "split")
_OWN = ("format", "files", "cv")  # of a record, what a copy has of its own


def tested(cache: Cache, record: dict[str, Any]) -> dict[str, Any]:
    """Return a run's record with its metrics on the test split, evaluating the head if it was not yet."""
    if record["test"] is not None:
        return record
    folder = runs.folder_of(cache.path, record["run"])
    evaluate(folder)
    return runs.read_run(folder)


def calibrated_copy(cache: Cache, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run like this one but calibrated on validation rows; the head is not trained.

    Where there is one already, made by this function or trained so, that is it.
    """
    folders = sorted((cache.path / HEADS).glob(f"{record['head']}-*/{runs.RUN}"))
    for there in runs.readable(path.parent for path in folders):
        same = all(there.get(name) == record[name] for name in _SAME)
        rows = all(there.get(name) == record.get(name) for name in ("subset", "views"))
        if same and rows and there["calibration"] is not None:
            return there
    folder = runs.folder_of(cache.path, record["run"])
    head = saving.loads(runs.read_file(folder, record, runs.HEAD))
    subset = from_record(record.get("subset"))
    training = fit.Training(record["head"], node=record["node"], **record["split"], subset=subset)
    val = fit.read_tables(cache, training)[1]
    if val is None:
        raise CacheError(f"{cache.name} has no validation rows to calibrate on.", "Give --val-fraction .2.")
    done, notes = calibrated.calibrate(head, val)
    facts = {name: value for name, value in record.items() if name not in _OWN}
    facts |= {
        "run": runs.new_id(record["head"]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "calibration": done,
        "notes": [*record["notes"], f"Calibrated copy of {record['run']}.", *notes],
    }
    return fit.store(
        cache, runs.folder_of(cache.path, facts["run"]), facts, head, [predict(head, val)]
    ).record
