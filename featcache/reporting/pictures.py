"""Small pictures of single rows, from the images where these still are, as data that a page can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import BadImageError, FeatcacheError
from featcache.images.catalogue import open_source
from featcache.images.dataset import Dataset, content_hash
from featcache.images.decode import decode
from featcache.store.cache import Cache
from featcache.store.roster import Roster

SIDE = 96  # pixels of the longer side, at most
_FOLDER = "folder:"


@dataclass(frozen=True)
class Pictures:
    """Pictures by row of the plan, and why there are no others, if there are none or not all."""

    by_row: Mapping[int, str]
    missing: str = ""


def pictures(
    cache: Cache | Roster | None, rows: Iterable[int], data_dir: Path, dataset: str | None = None
) -> Pictures:
    """Return pictures of rows of a cache as data URLs, each only if its image is the one that was embedded.

    Args:
        cache: None where there is none.
        rows: of its plan.
        data_dir: where data sets known by name are; nothing is downloaded.
        dataset: where the images are now, if not where they were.
    """
    wanted = sorted(set(rows))
    if cache is None:
        return Pictures({}, "This run lies in no cache that says where its images are.")
    try:
        read = _Reader(cache, dataset or cache.record["request"]["dataset"], data_dir)
    except (FeatcacheError, OSError, KeyError, TypeError) as error:
        why = error.message if isinstance(error, FeatcacheError) else "its record does not say where."
        return Pictures({}, f"The images are not there: {why}")
    found = {row: url for row in wanted if (url := _picture(read, cache, row)) is not None}
    if len(found) == len(wanted):
        return Pictures(found)
    lost = len(wanted) - len(found)
    return Pictures(found, f"{lost} of {len(wanted)} images are no longer there, or have changed since.")


class _Reader:
    """Reads the images of a cache's rows from its data set."""

    def __init__(self, cache: Cache | Roster, spec: str, data_dir: Path) -> None:
        self._ids = cache.plan.ids
        self._folder: Path | None = None
        self._dataset: Dataset | None = None
        source = open_source(spec, data_dir, download=False)
        if spec.startswith(_FOLDER):  # an id is the path in it: the folder need not be listed
            self._folder = Path(spec.removeprefix(_FOLDER)).expanduser()
        else:
            self._dataset = source.open()
            self._places = {name: place for place, name in enumerate(self._dataset.ids)}

    def __call__(self, row: int) -> bytes | NDArray[np.uint8]:
        name = self._ids[row]
        if self._dataset is not None:
            return self._dataset.raw(self._places[name])
        return (Path(self._folder or "") / name).read_bytes()


def _picture(read: Any, cache: Cache | Roster, row: int) -> str | None:
    try:
        data = read(row)
        if content_hash(data) != cache.plan.hashes[row].tobytes():
            return None
        return data_url(decode(data))
    except (BadImageError, OSError, KeyError, ValueError):
        return None


def data_url(pixels: NDArray[np.uint8]) -> str:
    """Return RGB pixels uint8 (H, W, 3) as a data URL of a WebP picture of at most SIDE pixels a side."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
