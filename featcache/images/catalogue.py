"""From a text such as "cifar10", "folder:photos" or "csv:photos.csv" to its source. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import DatasetError, unknown
from featcache.images.csv_file import ANYWHERE, CsvSource
from featcache.images.digits import DigitsSource
from featcache.images.folder import FolderSource
from featcache.images.official import OfficialSource
from featcache.images.torchvision_sets import SETS
from featcache.objects import is_url

if TYPE_CHECKING:
    from featcache.images.source import Source

_OWN = (
    ("digits", "1 797 handwritten digits, grey, 8 x 8; comes with scikit-learn, offline"),
    ("folder:DIR", "your images: DIR/{train,val,test}/<class>/… or DIR/<class>/…; or folder:s3://…"),
    ("csv:FILE", "your images: a CSV file with the columns path,label[,split], all below its folder"),
    (f"{ANYWHERE}:FILE", "the same, of a file that you trust: its paths may lead anywhere"),
)


def known() -> tuple[tuple[str, str], ...]:
    """Return (name, one-line description) of every data set, and of the two ways to name your own images."""
    return (*((name, entry.about) for name, entry in SETS.items()), *_OWN)


def open_source(
    spec: str, data_dir: Path, download: bool = True, exclude: Sequence[Path | str] = ()
) -> Source:
    """Return the source a text names; named data sets are kept in `data_dir` and downloaded there if allowed.

    Nothing is downloaded or read before the source is opened. Of a folder of images the folders `exclude`
    in it, such as those our caches are in, are left out.

    Raises:
        DatasetError: no such data set is known, or the folder or file does not exist.
    """
    kind, _, path = spec.partition(":")
    if kind == "folder" and is_url(path):
        from featcache.images.remote import RemoteSource

        return RemoteSource(path, exclude)
    if kind == "folder" and ":" in spec:
        return FolderSource(path.removeprefix("file://"), exclude)
    if kind in ("csv", ANYWHERE) and ":" in spec:
        if is_url(path):
            raise DatasetError(
                f"{kind}: reads a file of this machine, and {path} is an object.", "Use folder:s3://…."
            )
        return CsvSource(path, anywhere=kind == ANYWHERE)
    if spec == "digits":
        return DigitsSource()
    if spec in SETS:
        return OfficialSource(spec, SETS[spec], data_dir, download)
    error = unknown("dataset", spec, [name for name, _ in known()], DatasetError)
    if Path(spec).expanduser().is_dir():
        error.hint = f"It is a folder: did you mean folder:{spec}? {error.hint}"
    raise error
