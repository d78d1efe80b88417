"""Forty kinds of odd images: those that cannot be read, and those that can and must be read right."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults import strangers
from tests.faults.hashing import SIDE

Make = Callable[[Path, np.random.Generator], None]


def _pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encoded(rng: np.random.Generator, kind: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    """Return an image of the backbone's size in a format and mode."""
    stream = io.BytesIO()
    Image.fromarray(_pixels(rng)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _bytes(make: Callable[[np.random.Generator], bytes]) -> Make:
    return lambda path, rng: (path.write_bytes(make(rng)), None)[1]


def _cut(kind: str, share: float) -> Make:
    return _bytes(lambda rng: (lambda data: data[: int(len(data) * share)])(encoded(rng, kind)))


def _dangling(path: Path, rng: np.random.Generator) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _fixed(name: str) -> Make:
    data = strangers.images()[name]
    return _bytes(lambda rng: data)


BAD: dict[str, Make] = {
    "empty": _bytes(lambda rng: b""),
    "one byte": _bytes(lambda rng: b"\xff"),
    "a web page": _bytes(lambda rng: b"<!DOCTYPE html><html>404</html>"),
    "text": _bytes(lambda rng: b"not an image\n" * 20),
    "zeros": _bytes(lambda rng: bytes(3000)),
    "noise": _bytes(lambda rng: rng.bytes(3000)),
    "half a PNG": _cut("PNG", 0.5),
    "half a JPEG": _cut("JPEG", 0.5),
    "half a GIF": _cut("GIF", 0.5),
    "half a WebP": _cut("WEBP", 0.5),
    "half a TIFF": _cut("TIFF", 0.5),
    "half a BMP": _cut("BMP", 0.5),
    "a JPEG's head": _cut("JPEG", 0.1),
    "a PNG's signature": _bytes(lambda rng: encoded(rng)[:8]),
    "a PNG with a wrong checksum": _bytes(lambda rng: encoded(rng).replace(b"IDAT", b"IDAU", 1)),
    "float pixels": _bytes(lambda rng: _tiff(np.ones((SIDE, SIDE), np.float32))),
    "32-bit pixels": _bytes(lambda rng: _tiff(np.ones((SIDE, SIDE), np.int32))),
    "JPEG 2000": _bytes(lambda rng: encoded(rng, "JPEG2000")),
    "an icon": _bytes(lambda rng: encoded(rng, "ICO")),
    "bomb of 3.6 gigapixels": _fixed("PNG of 3.6 gigapixels"),
    "bomb in a text chunk": _fixed("PNG with 30 MB in a text"),
    "a TIFF that is its own directory": _fixed("TIFF whose directory is itself"),
    "PostScript": _fixed("PostScript"),
    "SVG": _fixed("SVG that includes a file"),
}


def _tiff(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "TIFF")
    return stream.getvalue()


def _turned(rng: np.random.Generator) -> bytes:
    exif = Image.Exif()
    exif[274] = int(rng.integers(2, 9))
    return encoded(rng, "JPEG", exif=exif)


def _animated(kind: str) -> Callable[[np.random.Generator], bytes]:
    def make(rng: np.random.Generator) -> bytes:
        frames = [Image.fromarray(_pixels(rng)) for _ in range(3)]
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        return stream.getvalue()

    return make


def _deep(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)).save(stream, "PNG")
    return stream.getvalue()


GOOD: dict[str, Make] = {
    "CMYK": _bytes(lambda rng: encoded(rng, "JPEG", "CMYK")),
    "grey": _bytes(lambda rng: encoded(rng, "PNG", "L")),
    "bilevel": _bytes(lambda rng: encoded(rng, "PNG", "1")),
    "16-bit": _bytes(_deep),
    "palette": _bytes(lambda rng: encoded(rng, "PNG", "P")),
    "palette with alpha": _bytes(lambda rng: encoded(rng, "PNG", "P", transparency=3)),
    "alpha": _bytes(lambda rng: encoded(rng, "PNG", "RGBA")),
    "grey with alpha": _bytes(lambda rng: encoded(rng, "PNG", "LA")),
    "animated GIF": _bytes(_animated("GIF")),
    "animated WebP": _bytes(_animated("WEBP")),
    "animated PNG": _bytes(_animated("PNG")),
    "EXIF turned": _bytes(_turned),
    "BMP named .png": _bytes(lambda rng: encoded(rng, "BMP")),
    "JPEG named .png": _bytes(lambda rng: encoded(rng, "JPEG")),
    "progressive JPEG": _bytes(lambda rng: encoded(rng, "JPEG", progressive=True)),
    "bytes behind the end": _bytes(lambda rng: encoded(rng) + b"more" * 100),
}
assert len(BAD) + len(GOOD) == 40
