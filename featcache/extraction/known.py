"""Content hashes of image files that stood still since they were read: a folder that grows is not read again.

A file is recognised by its size, times and inode, if it had been at rest for two seconds when it was read, as
requests are (`featcache.extraction.memory`). What is remembered may be deleted, damaged or out of date at any
time: then files are read.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from featcache import atomic
from featcache.errors import CacheError
from featcache.extraction.memory import SETTLED_NS
from featcache.extraction.request import Request
from featcache.images.dataset import HASH_SIZE
from featcache.recipe import sha256_of
from featcache.store.arrays import unpack
from featcache.store.contents import NOWHERE, Contents
from featcache.store.recent import FOLDER

Hashes = NDArray[np.uint8]
"""(N, 16)"""


class KnownFiles:
    """What is remembered of one data set's files.

    Args:
        path: the file that it is kept in.
        keep: whether to write what was read; if not, it is only looked up.
    """

    def __init__(self, path: Path, keep: bool = True) -> None:
        self._path, self._keep = path, keep
        self._states: Hashes = np.zeros((0, HASH_SIZE), np.uint8)

    def recall(self, files: Iterable[str]) -> Hashes:
        """Return the content hash of each file, (N, 16); zeros where it has to be read."""
        packed = bytearray()  # a million objects of 16 bytes would take four times as much
        for file in files:
            packed += _state(file)
        self._states = np.frombuffer(packed, np.uint8).reshape(-1, HASH_SIZE)
        found = np.zeros_like(self._states)
        states, contents = self._read()
        rows = Contents(states).find(self._states)
        there = rows != NOWHERE
        found[there] = contents[rows[there]]
        return found

    def keep(self, hashes: Hashes) -> None:
        """Remember the hashes (N, 16) of the files that `recall` was asked for, as they were then."""
        states, self._states = self._states, np.zeros((0, HASH_SIZE), np.uint8)  # not needed again
        if len(states) != len(hashes):
            return
        good = states.any(axis=1) & hashes.any(axis=1)
        if not self._keep or not good.any():
            return
        buffer = io.BytesIO()
        np.savez(buffer, state=states[good], content=hashes[good])
        data = buffer.getvalue()
        with contextlib.suppress(CacheError):  # a cache in a folder that may only be read is as good
            atomic.make_folder(self._path.parent)
            atomic.write(self._path, xxhash.xxh3_128_digest(data) + data)

    def _read(self) -> tuple[Hashes, Hashes]:
        nothing = np.zeros((0, HASH_SIZE), np.uint8)
        try:
            data = self._path.read_bytes()
            digest, data = data[:HASH_SIZE], data[HASH_SIZE:]
            if xxhash.xxh3_128_digest(data) != digest:
                return nothing, nothing
            arrays = unpack(data)
            states, contents = arrays["state"], arrays["content"]
        except (OSError, ValueError, KeyError):
            return nothing, nothing
        if states.shape != contents.shape or states.shape[1:] != (HASH_SIZE,):
            return nothing, nothing
        return states.astype(np.uint8), contents.astype(np.uint8)


def known_files(features_dir: Path, request: Request, keep: bool = True) -> KnownFiles:
    """Return what is remembered of the files of a request's data set."""
    kind, _, place = request.dataset.partition(":")
    where = os.path.realpath(os.path.expanduser(place)) if place else ""  # noqa: PTH111
    name = sha256_of([kind, where, request.limit])[:32]
    return KnownFiles(features_dir / FOLDER / "contents" / f"{name}.npz", keep)


def _state(path: str) -> bytes:
    """Return what changes whenever a file does, in 16 bytes; zeros where it is not at rest, or not there."""
    at = time.time_ns()
    try:
        facts = os.stat(path)  # noqa: PTH116  # a million times
    except (OSError, ValueError):
        return bytes(HASH_SIZE)
    if max(facts.st_mtime_ns, facts.st_ctime_ns) > at - SETTLED_NS or not facts.st_ino:
        return bytes(HASH_SIZE)
    seen = facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino & (2**63 - 1)
    return xxhash.xxh3_128_digest(struct.pack("<4q", *seen))
