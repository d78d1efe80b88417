"""A small cache with a run whose truth is known, and the readers that look at every byte of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featcache import atomic
from featcache.heads import saving
from featcache.heads.catalogue import create
from featcache.store import records
from featcache.store.cache import Cache
from featcache.training import runs
from featcache.training.facts import context_of
from tests.kit_caches import empty_cache, features

COUNTS = {"train": 12, "val": 4, "test": 6}
WIDTH, ROWS_PER_SHARD = 16, 6
RUN = "ridge-0123abcd"


def start(folder: Path, counts: dict[str, int] | None = None, **options: Any) -> Cache:
    """Return an empty cache."""
    return empty_cache(folder, counts or COUNTS, {"flatten": WIDTH}, ROWS_PER_SHARD, **options)


def commit_all(cache: Cache, order: Callable[[list[Any]], None] = lambda parts: None) -> None:
    """Commit what is missing, in an order of one's own, and seal."""
    parts = cache.todo()
    order(parts)
    for part in parts:
        cache.commit(part, {"flatten": features(part.rows, WIDTH)})
    cache.seal()


def head_bytes(cache: Cache) -> bytes:
    """Return a fitted head of a cache."""
    table = cache.table("train")
    head = create("ridge").fit(table.X.astype(np.float32), table.y)
    head.fit_seconds_ = 0.5
    return saving.dumps(head, context_of(cache, "flatten"))


PREDICTIONS = {
    f"val/{name}": array
    for name, array in {
        "row": np.arange(12, 16),
        "label": np.arange(4) % 3,
        "proba": np.eye(4, 3, dtype=np.float32),
    }.items()
}
HISTORY = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]


def facts(cache: Cache) -> dict[str, Any]:
    """Return what a run's record says."""
    measures = dict.fromkeys(("accuracy", "top5", "macro_f1", "log_loss", "ece"), 0.5)
    split = {"val_fraction": 0.2, "split_seed": 42, "split_mode": "random"}
    return {
        "run": RUN,
        "created": "2026-01-01T00:00:00+00:00",
        "cache": cache.name,
        "key": cache.key,
        "dataset": "toys",
        "backbone": "resnet18",
        "node": "flatten",
        "columns": WIDTH,
        "head": "ridge",
        "params": {"alpha": 1.0},
        "split": split,
        "val": {**measures, "worst_class": {"class": "ape", "f1": 0.5}},
        "test": None,
        "epochs": None,
        "best_epoch": None,
        "fit_seconds": 0.5,
        "notes": [],
    }


def write_run(cache: Cache, head: bytes) -> None:
    """Store a run."""
    runs.write_run(runs.folder_of(cache.path, RUN), facts(cache), head, HISTORY, PREDICTIONS)


def check_rows(cache: Cache, counts: dict[str, int] | None = None) -> None:
    """Read every table and compare it with the truth; AssertionError means a wrong row without an error."""
    first = 0
    for split, count in (counts or COUNTS).items():
        table = cache.table(split, val_fraction=0)
        rows = np.arange(first, first + count)
        assert np.array_equal(table.rows, rows), "rows"
        assert np.array_equal(table.X, features(rows, WIDTH)), "features"
        assert np.array_equal(table.y, rows % 3), "labels"
        assert table.ids == [f"{split}/{row:06d}.png" for row in rows.tolist()], "ids"
        first += count
    assert cache.classes == ("ape", "bee", "cat")


def check_run(cache: Cache, head: bytes) -> None:
    """Read everything of the run and compare it with what was written."""
    folder = runs.folder_of(cache.path, RUN)
    record = runs.read_run(folder)
    assert {name: record[name] for name in facts(cache)} == facts(cache)
    assert runs.read_file(folder, record, runs.HEAD) == head
    assert saving.dumps(saving.loads(folder / runs.HEAD), context_of(cache, "flatten")) == head
    assert runs.read_file(folder, record, runs.HISTORY) == b"epoch,loss\n1,0.5\n2,0.25\n"
    found = runs.read_predictions(folder, record)
    assert set(found) == set(PREDICTIONS)
    assert all(np.array_equal(found[name], array) for name, array in PREDICTIONS.items())


def temporaries(folder: Path) -> list[Path]:
    """Return what writers left behind."""
    return sorted(folder.rglob(f"{atomic.TEMPORARY}*"))


def committed(folder: Path) -> set[str]:
    """Return the names of the shards whose commit record is there."""
    return {path.stem for path in folder.glob(f"*/{records.COMMITS}/*.json")}
