from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featcache.errors import BadImageError
from featcache.images import decode as decoding
from featcache.images.decode import MAX_PIXELS, decode
from featcache.images.orientation import exif_orientation

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (11, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(BadImageError) as caught:
        decode(data, **options)
    return caught.value.message


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(width: int, height: int, tags: dict[int, int], pixels: bytes) -> bytes:
    every = {256: width, 257: height, 259: 1, 277: 1, 278: height, 279: len(pixels), **tags}
    entries = {**every, 273: 8 + 2 + 12 * (len(every) + 1) + 4}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", 0) + pixels


# --- colour ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_comes_back_as_it_was(kind: str) -> None:
    found = decode(encoded(RGB, kind))
    assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
    assert np.array_equal(found, RGB)


def test_rgb_comes_back_from_lossless_webp() -> None:
    assert np.array_equal(decode(encoded(RGB, "WEBP", lossless=True)), RGB)


def test_jpeg_is_what_pillow_decodes() -> None:
    data = encoded(RGB, "JPEG", quality=90)
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    found = decode(encoded(RGB[:, :, 0], kind))
    assert np.array_equal(found, np.repeat(RGB[:, :, :1], 3, axis=2))


def test_bilevel_is_black_and_white() -> None:
    bits = Image.fromarray(RGB[:, :, 0]).convert("1")
    found = decode(encoded(bits, "PNG"))
    assert set(np.unique(found)) == {0, 255}
    assert np.array_equal(found[:, :, 0], np.asarray(bits) * np.uint8(255))


DEEP = np.array([[0, 1, 128, 129, 257], [385, 386, 32767, 65534, 65535]], dtype=np.uint16)
SCALED = np.rint(DEEP * (255 / 65535)).astype(np.uint8)


def test_16_bit_png_is_scaled_not_clipped() -> None:
    found = decode(encoded(DEEP, "PNG"))
    assert found[:, :, 0].tolist() == SCALED.tolist() == [[0, 0, 0, 1, 1], [1, 2, 127, 255, 255]]
    assert np.array_equal(found, np.repeat(SCALED[:, :, None], 3, axis=2))


def test_16_bit_is_scaled_from_other_formats_and_byte_orders() -> None:
    little = Image.fromarray(DEEP)
    assert little.mode == "I;16"
    big = Image.frombytes("I;16B", (5, 2), DEEP.astype(">u2").tobytes())
    for data in (encoded(little, "TIFF"), encoded(big, "TIFF"), encoded(little, "PPM")):
        assert decode(data)[:, :, 0].tolist() == SCALED.tolist()


def test_every_16_bit_value_is_rounded() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    exact = np.floor(every.astype(np.float64) * 255 / 65535 + 0.5)
    assert np.array_equal(decode(encoded(every, "PNG"))[:, :, 0], exact)


def test_16_bit_tiff_whose_white_is_zero_is_inverted() -> None:
    data = tiff(5, 2, {258: 16, 262: 0}, DEEP.astype("<u2").tobytes())
    assert decode(data)[:, :, 0].tolist() == (255 - SCALED).tolist()


def test_16_bit_colour_keeps_the_high_byte() -> None:
    rows = b"\0" + struct.pack(">6H", 0x12FF, 0x3400, 0xFFFF, 0x00FF, 0x8000, 0x0100)
    assert decode(png(2, 1, 16, 2, rows)).tolist() == [[[0x12, 0x34, 0xFF], [0, 0x80, 1]]]


def test_32_bit_signed_and_float_are_refused() -> None:
    assert "floating point" in reason(encoded(np.ones((3, 3), np.float32), "TIFF"))
    assert "32-bit" in reason(encoded(np.ones((3, 3), np.int32), "TIFF"))
    signed = tiff(2, 1, {258: 16, 262: 1, 339: 2}, struct.pack("<2h", -5, 5))
    assert "signed" in reason(signed)


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.float64]:
    alpha = rgba[:, :, 3:].astype(np.float64) / 255
    return rgba[:, :, :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_white(kind: str) -> None:
    rgba = RNG.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = decode(encoded(rgba, kind, **options))
    assert np.abs(found - over_white(rgba)).max() <= 0.5 + 1e-6
    assert (found[0] == 255).all() and np.array_equal(found[1], rgba[1, :, :3])


def test_grey_with_alpha_is_composited_over_white() -> None:
    pair = np.array([[[100, 0], [100, 255], [100, 128]]], dtype=np.uint8)
    image = Image.merge("LA", [Image.fromarray(pair[:, :, 0]), Image.fromarray(pair[:, :, 1])])
    found = decode(encoded(image, "PNG"))
    assert found[0].tolist() == [[255] * 3, [100] * 3, [round(100 * 128 / 255 + 255 * 127 / 255)] * 3]


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    return image


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(kind: str) -> None:
    assert decode(encoded(palette_image(), kind)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


def test_palette_with_transparency_goes_over_white() -> None:
    one = decode(encoded(palette_image(), "PNG", transparency=1))
    assert one.tolist() == [[[10, 20, 30], [255] * 3, [70, 80, 90]]]
    gif = decode(encoded(palette_image(), "GIF", transparency=1))
    assert gif.tolist() == one.tolist()
    graded = decode(encoded(palette_image(), "PNG", transparency=bytes([0, 255, 128])))
    assert graded[0, :2].tolist() == [[255] * 3, [40, 50, 60]]
    assert graded[0, 2].tolist() == [round((v * 128 + 255 * 127) / 255) for v in (70, 80, 90)]


def test_colour_keys_go_over_white() -> None:
    grey = encoded(Image.fromarray(np.array([[7, 8]], dtype=np.uint8)), "PNG", transparency=7)
    assert decode(grey)[0].tolist() == [[255] * 3, [8] * 3]
    colour = encoded(
        Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), "PNG", transparency=(1, 2, 3)
    )
    assert decode(colour)[0].tolist() == [[255] * 3, [4, 5, 6]]
    deep = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 1000, 2000), chunk(b"tRNS", struct.pack(">H", 1000)))
    assert decode(deep)[0].tolist() == [[255] * 3, [8] * 3]
    key = chunk(b"tRNS", struct.pack(">3H", 0x0102, 0x0304, 0x0506))
    rows = b"\0" + struct.pack(">6H", 0x0102, 0x0304, 0x0506, 0x1111, 0x2222, 0x3333)
    assert decode(png(2, 1, 16, 2, rows, key))[0].tolist() == [[255] * 3, [0x11, 0x22, 0x33]]


