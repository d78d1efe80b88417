"""Which JPEG files a device may decode: a question to the file alone, so that a cache hangs on nothing else.

Taken are the plain ones, about which decoders agree: baseline, eight bits, three components in YCbCr, upright
and whole. Grey, CMYK, RGB, progressive, arithmetic, turned and broken files are Pillow's, whatever a device
could do with them. The format is ITU-T T.81, Annex B; the colour rules are those of libjpeg (`jdapimin.c`).
"""

from __future__ import annotations

from collections.abc import Iterator

from featcache.images.orientation import exif_orientation

Size = tuple[int, int]
"""Height and width."""

START, END = b"\xff\xd8\xff", b"\xff\xd9"
BASELINE, SCAN, EXIF, ADOBE = 0xC0, 0xDA, 0xE1, 0xEE
OTHER_FRAMES = frozenset({*range(0xC1, 0xD0)} - {0xC4, 0xC8, 0xCC})
SAMPLING = {0x11, 0x12, 0x21, 0x22}  # of luminance, across and down, where colour has one sample
YCBCR = (1, 2, 3)  # the components' names in JFIF


def plain_size(data: bytes) -> Size | None:
    """Return the height and width of a JPEG file that a device may decode, None for any other bytes."""
    if data[:3] != START or data[-2:] != END:
        return None
    size, orientation = None, 1
    try:
        for marker, body in _segments(data):
            if marker == BASELINE and size is None:
                size = _plain_frame(body)
            elif marker == BASELINE or marker in OTHER_FRAMES:
                return None
            elif marker == EXIF and body[:6] == b"Exif\0\0":
                orientation = max(orientation, exif_orientation(body))
            elif marker == ADOBE and body[:5] == b"Adobe" and body[11] != 1:
                return None  # RGB or CMYK
            elif marker == SCAN and body[0] != len(YCBCR):
                return None  # one component at a time
    except (IndexError, ValueError):  # cut off, or no segment where one should be
        return None
    return size if orientation == 1 else None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) up to the first scan, whose header is the last.

    Raises:
        ValueError: what follows is no segment.
    """
    at, marker = 2, 0
    while marker != SCAN:
        if data[at] != 0xFF:
            raise ValueError("no marker")
        while data[at] == 0xFF:  # it may be filled up
            at += 1
        marker, length = data[at], int.from_bytes(data[at + 1 : at + 3], "big")
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9 or length < 2:
            raise ValueError("no segment")
        yield marker, data[at + 3 : at + 1 + length]
        at += 1 + length


def _plain_frame(body: bytes) -> Size | None:
    """Return the size in a frame header: 8 bits, three components in YCbCr of a common sampling."""
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    names, sampling = tuple(body[6::3]), tuple(body[7::3])
    plain = body[0] == 8 and body[5] == len(YCBCR) and len(body) == 15 and names[:3] == YCBCR
    common = sampling[0] in SAMPLING and sampling[1:] == (0x11, 0x11)
    return (height, width) if plain and common and height and width else None
