"""`folder:DIR`: images in folders, one folder a class, with or without folders for the splits.

Two layouts: DIR/{train,val|valid|validation,test}/<class>/… or DIR/<class>/… (all rows are train). A class is
the first folder level; files below it count at any depth, and a folder named x.jpg is a folder. Hidden files
and folders and files without an image's suffix are ignored and named. Symbolic links are followed where they
stay inside DIR; those that leave it, lead nowhere or round in circles are ignored and named. So are folders
that are excluded, because our own caches are in them, and links into these.
"""

# A Path object for each of a million files would cost more than listing them.
# ruff: noqa: PTH100, PTH111, PTH112, PTH113, PTH119, PTH122

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from featcache.errors import DatasetError
from featcache.images.listing import IMAGE_SUFFIXES, SPLIT_NAMES, Entry, Origin, rows_of
from featcache.images.scan import Scan, scan_trees, unlistable
from featcache.images.source import not_there, slug

if TYPE_CHECKING:
    from pathlib import Path

    from featcache.images.dataset import Dataset
    from featcache.images.source import Advance

_LAYOUTS = "Expected DIR/train/<class>/… (with val and test beside it) or DIR/<class>/…"


class FolderSource:
    """Images below one folder, save for what is in the folders `exclude`, such as our own caches.

    Raises:
        DatasetError: the path is missing, cannot be reached or is no folder.
    """

    def __init__(self, path: str, exclude: Sequence[Path | str] = ()) -> None:
        self._path = os.path.normpath(os.path.expanduser(path)) if path else ""
        if not path or not os.path.isdir(self._path):
            what = "is a file, not a folder" if os.path.isfile(self._path) else not_there(self._path)
            raise DatasetError(f"The folder of images {path!r} {what}.", _LAYOUTS)
        self._exclude = _below(self._path, exclude)
        self._scan: Scan | None = None

    @property
    def spec(self) -> str:
        """The path as given, without detours: "folder:photos"."""
        return f"folder:{self._path}"

    @property
    def name(self) -> str:
        """The name of the folder itself: "folder-photos"."""
        return f"folder-{slug(os.path.basename(os.path.abspath(self._path)))}"

    @property
    def root(self) -> str:
        """The folder that ids are paths below."""
        return os.path.abspath(self._path)

    def stat_digest(self) -> str:
        """Return the digest over everything below the folder, hidden and ignored files included.

        What is in an excluded folder does not count, nor whether there is one.

        Raises:
            DatasetError: a folder cannot be listed.
        """
        return self._scanned().digest

    def newest_ns(self) -> int:
        """Return the newest time of a file, in ns since the epoch; 0 where there is none."""
        return self._scanned().newest_ns

    def _scanned(self) -> Scan:
        if self._scan is None:
            self._scan = scan_trees(self._path, [""], self._exclude)
        return self._scan

    def open(self, progress: Advance | None = None) -> Dataset:
        """List the images.

        Raises:
            DatasetError: there are none, both layouts are mixed, or a class has no train image.
        """
        from featcache.images.stored import FileDataset

        tree = _Folders(self._path, self._exclude)
        rows = rows_of(tree.entries(), by_bytes, Origin(self.name, self._path, tree.ignored, progress))
        return FileDataset(rows, self.root)


def _below(path: str, folders: Iterable[Path | str]) -> frozenset[str]:
    """Return the folders that lie below a path, relative to it; whether they exist does not matter."""
    above = f"{os.path.realpath(path).rstrip('/')}/"
    real = (os.path.realpath(os.path.expanduser(folder)) for folder in folders)
    return frozenset(name.removeprefix(above) for name in real if name.startswith(above))


Listed = tuple[dict[str, tuple[str, ...]], list[str]]
"""The folders in one folder, each with what led there, and the images in it, in the order of their bytes."""


def by_bytes(labels: Iterable[str]) -> list[str]:
    """Return class names in the order of their bytes."""
    return sorted(labels, key=os.fsencode)


