"""Named arrays in the bytes of an .npz, read as strictly as our own writer writes them.

A file may come from anyone: nothing is unpickled or unpacked, no header is evaluated, and no more memory is
taken than the file has bytes.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<|][biuf]\d{1,2})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,200})\), \} *\n"
)


def unpack(data: bytes) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of an .npz that `numpy.savez` wrote, read-only.

    Raises:
        ValueError: it is none, is compressed, or holds anything but plain numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            # Entries may overlap: what they unpack to is bounded by what is there.
            if not plain or len(set(names)) < len(names) or sum(e.file_size for e in entries) > len(data):
                raise ValueError("its entries are compressed, overlap or share a name")
            return {entry.filename.removesuffix(".npy"): _array(archive.read(entry)) for entry in entries}
    except (zipfile.BadZipFile, EOFError, RuntimeError, struct.error, OverflowError, TypeError) as error:
        raise ValueError(f"{error}") from error


def _array(data: bytes) -> NDArray[np.generic]:
    start = len(_MAGIC) + 2
    length = int.from_bytes(data[len(_MAGIC) : start], "little")
    header = _HEADER.fullmatch(data[start : start + length])
    if data[: len(_MAGIC)] != _MAGIC or header is None:
        raise ValueError("an entry is no array of plain numbers")
    dtype: np.dtype[np.generic] = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in header[3].replace(b" ", b"").split(b",") if size)
    if len(data) - start - length != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array has another size than its header says")
    flat: NDArray[np.generic] = np.frombuffer(data, dtype, offset=start + length)
    return flat.reshape(shape, order="F" if header[2] == b"True" else "C")
