"""A study's own figures beside ours: what is reported of which run, and the table that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featcache.figures import FIGURES, Figure
from featcache.reporting import words

if TYPE_CHECKING:
    from featcache.reporting.gathering import Entry

STUDY = "study"


@dataclass(frozen=True)
class Told:
    """What a study says of a run: the name of its system, and its own figures, see `featcache.figures`."""

    label: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """The study that a report is about: its name, a sentence on it, what to keep in mind, and its runs."""

    name: str
    about: str = ""
    notes: tuple[str, ...] = ()
    runs: Mapping[str, Told] = field(default_factory=dict)
    missing: tuple[str, ...] = ()  # systems without a run, and why


def names_of(entries: Sequence[Entry]) -> list[str]:
    """Return the names of the figures that a study reports of any of these runs, in their order."""
    return [name for name in FIGURES if any(name in entry.reported for entry in entries)]


def ours(entry: Entry, name: str) -> Any:
    """Return our figure of a run; None is unknown."""
    return FIGURES[name].ours(entry.record)


def text(name: str, value: Any) -> str:
    """Return a figure as people read it."""
    return _TEXTS[FIGURES[name].unit](value)


def title(name: str) -> str:
    """Return a figure's title with its unit."""
    figure: Figure = FIGURES[name]
    return f"{figure.title} (GB)" if figure.unit == "gigabytes" else figure.title


def _gigabytes(value: Any) -> str:
    return words.UNKNOWN if value is None else f"{value:.3g}"


def _plain(value: Any) -> str:
    return words.UNKNOWN if value is None else words.plain(str(value))


_TEXTS: dict[str, Callable[[Any], str]] = {
    "share": lambda value: words.percent(value, 2),
    "number": words.decimal,
    "seconds": words.seconds,
    "gigabytes": _gigabytes,
    "epoch": _plain,
    "class": _plain,
}
