"""The plan as a file: written piece by piece, mapped where it is large, checked against the record.

A plan of a hundred million images is a file of several gigabytes. Its hash and its arrays are checked when it
is opened, block by block; after that nothing of it stays in memory but what is used.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from featcache.errors import DamagedError
from featcache.store import keeping, layout, records
from featcache.store.arrays import mapped
from featcache.store.plan import BLOCK, Plan

LARGE = 16 << 20  # bytes from which on a plan is mapped and written in pieces: 250 000 rows or so
_CHUNK = 1 << 20  # bytes hashed at once


def write_plan(folder: Path, plan: Plan) -> dict[str, Any]:
    """Write the plan of a cache or roster; return what its record says of it.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    data, facts = _told(plan)
    keeping.write(folder / records.PLAN, data)
    return facts


def restore_plan(folder: Path, plan: Plan, expected: Mapping[str, Any]) -> bool:
    """Write the plan again if it is the one that a record speaks of; return whether it is.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    data, facts = _told(plan)
    if facts != dict(expected):
        return False
    keeping.write(folder / records.PLAN, data)
    return True


def _told(plan: Plan) -> tuple[bytes | list[memoryview], dict[str, Any]]:
    pieces = plan.pieces()
    size = sum(map(len, pieces))
    facts = {"bytes": size, "xxh3_128": layout.hash_of(pieces)}
    return (pieces if size >= LARGE else b"".join(pieces)), facts


def open_plan(folder: Path, expected: Mapping[str, Any], classes: int, mend: str) -> Plan:
    """Return the plan of a cache or roster, which is what its record says.

    Args:
        folder: of the cache.
        expected: the plan's `bytes` and `xxh3_128`, as the record has them.
        classes: how many there are.
        mend: what to do where it is damaged.

    Raises:
        DamagedError: it is missing, differs from what was written, or is no plan of such classes.
        CacheError: it cannot be read.
    """
    path = folder / records.PLAN
    return keeping.undamaged(path, lambda: _opened(path, expected, classes, mend))


def _opened(path: Path, expected: Mapping[str, Any], classes: int, mend: str) -> Plan:
    try:
        with records.open_regular(path, expected["bytes"]) as file:
            if (size := _size(file)) != expected["bytes"] or _hash(file) != expected["xxh3_128"]:
                raise DamagedError(f"{path} differs from what was written.", mend)
            plan, whole = _read(file, size)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing.", mend) from None
    for first in range(0, len(plan), BLOCK):
        labels = plan.labels[first : first + BLOCK]
        if not np.all((labels >= -1) & (labels < max(classes, 1))):
            raise DamagedError(f"{path} names classes that there are not.", mend)
        _let_go(whole)
    return plan


def _read(file: io.FileIO, size: int) -> tuple[Plan, mmap.mmap | None]:
    file.seek(0)
    if size < LARGE:
        return Plan.from_bytes(file.read()), None
    try:
        arrays, whole = mapped(file)
        return Plan.of_arrays(arrays, lambda: _let_go(whole)), whole
    except ValueError as error:
        raise DamagedError(f"plan.npz is damaged: {error}.", "Run: featcache verify --repair.") from error


def _let_go(whole: mmap.mmap | None) -> None:
    """Drop the pages that were looked at; they are read again where they are wanted."""
    if whole is not None and hasattr(mmap, "MADV_DONTNEED"):
        whole.madvise(mmap.MADV_DONTNEED)


def _size(file: io.FileIO) -> int:
    return file.seek(0, io.SEEK_END)


def _hash(file: io.FileIO) -> str:
    file.seek(0)
    digest, room = xxhash.xxh3_128(), memoryview(bytearray(_CHUNK))
    while count := file.readinto(room):
        digest.update(room[:count])
    return digest.hexdigest()
