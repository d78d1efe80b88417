"""Whether a file system keeps the promises the write protocol needs: of one writer, and of several."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from featcache import atomic
from featcache.errors import FeatcacheError
from featcache.store import folder_checks, keeping

_STORE = "the object store says which writer was first"
SEVERAL, ONE, NOBODY = "several processes", "one process at a time", "nobody"


def check_promises(folder: Path) -> dict[str, str]:
    """Try what the write protocol needs in a folder; return promise → "" where kept, else what happened.

    The folder's own files are not touched; the trial files are removed. Takes about a second.
    """
    if (far := keeping.far_of(folder)) is not None:
        many = {_STORE: "" if far.several() else "it has no put-if-absent, or does not keep to it"}
    else:
        many = _tried(folder, _FOR_SEVERAL)
    return {**_tried(folder, _FOR_ONE), **many}


def safe_for(found: dict[str, str]) -> str:
    """Return who may write into a folder of which `check_promises` found this."""
    if any(found[name] for name in _FOR_ONE):
        return NOBODY
    return ONE if any(found.values()) else SEVERAL


def _tried(folder: Path, trials: Mapping[str, Callable[[Path], str]]) -> dict[str, str]:
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


def _creates_once(place: Path) -> str:
    for expected in (False, True):
        try:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            there = False
        except FileExistsError:
            there = True
        if there != expected:
            return "a file that exists is created again"
    return ""


def _writes(place: Path) -> str:
    atomic.write(place, b"x" * 10_000)
    return "" if place.read_bytes() == b"x" * 10_000 else "the bytes read are not those written"


def _links_once(place: Path) -> str:
    first, second = atomic.publish_once(place, b"first"), atomic.publish_once(place, b"second")
    if not first or second or place.read_bytes() != b"first":
        return "two writers could both believe they were first: use one process at a time here"
    return ""


def _counts_names(place: Path) -> str:
    """A reply to link may be lost; then only the number of names tells that it was done."""
    other = place.with_name(f"{place.name}-too")
    place.write_bytes(b"x")
    try:
        other.hardlink_to(place)
        names = place.stat().st_nlink
    finally:
        with contextlib.suppress(OSError):
            other.unlink()
    return "" if names == 2 else f"a file with two names counts {names}"


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


_FOR_ONE: dict[str, Callable[[Path], str]] = {
    "a new file can be written and fsynced": _writes,
    "a name is created once": _creates_once,
    "a rename replaces a file whole": _renames,
    "a file can be mapped": _maps,
}
_FOR_SEVERAL: dict[str, Callable[[Path], str]] = {
    "link fails where the name exists": _links_once,
    "the names of a file are counted": _counts_names,
    "of several processes one wins": folder_checks.one_wins,
    "other processes see what was written": folder_checks.others_see,
}
