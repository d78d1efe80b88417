"""Charts that compare runs: accuracy, time, memory, and accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from featcache.reporting import words
from featcache.reporting.drawing import Palette, new_figure, style
from featcache.reporting.gathering import Entry
from featcache.reporting.judging import pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 30
WIDTH = 440.0  # points
_BAR, _ROW = 0.36, 31.0  # a bar's height as a share of its row, and the row's in points
_FIT = "time to fit (s, logarithmic); numbers: rank by accuracy"
_PREDICT = "s to predict 1000 rows (logarithmic); numbers: rank by accuracy"
_NEAR = [(10.0, 7.0), (-10.0, 7.0), (10.0, -8.0), (-10.0, -8.0)]
_AROUND = [*_NEAR, (15.0, -1.0), (-15.0, -1.0), (0.0, 17.0), (0.0, -17.0)]  # points off, the best first
Value = Callable[[Entry], float | None]


def overview(entries: Sequence[Entry], palette: Palette) -> dict[str, Callable[[], Figure]]:
    """Return the charts that compare runs, by name, each drawn when it is called.

    Charts of a cost that is known for no run are left out.
    """

    def fit(entry: Entry) -> float | None:
        return entry.costs.fit_seconds

    def predict(entry: Entry) -> float | None:
        return entry.costs.predict_seconds_per_1000

    found: dict[str, Callable[[], Figure]] = {"accuracy": lambda: accuracy(entries, palette)}
    if any(map(fit, entries)):
        found["accuracy-against-time-to-fit"] = lambda: against(entries, fit, _FIT, palette)
        found["time-to-fit"] = lambda: seconds(entries, fit, "time to fit (s)", palette)
    if any(map(predict, entries)):
        found["accuracy-against-time-to-predict"] = lambda: against(entries, predict, _PREDICT, palette)
        found["time-to-predict"] = lambda: seconds(entries, predict, "s to predict 1000 rows", palette)
    if any(entry.costs.peak_ram_bytes for entry in entries):
        found["memory"] = lambda: memory(entries, palette)
    return found


def accuracy(entries: Sequence[Entry], palette: Palette) -> Figure:
    """Draw a bar for each run's accuracy with its interval."""
    with style(palette):
        figure, axes = _rows(entries[:MOST_BARS])
        for y, entry in enumerate(entries[:MOST_BARS]):
            own = entry.accuracy
            axes.barh(y, 100 * own.value, _BAR, color=palette.one)
            axes.plot([100 * own.low, 100 * own.high], [y, y], color=palette.ink, linewidth=2.2)
            for end in (own.low, own.high):
                axes.plot([100 * end] * 2, [y - 0.14, y + 0.14], color=palette.ink, linewidth=1.6)
            _named(axes, y, entry, f"{words.percent(own.value)} ({words.span(own.low, own.high)})")
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"accuracy on {entries[0].split} (%), line: 95 % interval")
    return figure


def seconds(entries: Sequence[Entry], value: Value, what: str, palette: Palette) -> Figure:
    """Draw a bar for each run's seconds, the quickest first; unknown ones last, without a bar."""
    ordered = sorted(entries, key=lambda entry: _or_last(value(entry)))[:MOST_BARS]
    with style(palette):
        figure, axes = _rows(ordered)
        for y, entry in enumerate(ordered):
            own = value(entry)
            axes.barh(y, own or 0.0, _BAR, color=palette.three)
            _named(axes, y, entry, words.seconds(own))
        axes.set_xlim(0, _most([value(entry) for entry in ordered]))
        axes.set_xlabel(what)
    return figure


def memory(entries: Sequence[Entry], palette: Palette) -> Figure:
    """Draw stacked bars: memory there before the fit, added by it, and on the GPU; unknown ones last."""
    ordered = sorted(entries, key=lambda entry: _or_last(entry.costs.peak_ram_bytes))[:MOST_BARS]
    with style(palette):
        figure, axes = _rows(ordered, extra=22)
        names = {"before the fit": palette.soft, "added by it": palette.one, "GPU": palette.two}
        for y, entry in enumerate(ordered):
            left = 0.0
            for part, colour in zip(_parts(entry), names.values(), strict=True):
                axes.barh(y, part, _BAR, left=left, color=colour)
                left += part
            ram, gpu = entry.costs.peak_ram_bytes, entry.costs.peak_gpu_bytes
            _named(axes, y, entry, words.size(ram) + (f" + {words.size(gpu)} GPU" if gpu else ""))
        axes.set_xlim(0, _most([sum(_parts(entry)) for entry in ordered]))
        axes.set_xlabel("peak memory of the process (MB)")
        _legend(figure, names)
    return figure


