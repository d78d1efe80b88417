"""Which samples a run got right, in one order for several runs, so that they can be compared row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DamagedError, RunError
from featcache.store.cache import Cache
from featcache.store.roster import Roster, open_rows
from featcache.training import runs
from featcache.training.intervals import Hits
from featcache.training.subsets import from_record

Sample = tuple[str, bytes, str]  # id, content hash, name of the true class


@dataclass(frozen=True)
class Scored:
    """A run on one split: which sample each row is, and whether the head got it right (N,)."""

    run: str
    head: str
    cache: str
    subset: str | None  # of the training rows, in words; None: all of them
    samples: Sequence[Sample]
    right: Hits


def read_scored(folders: Sequence[Path], records: Sequence[Mapping[str, Any]], split: str) -> list[Scored]:
    """Return each run's stored predictions on a split, all in the first one's order of samples.

    Raises:
        RunError: the runs were not evaluated on the same samples: ids, contents and classes.
        DamagedError: a run or a plan differs from what was written.
    """
    caches = {path: open_rows(path) for path in {folder.parent.parent for folder in folders}}
    found = [
        _scored(caches[folder.parent.parent], folder, record, split)
        for folder, record in zip(folders, records, strict=True)
    ]
    return [found[0], *(_aligned(found[0], other) for other in found[1:])]


def _scored(cache: Cache | Roster, folder: Path, record: Mapping[str, Any], split: str) -> Scored:
    stored = runs.read_predictions(folder, record)
    try:
        rows, labels, proba = (stored[f"{split}/{name}"] for name in ("row", "label", "proba"))
    except KeyError as error:
        raise DamagedError(f"{folder / runs.PREDICTIONS} lacks {error}.", "Train the head again.") from None
    samples = _samples(cache, rows, labels)
    subset = from_record(record.get("subset"))
    words, right = None if subset is None else str(subset), proba.argmax(axis=1) == labels
    return Scored(record["run"], record["head"], cache.name, words, samples, right)


def _samples(cache: Cache | Roster, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> list[Sample]:
    plan, classes = cache.plan, cache.classes
    there = len(rows) > 0 and rows.min() >= 0 and rows.max() < len(plan)
    if not there or not np.array_equal(plan.labels[rows], labels):
        raise DamagedError(
            f"A run in {cache.path} does not fit the plan there: other rows or labels.",
            "Train the head again.",
        )
    return [
        (plan.ids[row], plan.hashes[row].tobytes(), classes[label])
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True)
    ]


def _aligned(first: Scored, other: Scored) -> Scored:
    """Return `other` in the order of `first`."""
    if other.samples == first.samples:
        return other
    place = {sample: number for number, sample in enumerate(other.samples)}
    order = [place[sample] for sample in first.samples if sample in place]
    if not len(order) == len(first.samples) == len(other.samples):
        raise _different(first, other)
    return replace(other, samples=first.samples, right=other.right[order])


def _different(first: Scored, other: Scored) -> RunError:
    a, b = ({sample[0]: sample for sample in each.samples} for each in (first, other))
    common = a.keys() & b.keys()
    changed = sorted(name for name in common if a[name] != b[name])
    counts = f"{len(a)} and {len(b)} rows, {len(common)} of the same id"
    if changed:
        counts += f", {len(changed)} of these with another image or class, such as {changed[0]}"
    return RunError(
        f"{first.run} and {other.run} were not evaluated on the same rows: {counts}.",
        "Compare runs of one data set; on val, those trained with the same --val-fraction, --split-seed and "
        "--split-mode, and no single folds.",
    )
