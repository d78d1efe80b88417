"""What a person or a program sees: data on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from featcache.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console


def clean(text: str) -> str:
    """Return text that is safe on a terminal: control characters and broken names are escaped."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """Return text that is safe on a terminal and stays in its line: a name may hold line ends too."""
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


_drawing: list[Console] = []  # the console that draws progress bars now, if any


def say(text: str) -> None:
    """Write a note to stderr, above the progress bars where there are any."""
    if _drawing:
        _drawing[-1].print(clean(text), markup=False, highlight=False, soft_wrap=True)
    else:
        click.echo(clean(text), err=True)


def show(text: str) -> None:
    """Write a line of data to stdout; what its encoding lacks is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(clean(text).encode(encoding, "backslashreplace").decode(encoding))


def show_json(value: Mapping[str, Any]) -> None:
    """Write one JSON object to stdout."""
    click.echo(json.dumps(value, ensure_ascii=True, allow_nan=False, default=str))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Write a plain table to stdout: columns aligned, `right` ones to the right, nothing cut off."""
    text = [[one_line(_cell(value)) for value in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in text), 0) for i, name in enumerate(columns)]
    for row in [list(columns), ["─" * width for width in widths], *text]:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, columns, strict=True)
        ]
        show("  ".join(cells).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def size(count: float) -> str:
    """Return bytes as people read them: 61.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return seconds as people read them: 0.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def status_line(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Keep one changing line on stderr, as long as work goes on; silent off a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(clean(text))


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Progress]:
    """Draw progress bars on stderr, one for each thing done, with its rate; silent off a terminal."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    bars = Bars(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
    tasks: dict[str, Any] = {}

    def update(what: str, done: int, total: int) -> None:
        """Draw how far it is."""
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total, completed=done, rate="")
            return
        task = tasks[what]
        speed = bars.tasks[bars.task_ids.index(task)].speed
        bars.update(task, completed=done, total=total, rate="" if speed is None else f"{speed:,.0f}/s")

    with bars:
        _drawing.append(console)
        try:
            yield update
        finally:
            _drawing.pop()