def against(entries: Sequence[Entry], value: Value, what: str, palette: Palette) -> Figure:
    """Draw accuracy against a cost (logarithmic) with the Pareto front; unknown costs are left out."""
    known = [(rank, entry, cost) for rank, entry in enumerate(entries, 1) if (cost := value(entry))]
    front = pareto([(cost, entry.accuracy.value) for _, entry, cost in known])
    with style(palette):
        figure = new_figure(WIDTH, 300)
        axes = figure.add_subplot()
        axes.set_xscale("log")
        steps = [(known[at][2], 100 * known[at][1].accuracy.value) for at in front]
        axes.plot(*zip(*steps, strict=True), color=palette.two, linewidth=1.6, drawstyle="steps-post")
        for at, (_, entry, cost) in enumerate(known):
            _point(axes, entry, cost, at in front, palette)
        axes.margins(x=0.12, y=0.12)
        axes.grid(True, which="major")
        _plain_numbers(axes, [cost for _, _, cost in known])
        axes.set_xlabel(what)
        axes.set_ylabel(f"accuracy on {entries[0].split} (%)")
        _ranks(axes, [(cost, 100 * entry.accuracy.value, str(rank)) for rank, entry, cost in known])
    return figure


def _point(axes: Axes, entry: Entry, cost: float, best: bool, palette: Palette) -> None:
    own = entry.accuracy
    axes.plot([cost, cost], [100 * own.low, 100 * own.high], color=palette.muted, linewidth=1)
    look = {"marker": "o", "markersize": 9.0, "color": palette.two}
    if not best:
        look = {"marker": "s", "markersize": 6.5, "color": palette.one}
    axes.plot([cost], [100 * own.value], **look)  # type: ignore[arg-type]


def _ranks(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's text beside it, where it covers no other text or point as far as that can be."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    scale = 72 / figure.dpi
    places = [tuple(scale * axes.transData.transform((x, y))) for x, y, _ in points]
    taken = list(places)
    for (x, y, text), place in zip(points, places, strict=True):
        around = [(place[0] + dx, place[1] + dy) for dx, dy in _AROUND]
        room = [min(math.dist(spot, other) for other in taken) for spot in around]
        best = max(range(len(around)), key=lambda at: (min(room[at], 9.0), -at))
        taken.append(around[best])
        axes.annotate(
            text, (x, y), _AROUND[best], textcoords="offset points", ha="center", va="center", fontsize=9
        )


def _rows(entries: Sequence[Entry], extra: float = 0) -> tuple[Figure, Axes]:
    """Return axes with a row for each run, the first at the top; its name goes above its bar."""
    figure = new_figure(WIDTH, 44 + extra + _ROW * len(entries))
    axes = figure.add_subplot()
    axes.set_ylim(len(entries) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    return figure, axes


def _named(axes: Axes, y: int, entry: Entry, value: str) -> None:
    where = axes.get_yaxis_transform()  # x in shares of the axes' width, y in rows
    room = 62 - len(value)
    axes.text(0, y - 0.26, words.short(entry.label, room), transform=where, fontsize=9, va="bottom")
    axes.text(1, y - 0.26, value, transform=where, fontsize=9, va="bottom", ha="right")


def _parts(entry: Entry) -> tuple[float, float, float]:
    """Return megabytes before the fit, added by it, and on the GPU; what is unknown has no length."""
    costs = entry.costs
    peak = costs.peak_ram_bytes or 0
    before = min(peak, costs.ram_before_bytes) if costs.ram_before_bytes is not None else 0
    return before / 1e6, (peak - before) / 1e6, (costs.peak_gpu_bytes or 0) / 1e6


def _legend(figure: Figure, names: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=patches, loc="outside upper left", ncols=3, borderpad=0, handlelength=1.2)


def _plain_numbers(axes: Axes, costs: Sequence[float]) -> None:
    """Write plain numbers at a logarithmic axis, between powers of ten too where these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(max(costs) / min(costs)) if costs else 0
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value


def _most(values: Sequence[float | None]) -> float:
    return 1.02 * max((value for value in values if value), default=1.0)
