"""Finds runs and puts those together that were evaluated on the very same rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.costs import Costs, costs_of
from featcache.errors import CacheError, FeatcacheError, OptionError, RunError
from featcache.reporting.labels import labelled
from featcache.reporting.reported import Subject, Told
from featcache.reporting.stored import check_metrics, predictions_of
from featcache.reporting.words import plain
from featcache.store.cache import Cache
from featcache.store.folders import find_cache
from featcache.store.records import HEADS
from featcache.store.roster import Roster, open_rows
from featcache.training import intervals, runs

SPLITS = ("test", "val", "cv")  # in the order of preference


@dataclass(frozen=True)
class Entry:
    """A run on one split: its record, how sure its accuracy is, and what it cost."""

    folder: Path
    record: dict[str, Any]
    split: str
    label: str  # short, and no other run on the data set has it
    classes: tuple[str, ...]
    cache: Cache | Roster | None  # None: there is none, or it cannot be read
    rows: int
    accuracy: intervals.Interval
    costs: Costs
    same_rows: str  # equal for runs that were evaluated on equal images with equal classes
    reported: Mapping[str, Any] = field(default_factory=dict)  # a study's own figures of this system

    @property
    def run(self) -> str:
        """The run's id."""
        return str(self.record["run"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The stored metrics of the split."""
        found: Mapping[str, Any] = self.record.get(self.split) or {}
        return found

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.record.get("dataset") or "unknown data set")


@dataclass(frozen=True)
class Group:
    """Runs that were evaluated on the same rows, the most accurate first."""

    dataset: str
    split: str
    rows: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Gathered:
    """All groups, the largest first, in words which runs are left out, and the study it is about, if any."""

    groups: tuple[Group, ...]
    left_out: tuple[str, ...]
    subject: Subject | None = None

    @property
    def entries(self) -> list[Entry]:
        """The runs of all groups."""
        return [entry for group in self.groups for entry in group.entries]


def folders_of(features_dir: Path, names: Sequence[str]) -> tuple[list[Path], set[Path]]:
    """Return the folders of the runs that are named, by themselves or by their cache; no name means all.

    The second is of those that were named by themselves.

    Raises:
        RunError: a name is neither a run nor a cache, or there are no runs.
        CacheError: a name stands for several caches.
    """
    if not names:
        found = list(runs.all_runs(features_dir))
        if not found:
            raise RunError(
                f"There are no runs in {features_dir}.", "Train one with: featcache train-head --head mlp."
            )
        return found, set()
    found, named = [], set()
    for name in names:
        there = _named(features_dir, name)
        named |= {path for path in there if path.name.startswith(Path(name).name)}
        found += there
    return list(dict.fromkeys(found)), named


def _named(features_dir: Path, name: str) -> list[Path]:
    try:
        return [runs.find_run(features_dir, name)]
    except RunError as error:
        no_run = error
    try:
        cache = find_cache(features_dir, name)
    except CacheError as error:
        if "runs:" in no_run.message:  # the beginning of several runs' ids
            raise no_run from None
        if "caches" in error.message:  # a part of several caches' names
            raise
        raise RunError(f"{name!r} is neither a run nor a cache.", no_run.message) from None
    found = sorted(path.parent for path in (cache / HEADS).glob(f"*/{runs.RUN}"))
    if not found:
        raise RunError(f"{cache.name} has no runs.", f"Train one: featcache train-head --cache {cache.name}.")
    return found


def gather(
    folders: Sequence[Path],
    split: str | None = None,
    *,
    named: Iterable[Path] = (),
    seed: int = 0,
    subject: Subject | None = None,
) -> Gathered:
    """Read runs and group them by the rows that they were evaluated on.

    Args:
        folders: of the runs.
        split: "test", "val" or "cv"; None takes for each data set the first that all of its runs have.
        named: folders that were asked for by name: of these a damaged one, or one without the split, is an
            error; others are left out, and so are single folds.
        seed: of the bootstrap.
        subject: the study that they are of, which names them and has figures of its own.

    Raises:
        OptionError: the split is unknown.
        RunError: no run is left.
        DamagedError: a run asked for by name is damaged.
    """
    if split is not None and split not in SPLITS:
        raise OptionError(f"Unknown split {split!r}.", f"Known: {', '.join(SPLITS)}.")
    wanted, found = set(named), []
    left_out = [] if subject is None else list(subject.missing)
    for folder in folders:
        try:
            record = runs.read_run(folder)
            subset = record.get("subset")
            if folder not in wanted and isinstance(subset, Mapping) and "fold" in subset:
                left_out.append(f"{record['run']}: a single fold of cross-validation")
                continue
            found.append((folder, record))
        except FeatcacheError as error:
            if folder in wanted:
                raise
            left_out.append(f"{folder.name}: {error.message}")
    told = {} if subject is None else subject.runs
    entries = _entries(found, split, wanted, left_out, seed, told)
    if not entries:
        raise RunError(
            "There is no run to report on: " + ("; ".join(left_out[:3]) or "none was named") + ".",
            "Train a head with a validation split, or with --test.",
        )
    return Gathered(_groups(entries), tuple(left_out), subject)


def _entries(
    found: Sequence[tuple[Path, dict[str, Any]]],
    split: str | None,
    named: set[Path],
    left_out: list[str],
    seed: int,
    told: Mapping[str, Told],
) -> list[Entry]:
    common = _common_splits([record for _, record in found])
    labels = labelled([record for _, record in found])
    entries = []
    for (folder, record), label in zip(found, labels, strict=True):
        own = split or common[str(record.get("dataset"))] or _first_split([record])
        try:
            if own is None or not record.get(own):
                raise RunError(
                    f"The run {record['run']} has no predictions on {own or 'any split'}.",
                    "Make them with: featcache evaluate RUN, or take another --split.",
                )
            said = told.get(str(record["run"]), Told(label))
            entries.append(_entry(folder, record, own, said, seed))
        except FeatcacheError as error:
            if folder in named:
                raise
            left_out.append(f"{record['run']}: {error.message}")
    return entries


def _common_splits(records: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Return for each data set the first split that all of its runs have, None where there is none."""
    names = {str(record.get("dataset")) for record in records}
    return {
        name: _first_split([record for record in records if str(record.get("dataset")) == name])
        for name in names
    }


def _first_split(records: Sequence[Mapping[str, Any]]) -> str | None:
    return next((split for split in SPLITS if all(record.get(split) for record in records)), None)


def _entry(folder: Path, record: dict[str, Any], split: str, said: Told, seed: int) -> Entry:
    check_metrics(record, split)
    rows, labels, proba = predictions_of(folder, record, split)
    cache = _cache(folder)
    classes = _classes(record, cache, proba.shape[1])
    right = proba.argmax(axis=1) == labels
    return Entry(
        folder,
        record,
        split,
        plain(said.label),
        classes,
        cache,
        len(labels),
        intervals.accuracy_interval(right, seed=seed),
        costs_of(record),
        _same_rows(record, cache, classes, rows, labels),
        said.figures,
    )


def _cache(folder: Path) -> Cache | Roster | None:
    """Return the cache that a run lies in, None where it is none or cannot be read."""
    try:
        cache = open_rows(folder.parent.parent)
        return cache if cache.classes and len(cache.plan) else None
    except (FeatcacheError, OSError, KeyError):
        return None


def _classes(record: Mapping[str, Any], cache: Cache | Roster | None, wide: int) -> tuple[str, ...]:
    known = cache.classes if cache is not None else record.get("classes")
    if isinstance(known, (list, tuple)) and len(known) == wide and all(isinstance(n, str) for n in known):
        return tuple(known)
    return tuple(f"class {number}" for number in range(wide))


def _same_rows(
    record: Mapping[str, Any],
    cache: Cache | Roster | None,
    classes: Sequence[str],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> str:
    """Return a text that only runs on equal images with equal classes share, whatever their order."""
    digest = hashlib.sha256(repr(tuple(classes)).encode("utf-8", "backslashreplace"))
    if cache is None or len(rows) == 0 or rows.min() < 0 or rows.max() >= len(cache.plan):
        digest.update(repr((record.get("key"), record["run"])).encode())  # nothing is known: it is alone
    else:
        images = np.concatenate([cache.plan.hashes[rows], labels[:, None].view(np.uint8)], axis=1)
        digest.update(np.sort(np.ascontiguousarray(images).view(f"V{images.shape[1]}").ravel()).tobytes())
    return digest.hexdigest()


def _groups(entries: Sequence[Entry]) -> tuple[Group, ...]:
    by: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        by.setdefault((entry.split, entry.same_rows), []).append(entry)
    groups = []
    for (split, _), members in by.items():
        if len({each.dataset for each in members}) > 1:  # equal images under several names
            members = [replace(e, label=f"{e.label} · {plain(e.dataset)}") for e in members]
        ordered = sorted(members, key=lambda each: (-each.accuracy.value, each.label, each.run))
        groups.append(Group(ordered[0].dataset, split, ordered[0].rows, tuple(ordered)))
    return tuple(sorted(groups, key=lambda group: (-len(group.entries), group.dataset, group.split)))
