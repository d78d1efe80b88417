"""Charts of one run: its epochs, its confusion matrix, its reliability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.reporting import words
from featcache.reporting.details import Bin, Detail
from featcache.reporting.drawing import Palette, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 440.0  # points
History = dict[str, list[float | None]]


def overview(detail: Detail, palette: Palette) -> dict[str, Callable[[], Figure]]:
    """Return the charts of a run, by name, each drawn when it is called."""
    entry = detail.entry
    best, ece = entry.record.get("best_epoch"), entry.metrics.get("ece")
    found: dict[str, Callable[[], Figure]] = {
        "reliability": lambda: reliability(detail.bins, ece, palette),
        "confusion": lambda: confusion(detail.confusion, entry.classes, palette),
    }
    if _known(detail.history, "val_loss") or _known(detail.history, "train_loss"):
        found["epochs"] = lambda: epochs(detail.history, best, palette)
    return found


def epochs(history: History, best: int | None, palette: Palette) -> Figure:
    """Draw loss above accuracy, epoch by epoch, with the best epoch marked."""
    losses = {name: history[name] for name in ("train_loss", "val_loss") if _known(history, name)}
    shares = {name: history[name] for name in ("train_accuracy", "val_accuracy") if _known(history, name)}
    panels = [(losses, "loss (nats)", 1.0), (shares, "accuracy (%)", 100.0)]
    panels = [panel for panel in panels if panel[0]]
    with style(palette):
        figure = new_figure(WIDTH, 40 + 130 * len(panels))
        for number, (lines, what, scale) in enumerate(panels, 1):
            axes = figure.add_subplot(len(panels), 1, number)
            _lines(axes, lines, scale, best, palette)
            axes.set_ylabel(what)
        figure.axes[-1].set_xlabel("epoch" + (f", dotted: the best, {best}" if best else ""))
    return figure


def _known(history: History, name: str) -> bool:
    return any(value is not None for value in history.get(name, ()))


def _lines(
    axes: Axes, lines: dict[str, list[float | None]], scale: float, best: int | None, palette: Palette
) -> None:
    from matplotlib.ticker import MaxNLocator

    looks = {"train": (palette.one, "--", "s"), "val": (palette.two, "-", "o")}
    for name, values in lines.items():
        split = name.partition("_")[0]
        colour, dash, marker = looks[split]
        at = [number for number, value in enumerate(values, 1) if value is not None]
        y = [scale * value for value in values if value is not None]
        label = {"train": "training", "val": "validation"}[split]
        axes.plot(at, y, dash, color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=label)
    if best is not None:
        axes.axvline(best, color=palette.ink, linewidth=1.2, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True)
    axes.legend(loc="best")


def reliability(bins: Sequence[Bin], ece: float | None, palette: Palette) -> Figure:
    """Draw how often predictions of each confidence are right, and below it how many there are."""
    with style(palette):
        figure = new_figure(WIDTH, 350)
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        middles = [50 * (each.low + each.high) for each in bins]
        wide = [96 * (each.high - each.low) for each in bins]
        top.plot([0, 100], [0, 100], color=palette.muted, linestyle="--", linewidth=1.2, label="honest")
        top.bar(middles, [100 * each.accuracy for each in bins], wide, color=palette.one, label="right")
        top.plot(
            [100 * each.confidence for each in bins],
            [100 * each.accuracy for each in bins],
            "o",
            color=palette.ink,
            markersize=3.5,
            label="mean confidence",
        )
        top.set_ylabel("right (%)")
        top.set_ylim(0, 100)
        figure.legend(loc="outside upper left", ncols=3)
        below.bar(middles, [each.rows for each in bins], wide, color=palette.soft)
        below.set_ylabel("rows")
        below.set_xlim(0, 100)
        below.set_xlabel(f"probability of the predicted class (%), error {words.percent(ece, 2)}")
        for axes in (top, below):
            axes.grid(True, axis="y")
    return figure


def confusion(counts: NDArray[np.int64], classes: Sequence[str], palette: Palette) -> Figure:
    """Draw a confusion matrix (C, C): a field is as strong as the root of its share of the true class.

    Fields of right predictions have one colour, those of wrong ones another; classes have their names on
    both sides, however many there are.
    """
    wide = max(WIDTH, 130 + 8.0 * len(classes))
    size = 9 if len(classes) <= 30 else 6.5
    with style(palette):
        figure = new_figure(wide, wide)
        axes = figure.add_subplot()
        axes.imshow(_fields(counts, palette), interpolation="nearest")
        names = [words.short(name, 18) for name in classes]
        ticks = np.arange(len(classes))
        axes.set_xticks(ticks, names, rotation=90, fontsize=size)
        axes.set_yticks(ticks, names, fontsize=size)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if len(classes) <= 20:
            _counts(axes, counts, palette)
    return figure


def strength(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the root of each field's share of its true class, (C, C), 0..1: small shares are seen."""
    support = np.maximum(1, counts.sum(axis=1, keepdims=True))
    found: NDArray[np.float64] = np.sqrt(counts / support)
    return found


def _fields(counts: NDArray[np.int64], palette: Palette) -> NDArray[np.float64]:
    """Return the matrix as colours (C, C, 4); an image cannot be recoloured, so that these are of paper."""
    from matplotlib.colors import to_rgb

    paper = Palette()
    colours = np.empty((*counts.shape, 4))
    colours[..., :3] = to_rgb(paper.two)
    colours[np.diag_indices(len(counts))] = (*to_rgb(paper.one), 1)
    colours[..., 3] = strength(counts)
    return colours


def _counts(axes: Axes, counts: NDArray[np.int64], palette: Palette) -> None:
    strong = strength(counts)
    for i, row in enumerate(counts.tolist()):
        for j, rows in enumerate(row):
            colour = palette.card if strong[i, j] > 0.6 else palette.ink
            axes.text(j, i, str(rows), ha="center", va="center", fontsize=7, color=colour)
