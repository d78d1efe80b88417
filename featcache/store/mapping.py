"""Many files, one array: the feature blocks of a split's shards mapped one behind the other.

Shards hold whole pages of features (but for the last one), so the kernel can lay them side by side in the
address space: the split is one plain array, nothing is copied, and the page cache holds the only copy.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.store.shard import Block

_MAP_FIXED = 0x10  # the same on Linux and macOS


def one_array(blocks: Sequence[Block]) -> NDArray[np.generic]:
    """Return the blocks' rows as one read-only array (sum of n, ...), mapped where that is possible.

    Where it is not (another system, odd row sizes), the rows are copied into memory.
    """
    if len(blocks) == 1:
        return blocks[0].map()
    if _mappable(blocks):
        return _mapped(blocks)
    return _read(blocks)


def _mappable(blocks: Sequence[Block]) -> bool:
    whole = all(block.nbytes % mmap.PAGESIZE == 0 for block in blocks[:-1])
    aligned = all(block.offset % mmap.PAGESIZE == 0 for block in blocks)
    return whole and aligned and sys.platform in ("linux", "darwin")


def _mapped(blocks: Sequence[Block]) -> NDArray[np.generic]:
    total = sum(block.nbytes for block in blocks)
    # Python's mmap owns the address range and unmaps it all when the array is gone; the files are then
    # mapped over it piece by piece.
    reserved = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    whole = np.frombuffer(reserved, dtype=np.uint8)
    at = whole.ctypes.data
    for block in blocks:
        _map_over(at, block)
        at += block.nbytes
    rows = sum(block.shape[0] for block in blocks)
    return whole.view(blocks[0].dtype).reshape(rows, *blocks[0].shape[1:])


def _map_over(address: int, block: Block) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    descriptor = os.open(block.path, os.O_RDONLY)
    try:
        got = libc.mmap(
            address, block.nbytes, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, block.offset
        )
    finally:
        os.close(descriptor)
    if got != address:
        raise OSError(ctypes.get_errno(), f"cannot map {block.path}")


def _read(blocks: Sequence[Block]) -> NDArray[np.generic]:
    rows = sum(block.shape[0] for block in blocks)
    out = np.empty((rows, *blocks[0].shape[1:]), dtype=blocks[0].dtype)
    at = 0
    for block in blocks:
        out[at : at + block.shape[0]] = block.map()
        at += block.shape[0]
    out.flags.writeable = False
    return out
