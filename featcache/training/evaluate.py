"""Evaluate a run: load the head from disk, predict every split it was not trained on, and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache import metrics
from featcache.errors import RunError
from featcache.heads import saving
from featcache.store.cache import Cache
from featcache.store.table import Table, has_split
from featcache.training import calibrated, fit, runs, views
from featcache.training.predictions import Prediction, predict
from featcache.training.subsets import from_record


def evaluate(folder: Path, test_views: bool = False) -> dict[str, Any]:
    """Return a run's record with `val` and `test` metrics, per-class tables and confusion matrices.

    The head is loaded from its file and refused if the cache beside it is not the one it was trained on.
    Test metrics that the run did not have yet are added to it and to the ledger. With `test_views` they are
    those of probabilities averaged over the views of each test image; what a run has already stays.

    Raises:
        HeadError: the head does not belong to the cache.
        DamagedError: the head or a shard is damaged.
        RunError: there is nothing to evaluate on.
    """
    record = runs.read_run(folder)
    cache = Cache(folder.parent.parent)
    data = runs.read_file(folder, record, runs.HEAD)
    saving.check_fit(
        saving.context_of(data),
        fingerprint=cache.recipe.fingerprint,
        node=record["node"],
        columns=cache.columns.get(record["node"], 0),
        classes=cache.classes,
    )
    head = saving.loads(data)
    tables = _tables(cache, record, test_views)
    if not tables:
        raise RunError(
            f"{cache.name} has neither a validation nor a test split.", "Train with --val-fraction .2."
        )
    predictions = [predict(head, table) for table in tables.values()]
    if "test" in tables and record["test"] is None:
        done = calibrated.add_test(record.get("calibration"), head, tables["test"], predictions[-1])
        record = fit.add_test(cache, folder, record, predictions[-1], done)
    elif "test" in tables and record["test"].get("views", 1) != predictions[-1].views:
        record = {**record, "test": predictions[-1].summary(cache.classes)}
    return {**record, "details": {found.split: _details(found, cache.classes) for found in predictions}}


def _tables(cache: Cache, record: Mapping[str, Any], test_views: bool) -> dict[str, Table]:
    """Return the tables there are to evaluate a run on: the rows that it was validated with, and test."""
    subset = from_record(record.get("subset"))
    training = fit.Training(record["head"], node=record["node"], **record["split"], subset=subset)
    val = fit.read_tables(cache, training)[1]
    tables = {} if val is None else {"val": val}
    if test_views:
        views.check_test(cache)
    if has_split(cache, "test"):
        tables["test"] = cache.table("test", **training.split_options(), views=views.shown(test_views))
    return tables


def _details(found: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "per_class": metrics.per_class(found.labels, found.proba, classes),
        "confusion": metrics.confusion_matrix(found.labels, found.proba).tolist(),
    }
