"""Cross-validation: folds' predictions pooled, and the chosen configuration trained on all training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featcache.costs import Meter
from featcache.heads.catalogue import create, options
from featcache.store.cache import Cache
from featcache.store.records import HEADS
from featcache.training import fit, runs, views
from featcache.training.facts import facts_of, plain_params
from featcache.training.fit import Training
from featcache.training.predictions import Prediction, predict
from featcache.training.ranking import Configuration

SPLIT = "cv"  # the name of the pooled predictions in a run


def refit(cache: Cache, training: Training, chosen: Configuration) -> dict[str, Any]:
    """Train the configuration chosen on all training rows, store the run and return its record.

    Nothing is held out, so nothing can stop a training early: a head that is trained by epochs gets the mean
    of its folds' best epochs, rounded, and no patience. Of several seeds the first is taken. The run's
    predictions "cv" are those of this seed's folds, each row predicted by the head that did not see it; its
    record's `cv` has their metrics and `folds`, `seed`, `mean` and `sd` of the folds' accuracies, and `runs`.
    """
    own = _first_seed(chosen)
    params = {**training.params, **chosen.values, **_epochs(training.head, own)}
    head = create(training.head, **params)
    facts = {
        "folds": own[0]["subset"]["folds"],
        "seed": own[0]["subset"]["seed"],
        "mean": chosen.mean("val", "accuracy"),
        "sd": chosen.deviation("val", "accuracy"),
        "runs": [record["run"] for record in chosen.records],
    }
    training = replace(training, test=False, subset=None)
    known = _known(cache, training, plain_params(head), facts)
    return known or _train(cache, training, head, facts, pooled(cache, own))


def pooled(cache: Cache, records: Sequence[Mapping[str, Any]]) -> Prediction:
    """Return the validation predictions of the runs of all folds as one, in the order of the rows."""
    folders = [runs.folder_of(cache.path, record["run"]) for record in records]
    found = [runs.read_predictions(*each) for each in zip(folders, records, strict=True)]
    rows, labels, proba = (
        np.concatenate([each[f"val/{name}"] for each in found]) for name in ("row", "label", "proba")
    )
    order = np.argsort(rows)
    seconds = sum(record["val"]["predict_seconds"] for record in records)
    return Prediction(SPLIT, rows[order], labels[order], proba[order], seconds)


def _first_seed(chosen: Configuration) -> list[dict[str, Any]]:
    """Return the first run of each fold."""
    first: dict[int, dict[str, Any]] = {}
    for record in chosen.records:
        first.setdefault(record["subset"]["fold"], record)
    return list(first.values())


def _epochs(kind: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if "epochs" not in options(kind):
        return {}
    mean = float(np.mean([record["best_epoch"] for record in records]))
    return {"epochs": max(1, round(mean)), "patience": None}


def _known(
    cache: Cache, training: Training, params: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the run that was made of the same folds' runs before, if any."""
    folders = sorted((cache.path / HEADS).glob(f"{training.head}-*/{runs.RUN}"))
    for record in runs.readable(path.parent for path in folders):
        cv = record.get(SPLIT)
        if cv and record["params"] == params and cv["runs"] == facts["runs"] and record["key"] == cache.key:
            return record
    return None


def _train(
    cache: Cache, training: Training, head: Any, facts: Mapping[str, Any], folds: Prediction
) -> dict[str, Any]:
    with Meter() as meter:
        table, val = fit.read_tables(cache, training)
        drawn = views.drawn_of(table, views.resolved(cache, training.head, training.view_mode))
        with meter.fitting():
            head.fit(table.selection, table.labels, **({"views": drawn} if drawn else {}))
    run = runs.new_id(training.head)
    whole = facts_of(cache, training, run, head, table, meter.costs(reads="features"))
    found = [folds] + ([predict(head, val)] if val is not None else [])
    trained = fit.store(cache, runs.folder_of(cache.path, run), {**whole, SPLIT: facts}, head, found)
    return trained.record