def test_cmyk_is_converted_as_pillow_does() -> None:
    cmyk = Image.merge(
        "CMYK", [Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(4)]
    )
    assert np.array_equal(decode(encoded(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))
    data = encoded(cmyk, "JPEG", quality=95)
    assert b"Adobe" in data  # the inverted kind
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    white = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert decode(white).min() >= 254


# --- orientation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(turn: int, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = turn
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(RGB, kind, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    found = decode(data)
    assert found.shape == ((11, 7, 3) if turn < 5 else (7, 11, 3))
    assert found.flags.c_contiguous
    assert np.array_equal(found, np.asarray(expected))


def test_orientation_6_by_hand() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(np.array([[1, 2, 3]], dtype=np.uint8), "PNG", exif=exif)
    assert decode(data)[:, :, 0].tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 274, 3, 1, 9, 0),
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 274, 4, 1, 6),
        b"rubbish",
    ],
)
def test_a_damaged_orientation_means_upright_and_no_warning(exif: bytes) -> None:
    assert exif_orientation(exif) == 1
    jpeg = encoded(RGB, "JPEG", quality=90)
    block = exif if exif.startswith(b"Exif") else b"Exif\0\0" + exif
    marked = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
    assert np.array_equal(decode(marked), decode(jpeg))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_any_exif_block_gives_an_orientation(block: bytes) -> None:
    assert exif_orientation(b"MM\0*" + block) in range(1, 9)


# --- animations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    red, blue = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(encoded(red, kind, save_all=True, append_images=[blue], **options))
    assert found.shape == (4, 6, 3) and (found == (255, 0, 0)).all()


# --- what is no image -----------------------------------------------------------------------------------

EVERY = {
    kind: encoded(RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8), kind)
    for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
}


