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
    return type(value) in (int, float)


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
    },
    "columns": lambda value: _mapping_of(_positive)(value) and bool(value),
    "rows_per_shard": _positive,
    "plan": {"bytes": _count, "xxh3_128": _HEX32},
    "request": _any_mapping,
    "versions": _any_mapping,
}
ROSTER: dict[str, Any] = {
    "key": _HEX64,
    **{name: RECIPE[name] for name in ("dataset", "plan", "request")},
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
RUN: dict[str, Any] = {
    **dict.fromkeys(("run", "cache", "head", "node"), _text),
    "split": {"val_fraction": _number, "split_seed": _count, "split_mode": _text},
    "files": _mapping_of(_text),
    "params": _any_mapping,
    **dict.fromkeys(("val", "test"), lambda value: value is None or _any_mapping(value)),
    "calibration": lambda value: value in (None, _MISSING) or _any_mapping(value),  # older runs have none
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
