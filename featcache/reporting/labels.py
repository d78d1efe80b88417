"""Short names for runs: the kind of head, and the options in which it differs from others of its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.reporting.words import plain
from featcache.training.subsets import from_record

_CHANGES_NOTHING = ("device",)
_ALWAYS = ("kernel", "hidden")  # what people know such heads by


def labelled(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each record; those of one data set are all different.

    Named are backbones and nodes where a data set has several, options that differ among its heads of a
    kind on a backbone, which training rows, views and calibration; of those still alike, the last digits
    of their ids.
    """
    of: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        of.setdefault(str(record.get("dataset")), []).append(record)
    labels = [_label(record, of[str(record.get("dataset"))]) for record in records]
    times = Counter(zip(labels, (str(record.get("dataset")) for record in records), strict=True))
    return [
        f"{label} ({record['run'].rpartition('-')[2]})"
        if times[label, str(record.get("dataset"))] > 1
        else label
        for label, record in zip(labels, records, strict=True)
    ]


def _label(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    kind = ("head", "backbone")
    alike = [other for other in records if all(other.get(n) == record.get(n) for n in kind)]
    parts = [str(record["head"]), *_options(record, alike)]
    if subset := record.get("subset"):
        parts.append(_subset(subset))
    if isinstance(views := record.get("views"), Mapping) and not all(
        o.get("views") == views for o in records
    ):
        parts.append(f"{views.get('count')} views, {views.get('mode')}")
    if _averaged(record):
        parts[-1] += ", averaged"
    if record.get("calibration") and not all(other.get("calibration") for other in records):
        parts.append("calibrated")
    same = [other for other in records if other.get("backbone") == record.get("backbone")]
    for name, among in (("backbone", records), ("node", same)):
        if len({str(other.get(name)) for other in among}) > 1 and record.get(name):
            parts.append(f"· {record[name]}")
    return plain(" ".join(parts))


def _options(record: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> list[str]:
    named = []
    for name, value in sorted(record["params"].items(), key=lambda item: item[0] not in _ALWAYS):
        differs = any(other["params"].get(name, value) != value for other in alike)
        known = name in _ALWAYS and value not in (None, "linear", [])
        if name not in _CHANGES_NOTHING and (differs or known):
            text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
            named.append(text if name in _ALWAYS else f"{name}={text}")
    return named


def _averaged(record: Mapping[str, Any]) -> bool:
    """Return whether probabilities of test images are means over their views."""
    found = record.get("test")
    return isinstance(found, Mapping) and bool(found.get("views"))


def _subset(record: Mapping[str, Any]) -> str:
    try:
        return f"on {from_record(record)}"
    except (KeyError, TypeError, ValueError):
        return "on some rows"
