"""Rows in eight bits: codes with a scale and an offset for each column of each shard.

value = offset + scale * code, with codes from -128 to 127: the affine quantisation of Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
eq. 1, for each column. Half the size of float16, with a largest error of half a step: the column's range in
the shard divided by 510.

Scale and offset are the shard's own, from the smallest and the largest value of its rows: nothing has to be
measured before the first shard or agreed upon by several writers, a shard is the same whoever computes it and
whenever, and no later row can fall outside. They cost eight bytes a column and shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheError
from featcache.selection import Selection

SCALE, OFFSET = "scale", "offset"  # their names in a shard
STEPS = 255
BLOCK = 1 << 17  # values worked on at once: 512 KiB of float32 stay in a core's cache

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Coded:
    """Rows of one shard in eight bits."""

    codes: NDArray[np.int8]  # (n, D) or (n, V, D)
    scale: Floats  # (D,)
    offset: Floats  # (D,)


def coded(rows: Floats, good: NDArray[np.bool_]) -> Coded:
    """Return rows (n, D) in eight bits; the range is that of the good ones, the others get some code.

    Rows (n, V, D) of V views are coded as if each view were a row.

    A column that never changes is stored exactly. In a column whose smallest value is 0, as behind a ReLU,
    zeros stay exactly 0.

    Raises:
        CacheError: a good row holds NaN or infinity, or the rows are not float32.
    """
    if rows.dtype != np.float32:
        raise CacheError(f"Rows to be stored in int8 must come as float32, got {rows.dtype}.")
    if rows.ndim == 3:
        flat = coded(rows.reshape(-1, rows.shape[2]), np.repeat(good, rows.shape[1]))
        return Coded(flat.codes.reshape(rows.shape), flat.scale, flat.offset)
    low, high = _range(rows, good)
    scale = ((high - low) / STEPS).astype(np.float32)  # of float64: the largest range does not overflow
    offset = np.where(scale > 0, low + 128.0 * scale, low).astype(np.float32)
    divisor = np.where(scale > 0, scale, np.float32(1))
    codes = np.empty(rows.shape, dtype=np.int8)
    for part in _blocks(*rows.shape):
        values = rows[part] - offset
        values /= divisor
        np.clip(np.rint(values, out=values), -128, 127, out=values)
        values[~good[part]] = 0
        codes[part] = values
    return Coded(codes, scale, offset)


def _range(rows: Floats, good: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and the largest value of each column over the good rows; 0 where there is none."""
    if not good.any():
        return np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    # Without a copy where all rows are good; NaN goes through minimum and maximum.
    chosen = rows if good.all() else rows[good]
    low, high = chosen.min(axis=0).astype(np.float64), chosen.max(axis=0).astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CacheError("A feature is not finite; such a feature is never stored.", "Check the weights.")
    return low, high


def encoded(
    features: Mapping[str, Floats], good: NDArray[np.bool_]
) -> tuple[dict[str, NDArray[np.int8]], dict[str, Floats]]:
    """Return node → codes, and scales and offsets by their names in a shard.

    Raises:
        CacheError: a good row holds NaN or infinity.
    """
    nodes = {node: coded(rows, good) for node, rows in features.items()}
    alone = len(nodes) == 1
    extra = {}
    for node, found in nodes.items():
        extra[name_of(SCALE, node, alone)] = found.scale
        extra[name_of(OFFSET, node, alone)] = found.offset
    return {node: found.codes for node, found in nodes.items()}, extra


def as_stored(
    store_dtype: str, features: Mapping[str, NDArray[Any]], good: NDArray[np.bool_]
) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, Floats]]:
    """Return features as a shard of a type holds them, and what it holds beside them by name.

    Raises:
        CacheError: a good row that is to be coded holds NaN or infinity.
    """
    return encoded(features, good) if store_dtype == "int8" else (features, {})


def name_of(what: str, node: str, alone: bool) -> str:
    """Return the name in a shard of an array of a node, which is the cache's only one or not."""
    return what if alone else f"{what}/{node}"


class QuantisedRows:
    """Rows (N, D) of several shards in eight bits, which come out as float32 when they are asked for.

    Indexing gives an array of the rows chosen, `part` the rows chosen as they are stored, `numpy.asarray` all
    of them: whoever reads block by block needs no copy of the table. float32, because on a CPU that costs a
    fraction of what turning float16 into it does.

    Args:
        codes: (N, D), often a memory map.
        scale, offset: (S, D), finite, of S shards.
        shard: (N,) which of them a row belongs to.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self, codes: NDArray[np.int8], scale: Floats, offset: Floats, shard: NDArray[np.intp]
    ) -> None:
        self.codes, self.scale, self.offset, self.shard = codes, scale, offset, shard
        self.shape, self.nbytes = codes.shape, codes.nbytes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Floats:
        """Return the row (D,) of a number, or the rows (n, D) of a slice, a mask or an array of numbers."""
        if isinstance(rows, int | np.integer):
            rows = slice(rows, rows + 1) if rows >= 0 else slice(rows, rows + 1 or None)
            row: Floats = self[rows][0]
            return row
        return self._values(self.codes[rows], self.shard[rows])

    def part(self, rows: slice | NDArray[np.int64]) -> QuantisedRows:
        """Return the rows chosen, still in eight bits: a view for a slice, else a copy of the codes."""
        return QuantisedRows(self.codes[rows], self.scale, self.offset, self.shard[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows in eight bits become floats only as a copy")
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _values(self, codes: NDArray[np.int8], shard: NDArray[np.intp]) -> Floats:
        out = np.empty(codes.shape, dtype=self.dtype)
        for part in _blocks(*codes.shape):
            values, own = out[part], shard[part]
            np.copyto(values, codes[part])
            # Rows in order mostly lie in one shard, whose scales then need not be gathered.
            which: Any = own[0] if len(own) and (own == own[0]).all() else own
            values *= self.scale[which]
            values += self.offset[which]
        return out


class QuantisedSelection(Selection):
    """Chosen rows of a table in eight bits; a block of them becomes floats when it is read."""

    def __init__(self, base: QuantisedRows, index: NDArray[np.int64]) -> None:
        super().__init__(cast("NDArray[Any]", base), index)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return some of the rows, float32 (n, D)."""
        return self.base[self.index[rows]]


def joined(codes: NDArray[np.int8], lengths: Sequence[int], scale: Floats, offset: Floats) -> QuantisedRows:
    """Return the rows of shards one behind the other, of so many rows each."""
    return QuantisedRows(codes, scale, offset, np.repeat(np.arange(len(lengths)), lengths))


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
