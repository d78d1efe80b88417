"""The layout of a shard: HDF5's own bytes around the arrays, made once for all shards of one shape.

HDF5 would copy 64 MiB of features three times on their way into a file image. But where arrays are stored
plainly, all that it adds, headers and padding, depends on their names, shapes and types alone. So a file is
made once with the arrays left empty, and a shard is that file with the arrays laid over it: its pieces are
hashed and written from where they are, in the memory that a GPU copied them to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from featcache.store.plan import PAGE

Arrays = Mapping[str, NDArray[np.generic]]
"""Name in the file ("label", "features/flatten") → array, in the order they are written."""

_numbers = itertools.count()
_COPIES, _BESIDE = 5, 32 << 20  # what HDF5 takes for a file in memory: copies of it, and bytes beside them
_Spec = tuple[tuple[str, tuple[int, ...], str], ...]


@dataclass(frozen=True)
class Layout:
    """Where HDF5 puts the arrays of one kind of shard, and the bytes it puts between them."""

    places: tuple[tuple[int, str], ...]  # (offset, name) in the order of the file
    between: tuple[bytes, ...]  # before the first array, …, behind the last: one more than places

    def pieces(self, arrays: Arrays) -> list[memoryview]:
        """Return the pieces of the file in order; those of contiguous arrays are views of their memory."""
        out: list[memoryview] = []
        for gap, (_, name) in zip(self.between, self.places, strict=False):
            out += [memoryview(gap), np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data]
        return [piece for piece in (*out, memoryview(self.between[-1])) if len(piece)]


def pieces(arrays: Arrays) -> list[memoryview]:
    """Return the bytes of a shard in pieces; joined they are what `write` gives."""
    spec = tuple((name, array.shape, array.dtype.str) for name, array in arrays.items())
    return _layout(spec).pieces(arrays)


def hash_of(parts: Iterable[bytes | memoryview]) -> str:
    """Return the xxh3-128 of bytes that come in pieces, 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write(arrays: Arrays) -> bytes:
    """Return the bytes of an HDF5 file of the arrays, all written by HDF5; equal arrays give equal bytes."""
    return _file(arrays, lambda file: None)


def _file(arrays: Arrays, look: Callable[[h5py.File], None]) -> bytes:
    # HDF5 can die by a signal where memory ends on its way, so what it may take is asked for before: address
    # space alone, given back at once.
    size = sum(array.nbytes for array in arrays.values())
    np.empty(_COPIES * size + _BESIDE, np.uint8)
    try:
        return _written(arrays, look)
    except (OSError, RuntimeError, ValueError) as error:
        if "allocat" in str(error):
            raise MemoryError(f"HDF5 has no memory for a shard of {size} bytes: {error}") from error
        raise


def _written(arrays: Arrays, look: Callable[[h5py.File], None]) -> bytes:
    # The core driver with no backing store never touches the disk, where HDF5 can die by a signal when
    # it is full; the version bounds keep the bytes the same for every HDF5 2.x and 1.1x. Files in memory
    # share one space of names in a process, and several threads may each make one.
    with h5py.File(
        f"shard-{next(_numbers)}",
        "w",
        driver="core",
        backing_store=False,
        libver=("v110", "v110"),
        alignment_threshold=1,
        alignment_interval=PAGE,
    ) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.flush()
        look(file)
        return bytes(file.id.get_file_image())


@lru_cache(maxsize=64)  # a cache has two kinds of shard for each split: whole ones and the last
def _layout(spec: _Spec) -> Layout:
    """Write a file of zeros, and keep all of it but the zeros."""
    empty = {name: np.zeros(shape, dtype) for name, shape, dtype in spec}
    found: list[tuple[int, str]] = []

    def look(file: h5py.File) -> None:
        found.extend((file[name].id.get_offset() or 0, name) for name in empty if empty[name].nbytes)

    image = _file(empty, look)
    between, at = [], 0
    for offset, name in sorted(found):
        between.append(image[at:offset])
        at = offset + empty[name].nbytes
    return Layout(tuple(sorted(found)), (*between, image[at:]))
