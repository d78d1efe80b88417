"""Decoding a task's images into a batch: together or one by one, the bytes are those of `fit`."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featcache.backbones.preprocess import fit
from featcache.errors import BadImageError
from featcache.extraction.decoding import decode_into
from featcache.extraction.views import Fitting
from featcache.images.dataset import content_hash
from featcache.recipe import Preprocess

FITTING = Fitting(Preprocess("auto", 60, 56), 1_000_000)


def png(height: int, width: int, seed: int) -> tuple[bytes, NDArray[np.uint8]]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue(), pixels


@pytest.mark.parametrize("sizes", [[(9, 9)] * 5, [(9, 9), (70, 20), (9, 9)], [(8, 8)]])
def test_images_of_a_task(sizes: list[tuple[int, int]]) -> None:
    made = [png(*size, seed) for seed, size in enumerate(sizes)]
    out = np.full((len(made), 56, 56, 3), 7, np.uint8)
    hashes = [content_hash(data) for data, _ in made]
    found = decode_into(out, lambda i: made[i][0], hashes, FITTING, True)
    assert found.bad == [] and found.changed is None and not found.odd
    wanted = np.stack([fit(pixels, FITTING.preprocess) for _, pixels in made])
    assert np.array_equal(out, wanted)


def test_bad_ones_among_good_ones() -> None:
    """One that is gone, one that cannot be decoded and one that cannot be fitted; the others are as ever."""
    good = [png(9, 9, seed) for seed in range(3)]
    data: list[bytes] = [good[0][0], b"no image", good[1][0], b"", png(1, 90_000, 0)[0], good[2][0]]
    out = np.full((6, 56, 56, 3), 7, np.uint8)

    def source(place: int) -> bytes:
        if place == 3:
            raise BadImageError("the file has vanished")
        return data[place]

    hashes = [content_hash(each) for each in data]
    hashes[3] = bytes(16)
    found = decode_into(out, source, hashes, FITTING, True)
    assert [place for place, _ in found.bad] == [1, 3, 4]
    assert "not a JPEG" in found.bad[0][1] and "too elongated" in found.bad[2][1]
    assert not out[[1, 3, 4]].any()
    wanted = np.stack([fit(pixels, FITTING.preprocess) for _, pixels in good])
    assert np.array_equal(out[[0, 2, 5]], wanted)


def test_a_changed_image_stops_the_task() -> None:
    made = [png(9, 9, seed) for seed in range(2)]
    out = np.zeros((2, 56, 56, 3), np.uint8)
    found = decode_into(out, lambda i: made[i][0], [content_hash(made[0][0]), b"x" * 16], FITTING, True)
    assert found.changed == 1
