"""What a run's record says of a head: what it was asked to be, and what was measured while it was fitted."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from featcache.costs import Costs
from featcache.heads.base import Head
from featcache.store.cache import Cache
from featcache.store.table import Table
from featcache.training import subsets, views
from featcache.version import VERSION

if TYPE_CHECKING:
    from featcache.training.fit import Training

LIBRARIES = ("torch", "numpy", "scikit-learn")  # whose versions a run records


def context_of(cache: Cache, node: str) -> dict[str, Any]:
    """Return what a head must be told to refuse features it was not trained on."""
    return {
        "fingerprint": cache.recipe.fingerprint,
        "node": node,
        "columns": cache.columns[node],
        "classes": list(cache.classes),
        "backbone": cache.recipe.backbone,
    }


def begun(cache: Cache, training: Training, head: Head) -> dict[str, Any]:
    """Return what is known of a run before it is trained."""
    return {
        "dataset": cache.record["dataset"]["name"],
        "cache": cache.name,
        "backbone": cache.recipe.backbone,
        "node": cache.node(training.node),
        "head": training.head,
        "params": plain_params(head),
        "split": {key: value for key, value in training.split_options().items() if key != "node"},
        "subset": subsets.to_record(training.subset),
        "views": views.to_record(cache, training.head, training.view_mode),
    }


def facts_of(
    cache: Cache, training: Training, run: str, head: Head, table: Table, spent: Costs
) -> dict[str, Any]:
    """Return what a run's record says of a head that was fitted to `table`, without metrics."""
    return {
        **begun(cache, training, head),
        "run": run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "key": cache.key,
        "node": table.node,
        "columns": table.columns,
        "train_rows": len(table),
        "epochs": getattr(head, "n_epochs_", None),
        "best_epoch": getattr(head, "best_epoch_", None),
        "calibration": None,
        "fit_seconds": round(spent.fit_seconds or 0.0, 4),
        "peak_rss_bytes": spent.peak_ram_bytes or 0,
        "costs": spent.to_record(),
        "notes": list(getattr(head, "notes_", ())),
        "versions": {"featcache": VERSION, **{name: metadata.version(name) for name in LIBRARIES}},
    }


def plain_params(head: Head) -> dict[str, Any]:
    """Return all options of a head as a run's record holds them."""
    params = head.get_params(deep=False)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
