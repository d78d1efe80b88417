"""Removing files: only regular ones, only those that were looked at, and folders only when they are empty.

Nothing here walks into folders: what is removed was named, one by one, by whoever looked. So a link, a file
of somebody else's or another cache inside is never touched, and keeps the folders above it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from featcache import atomic


@dataclass(frozen=True)
class Seen:
    """A regular file as it was when it was looked at."""

    path: Path
    size: int
    links: int
    newest: float  # the later of its two times, in s since the epoch
    identity: tuple[int, int, int, int]  # device, inode, times: others when it was changed or replaced

    @property
    def freed(self) -> int:
        """The bytes that its removal frees: none where it has another name."""
        return self.size if self.links == 1 else 0


@dataclass(frozen=True)
class Item:
    """What can go: its files, and the folders that are empty without them, innermost first."""

    kind: str
    path: Path
    why: str
    files: tuple[Seen, ...]
    folders: tuple[Path, ...] = ()

    @property
    def bytes(self) -> int:
        """The bytes that its removal frees."""
        return sum(file.freed for file in self.files)


def look(path: Path) -> Seen | None:
    """Look at a file; None for what is no regular file, a link among them, or is not there."""
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    newest = max(facts.st_mtime, facts.st_ctime)
    identity = (facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns)
    return Seen(path, facts.st_size, facts.st_nlink, newest, identity)


def listed(folder: Path) -> Iterator[Seen]:
    """Look at the regular files right in a folder, in order of name; nothing where it is a link or gone."""
    for name in _names(folder):
        seen = look(folder / name)
        if seen is not None:
            yield seen


def folders_in(folder: Path) -> Iterator[Path]:
    """Yield the folders right in a folder, in order of name; links to folders are none."""
    for name in _names(folder):
        if is_folder(folder / name):
            yield folder / name


def is_folder(path: Path) -> bool:
    """Return whether there is a folder that is no link."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _names(folder: Path) -> list[str]:
    if not is_folder(folder):
        return []
    with contextlib.suppress(OSError):
        return sorted(os.listdir(folder))
    return []


def remove(file: Seen) -> int:
    """Remove a file if it is the one that was looked at, unchanged; return the bytes freed.

    Raises:
        OSError: it may not be removed.
    """
    now = look(file.path)
    if now is None or now.identity != file.identity:
        return 0
    with contextlib.suppress(FileNotFoundError):
        atomic.calls.unlink(str(file.path))
    return now.freed


def fold(folders: Iterable[Path]) -> None:
    """Remove folders that are empty; others, and links, stay."""
    for folder in folders:
        with contextlib.suppress(OSError):
            atomic.calls.rmdir(str(folder))
