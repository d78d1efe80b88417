"""What the records of a cache must hold. A record may come from anyone: types are checked before any use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
_MISSING = object()


def _text(value: Any) -> bool:
    return type(value) is str


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and -(2**63) <= value < 2**63)


def _unicode(value: Any) -> bool:
    """Whether it is text without broken characters, which neither SQLite nor a page takes."""
    return type(value) is str and not any("\ud800" <= c <= "\udfff" for c in value)


def _positive(value: Any) -> bool:
    return _count(value) and value > 0


def _matching(pattern: str) -> Check:
    compiled = re.compile(pattern)
    return lambda value: type(value) is str and compiled.fullmatch(value) is not None


def _list_of(check: Check) -> Check:
    return lambda value: type(value) is list and all(map(check, value))


def _mapping_of(check: Check) -> Check:
    return lambda value: type(value) is dict and all(map(check, value.values()))


def _any_mapping(value: Any) -> bool:
    return type(value) is dict


def _perhaps(check: Check) -> Check:
    return lambda value: value is None or value is _MISSING or check(value)


def _none_or(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _shaped(fields: Mapping[str, Any]) -> Check:
    return lambda value: type(value) is dict and not wrong(value, fields)


def _subset(value: Any) -> bool:
    """Whether it says of which training rows a run is: a fold of several, or so many of each class."""
    if type(value) is not dict:
        return False
    if "folds" in value:
        counts = all(_count(value.get(name)) for name in ("fold", "folds", "seed"))
        return counts and value["fold"] < value["folds"] >= 2
    some, share = value.get("per_class"), value.get("fraction")
    one = _positive(some) if share is None else some is None and _number(share) and 0 < share <= 1
    return one and all(_count(value.get(name)) for name in ("trial", "seed"))


_HEX32, _HEX64 = _matching("[0-9a-f]{32}"), _matching("[0-9a-f]{64}")
_DTYPE = _matching(r"(float|u?int)(8|16|32|64)")

RECIPE: dict[str, Any] = {
    "key": _HEX64,
    "recipe": {
        "backbone": _text,
        "nodes": _list_of(_any_mapping),
        "store_dtype": _DTYPE,
        "views": lambda value: value is _MISSING or (type(value) is dict and _positive(value.get("count"))),
    },
    "dataset": {
        "name": _text,
        "fingerprint": _HEX64,
        "classes": _list_of(_text),
        "rows": _mapping_of(_count),
        "ignored": {"count": _count, "first": _list_of(_text)},
    },
    "columns": lambda value: _mapping_of(_positive)(value) and bool(value),
    "rows_per_shard": _positive,
    "plan": {"bytes": _count, "xxh3_128": _HEX32},
    "request": _any_mapping,
    "versions": _any_mapping,
}
ROSTER: dict[str, Any] = {
    "key": _HEX64,
    "plan": RECIPE["plan"],
    "dataset": {name: RECIPE["dataset"][name] for name in ("name", "fingerprint", "classes", "rows")},
    "request": {
        **dict.fromkeys(("dataset", "data_dir"), _text),
        "limit": _none_or(_positive),
        "max_pixels": _positive,
    },
}
COMMIT: dict[str, Any] = {
    "key": _HEX64,
    "shard": _text,
    "file": _text,
    "size": _count,
    "xxh3_128": _HEX32,
    "first": _count,
    "last": _count,
    "rows": _positive,
    "bad": _list_of(
        lambda pair: type(pair) is list and len(pair) == 2 and _count(pair[0]) and _text(pair[1])
    ),
}
SEAL: dict[str, Any] = {
    "key": _HEX64,
    "rows": _mapping_of(_count),
    "shards": _count,
    "bytes": _count,
    "bad": _count,
    "commits": _HEX64,
}
_METRICS = _shaped(
    {
        **dict.fromkeys(("accuracy", "top5", "macro_f1", "log_loss", "ece"), _number),
        "predict_seconds": _perhaps(_number),
        **dict.fromkeys(("n", "views"), _perhaps(_count)),
        "worst_class": {"class": _text, "f1": _number},
    }
)
_ERRORS = _shaped({"ece_before": _number, "ece_after": _number})
RUN: dict[str, Any] = {
    "run": _matching("[a-z0-9-]{1,40}-[0-9a-f]{8}"),
    **dict.fromkeys(("cache", "head", "node"), _unicode),
    **dict.fromkeys(("created", "dataset", "backbone"), _perhaps(_unicode)),
    "split": {"val_fraction": _number, "split_seed": _count, "split_mode": _text},
    "files": _mapping_of(_text),
    "params": _any_mapping,
    **dict.fromkeys(("val", "test"), _none_or(_METRICS)),
    "cv": _perhaps(_METRICS),
    **dict.fromkeys(("epochs", "best_epoch", "train_rows"), _perhaps(_count)),
    "fit_seconds": _number,
    "notes": _list_of(_text),
    "subset": _perhaps(_subset),
    "views": _perhaps(_shaped({"mode": _text, "count": _positive})),
    # Older runs have none.
    "calibration": _perhaps(_shaped({"temperature": _number, "val": _ERRORS, "test": _none_or(_ERRORS)})),
}
TRAINING: dict[str, Any] = {  # what an interrupted run was asked for
    "training": {
        **dict.fromkeys(("head", "split_mode"), _text),
        "params": _any_mapping,
        "node": _none_or(_text),
        "val_fraction": _number,
        **dict.fromkeys(("split_seed", "keep_checkpoints"), _count),
        "subset": _perhaps(_subset),
        "view_mode": _perhaps(_text),
        "memory_budget": _perhaps(_positive),
    }
}
EXTRACTION: dict[str, Any] = {
    "images": _count,
    **dict.fromkeys(("seconds", "total_seconds"), _number),
    "device": _text,
    "runtime": _perhaps(_text),
    "batch_size": _perhaps(_count),
}


def wrong(record: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> str:
    """Return the first field that is missing or not what it must be, "" for none; others may be there."""
    for name, check in expected.items():
        value = record.get(name, _MISSING)
        if isinstance(check, Mapping):
            found = wrong(value, check, f"{prefix}{name}.") if isinstance(value, Mapping) else prefix + name
            if found:
                return found
        elif not check(value):
            return prefix + name
    return ""
