"""What may be forgotten: which request led to which cache, and how long each extraction took.

A warm hit must not read images or import torch. So a finished request is remembered by the state of its
sources: size, both times and inode of every image and weights file, and the library versions. Whatever
changes one of them, or lies about it, costs a full look; nothing is taken for valid because it exists.
The folder `.featcache` can be deleted at any time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from featcache import atomic
from featcache.errors import FeatcacheError
from featcache.extraction.request import Request, versions
from featcache.recipe import FORMAT, sha256_of
from featcache.store import records
from featcache.store.recent import FOLDER

# A file changed twice within the clock's grain keeps its times; what changed this recently is not remembered.
SETTLED_NS = 2_000_000_000


def request_id(request: Request, stat_digest: str) -> str:
    """Return the id under which a request is remembered."""
    # Of the data set only its kind: the digest covers its files, and a moved folder is the same data.
    asked = {**request.to_dict(), "dataset": request.dataset.partition(":")[0]}
    return sha256_of({"request": asked, "data": stat_digest, "versions": versions(), "format": FORMAT})


def file_state(path: Path) -> list[Any]:
    """Return what changes whenever a file does: path, size, modification and change time, inode."""
    facts = path.stat()
    return [str(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


def remember(
    features_dir: Path, request_id: str, cache: Path, weights: Iterable[Path], newest_ns: int
) -> None:
    """Remember that a request led to a cache, unless its sources changed a moment ago."""
    states = [file_state(path) for path in weights]
    newest = max([newest_ns, *(state[3] for state in states)])
    if newest > time.time_ns() - SETTLED_NS:
        return
    key = records.read_recipe(cache)["key"]
    record = {"format": FORMAT, "cache": cache.name, "key": key, "weights": states}
    _write(features_dir / FOLDER / "requests" / f"{request_id}.json", records.to_bytes(record))


def recall(features_dir: Path, request_id: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the cache that a request led to and its seal, None where the full look is needed.

    Raises:
        DamagedError: the cache is known and finished, but a shard or record of it is missing or differs.
    """
    path = features_dir / FOLDER / "requests" / f"{request_id}.json"
    try:
        record = records.read(path)
        cache = features_dir / Path(record["cache"]).name
        unchanged = all(file_state(Path(state[0])) == state for state in record["weights"])
        if not unchanged or records.read_recipe(cache)["key"] != record["key"]:
            return None
    except (OSError, KeyError, FeatcacheError):
        return None
    seal = records.check_sealed(cache, record["key"])
    return None if seal is None else (cache, seal)


def record_session(features_dir: Path, cache: str, facts: Mapping[str, Any]) -> None:
    """Keep the facts of one extraction (seconds, images, device, …) for `featcache info`."""
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.json"
    _write(features_dir / FOLDER / "sessions" / cache / name, records.to_bytes({"format": FORMAT, **facts}))


def sessions(features_dir: Path, cache: str) -> list[dict[str, Any]]:
    """Return the facts of all extractions into a cache that are still remembered, oldest first."""
    found = []
    for path in sorted((features_dir / FOLDER / "sessions" / cache).glob("*.json")):
        try:
            found.append(records.read(path))
        except (OSError, FeatcacheError):
            continue
    return found


def _write(path: Path, data: bytes) -> None:
    atomic.make_folder(path.parent)
    atomic.write(path, data)
