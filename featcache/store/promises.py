"""Whether a file system keeps the promises the write protocol needs."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from featcache import atomic
from featcache.errors import FeatcacheError


def check_promises(folder: Path) -> dict[str, str]:
    """Try what the write protocol needs in a folder; return promise → "" where kept, else what happened.

    The folder's own files are not touched; the trial files are removed.
    """
    trials: dict[str, Callable[[Path], str]] = {
        "a new file can be written and fsynced": _writes,
        "link fails where the name exists": _links_once,
        "a rename replaces a file whole": _renames,
        "a file can be mapped": _maps,
    }
    found: dict[str, str] = {}
    for name, trial in trials.items():
        place = folder / f"{atomic.TEMPORARY}trial-{secrets.token_hex(4)}"
        try:
            found[name] = trial(place)
        except (OSError, FeatcacheError) as error:
            found[name] = str(error)
        with contextlib.suppress(OSError):
            place.unlink()
    return found


def _writes(place: Path) -> str:
    atomic.write(place, b"x" * 10_000)
    return "" if place.read_bytes() == b"x" * 10_000 else "the bytes read are not those written"


def _links_once(place: Path) -> str:
    first, second = atomic.publish_once(place, b"first"), atomic.publish_once(place, b"second")
    if not first or second or place.read_bytes() != b"first":
        return "two writers could both believe they were first: use one process at a time here"
    return ""


def _renames(place: Path) -> str:
    atomic.write(place, b"old")
    descriptor = os.open(place, os.O_RDONLY)
    try:
        atomic.write(place, b"new")
        kept = os.read(descriptor, 3) == b"old"
    finally:
        os.close(descriptor)
    return "" if kept and place.read_bytes() == b"new" else "a reader of the old file sees the new one"


def _maps(place: Path) -> str:
    import mmap

    atomic.write(place, b"m" * 8192)
    with open(place, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return "" if mapped[5000:5001] == b"m" else "the mapped bytes are not those written"
