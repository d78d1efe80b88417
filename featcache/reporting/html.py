"""The report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from featcache.reporting import charts, closeups, tables, words
from featcache.reporting.details import Detail
from featcache.reporting.drawing import NAMED, to_page
from featcache.reporting.gathering import Entry, Gathered
from featcache.reporting.judging import Judged
from featcache.reporting.pictures import Pictures
from featcache.version import VERSION

MOST_IN_TABLE = 20  # classes whose confusion matrix is a table; of more an image is drawn


@dataclass(frozen=True)
class Closeup:
    """A run's details with the pictures of its rows."""

    detail: Detail
    pictures: Pictures


def page(gathered: Gathered, judged: Sequence[Judged], closeups_of: Mapping[str, Closeup]) -> str:
    """Return the page.

    Names of classes, files and runs may be anyone's text: the template escapes all that is not our own
    drawing, and the page's policy lets no script run but ours, whose hash it names.

    Args:
        gathered: the runs.
        judged: what each group shows.
        closeups_of: run → what is shown of it alone; the others are in the tables only.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("featcache.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": words.percent, "decimal": words.decimal, "count": words.count}
    environment.filters |= {"plain": words.plain, "bound": _bound}
    script = _part("script.js")
    return environment.get_template("page.html").render(
        title=_title(gathered),
        groups=[_group(number, each, closeups_of, len(judged) > 1) for number, each in enumerate(judged)],
        left_out=gathered.left_out,
        subject=gathered.subject,
        style=_part("style.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=VERSION,
        runs=len(gathered.entries),
    )


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bound(text: str) -> str:
    """Return text whose numbers are not torn from their units, nor their thousands from each other."""
    return re.sub(r"(?<=\d) (?=\d{3}\b|%|m?s\b|min\b|h\b|rows\b|[kMGT]?B\b)", "\u00a0", text)


def _part(name: str) -> str:
    """Return a part of the page that is ours and holds nobody's text."""
    from markupsafe import Markup

    text = resources.files("featcache.reporting").joinpath("page", name).read_text("utf-8")
    return Markup(text)


def _title(gathered: Gathered) -> str:
    if gathered.subject is not None:
        return words.plain(gathered.subject.name)
    return " · ".join(sorted({words.plain(group.dataset) for group in gathered.groups}))


def _group(number: int, judged: Judged, closeups_of: Mapping[str, Closeup], several: bool) -> dict[str, Any]:
    entries, title = judged.group.entries, tables.title(judged.group)
    columns, beside = tables.shown(entries), tables.beside(entries)
    return {
        "id": f"g{number}",
        "title": title,
        "heading": title if several else _upper(title.removeprefix(f"{words.plain(judged.group.dataset)}, ")),
        "split": judged.group.split,
        "sentences": judged.sentences,
        "notes": judged.notes,
        "columns": columns,
        "rows": [_row(rank, entry, columns, closeups_of) for rank, entry in enumerate(entries, 1)],
        "beside": beside,
        "beside_rows": [_row(rank, entry, beside, closeups_of) for rank, entry in enumerate(entries, 1)],
        "charts": _charts(f"g{number}", entries) if len(entries) > 1 else [],
        "cut": len(entries) if len(entries) > charts.MOST_BARS else 0,
        "closeups": [
            _closeup(f"g{number}r{rank}", rank, closeups_of[entry.run])
            for rank, entry in enumerate(entries, 1)
            if entry.run in closeups_of
        ],
    }


def _row(
    rank: int, entry: Entry, columns: Sequence[tables.Column], closeups_of: Mapping[str, Closeup]
) -> dict[str, Any]:
    cells = [
        {
            "sort": column.value(entry),
            "text": column.text(entry),
            "more": "" if column.more is None else column.more(entry),
        }
        for column in columns
    ]
    return {"rank": rank, "run": entry.run, "linked": entry.run in closeups_of, "cells": cells}


def _charts(name: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the charts of a group with their headings."""
    return [
        {
            "title": what.replace("-", " ").capitalize(),
            "svg": _svg(to_page(draw(), f"{name}-{what}", f"{what.replace('-', ' ')}: see the table")),
        }
        for what, draw in charts.overview(entries, NAMED).items()
    ]


def _svg(text: str) -> str:
    from markupsafe import Markup

    return Markup(text)  # drawn by us; matplotlib escapes what is written in it


def _closeup(name: str, rank: int, closeup: Closeup) -> dict[str, Any]:
    detail, entry = closeup.detail, closeup.detail.entry
    small = len(entry.classes) <= MOST_IN_TABLE
    drawn = closeups.overview(detail, NAMED)
    if small:
        del drawn["confusion"]
    return {
        "rank": rank,
        "entry": entry,
        "detail": detail,
        "pictures": closeup.pictures,
        "figures": {
            what: _svg(to_page(draw(), f"{name}-{what}", f"{what} of {entry.label}"))
            for what, draw in drawn.items()
        },
        "matrix": _matrix(detail) if small else None,
        "wide": 130 + 8 * len(entry.classes),
    }


def _matrix(detail: Detail) -> list[dict[str, Any]]:
    """Return the confusion matrix, row by row: counts, and how strong a field is, in per cent."""
    strong = closeups.strength(detail.confusion)
    return [
        {
            "name": detail.entry.classes[i],
            "rows": sum(row),
            "fields": [
                {"rows": rows, "strength": round(100 * float(strong[i, j])), "right": i == j}
                for j, rows in enumerate(row)
            ],
        }
        for i, row in enumerate(detail.confusion.tolist())
    ]
