"""A source: where images come from, able to say cheaply whether they changed. Light to import.

A finished cache is recognised by the source's stat digest alone: nothing here may load numpy, torch or PIL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featcache.objects import is_url

if TYPE_CHECKING:
    from featcache.images.dataset import Dataset

Advance = Callable[[int, int], None]
"""Called with (images done, images in all), from one thread at a time."""


class Source(Protocol):
    """Where the images of one data set come from."""

    @property
    def spec(self) -> str:
        """The normalised text that names the source, such as "cifar10" or "folder:photos"."""
        ...

    @property
    def name(self) -> str:
        """A short name for files and folders: letters, digits, dots, dashes and underscores only."""
        ...

    def stat_digest(self) -> str:
        """Return a sha256 over path, size, times and inode of every file; no image is read.

        Equal digests mean unchanged files, unless one changed within the clock's grain (see `newest_ns`).
        """
        ...

    def newest_ns(self) -> int:
        """Return the newest modification or change time of a file, in ns since the epoch; 0 for no file."""
        ...

    def open(self, progress: Advance | None = None) -> Dataset:
        """List the images. `progress` is told how far their hashing is, whenever the hashes are first read.

        Raises:
            DatasetError: the source is missing, empty or contradicts itself.
        """
        ...


def whole_path(spec: str) -> str:
    """Return the text that names a source with a whole path, so that it is found from anywhere."""
    kind, _, path = spec.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if path and not is_url(path) else spec


def not_there(path: str) -> str:
    """Return why nothing can be found at a path: that it does not exist, or what keeps us from looking."""
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be reached: {error.strerror or error}"
    except ValueError:
        return "is no path"
    return "is neither a file nor a folder"


def slug(text: str) -> str:
    """Return the text as a name for a folder: "My photos!" → "My-photos", at most 40 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:40].strip("-.") or "images"