class Tree(ABC):
    """One walk through a tree of images at `path`; `ignored` fills as it goes."""

    def __init__(self, path: str, top: str) -> None:
        self._path, self._top = path, top
        self.ignored: list[str] = []

    @abstractmethod
    def _listed(self, folder: str, stack: tuple[str, ...]) -> Listed:
        """Return what is in one folder; what is no image of ours is put to the ignored."""

    def entries(self) -> Iterator[Entry]:
        """Yield the images, folder by folder; when all have come, `ignored` is in order."""
        folders, images = self._listed("", (self._top,))
        self.ignored += images
        splits = [name for name in folders if name.lower() in SPLIT_NAMES]
        if splits and len(splits) < len(folders):
            other = next(name for name in folders if name not in splits)
            raise DatasetError(
                f"{self._path} mixes two layouts: {splits[0]!r} is a split, {other!r} looks like a class.",
                f"{_LAYOUTS}. A class named like a split belongs below DIR/train.",
            )
        self._check_unique(splits)
        found = False
        for name, stack in folders.items():
            if splits:
                below = self._classes(name, stack, SPLIT_NAMES[name.lower()])
            else:
                below = self._class(name, name, stack, 0)
            for entry in below:
                found = True
                yield entry
        if not found:
            raise self._nothing(images)
        self.ignored.sort(key=os.fsencode)

    def _check_unique(self, splits: list[str]) -> None:
        seen: dict[int, str] = {}
        for name in splits:
            first = seen.setdefault(SPLIT_NAMES[name.lower()], name)
            if first != name:
                raise DatasetError(
                    f"{self._path} holds both {first!r} and {name!r}: one split twice.",
                    "Keep one of the two.",
                )

    def _classes(self, folder: str, stack: tuple[str, ...], split: int) -> Iterator[Entry]:
        classes, images = self._listed(folder, stack)
        self.ignored += images
        for name, below in classes.items():
            label = name.rpartition("/")[2]
            yield from self._class(name, label, below, split)

    def _class(self, folder: str, label: str, stack: tuple[str, ...], split: int) -> Iterator[Entry]:
        count, todo = 0, {folder: stack}
        while todo:
            name, above = todo.popitem()
            folders, images = self._listed(name, above)
            todo.update(folders)
            count += len(images)
            for image in images:
                yield Entry(image, label, split)
        if not count:
            self.ignored.append(f"{folder}/")

    def _nothing(self, loose: list[str]) -> DatasetError:
        if loose:
            said = f"its {len(loose)} images lie in no class folder (the first is {loose[0]!r})"
        elif self.ignored:
            said = f"{len(self.ignored)} entries were ignored (the first is {min(self.ignored)!r})"
        else:
            said = "it is empty"
        return DatasetError(f"{self._path} holds no images of a class: {said}.", _LAYOUTS)


class _Folders(Tree):
    """A walk through folders of this machine; what led to one are real paths."""

    def __init__(self, path: str, exclude: Iterable[str]) -> None:
        self._real = os.path.realpath(path)
        super().__init__(path, self._real)
        self._exclude = tuple(f"{self._real.rstrip('/')}/{name}/" for name in exclude)

    def _listed(self, folder: str, stack: tuple[str, ...]) -> Listed:
        where = f"{self._path}/{folder}" if folder else self._path
        folders: dict[str, tuple[str, ...]] = {}
        images: list[str] = []
        try:
            with os.scandir(where) as found:
                for entry in sorted(found, key=lambda entry: os.fsencode(entry.name)):
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    self._place(entry, name, stack, folders, images)
        except OSError as error:
            raise unlistable(where, error) from error
        return folders, images

    def _place(
        self,
        entry: os.DirEntry[str],
        name: str,
        stack: tuple[str, ...],
        folders: dict[str, tuple[str, ...]],
        images: list[str],
    ) -> None:
        linked = entry.is_symlink()
        # Of a link that leads to itself, os.path says it is neither; the entry's own methods raise.
        directory = os.path.isdir(entry.path) if linked else entry.is_dir()
        regular = os.path.isfile(entry.path) if linked else entry.is_file()
        real = os.path.realpath(entry.path) if linked else f"{stack[-1]}/{entry.name}"
        lost = linked and (not real.startswith(f"{self._real.rstrip('/')}/") or real in stack)
        # A link into an excluded folder too: its target is not scanned for changes.
        excluded = (linked or directory) and f"{real}/".startswith(self._exclude)
        if entry.name.startswith(".") or lost or excluded:
            self.ignored.append(f"{name}/" if directory else name)
        elif directory:
            folders[name] = (*stack, real)
        elif regular and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            images.append(name)
        else:
            self.ignored.append(name)
