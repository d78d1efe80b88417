"""The orientation tag of an EXIF block, read without Pillow, which warns about damaged blocks."""

from __future__ import annotations

import struct

ORIENTATION = 274  # the tag; EXIF 2.32, section 4.6.4 (the block is a small TIFF file)
SHORT = 3


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 (upright) to 8; 1 where there is none or it is damaged."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, at)
            if tag == ORIENTATION and kind == SHORT:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # cut off
        pass
    return 1
