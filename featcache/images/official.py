"""A source that downloads, checks and reads one of the data sets torchvision knows."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import DatasetError
from featcache.images.sample import SPLITS
from featcache.images.scan import Scan, scan_trees
from featcache.images.torchvision_sets import OfficialSet

if TYPE_CHECKING:
    from featcache.images.dataset import Dataset
    from featcache.images.source import Advance

TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up."""


class OfficialSource:
    """One of `torchvision_sets.SETS`, kept in a data folder and downloaded there when it is absent."""

    def __init__(self, name: str, about: OfficialSet, data_dir: Path, download: bool = True) -> None:
        self._name, self._set, self._download = name, about, download
        self._folder = Path(os.path.abspath(data_dir.expanduser()))  # noqa: PTH100 (links are kept)
        self._scan: Scan | None = None

    @property
    def spec(self) -> str:
        """The name in the table."""
        return self._name

    @property
    def name(self) -> str:
        """The name in the table."""
        return self._name

    def stat_digest(self) -> str:
        """Return the digest over the set's own files in the data folder, or of their absence.

        Raises:
            DatasetError: a folder cannot be listed.
        """
        return self._scanned().digest

    def newest_ns(self) -> int:
        """Return the newest time of a file, in ns since the epoch; 0 where there is none."""
        return self._scanned().newest_ns

    def _scanned(self) -> Scan:
        if self._scan is None:
            self._scan = scan_trees(str(self._folder), self._set.kept)
        return self._scan

    def open(self, progress: Advance | None = None) -> Dataset:
        """Download the set if it is absent, then list it with its official splits.

        Ids are "train/000123": the official split and the position in it.

        Raises:
            DatasetError: it is absent and must not or cannot be downloaded, or it is damaged.
        """
        if not all((self._folder / name).exists() for name in self._set.kept):
            if not self._download:
                raise self._absent("is not there, and downloads are switched off")
            self._fetch()
            self._scan = None
        parts = {split: self._load(self._folder, options) for split, options in self._set.splits.items()}
        return _joined(self._name, parts, self._set, progress)

    def _load(self, root: Path, options: Any, download: bool = False) -> Any:
        """Make torchvision's object, which checks md5 sums where it has them.

        CIFAR's official files are pickles: torchvision compares the md5 of each with the official one before
        it unpickles any, whether it has just downloaded them or not. No other set is unpickled (MNIST's files
        of before 2020 are loaded with `weights_only`).
        """
        from torchvision import datasets

        kind = getattr(datasets, self._set.torchvision)
        try:
            with _quiet():
                return kind(root=str(root), download=download, **options)
        except MemoryError:
            raise
        except Exception as error:  # torchvision raises whatever its parsers do
            if download:
                raise self._absent(f"cannot be downloaded ({_short(error)})") from error
            raise DatasetError(
                f"The data set {self._name} in {self._folder} is damaged or incomplete: {_short(error)}",
                f"Move {' and '.join(self._set.kept)} out of that folder and run again to download it anew.",
            ) from error

    def _fetch(self) -> None:
        """Download and unpack beside the final place: a broken download is never taken for the set."""
        import shutil  # this and `socket` below cost a warm hit more than all else here
        import tempfile

        stage: Path | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=f".{self._name}-", dir=self._folder))
            for options in self._set.splits.values():
                self._load(stage, options, download=True)
            for name in self._set.kept:
                self._publish(stage / name, self._folder / name)
        except OSError as error:
            raise self._absent(f"cannot be stored ({_short(error)})") from error
        finally:
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)

    def _publish(self, made: Path, final: Path) -> None:
        if final.exists():
            return
        try:
            made.rename(final)
        except OSError:
            if not final.exists():  # else another process was first, and its copy is as good
                raise

    def _absent(self, what: str) -> DatasetError:
        kept = " and ".join(self._set.kept)
        return DatasetError(
            f"The data set {self._name} {what}: looked for {kept} in {self._folder}.",
            f"Its home is {self._set.home}. Put its files there, unpacked (as torchvision.datasets."
            f"{self._set.torchvision} lays them out), or name your own images with folder:DIR.",
        )


def _joined(name: str, parts: dict[str, Any], about: OfficialSet, progress: Advance | None) -> Dataset:
    """Return one data set of torchvision's objects, one for each split."""
    import numpy as np

    from featcache.images.dataset import Rows
    from featcache.images.stored import ArrayDataset, FileDataset

    read = {split: about.read(part) for split, part in parts.items()}
    sizes = [len(labels) for _, labels in read.values()]
    labels = np.concatenate([np.asarray(labels, dtype=np.int64).reshape(-1) for _, labels in read.values()])
    codes = np.array([SPLITS.index(split) for split in read], dtype=np.uint8)
    ids = [f"{split}/{at:06d}" for split, size in zip(read, sizes, strict=True) for at in range(size)]
    classes = _classes(next(iter(parts.values())), int(labels.max(initial=-1)) + 1)
    images = [found for found, _ in read.values()]
    fits = all(sizes) and [len(found) for found in images] == sizes
    if not fits or labels.min() < 0 or labels.max() >= len(classes):
        raise DatasetError(
            f"The data set {name} contradicts itself: {sum(map(len, images))} images, {len(labels)} labels, "
            f"{len(classes)} classes.",
            "Its files are not the official ones.",
        )
    rows = Rows(name, classes, ids, labels, np.repeat(codes, sizes), (), progress)
    if isinstance(images[0], np.ndarray):
        return ArrayDataset(rows, images)
    return FileDataset(rows, "", [path for found in images for path in found])


def _classes(part: Any, count: int) -> tuple[str, ...]:
    """Return the class names torchvision knows (the first where it knows several), else the numbers."""
    names = getattr(part, "classes", None) or getattr(part, "categories", None) or map(str, range(count))
    return tuple(name if isinstance(name, str) else name[0] for name in names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let torchvision draw its progress bar on a terminal only, and not wait for ever for a silent server."""
    import socket

    before = socket.getdefaulttimeout()
    terminal = sys.stderr is not None and sys.stderr.isatty()
    silence = contextlib.nullcontext() if terminal else contextlib.redirect_stderr(io.StringIO())
    with silence, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        socket.setdefaulttimeout(TIMEOUT)
        try:
            yield
        finally:
            socket.setdefaulttimeout(before)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
