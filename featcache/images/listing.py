"""From a list of (path, class name, split) to the rows of a data set: one order, one set of checks."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
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


MANY = 1 << 20
"""Ids from which on they are kept packed, see `featcache.images.names`."""

_ID, _SPLIT = attrgetter("id"), attrgetter("split")


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


def rows_of(entries: Sequence[Entry], classes: Sequence[str], origin: Origin) -> Rows:
    """Return the rows in their order, by split and then by the bytes of the id; labels index `classes`.

    Raises:
        DatasetError: there is no train image, or another split holds a class that train does not.
    """
    import numpy as np

    from featcache.images.dataset import Rows
    from featcache.images.names import Names

    check_splits(entries, origin.path)
    ordered = _ordered(entries)
    index = {name: code for code, name in enumerate(classes)}
    return Rows(
        origin.name,
        tuple(classes),
        Names.packed(entry.id for entry in ordered) if len(ordered) >= MANY else [e.id for e in ordered],
        np.array([index[entry.label] for entry in ordered], dtype=np.int64),
        np.array([entry.split for entry in ordered], dtype=np.uint8),
        tuple(origin.ignored),
        origin.progress,
    )


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries by split and then by the bytes of the id.

    Texts are ordered as their UTF-8 is, so that only where there are others, bytes are made for each.
    """
    from featcache.images.dataset import id_bytes

    plain = all(entry.id.isascii() for entry in entries)
    ordered = sorted(entries, key=_ID if plain else lambda entry: id_bytes(entry.id))
    ordered.sort(key=_SPLIT)
    return ordered


def check_splits(entries: Sequence[Entry], path: str) -> None:
    """Refuse a data set nothing can be learnt from.

    Raises:
        DatasetError: there is no train image, or another split holds a class that train does not.
    """
    held: list[set[str]] = [set(), set(), set()]
    for entry in entries:
        held[entry.split].add(entry.label)
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
