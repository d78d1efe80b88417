"""Files whose hash is known before they are read. Light: neither numpy nor h5py."""

from __future__ import annotations

import contextlib
from pathlib import Path

from xxhash import xxh3_128_hexdigest

from featcache.errors import DamagedError
from featcache.store import keeping, records


def read_checked(path: Path, limit: int, digest: str) -> bytes | None:
    """Read a file whose xxh3-128 is known; None where it differs, and so does what it may be a copy of.

    Raises:
        DamagedError, CacheError, FileNotFoundError: as `records.read_regular`.
    """
    with contextlib.suppress(DamagedError):
        data = records.read_regular(path, limit)
        if xxh3_128_hexdigest(data) == digest:
            return data
    keeping.bring(path, again=True)
    data = records.read_regular(path, limit)
    return data if xxh3_128_hexdigest(data) == digest else None