@pytest.mark.parametrize("kind", EVERY)
def test_a_cut_off_file_is_named_or_whole(kind: str) -> None:
    whole = decode(EVERY[kind])
    size = len(EVERY[kind])
    for cut in {*range(0, size, max(size // 60, 1)), size - 1, size // 2}:
        try:
            found = decode(EVERY[kind][:cut])
        except BadImageError as error:
            assert error.message
        else:  # only what comes after the pixels is lost
            assert cut > 0.9 * size and np.array_equal(found, whole)


@pytest.mark.parametrize("kind", EVERY)
def test_half_a_file_is_refused(kind: str) -> None:
    assert reason(EVERY[kind][: len(EVERY[kind]) // 2])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.data())
def test_damaged_bytes_raise_nothing_but_bad_image(kind: str, data: Any) -> None:
    damaged = bytearray(EVERY[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 400)))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(damaged), 1_000_000).shape[2] == 3
    except BadImageError as error:
        assert error.message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([data[:12] for data in EVERY.values()]))
def test_any_bytes_raise_nothing_but_bad_image(tail: bytes, head: bytes) -> None:
    for data in (tail, head + tail):
        try:
            assert decode(data, 1_000_000).dtype == np.uint8
        except BadImageError as error:
            assert error.message


def test_what_is_no_image_is_named() -> None:
    assert reason(b"") == "the file is empty"
    page = reason(b"<!DOCTYPE html><html>")
    assert "not a JPEG, PNG, BMP, GIF, WebP, TIFF or PPM image" in page and "<!DOCTYP" in page
    assert "not a" in reason(encoded(RGB, "ICO")) and "not a" in reason(encoded(RGB, "JPEG2000"))
    assert "not a" in reason(b"Pf\n2 2\n-1.0\n" + bytes(16))


def test_the_size_is_checked_before_any_pixel_is_decoded() -> None:
    said = reason(png(60_000, 60_000, 8, 2, b"\0"))
    assert said == "too large: 60000 x 60000 is 3600.0 megapixels, the limit is 50"
    for data in (png(12_000, 12_000, 8, 2, b"\0"), b"P6\n9000 9000\n255\n"):
        assert "too large" in reason(data)
    huge_frame = bytearray(encoded(Image.new("P", (2, 2)), "GIF"))
    at = huge_frame.index(b",")
    huge_frame[at + 5 : at + 9] = struct.pack("<HH", 12_000, 12_000)
    assert "too large" in reason(bytes(huge_frame))


def test_the_limit_is_the_callers() -> None:
    data = encoded(RGB, "PNG")
    assert decode(data, 77).shape == (11, 7, 3)
    assert "too large: 7 x 11" in reason(data, max_pixels=76)
    with pytest.raises(BadImageError, match="too large"):
        decode(RGB, 76)
    assert MAX_PIXELS == 50_000_000


def test_memory_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("featcache.images.decode._from_bytes", full)
    with pytest.raises(MemoryError):
        decode(b"x")


@pytest.mark.parametrize("error", [SystemError("error return without exception set"), OSError("no decoder")])
def test_only_an_image_that_fails_twice_is_bad(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What fails once and not again was memory that ended for a moment."""
    data, real, calls = encoded(RGB, "PNG"), decoding._from_bytes, list[bytes]()

    def failing(times: int) -> None:
        def opened(content: bytes, max_pixels: int) -> Any:
            calls.append(content)
            if len(calls) <= times:
                raise error
            return real(content, max_pixels)

        calls.clear()
        monkeypatch.setattr(decoding, "_from_bytes", opened)

    failing(1)
    assert np.array_equal(decode(data), RGB) and len(calls) == 2
    failing(9)
    assert str(error) in reason(data) and len(calls) == 2


def test_pillow_keeps_its_limit_and_the_filters_theirs() -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    decode(EVERY["GIF"])
    decode(EVERY["TIFF"])
    assert limit == Image.MAX_IMAGE_PIXELS and warnings.filters == filters


# --- arrays ---------------------------------------------------------------------------------------------


def test_arrays() -> None:
    assert np.array_equal(decode(RGB), RGB)
    grey = decode(RGB[:, :, 0])
    assert grey.shape == (11, 7, 3) and (grey == RGB[:, :, :1]).all()
    assert decode(RGB.transpose(1, 0, 2)).flags.c_contiguous
    for wrong in (RGB.astype(np.float32), RGB[:, :, :2], RGB[0, 0], RGB[None], RGB[:0]):
        with pytest.raises(BadImageError):
            decode(wrong)  # type: ignore[arg-type]


def test_many_threads_decode_alike() -> None:
    expected = {kind: decode(data) for kind, data in EVERY.items()}
    start = threading.Barrier(4)

    def work(_: int) -> bool:
        start.wait()
        return all(np.array_equal(decode(EVERY[kind]), expected[kind]) for kind in list(EVERY) * 10)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
