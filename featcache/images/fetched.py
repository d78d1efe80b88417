"""The kind of data set whose images are objects in a store: fetched ahead of their use, several at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from featcache import limits
from featcache.errors import BadImageError
from featcache.images.dataset import HASH_SIZE, Dataset, Rows, content_hash
from featcache.objects import Entry, Objects

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

TOGETHER = 32 << 20  # bytes of images that are held at once by each thread that hashes


class FetchedDataset(Dataset):
    """Images in objects, whose names are the ids.

    Where the store does not answer or refuses, that is an error of the data set, never of an image: it would
    be left out as one that cannot be read.
    """

    def __init__(self, rows: Rows, objects: Objects, entries: Mapping[str, Entry]) -> None:
        super().__init__(rows)
        self._objects = objects
        self._sizes = [entries[name].size for name in rows.ids]
        self._most = limits.IMAGE_BYTES()

    def raw(self, i: int) -> bytes:
        """Return the bytes of sample i.

        Raises:
            BadImageError: it has vanished, or is too large.
            DatasetError: the store does not answer, or refuses.
        """
        self._check(i)
        return _there(self._objects.get(self.ids[i]))

    def begin(self, rows: Sequence[int]) -> Callable[[int], bytes]:
        """Ask for some samples: they are fetched from now on, several at once."""
        asked: dict[int, Future[bytes | None]] = {
            place: self._objects.begin(self.ids[row])
            for place, row in enumerate(rows)
            if self._sizes[row] <= self._most
        }

        def given(place: int) -> bytes:
            self._check(rows[place])
            return _there(asked.pop(place).result())

        return given

    def stop(self) -> None:
        """Let go of what was asked for and has not begun to come."""
        self._objects.stop()

    def _check(self, i: int) -> None:
        if self._sizes[i] > self._most:
            size, limit = self._sizes[i] / 1e9, self._most / 1e9
            raise BadImageError(f"the object has {size:.3g} GB, the limit is {limit:.3g}")

    def _hashes(self, rows: NDArray[np.int64]) -> bytes:
        found: list[bytes] = []
        for some in self._groups(rows.tolist()):
            given = self.begin(some)
            found += [_hash(given, place) for place in range(len(some))]
        return b"".join(found)

    def _groups(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the rows in groups whose images can be held at once."""
        groups: list[list[int]] = []
        held = TOGETHER
        for row in rows:
            held += self._sizes[row]
            if held > TOGETHER or not groups:
                groups.append([])
                held = self._sizes[row]
            groups[-1].append(row)
        return groups


def _hash(given: Callable[[int], bytes], place: int) -> bytes:
    try:
        return content_hash(given(place))
    except BadImageError:
        return bytes(HASH_SIZE)


def _there(data: bytes | None) -> bytes:
    if data is None:
        raise BadImageError("the object has vanished")
    return data
