"""The comparison as a table: what its columns mean, as JSON values, CSV, Markdown and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.figures import FIGURES
from featcache.reporting import reported, words
from featcache.reporting.gathering import Entry, Group


@dataclass(frozen=True)
class Column:
    """A column: its title, what it means, a run's value in it (None: unknown) and that value as text.

    `more` is a smaller text that belongs to it.
    """

    title: str
    about: str
    value: Callable[[Entry], Any]
    text: Callable[[Entry], str]
    number: bool = True
    more: Callable[[Entry], str] | None = None

    def whole(self, entry: Entry) -> str:
        """Return the text and what belongs to it."""
        more = "" if self.more is None else self.more(entry)
        return f"{self.text(entry)} ({more})" if more else self.text(entry)


def _worst(entry: Entry) -> str:
    worst = entry.metrics.get("worst_class") or {}
    known = "class" in worst and "f1" in worst
    return f"{worst['class']} ({words.decimal(worst['f1'])})" if known else words.UNKNOWN


def _rate(entry: Entry) -> str:
    rate = entry.costs.images_per_second
    return "" if rate is None else f"{words.count(round(rate))}/s"


COLUMNS: tuple[Column, ...] = (
    Column(
        "run", "the head, and the options in which it differs", lambda e: e.label, lambda e: e.label, False
    ),
    Column(
        "accuracy",
        "share of rows whose likeliest class is the true one, with its 95 % bootstrap interval",
        lambda e: e.accuracy.value,
        lambda e: words.percent(e.accuracy.value),
        more=lambda e: words.span(e.accuracy.low, e.accuracy.high),
    ),
    Column(
        "macro F1",
        "mean of the classes' F1",
        lambda e: e.metrics.get("macro_f1"),
        lambda e: words.decimal(e.metrics.get("macro_f1")),
    ),
    Column(
        "worst class (F1)",
        "the class with the least F1",
        lambda e: (e.metrics.get("worst_class") or {}).get("f1"),
        _worst,
    ),
    Column(
        "fit",
        "time to fit, without reading and predicting",
        lambda e: e.costs.fit_seconds,
        lambda e: words.seconds(e.costs.fit_seconds),
    ),
    Column(
        "predict 1000",
        "time to predict 1000 rows; small below it: rows a second",
        lambda e: e.costs.predict_seconds_per_1000,
        lambda e: words.seconds(e.costs.predict_seconds_per_1000),
        more=_rate,
    ),
    Column(
        "reads",
        "what these times begin with: features that lie in a cache, or images to be decoded",
        lambda e: e.costs.reads,
        lambda e: e.costs.reads or words.UNKNOWN,
        False,
    ),
    Column(
        "peak RAM",
        "largest resident memory of the process",
        lambda e: e.costs.peak_ram_bytes,
        lambda e: words.size(e.costs.peak_ram_bytes),
    ),
    Column(
        "peak GPU",
        "most GPU memory that tensors had; unknown where no GPU was used",
        lambda e: e.costs.peak_gpu_bytes,
        lambda e: words.size(e.costs.peak_gpu_bytes),
    ),
    Column(
        "learned",
        "how many parameters were trained",
        lambda e: e.costs.parameters_trained,
        lambda e: words.count(e.costs.parameters_trained),
    ),
    Column(
        "on disk",
        "size of the stored model",
        lambda e: e.costs.disk_bytes,
        lambda e: words.size(e.costs.disk_bytes),
    ),
)


def shown(entries: Sequence[Entry]) -> list[Column]:
    """Return the columns that tell something: not where nothing is known, or all texts are the same."""
    found = []
    for at, column in enumerate(COLUMNS):
        there = {column.value(entry) for entry in entries}
        tells = there != {None} and (column.number or len(there) > 1)
        if at < 2 or tells:
            found.append(column)
    return found


def beside(entries: Sequence[Entry]) -> list[Column]:
    """Return the columns of the table of our figures beside the study's own; none where it reports none."""
    names = reported.names_of(entries)
    return [COLUMNS[0], *map(_beside, names)] if names else []


def _beside(name: str) -> Column:
    def study(entry: Entry) -> str:
        there = name in entry.reported
        return f"{reported.STUDY} {reported.text(name, entry.reported[name])}" if there else ""

    figure = FIGURES[name]
    return Column(
        reported.title(name),
        f"{figure.about}; small below it: the study's own",
        lambda entry: reported.ours(entry, name),
        lambda entry: reported.text(name, reported.ours(entry, name)),
        figure.unit != "class",
        study,
    )


def values(entry: Entry, rank: int) -> dict[str, Any]:
    """Return a run's line as JSON values; unknown is None."""
    worst = entry.metrics.get("worst_class") or {}
    names = ("head", "cache", "backbone", "node", "train_rows", "epochs", "best_epoch")
    return {
        "rank": rank,
        "run": entry.run,
        "label": entry.label,
        "dataset": entry.dataset,
        "split": entry.split,
        "rows": entry.rows,
        **{name: entry.record.get(name) for name in names},
        "accuracy": entry.accuracy.value,
        "low": entry.accuracy.low,
        "high": entry.accuracy.high,
        **{name: entry.metrics.get(name) for name in ("top5", "macro_f1", "log_loss", "ece")},
        "worst_class": worst.get("class"),
        "worst_f1": worst.get("f1"),
        **entry.costs.told(),
        "reported": dict(entry.reported),
    }


def to_csv(groups: Sequence[Group]) -> str:
    """Return a line for each run with every value, and a line of names above; unknown is empty.

    Texts that a spreadsheet would take for a formula get an apostrophe before them.
    """
    names = reported.names_of([entry for group in groups for entry in group.entries])
    lines = [_flat(entry, rank, names) for group in groups for rank, entry in enumerate(group.entries, 1)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: _harmless(value) for name, value in line.items()} for line in lines])
    return text.getvalue()


def _flat(entry: Entry, rank: int, names: Sequence[str]) -> dict[str, Any]:
    """Return a run's line, with a study's own figures as columns of their own."""
    line = values(entry, rank)
    del line["reported"]
    return {**line, **{f"reported_{name}": entry.reported.get(name) for name in names}}


def to_markdown(groups: Sequence[Group]) -> str:
    """Return a table for each group, with what it is of above it."""
    parts = []
    for group in groups:
        parts.append(f"**{_cell(title(group))}**\n\n{_markdown(shown(group.entries), group.entries)}")
        if columns := beside(group.entries):
            parts.append(f"**Beside the study's own figures**\n\n{_markdown(columns, group.entries)}")
    return "\n".join(parts)


def _markdown(columns: Sequence[Column], entries: Sequence[Entry]) -> str:
    rows = [[column.whole(entry) for column in columns] for entry in entries]
    ruler = ["---:" if column.number else "---" for column in columns]
    first, *rest = (
        _line([_cell(cell) for cell in line]) for line in [[column.title for column in columns], *rows]
    )
    return "\n".join([first, _line(ruler), *rest, ""])


def title(group: Group) -> str:
    """Return what a group is of: "folder-cifar10, test split, 10 000 rows"."""
    split = "folds of cross-validation" if group.split == "cv" else f"{group.split} split"
    return f"{words.plain(group.dataset)}, {split}, {words.count(group.rows)} rows"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Return text that stays in its cell and is no markup."""
    clean = words.plain(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|" else c for c in clean)


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return value
