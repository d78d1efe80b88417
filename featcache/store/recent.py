"""Which cache was used last, so that nobody has to type its name, and when each was. May be forgotten."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from featcache import atomic
from featcache.errors import CacheError, FeatcacheError
from featcache.store import records
from featcache.store.keeping import FOLDER as FOLDER

_MOST = 10_000  # bytes of a name
USED = "used"  # an empty file for each cache, whose time says when it was used


def mark_used(features_dir: Path, cache: str) -> None:
    """Remember which cache was used last, and that it was used now."""
    _touch(features_dir / FOLDER / USED / cache)
    if last_used(features_dir) != cache:
        path = features_dir / FOLDER / "last.json"
        with contextlib.suppress(CacheError):  # a folder that may only be read is no hindrance
            atomic.make_folder(path.parent)
            atomic.write(path, json.dumps({"cache": cache}).encode())


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that may only be read is no hindrance
        try:
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def last_used(features_dir: Path) -> str | None:
    """Return the name of the cache used last, None if there is none or it is gone."""
    try:
        name = json.loads(records.read_regular(features_dir / FOLDER / "last.json", _MOST))["cache"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, FeatcacheError):
        return None
    there = isinstance(name, str) and (features_dir / Path(name).name / records.RECIPE).is_file()
    return name if there else None
