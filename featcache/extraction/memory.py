"""What may be forgotten: which request led to which cache, and how long each extraction took.

A warm hit must not read images or import torch. So a finished request is remembered by the state of its
sources: size, both times and inode of every image and weights file, and the library versions. Whatever
changes one of them, or lies about it, costs a full look; nothing is taken for valid because it exists.
The folder `.featcache` can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache import atomic
from featcache.errors import CacheError, FeatcacheError
from featcache.extraction.request import Request, versions
from featcache.images.source import Source
from featcache.recipe import FORMAT, sha256_of
from featcache.store import expected, records, sealed
from featcache.store.recent import FOLDER

# A file changed twice within the clock's grain keeps its times; what changed this recently is not remembered.
SETTLED_NS = 2_000_000_000


FileState = list[Any]


@dataclass(frozen=True)
class Sighting:
    """What a request's images looked like from outside, and when: what it is remembered by."""

    request_id: str
    newest_ns: int
    at_ns: int


def sight(request: Request, source: Source) -> Sighting:
    """Look at the images' files without reading them."""
    at = time.time_ns()
    # Of the data set only its kind: the digest covers its files, and a moved folder is the same data.
    asked = {**request.to_dict(), "dataset": request.dataset.partition(":")[0]}
    known = {"request": asked, "data": source.stat_digest(), "versions": versions(), "format": FORMAT}
    return Sighting(sha256_of(known), source.newest_ns(), at)


def file_states(paths: Iterable[Path]) -> list[FileState]:
    """Return what changes whenever a file does: path, size, times, inode; of a missing one the path alone."""
    states: list[FileState] = []
    for path in paths:
        try:
            facts = path.stat()
            states.append([str(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino])
        except OSError:
            states.append([str(path)])
    return states


def remember(
    features_dir: Path, cache: Path, before: Sighting, after: Sighting, weights_before: list[FileState]
) -> None:
    """Remember that a request led to a cache, if its sources stood still while they were read.

    Args:
        features_dir: where the cache is.
        cache: its folder.
        before: the images' files before any was read.
        after: the same when all had been read.
        weights_before: the weights' files before they were read.
    """
    weights = file_states(Path(state[0]) for state in weights_before)
    newest = max([after.newest_ns, *(state[3] for state in weights if len(state) > 1)])
    still = before.request_id == after.request_id and weights == weights_before
    if not still or newest > before.at_ns - SETTLED_NS or any(len(state) == 1 for state in weights):
        return
    key = records.read_recipe(cache)["key"]
    record = {"format": FORMAT, "cache": cache.name, "key": key, "weights": weights}
    _write(features_dir / FOLDER / "requests" / f"{before.request_id}.json", records.to_bytes(record))


def recall(features_dir: Path, request_id: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the cache that a request led to and its seal, None where the full look is needed.

    Raises:
        DamagedError: the cache is known and finished, but a shard or record of it is missing or differs.
    """
    path = features_dir / FOLDER / "requests" / f"{request_id}.json"
    try:
        record = records.read(path)
        cache = features_dir / Path(record["cache"]).name
        unchanged = file_states(Path(state[0]) for state in record["weights"]) == record["weights"]
        if not unchanged or records.read_recipe(cache)["key"] != record["key"]:
            return None
    except (OSError, KeyError, TypeError, IndexError, ValueError, FeatcacheError):
        return None
    seal = sealed.check_sealed(cache, record["key"])
    return None if seal is None else (cache, seal)


def record_extraction(features_dir: Path, cache: str, facts: Mapping[str, Any]) -> None:
    """Keep the facts of one extraction (seconds, images, device, …) for `featcache info`."""
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.json"
    _write(
        features_dir / FOLDER / "extractions" / cache / name, records.to_bytes({"format": FORMAT, **facts})
    )


def extractions(features_dir: Path, cache: str) -> list[dict[str, Any]]:
    """Return the facts of all extractions into a cache that are still remembered, oldest first."""
    found = []
    for path in sorted((features_dir / FOLDER / "extractions" / cache).glob("*.json")):
        try:
            found.append(records.read_as(path, expected.EXTRACTION))
        except (OSError, FeatcacheError):
            continue
    return found


def remember_batch_size(features_dir: Path, key: str, size: int) -> None:
    """Remember the batch size that was measured best for a recipe on a device."""
    _write(
        features_dir / FOLDER / "batches" / f"{key}.json", records.to_bytes({"format": FORMAT, "size": size})
    )


def recall_batch_size(features_dir: Path, key: str) -> int | None:
    """Return the batch size remembered, None where there is none."""
    try:
        size = records.read(features_dir / FOLDER / "batches" / f"{key}.json")["size"]
    except (OSError, KeyError, FeatcacheError):
        return None
    return size if isinstance(size, int) and size > 0 else None


def _write(path: Path, data: bytes) -> None:
    # What may be forgotten may also fail to be written: a cache in a read-only folder is as good.
    with contextlib.suppress(CacheError):
        atomic.make_folder(path.parent)
        atomic.write(path, data)
