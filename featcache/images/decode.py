"""From bytes to RGB pixels, by the rules the recipe names (`featcache.recipe.Decoding`).

- decoder "pillow": JPEG, PNG, BMP, GIF, WebP, TIFF and PNM, told apart by content, never by name; no others.
- grey "repeat": three equal channels.
- depth16 "scale": 16-bit grey is value * 255 / 65535, rounded, never clipped. Of 16-bit colour Pillow keeps
  the high byte. Floating point, 32-bit and signed pixels have no white, and are refused.
- alpha "over-white": any transparency (channel, palette entry or colour key) is composited over white.
- orientation "exif": the EXIF (or TIFF) orientation tag is applied.

Palettes, bilevel and CMYK (Adobe's inverted JPEGs too) become RGB as in Pillow; of an animation, the first
frame. Pillow's plugins are opened directly: `Image.open` would warn about large images before their size can
be looked at, and its limit is a global of the whole process.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import BadImageError
from featcache.images.orientation import exif_orientation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 50_000_000
"""The default limit on width times height, checked from the header before any pixel is decoded."""

_ROOM = 64 << 20  # bytes that must be to be had where an image is called bad for what its decoder says
_quiet_lock = threading.Lock()


def decode(data: bytes | NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the RGB pixels, uint8 (H, W, 3), of an encoded image or of an array (H, W) or (H, W, 3).

    Safe to call from many threads. `max_pixels` limits H * W.

    Raises:
        BadImageError: the reason in a few words, whatever went wrong in the decoder. Only MemoryError, which
            says nothing about the image, passes as it is.
    """
    if not isinstance(data, bytes):
        return _from_array(data, max_pixels)
    try:
        return _from_bytes(data, max_pixels)
    except (BadImageError, MemoryError):
        raise
    except Exception:  # a decoder raises anything: SyntaxError, struct.error, IndexError, …
        return _again(data, max_pixels)


def _again(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode what failed once more: only an image that fails again is a bad one.

    Where memory ends for a moment Python and Pillow do not always say so: a call fails "without exception
    set", a WebP decoder "could not be created". That says nothing about the image.
    """
    try:
        return _from_bytes(data, max_pixels)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        np.empty(_ROOM, np.uint8)  # address space alone, given back at once: raises where memory was short
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadImageError(f"cannot be decoded: {reason}") from error


def _from_array(pixels: NDArray[np.uint8], max_pixels: int) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise BadImageError(f"an array of {pixels.dtype} {pixels.shape} is not uint8 (H, W) or (H, W, 3)")
    _check_size(pixels.shape[1], pixels.shape[0], max_pixels)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def _from_bytes(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    opener, quiet = _format_of(data)
    with quiet:
        opened = opener(io.BytesIO(data))
        _check_size(*opened.size, max_pixels)
        rgb = _to_rgb(opened)
        turn = _orientation(opened)
    # Copied once, out of Pillow's memory: the caller may write to its pixels.
    pixels = np.frombuffer(bytearray(rgb.tobytes()), dtype=np.uint8).reshape(rgb.height, rgb.width, 3)
    return pixels if turn == 1 else np.ascontiguousarray(_turned(pixels, turn))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadImageError(f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BadImageError(
            f"too large: {width} x {height} is {width * height / 1e6:.1f} megapixels, "
            f"the limit is {max_pixels / 1e6:g}"
        )


def _format_of(data: bytes) -> tuple[Callable[[io.BytesIO], ImageFile], AbstractContextManager[None]]:
    """Return Pillow's plugin for the content, and the context to run it in."""
    from featcache.images import plugins

    if data[:3] == b"\xff\xd8\xff":
        return plugins.Jpeg, nullcontext()
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return plugins.Png, _quiet() if b"acTL" in data else nullcontext()
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return plugins.WebP, nullcontext()
    if data[:2] == b"BM":
        return plugins.Bmp, nullcontext()
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return plugins.Gif, _quiet()
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return plugins.Tiff, _quiet()
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return plugins.Pnm, nullcontext()
    if not data:
        raise BadImageError("the file is empty")
    raise BadImageError(f"not a JPEG, PNG, BMP, GIF, WebP, TIFF or PPM image: it starts with {data[:8]!r}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Pillow's warnings. The list of filters belongs to the process: one thread at a time."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: ImageFile) -> int:
    """Return the orientation, 1 (upright) to 8."""
    if image.format == "TIFF":
        # Pillow turns a TIFF by itself when it loads the pixels, and then drops the tag.
        value = image.tag_v2.get(274, 1)  # type: ignore[attr-defined]
        return value if value in range(1, 9) else 1
    exif = image.info.get("exif")
    return exif_orientation(exif) if isinstance(exif, bytes) else 1


def _turned(pixels: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Return the upright view of pixels stored in one of the EXIF orientations 2 to 8."""
    if turn >= 5:  # rows and columns are swapped
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_rgb(image: ImageFile) -> Image.Image:
    if image.mode in ("F", "LAB", "HSV"):
        kind = "floating point" if image.mode == "F" else image.mode
        raise BadImageError(f"{kind} pixels have no agreed RGB values")
    if image.mode.startswith("I"):
        return _from_deep(image)
    deep = any(";16" in str(part.args) for part in image.tile)
    image.load()
    key = image.info.get("transparency")
    if deep and isinstance(key, tuple):  # the colour key of 16-bit colour, of which the high byte is kept
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return white


def _from_deep(image: ImageFile) -> Image.Image:
    """Scale 16-bit grey to 8 bits; refuse what has no natural white."""
    from PIL import Image

    full, inverted = 65535, False
    if image.format == "TIFF":
        bits, form = image.tag_v2.get(258, (1,))[0], image.tag_v2.get(339, (1,))[0]  # type: ignore[attr-defined]
        if bits > 16 or form != 1:
            raise BadImageError(
                f"{bits}-bit {'signed ' if form == 2 else ''}pixels have no agreed RGB values"
            )
        full = 2**bits - 1
        inverted = image.tag_v2.get(262) == 0  # type: ignore[attr-defined]  # white is zero
    key = image.info.get("transparency")
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 510 + full) // (2 * full)).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")
