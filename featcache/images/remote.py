"""`folder:s3://…`: images in an object store, sorted into classes and splits by their names as in folders.

The rules are those of `featcache.images.folder`. What changes whenever an object does is what the store says
of it: size, ETag or the like, time. Bytes are fetched while others are decoded, as far ahead as batches are.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import DatasetError
from featcache.images.folder import Listed, Tree, by_bytes
from featcache.images.listing import IMAGE_SUFFIXES, Origin, rows_of
from featcache.images.source import slug
from featcache.objects import Entry, Objects

if TYPE_CHECKING:
    from featcache.images.dataset import Dataset
    from featcache.images.source import Advance


class RemoteSource:
    """Images below a URL, save for what is below the URLs among `exclude`, such as our own caches.

    Raises:
        DatasetError: no library for such URLs is installed.
    """

    def __init__(self, url: str, exclude: Sequence[Path | str] = ()) -> None:
        self._objects = Objects(url, DatasetError)
        start = f"{self._objects.url}/"
        places = (f"{str(place).rstrip('/')}/" for place in exclude)
        self._exclude = tuple(place.removeprefix(start) for place in places if place.startswith(start))

    @property
    def spec(self) -> str:
        """The URL as given, without a slash at its end: "folder:s3://bucket/photos"."""
        return f"folder:{self._objects.url}"

    @property
    def name(self) -> str:
        """The last part of the URL: "folder-photos"."""
        return f"folder-{slug(self._objects.url.rpartition('/')[2])}"

    @cached_property
    def _listed(self) -> dict[str, Entry]:
        found = self._objects.list()
        return {name: entry for name, entry in found.items() if not f"{name}/".startswith(self._exclude)}

    def stat_digest(self) -> str:
        """Return the digest over what the store says of every object below the URL, ignored ones included.

        Where it says nothing that changes with an object, no two digests are equal.

        Raises:
            DatasetError: the store does not answer, refuses, or has no such bucket.
        """
        digest = hashlib.sha256(b"featcache objects 1\0")
        for name, entry in sorted(self._listed.items()):
            tag = entry.tag or secrets.token_hex(32)
            digest.update(f"{len(os.fsencode(name))}:{tag} {entry.size} {entry.changed_ns} ".encode())
            digest.update(os.fsencode(name))
        return digest.hexdigest()

    def newest_ns(self) -> int:
        """Return the newest time of an object, in ns since the epoch by the store's clock; 0 for none."""
        return max((entry.changed_ns for entry in self._listed.values()), default=0)

    def open(self, progress: Advance | None = None) -> Dataset:
        """List the images.

        Raises:
            DatasetError: there are none, both layouts are mixed, or a class has no train image; or the store
                does not answer, refuses, or has no such bucket.
        """
        from featcache.images.fetched import FetchedDataset

        tree = _Names(self._objects.url, self._listed)
        rows = rows_of(tree.entries(), by_bytes, Origin(self.name, self._objects.url, tree.ignored, progress))
        return FetchedDataset(rows, self._objects, self._listed)


class _Names(Tree):
    """A walk through the names of objects, as if what is before a slash were a folder."""

    def __init__(self, url: str, names: Iterable[str]) -> None:
        super().__init__(url, "")
        self._folders: dict[str, set[str]] = {}
        self._files: dict[str, set[str]] = {}
        for name in names:
            folder, _, file = name.rpartition("/")
            self._files.setdefault(folder, set()).add(file)
            while folder:
                above, _, last = folder.rpartition("/")
                self._folders.setdefault(above, set()).add(last)
                folder = above

    def _listed(self, folder: str, stack: tuple[str, ...]) -> Listed:
        start = f"{folder}/" if folder else ""
        folders: dict[str, tuple[str, ...]] = {}
        images: list[str] = []
        for name in sorted(self._folders.get(folder, ()), key=os.fsencode):
            if not name or name.startswith("."):
                self.ignored.append(f"{start}{name}/")
            else:
                folders[f"{start}{name}"] = stack
        for name in sorted(self._files.get(folder, ()), key=os.fsencode):
            image = os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
            (images if image and not name.startswith(".") else self.ignored).append(f"{start}{name}")
        return folders, images
