"""One shard: an HDF5 file of fixed-size arrays, built in memory, mapped without copying."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from featcache.errors import DamagedError
from featcache.store import keeping, layout
from featcache.store.quantised import OFFSET, SCALE, name_of

OK, BAD = 0, 1  # the status codes of a row
FEATURES = "features"


@dataclass(frozen=True)
class Block:
    """Where an array lies in a file, so that it can be mapped."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """The array's size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize  # of any size: a stranger's may overflow

    def map(self) -> NDArray[np.generic]:
        """Map the array, read-only."""
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def arrays(
    features: Mapping[str, NDArray[np.floating] | NDArray[np.int8]],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    status: NDArray[np.uint8],
    extra: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a shard by their names in the file, in the order they are written.

    Args:
        features: node → (n, D), or (n, V, D) of V views; with one node the data set is `features`, with
            several `features/<node>`.
        labels: (n,) class numbers.
        rows: (n,) rows of the plan.
        status: (n,) 0 for a good row, 1 for an image that could not be read (its features are zero).
        extra: scales and offsets of features in int8, by name.
    """
    named: dict[str, NDArray[np.generic]] = {
        name_of(FEATURES, node, len(features) == 1): np.ascontiguousarray(array)
        for node, array in features.items()
    }
    named.update(extra)
    named["label"], named["row"] = labels.astype(np.int64), rows.astype(np.int64)
    named["status"] = status.astype(np.uint8)
    return named


def build(
    features: Mapping[str, NDArray[np.floating] | NDArray[np.int8]],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    status: NDArray[np.uint8],
    extra: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
) -> bytes:
    """Return the bytes of a shard as HDF5 writes it; equal arrays give equal bytes. Arguments as `arrays`."""
    return layout.write(arrays(features, labels, rows, status, extra))


def hash_of(data: bytes | memoryview) -> str:
    """Return the xxh3-128 of a shard's bytes, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


_SETTLED_NS = 2_000_000_000  # a file changed twice within the clock's grain keeps its times
_verified: dict[tuple[str, int, int, int, int, int], str] = {}


def hash_of_file(path: Path) -> str:
    """Return the xxh3-128 of a file; remembered in this process by size, times, inode once it is at rest."""
    facts = path.stat()
    times = (facts.st_mtime_ns, facts.st_ctime_ns)
    key = (str(path), facts.st_size, *times, facts.st_ino, facts.st_dev)
    if key in _verified:
        return _verified[key]
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(8 << 20):
            digest.update(piece)
    if max(times) < time.time_ns() - _SETTLED_NS:
        _verified[key] = digest.hexdigest()
    return digest.hexdigest()


def hash_brought(path: Path, expected: str, afresh: bool = False) -> str:
    """Return the xxh3-128 of a shard, which is fetched first where it is not here.

    A copy that differs from what is expected is fetched once more; so is, with `afresh`, any copy.

    Raises:
        OSError: it cannot be read.
        CacheError: it cannot be fetched.
    """
    fetched = keeping.bring(path, afresh)
    found = hash_of_file(path)
    if found != expected and not fetched and keeping.bring(path, again=True):
        found = hash_of_file(path)
    return found


def blocks(path: Path, columns: Mapping[str, int], dtype: str, rows: int, views: int = 1) -> dict[str, Block]:
    """Check that a shard is exactly as it must be and return where its arrays lie.

    Args:
        path: the shard.
        columns: node → D.
        dtype: the stored dtype of the features.
        rows: the number of rows.
        views: how many a row holds; with one, features are (n, D).

    Raises:
        DamagedError: an array is missing, unexpected, of another type or shape, or not plainly stored.
    """
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "label": ((rows,), "int64"),
        "row": ((rows,), "int64"),
        "status": ((rows,), "uint8"),
    }
    axis = (views,) if views > 1 else ()
    for node, width in columns.items():
        expected[name_of(FEATURES, node, len(columns) == 1)] = ((rows, *axis, width), dtype)
        for what in (SCALE, OFFSET) if dtype == "int8" else ():
            expected[name_of(what, node, len(columns) == 1)] = ((width,), "float32")
    size = path.stat().st_size
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.userblock_size:
                raise _damaged(path, "something stands before its beginning")
            _check_names(file, expected, path)
            found = {name: _block(file, name, path, size, *spec) for name, spec in expected.items()}
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, f"it is no shard ({error})") from error
    return found


def _check_names(file: h5py.File, expected: Mapping[str, object], path: Path) -> None:
    top = {name.partition("/")[0] for name in expected}
    if set(file.keys()) != top:
        raise _damaged(path, f"it holds {sorted(file.keys())}, expected {sorted(top)}")
    for name in top:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise _damaged(path, f"{name!r} is a link to elsewhere")
    for group in {name.partition("/")[0] for name in expected if "/" in name}:
        nested = {name.partition("/")[2] for name in expected if name.startswith(f"{group}/")}
        if set(file[group].keys()) != nested:
            raise _damaged(path, f"{group!r} holds other nodes than {sorted(nested)}")


def _block(file: h5py.File, name: str, path: Path, size: int, shape: tuple[int, ...], dtype: str) -> Block:
    group, _, leaf = name.rpartition("/")
    parent = file[group] if group else file
    if not isinstance(parent.get(leaf, getlink=True), h5py.HardLink):
        raise _damaged(path, f"{name!r} is a link to elsewhere")
    data = parent[leaf]
    known = h5py.h5t.py_create(np.dtype(dtype))
    # The type itself: h5py takes bits, and floats of another layout, for numbers of the same size.
    if not isinstance(data, h5py.Dataset) or data.shape != shape or data.id.get_type() != known:
        raise _damaged(path, f"{name!r} is not {dtype} {shape}")
    layout = data.id.get_create_plist()
    offset = data.id.get_offset()
    plain = layout.get_layout() == h5py.h5d.CONTIGUOUS and layout.get_nfilters() == 0 and not data.external
    block = Block(path, offset or 0, shape, np.dtype(dtype))
    if not plain or offset is None or offset + block.nbytes > size:
        raise _damaged(path, f"{name!r} is not stored plainly within the file")
    return block


def _damaged(path: Path, why: str) -> DamagedError:
    hint = f"Run: featcache verify {path.parent.parent.name} --repair."
    return DamagedError(f"Shard {path} is damaged: {why}.", hint)
