"""A report put together: gathered runs, what they show, and the forms that it can be had in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import OptionError
from featcache.progress import Progress, silent
from featcache.reporting import charts, closeups, drawing, tables
from featcache.reporting.details import detail
from featcache.reporting.drawing import PAPER
from featcache.reporting.gathering import Entry, Gathered
from featcache.reporting.html import Closeup, page
from featcache.reporting.judging import Judged, judge
from featcache.reporting.pictures import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DETAILS = 12  # runs of a group looked at closely, at most, unless more are asked for


@dataclass(frozen=True)
class Asked:
    """How a report is to be: where data sets are, how many runs are looked at closely, what seeds the draws.

    `dataset` says where the images are now, if not where they were when their features were extracted.
    """

    data_dir: Path = Path("data")
    dataset: str | None = None
    details: int = DETAILS
    seed: int = 0


class Report:
    """A report on gathered runs.

    Raises:
        OptionError: fewer than no runs are to be looked at closely.
    """

    def __init__(self, gathered: Gathered, asked: Asked = Asked()) -> None:
        if asked.details < 0:
            raise OptionError(f"The number of runs in detail is at least 0, got {asked.details}.")
        self.gathered, self.asked = gathered, asked
        self.judged: list[Judged] = [judge(group, seed=asked.seed) for group in gathered.groups]

    def values(self) -> dict[str, Any]:
        """Return the groups and what they show as JSON values; unknown is None."""
        subject = self.gathered.subject
        return {
            "groups": [
                {
                    "dataset": each.group.dataset,
                    "split": each.group.split,
                    "rows": each.group.rows,
                    "runs": [tables.values(entry, rank) for rank, entry in enumerate(each.group.entries, 1)],
                    "against": None if each.against is None else [pair.to_dict() for pair in each.against],
                    "front": list(each.front),
                    "verdict": list(each.sentences),
                    "notes": list(each.notes),
                }
                for each in self.judged
            ],
            "left_out": list(self.gathered.left_out),
            "study": None if subject is None else {"name": subject.name, "notes": list(subject.notes)},
        }

    def html(self, progress: Progress = silent) -> str:
        """Return the page.

        Raises:
            OptionError: what draws is not installed.
            DamagedError: a file of a run is damaged.
        """
        drawing.available()
        chosen = self.looked_at()
        shown: dict[str, Closeup] = {}
        for number, entry in enumerate(chosen, 1):
            shown[entry.run] = self._closeup(entry)
            progress("run", number, len(chosen))
        return page(self.gathered, self.judged, shown)

    def looked_at(self) -> list[Entry]:
        """Return the runs that are looked at closely: the most accurate ones of each group."""
        return [entry for each in self.judged for entry in each.group.entries[: self.asked.details]]

    def figures(self, kinds: tuple[str, ...] = drawing.FORMATS) -> Iterator[tuple[str, bytes]]:
        """Yield every figure as (file name, bytes), each in all of the formats "png" and "svg" asked for.

        Raises:
            OptionError: what draws is not installed, or a format is unknown.
            DamagedError: a file of a run is damaged.
        """
        drawing.available()
        for kind in kinds:
            if kind not in drawing.FORMATS:
                raise OptionError(f"Unknown format {kind!r}.", f"Known: {', '.join(drawing.FORMATS)}.")
        for name, draw in self._drawings():
            figure = draw()
            for kind in kinds:
                yield f"{name}.{kind}", drawing.to_file(figure, kind)

    def _closeup(self, entry: Entry) -> Closeup:
        found = detail(entry, seed=self.asked.seed)
        rows = [row.row for row in (*found.mistakes, *found.examples)]
        return Closeup(found, pictures(entry.cache, rows, self.asked.data_dir, self.asked.dataset))

    def _drawings(self) -> Iterator[tuple[str, Callable[[], Figure]]]:
        for number, each in enumerate(self.judged, 1):
            lead = "" if len(self.judged) == 1 else f"group-{number}-"
            if len(each.group.entries) > 1:
                for name, draw in charts.overview(each.group.entries, PAPER).items():
                    yield lead + name, draw
        for entry in self.looked_at():
            found = detail(entry, seed=self.asked.seed)
            for name, draw in closeups.overview(found, PAPER).items():
                yield f"{entry.folder.name}-{name}", draw
