"""One run looked at closely: its epochs, its classes, what it confuses, how sure it is, and single rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import metrics
from featcache.errors import DamagedError, FeatcacheError
from featcache.reporting.gathering import Entry
from featcache.reporting.stored import predictions_of
from featcache.training import again, runs

BINS = 15  # of the reliability diagram, as of the expected calibration error
MISTAKES, EXAMPLES, CONFUSIONS = 12, 24, 12


@dataclass(frozen=True)
class Row:
    """A row that was predicted: which one of the plan, its image's id, and the classes."""

    row: int
    sample: str | None
    true: str
    predicted: str
    probability: float

    @property
    def right(self) -> bool:
        """Whether the prediction is right."""
        return self.true == self.predicted


@dataclass(frozen=True)
class Bin:
    """Predictions of about one confidence: from, to, how many, their mean confidence and accuracy."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Confusion:
    """How many rows of a class were taken for another, and their share of that class's rows."""

    true: str
    predicted: str
    rows: int
    share: float


@dataclass(frozen=True)
class Detail:
    """All that a report shows of one run; `history` has a list a column, and none without epochs."""

    entry: Entry
    history: dict[str, list[float | None]]
    per_class: list[dict[str, Any]]
    confusion: NDArray[np.int64]
    confusions: list[Confusion]
    bins: list[Bin]
    mistakes: list[Row]
    examples: list[Row]
    about: list[tuple[str, str]]
    commands: list[tuple[str, str]]

    @property
    def worst(self) -> str:
        """The class with the least F1 among those that have rows, and what it is confused with, in words."""
        scored = [row for row in self.per_class if row["support"]]
        worst = min(scored, key=lambda row: (row["f1"], row["class"]))
        at = [row["class"] for row in self.per_class].index(worst["class"])
        lead = f"{worst['class']} has the least F1, {worst['f1']:.3f}, of {worst['support']} rows."
        taken = _largest(self.confusion[at], at, self.entry.classes)
        for_it = _largest(self.confusion[:, at], at, self.entry.classes)
        parts = [lead]
        parts += [f"It is most often taken for {taken}."] if taken else []
        parts += [f"What is wrongly taken for it is mostly {for_it}."] if for_it else []
        return " ".join(parts)


def detail(entry: Entry, *, seed: int = 0) -> Detail:
    """Look closely at a run; `seed` chooses the examples.

    Raises:
        DamagedError: a file of the run is damaged.
    """
    rows, labels, proba = predictions_of(entry.folder, entry.record, entry.split)
    confusion = metrics.confusion_matrix(labels, proba)
    chosen, sure = proba.argmax(axis=1), proba.max(axis=1)
    wrong = np.flatnonzero(chosen != labels)
    mistakes = wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES]
    drawn = np.random.default_rng(seed).permutation(len(rows))[:EXAMPLES]
    if entry.cache is not None and len(rows) and rows.max() < len(entry.cache.plan):
        ids: Sequence[str] | None = entry.cache.plan.ids
    else:
        ids = None

    def listed(positions: NDArray[np.int64]) -> list[Row]:
        return [_row(at, rows, labels, chosen, sure, entry.classes, ids) for at in positions.tolist()]

    return Detail(
        entry,
        read_history(entry),
        metrics.per_class(labels, proba, entry.classes),
        confusion,
        confusions(confusion, entry.classes),
        reliability(labels, proba),
        listed(mistakes),
        listed(np.sort(drawn)),
        about(entry),
        commands(entry),
    )


def _row(
    at: int,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    chosen: NDArray[np.int64],
    sure: NDArray[np.float32],
    classes: Sequence[str],
    ids: Sequence[str] | None,
) -> Row:
    row = int(rows[at])
    sample = None if ids is None else ids[row]
    return Row(row, sample, classes[labels[at]], classes[chosen[at]], float(sure[at]))


def confusions(confusion: NDArray[np.int64], classes: Sequence[str]) -> list[Confusion]:
    """Return the largest entries beside the diagonal of a confusion matrix (C, C), largest first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong.ravel(), kind="stable")[:CONFUSIONS].tolist()
    support = confusion.sum(axis=1)
    pairs = [divmod(at, len(classes)) for at in order]
    return [
        Confusion(classes[i], classes[j], int(wrong[i, j]), float(wrong[i, j] / support[i]))
        for i, j in pairs
        if wrong[i, j]
    ]


def reliability(labels: NDArray[np.int64], proba: NDArray[np.float32]) -> list[Bin]:
    """Return the bins of a reliability diagram that have rows, those of the expected calibration error.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    confidence = proba.max(axis=1).astype(np.float64)
    right = proba.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, BINS + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    return [
        Bin(
            float(edges[at]),
            float(edges[at + 1]),
            int(here.sum()),
            float(confidence[here].mean()),
            float(right[here].mean()),
        )
        for at in range(BINS)
        if (here := which == at).any()
    ]


def read_history(entry: Entry) -> dict[str, list[float | None]]:
    """Return the columns of a run's history, None where a cell is empty.

    Raises:
        DamagedError: the file differs from what was written.
    """
    if runs.HISTORY not in entry.record["files"]:
        return {}
    text = runs.read_file(entry.folder, entry.record, runs.HISTORY).decode("utf-8", "replace")
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [name for name in (rows[0] if rows else {}) if name]
    try:
        return {name: [float(row[name]) if row[name] else None for row in rows] for name in names}
    except (TypeError, ValueError) as error:
        raise DamagedError(
            f"{entry.folder / runs.HISTORY} is damaged: {error}.", "Train the head again."
        ) from error


def about(entry: Entry) -> list[tuple[str, str]]:
    """Return what the run depends on, as pairs of a name and a text: head, split, recipe, versions."""
    record = entry.record
    pairs = [(name, record.get(name)) for name in ("run", "created", "cache", "dataset", "backbone", "node")]
    pairs += [("training rows", record.get("train_rows")), ("head", record["head"])]
    if isinstance(record.get("network"), Mapping):
        pairs += _flat(record["network"], "network · ")
    pairs += _flat(record["params"], "head · ")
    pairs += _flat(record["split"], "")
    if entry.cache is not None:
        pairs += _flat(entry.cache.record.get("recipe") or {}, "recipe · ")
    pairs += _flat(record.get("versions") or {}, "version of ")
    return [(name, str(value)) for name, value in pairs if value is not None]


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name} · ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            pairs += [pair for each in value for pair in _flat(each, f"{prefix}{name} · ")]
        else:
            pairs.append(
                (f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else value)
            )
    return pairs


def commands(entry: Entry) -> list[tuple[str, str]]:
    """Return what to run to have the run again, as pairs of what it does and the command line or a remark."""
    found = []
    request = {} if entry.cache is None else entry.cache.record.get("request") or {}
    if entry.cache is not None and "recipe" in entry.cache.record and request:
        found.append(("Extract the features", again.extract_command(request)))
    try:
        command, remark = again.train_command(entry.record, request)
    except (FeatcacheError, KeyError, TypeError, ValueError):
        command, remark = None, "It is not known how this run was made."
    found += [("Train", command)] if command else []
    found += [("Remark", remark)] if remark else []
    return found


def _largest(counts: NDArray[np.int64], own: int, classes: Sequence[str]) -> str:
    """Return the three classes with the most rows besides one's own, with their counts."""
    others = [
        (int(rows), name) for at, (rows, name) in enumerate(zip(counts, classes, strict=True)) if at != own
    ]
    most = sorted((pair for pair in others if pair[0]), key=lambda pair: (-pair[0], pair[1]))[:3]
    return ", ".join(f"{name} ({rows})" for rows, name in most)
