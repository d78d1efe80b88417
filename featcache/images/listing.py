"""From a list of (path, class name, split) to the rows of a data set: one order, one set of checks."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from featcache.errors import DatasetError
from featcache.images.sample import SPLITS

if TYPE_CHECKING:
    from featcache.images.dataset import Rows
    from featcache.images.source import Advance

SPLIT_NAMES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
"""The names a folder or a CSV cell may use for a split, in lower case, and the codes they stand for."""

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "gif", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm"),
    )
)
"""Suffixes, in lower case, of the formats `featcache.images.decode` knows."""


MANY = 1 << 16
"""Ids from which on they are kept packed, see `featcache.images.names`."""


_CODE = struct.Struct(">Bq")


class Entry(NamedTuple):
    """One image as a source lists it; `split` is a code."""

    id: str
    label: str
    split: int


class Origin(NamedTuple):
    """What is listed: its short name, its path for errors, what was ignored, whom to tell of progress."""

    name: str
    path: str
    ignored: Sequence[str]
    progress: Advance | None


def rows_of(entries: Iterable[Entry], ordered: Callable[[set[str]], list[str]], origin: Origin) -> Rows:
    """Return the rows in their order, by split and then by the bytes of the id.

    Entries are packed as they come: of a million images no object is left but what their ids have in bytes.

    Args:
        entries: the images; those of a split that come in their order need no sorting.
        ordered: puts the class names in order, which labels index.
        origin: what is listed; what it ignored is read when all entries have come.

    Raises:
        DatasetError: there is no train image, or another split holds a class that train does not.
    """
    import numpy as np

    from featcache.images.dataset import Rows, id_bytes
    from featcache.images.names import Names

    codes: dict[str, int] = {}
    parts = [_Part() for _ in SPLITS]
    for entry in entries:
        parts[entry.split].add(id_bytes(entry.id), codes.setdefault(entry.label, len(codes)))
    names = list(codes)
    check_splits([{names[code] for code in np.unique(part.codes).tolist()} for part in parts], origin.path)
    for part in parts:
        part.sort()
    classes = ordered(set(codes))
    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place[name] for name in names], dtype=np.int64)
    ids = Names.joined((part.data, part.ends) for part in parts)
    return Rows(
        origin.name,
        tuple(classes),
        ids if len(ids) >= MANY else list(ids),
        labels[np.concatenate([part.codes for part in parts])],
        np.repeat(np.arange(len(SPLITS), dtype=np.uint8), [len(part.codes) for part in parts]),
        tuple(origin.ignored),
        origin.progress,
    )


class _Part:
    """The entries of one split: ids one behind the other, where each ends, and their classes' codes."""

    def __init__(self) -> None:
        self.data, self.ends, self.codes = bytearray(), array("q"), array("q")
        self._last, self._rising = b"", True

    def add(self, name: bytes, code: int) -> None:
        """Put an image behind the others."""
        self._rising = self._rising and self._last <= name
        self._last = name
        self.data += name
        self.ends.append(len(self.data))
        self.codes.append(code)

    def sort(self) -> None:
        """Order the images by the bytes of their ids, unless they came so."""
        if self._rising:
            return
        data, begin = bytes(self.data), 0
        self.data.clear()
        # One object for each image, with its code behind its id: no id holds a zero, so ids decide.
        images: list[bytes] = []
        for end, code in zip(self.ends, self.codes, strict=True):
            images.append(data[begin:end] + _CODE.pack(0, code))
            begin = end
        del data
        images.sort()
        self.ends = array("q", accumulate(len(image) - _CODE.size for image in images))
        self.codes = array("q", (_CODE.unpack(image[-_CODE.size :])[1] for image in images))
        for image in images:
            self.data += image[: -_CODE.size]


def check_splits(held: Sequence[set[str]], path: str) -> None:
    """Refuse a data set nothing can be learnt from.

    Args:
        held: the classes that each split holds.
        path: of the data set, for the error.

    Raises:
        DatasetError: there is no train image, or another split holds a class that train does not.
    """
    if not held[0]:
        raise DatasetError(
            f"{path} holds no train image.", "Heads are trained on the train split: name one split train."
        )
    for code in (1, 2):
        extra = sorted(held[code] - held[0])
        if extra:
            named = ", ".join(repr(name) for name in extra[:5]) + (" …" if len(extra) > 5 else "")
            raise DatasetError(
                f"In {path} the {SPLITS[code]} split holds {len(extra)} classes train does not: {named}.",
                "Every class needs images to train on; check the spelling, or remove these.",
            )
