"""Named arrays in the bytes of an .npz, read as strictly as our own writer writes them.

A file may come from anyone: nothing is unpickled or unpacked, no header is evaluated, and no more memory is
taken than the file has bytes.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import struct
import zipfile
from typing import IO

import numpy as np
from numpy.typing import NDArray

_ENTRY = struct.Struct("<26xHH")  # of an entry's own header: how long its name and its extra field are
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
            entries = _entries(archive, len(data))
            return {name: _array(memoryview(archive.read(entry))) for name, entry in entries.items()}
    except _NO_ARCHIVE as error:
        raise ValueError(f"{error}") from error


def mapped(file: IO[bytes]) -> tuple[dict[str, NDArray[np.generic]], mmap.mmap]:
    """Return the arrays of such a file where they lie in it, read-only, and the map that they are views of.

    Nothing is read but headers: the entries' checksums are not looked at. The arrays need not be aligned.

    Raises:
        ValueError: as `unpack`.
    """
    try:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with zipfile.ZipFile(file) as archive:
            found = _entries(archive, len(whole))
        return {name: _array(_data(memoryview(whole), entry)) for name, entry in found.items()}, whole
    except _NO_ARCHIVE as error:
        raise ValueError(f"{error}") from error


_NO_ARCHIVE = (zipfile.BadZipFile, EOFError, RuntimeError, struct.error, OverflowError, TypeError)


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    # Entries may overlap: what they unpack to is bounded by what is there.
    if not plain or len(set(names)) < len(names) or sum(e.file_size for e in entries) > size:
        raise ValueError("its entries are compressed, overlap or share a name")
    return {entry.filename.removesuffix(".npy"): entry for entry in entries}


def _data(whole: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """Return where the bytes of an entry lie."""
    at = entry.header_offset
    name, extra = _ENTRY.unpack(whole[at : at + _ENTRY.size])
    first = at + _ENTRY.size + name + extra
    data = whole[first : first + entry.file_size]
    if bytes(whole[at : at + 4]) != b"PK\x03\x04" or len(data) < entry.file_size:
        raise ValueError("an entry does not lie where the archive says")
    return data


def _array(data: memoryview) -> NDArray[np.generic]:
    start = len(_MAGIC) + 2
    length = int.from_bytes(data[len(_MAGIC) : start], "little")
    header = _HEADER.fullmatch(data[start : start + length])
    if data[: len(_MAGIC)] != _MAGIC or header is None:
        raise ValueError("an entry is no array of plain numbers")
    dtype: np.dtype[np.generic] = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in header[3].replace(b" ", b"").split(b",") if size)
    if len(data) - start - length != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array has another size than its header says")
    flat: NDArray[np.generic] = np.frombuffer(data[start + length :], dtype)
    return flat.reshape(shape, order="F" if header[2] == b"True" else "C")
