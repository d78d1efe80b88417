"""A data set: samples in a fixed order, with ids, labels, splits and content hashes."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xxhash

from featcache.errors import BadImageError, OptionError
from featcache.images.decode import MAX_PIXELS, decode
from featcache.images.sample import SPLITS, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featcache.images.source import Advance

HASH_SIZE = 16
_READERS = 8  # threads that mostly wait for the disk
_BLOCK = 1 << 14  # rows described at once
_SHARE = 512  # images a thread hashes between two reports
_QUICK = 40e-6  # seconds an image: from memory, small files come quicker to one thread than to several


@dataclass(frozen=True, eq=False)
class Rows:
    """The samples of a data set without their images, in the order of the rows.

    Attributes:
        name: a short name, safe in a path.
        classes: the names of the classes; a label is an index into them.
        ids: one per sample. Ids that are no valid UTF-8 carry surrogate escapes, as in `os.fsdecode`.
        labels: int64 (N,).
        splits: uint8 (N,), indices into `featcache.images.sample.SPLITS`.
        ignored: paths met that are no images (folders end in "/"); they have no rows.
        progress: told how far the hashing of the contents is.
    """

    name: str
    classes: tuple[str, ...]
    ids: Sequence[str]
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    ignored: tuple[str, ...] = ()
    progress: Advance | None = None


class Known(Protocol):
    """Remembers what is in files that have not changed since they were read."""

    def recall(self, files: Iterable[str]) -> NDArray[np.uint8]:
        """Return the content hash of each file, uint8 (N, 16); zeros where it has to be read."""
        ...

    def keep(self, hashes: NDArray[np.uint8]) -> None:
        """Remember the hashes (N, 16) of the files that `recall` was asked for, as they were then."""
        ...


class Dataset(ABC):
    """Samples in a fixed order: by split (train, val, test), then by the bytes of the id.

    The attributes `name`, `classes`, `ids`, `labels`, `splits` and `ignored` are those of `Rows`. `known` is
    asked for content hashes before any file is read; None: all are read.
    """

    known: Known | None = None

    def __init__(self, rows: Rows) -> None:
        self.name, self.classes, self.ids = rows.name, rows.classes, rows.ids
        self.labels, self.splits = rows.labels, rows.splits
        self.ignored = rows.ignored
        self._progress = rows.progress

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind who is told of progress: that is in the process a data set is sent from."""
        return {**self.__dict__, "_progress": None}

    @abstractmethod
    def raw(self, i: int) -> bytes | NDArray[np.uint8]:
        """Return what is stored for a sample: the file's bytes, or pixels uint8 (H, W) or (H, W, 3).

        Raises:
            BadImageError: it cannot be read.
        """

    def file(self, i: int) -> str | None:
        """Return the path of the file that holds just this sample, None where there is none."""
        return None

    def begin(self, rows: Sequence[int]) -> Callable[[int], bytes | NDArray[np.uint8]]:
        """Ask for some samples without waiting for them; return what gives, by its place, each as `raw` does.

        Files are read when they are wanted; what comes from far away is under way from now on.
        """
        return lambda place: self.raw(rows[place])

    def stop(self) -> None:  # noqa: B027
        """Let go of what was asked for and is not wanted any more."""

    def image(self, i: int, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Return the RGB pixels of a sample, uint8 (H, W, 3). Safe to call from many threads.

        Raises:
            BadImageError: it cannot be read or decoded, or has more than `max_pixels` pixels.
        """
        return decode(self.raw(i), max_pixels)

    def sample(self, i: int) -> Sample:
        """Return one sample, its image decoded.

        Raises:
            BadImageError: as `image` does.
        """
        return Sample(self.ids[i], self.image(i), int(self.labels[i]), SPLITS[self.splits[i]])

    def limited(self, n_per_class: int) -> Dataset:
        """Return the data set of the first `n_per_class` samples of each class in each split.

        Raises:
            OptionError: `n_per_class` is less than 1.
        """
        if n_per_class < 1:
            raise OptionError(f"The limit must be at least 1 image a class, got {n_per_class}.")
        groups = self.splits.astype(np.int64) * max(len(self.classes), 1) + self.labels
        order = np.argsort(groups, kind="stable")
        ordered = groups[order]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
        return _Part(self, np.sort(order[rank < n_per_class]))

    @cached_property
    def content_hashes(self) -> NDArray[np.uint8]:
        """The `content_hash` of every sample, uint8 (N, 16); all zeros for a sample that cannot be read."""
        hashes = np.zeros((len(self), HASH_SIZE), dtype=np.uint8)
        known = self.known if len(self) and self.file(0) is not None else None
        if known is not None:
            hashes[:] = known.recall(self.file(row) or "" for row in range(len(self)))
        left = np.flatnonzero(~hashes.any(axis=1))
        done = len(self) - len(left)
        for rows, found in self._shares(left):
            hashes[rows] = np.frombuffer(found, dtype=np.uint8).reshape(-1, HASH_SIZE)
            done += len(rows)
            if self._progress is not None:
                self._progress(done, len(self))
        if known is not None and len(left):
            known.keep(hashes)
        hashes.flags.writeable = False
        return hashes

    def _shares(self, left: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], bytes]]:
        """Yield (rows, hashes) of every share of rows: read here while that is quick, then by threads."""
        shares, quick = iter(np.split(left, range(_SHARE, len(left), _SHARE)) if len(left) else []), True
        while quick and (share := next(shares, None)) is not None:
            begin = time.perf_counter()
            found = self._hashes(share)
            quick = time.perf_counter() - begin <= _QUICK * _SHARE
            yield share, found
        others = list(shares)
        with ThreadPoolExecutor(_READERS) as pool:
            yield from zip(others, pool.map(self._hashes, others), strict=True)

    def _hashes(self, rows: NDArray[np.int64]) -> bytes:
        """Return the hashes of some samples, one behind the other."""
        return b"".join(self._hash(i) for i in rows.tolist())

    def _hash(self, i: int) -> bytes:
        try:
            return content_hash(self.raw(i))
        except BadImageError:
            return bytes(HASH_SIZE)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over (id, content hash, label, split) of every sample in order, and the classes."""
        digest = hashlib.sha256(b"featcache dataset 1\0")
        for first in range(0, len(self), _BLOCK):  # the numbers as objects of a block alone
            some = slice(first, first + _BLOCK)
            labels, splits = self.labels[some].tolist(), self.splits[some].tolist()
            rows = zip(self.ids[some], labels, splits, self.content_hashes[some], strict=True)
            for name, label, split, content in rows:
                digest.update(_counted(name) + b"%d %d " % (label, split) + content.tobytes())
        digest.update(b"classes %d " % len(self.classes))
        for name in self.classes:
            digest.update(_counted(name))
        return digest.hexdigest()


class _Part(Dataset):
    """Some rows of another data set, in its order."""

    def __init__(self, whole: Dataset, rows: NDArray[np.int64]) -> None:
        self._whole, self._rows = whole, rows.tolist()
        ids = [whole.ids[row] for row in self._rows]
        labels, splits = whole.labels[rows], whole.splits[rows]
        super().__init__(Rows(whole.name, whole.classes, ids, labels, splits, whole.ignored, whole._progress))

    def raw(self, i: int) -> bytes | NDArray[np.uint8]:
        """Return what is stored for the sample, as the whole data set's `raw` does."""
        return self._whole.raw(self._rows[i])

    def file(self, i: int) -> str | None:
        """Return the sample's file, as the whole data set's `file` does."""
        return self._whole.file(self._rows[i])

    def begin(self, rows: Sequence[int]) -> Callable[[int], bytes | NDArray[np.uint8]]:
        """Ask for some samples, as the whole data set's `begin` does."""
        return self._whole.begin([self._rows[row] for row in rows])

    def stop(self) -> None:
        """Let go of what was asked for."""
        self._whole.stop()


def content_hash(data: bytes | NDArray[np.uint8]) -> bytes:
    """Return the xxh3-128 of a file's bytes, or of the shape and bytes of pixels; 16 bytes, big-endian."""
    if isinstance(data, bytes):
        return xxhash.xxh3_128_digest(data)
    digest = xxhash.xxh3_128(("x".join(map(str, data.shape)) + " ").encode())
    digest.update(np.ascontiguousarray(data).data)
    return digest.digest()


def id_bytes(name: str) -> bytes:
    """Return an id or class name as bytes: UTF-8, and the very bytes of a path that is no UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def _counted(text: str) -> bytes:
    """Return a text with its length before it, so that no two lists of texts run together alike."""
    encoded = id_bytes(text)
    return b"%d:" % len(encoded) + encoded
