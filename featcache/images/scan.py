"""Has anything changed? One digest over the stat records of many files, as fast as they can be had.

Standard library only. Nothing is followed: a symbolic link counts as itself. Large trees are shared out over
forked processes where that is safe (Linux, a single thread, no torch); the digest does not depend on it.
"""

# A Path object for each of a million files would cost more than the question itself.
# ruff: noqa: PTH112, PTH116, PTH118

from __future__ import annotations

import hashlib
import marshal
import os
import stat
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from featcache.errors import DatasetError
from featcache.images.cores import cores

FORK_ABOVE = 2000  # files seen while folders are left; a fork takes as long as some 500 of them
CHUNK = 4096  # files in one record of a list of files
WORKERS = 4


class Scan(NamedTuple):
    """What a scan found: the sha256 in hexadecimal, the newest time in ns (0: no file) and the file count."""

    digest: str
    newest_ns: int
    files: int


Record = tuple[str, bytes, int, int]  # name, sha256 of its stat records, newest time in ns, files
Share = Callable[[Sequence[str]], list[Record]]  # the work on some of the names


def scan_trees(base: str, names: Iterable[str], exclude: Collection[str] = ()) -> Scan:
    """Scan the files and folders `names` below `base`, each folder to its full depth. Absent names are noted.

    Folders in `exclude`, relative to `base`, are passed over as if they were not there.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    records: list[Record] = []
    todo: list[str] = []
    single: list[str] = []
    for name in names:
        (todo if os.path.isdir(os.path.join(base, name)) else single).append(name)
    if single:
        records.append(_files(base, single, ""))
    while todo and (len(todo) < 2 or sum(record[3] for record in records) < FORK_ABOVE or not _may_fork()):
        records.append(_folder(base, todo.pop(), todo, exclude))
    return _total(records + _shared(todo, lambda share: _folders(base, share, exclude)))


def scan_files(base: str, names: Sequence[str]) -> Scan:
    """Scan a list of files given relative to `base`; links are followed, absent files are noted."""
    starts = [str(start) for start in range(0, len(names), CHUNK)]

    def work(share: Sequence[str]) -> list[Record]:
        return [_files(base, names[int(at) : int(at) + CHUNK], at, follow=True) for at in share]

    fork = len(starts) > 1 and _may_fork()
    return _total(_shared(starts, work) if fork else work(starts))


def _total(records: list[Record]) -> Scan:
    digest = hashlib.sha256()
    for name, part, _, _ in sorted(records):
        encoded = os.fsencode(name)
        digest.update(len(encoded).to_bytes(8, "little") + encoded + part)
    newest = max((record[2] for record in records), default=0)
    return Scan(digest.hexdigest(), newest, sum(record[3] for record in records))


def _folders(base: str, names: Sequence[str], exclude: Collection[str]) -> list[Record]:
    todo, records = list(names), []
    while todo:
        records.append(_folder(base, todo.pop(), todo, exclude))
    return records


def _folder(base: str, folder: str, todo: list[str], exclude: Collection[str]) -> Record:
    """Return the record of one folder's files and add the folders in it to `todo`."""
    below: list[str] = []
    where = os.path.join(base, folder) if folder else base
    try:
        handle = os.open(where, os.O_RDONLY) if os.stat in os.supports_dir_fd else None
        try:
            found = sorted(os.listdir(where if handle is None else handle))
            record = _record(where, folder, found, handle, below)
        finally:
            if handle is not None:
                os.close(handle)
    except OSError as error:
        raise DatasetError(
            f"Cannot list the folder {where}: {error.strerror}.", "Check its permissions."
        ) from error
    todo += [name for name in below if name not in exclude] if exclude else below
    return record


def unlistable(where: str, error: OSError) -> DatasetError:
    """Return the error for a folder that cannot be listed: leaving it out would be silently wrong."""
    return DatasetError(f"Cannot list the folder {where}: {error.strerror}.", "Check that it may be read.")


def _record(where: str, folder: str, found: list[str], handle: int | None, todo: list[str]) -> Record:
    numbers: list[int] = []
    files: list[str] = []
    lstat, directory = os.lstat, stat.S_IFDIR
    for name in found:
        try:
            at = lstat(name, dir_fd=handle) if handle is not None else lstat(os.path.join(where, name))
        except FileNotFoundError:  # gone since it was listed
            continue
        if at.st_mode & directory == directory and stat.S_ISDIR(at.st_mode):
            todo.append(f"{folder}/{name}" if folder else name)
        else:
            files.append(name)
            numbers += (at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino)
    return _packed(folder, files, numbers)


def _files(base: str, names: Sequence[str], title: str, follow: bool = False) -> Record:
    """Return the record of some files, given relative to `base`."""
    numbers: list[int] = []
    for name in names:
        try:
            at = os.stat(os.path.join(base, name), follow_symlinks=follow)
            numbers += (at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino)
        except (OSError, ValueError):
            numbers += (-1, 0, 0, 0)  # absent, or a name no file can have
    return _packed(title, list(names), numbers)


def _packed(title: str, names: list[str], numbers: list[int]) -> Record:
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
    digest.update(b"\0\0")
    try:
        digest.update(array("q", numbers))
    except OverflowError:  # some network file systems have inodes beyond 63 bits
        digest.update(repr(numbers).encode())
    newest = max(max(numbers[1::4]), max(numbers[2::4])) if numbers else 0
    return title, digest.digest(), newest, len(names)


def _may_fork() -> bool:
    """Is a fork safe? Only where the operating system shows a single thread, and torch is not loaded."""
    if not sys.platform.startswith("linux") or "torch" in sys.modules or cores() < 2:
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _shared(names: Sequence[str], work: Share) -> list[Record]:
    """Do the work on all names, one share here and each other share in a forked process."""
    count = min(WORKERS, cores(), len(names)) if names else 0
    children = [(names[at::count], *_child(names[at::count], work)) for at in range(1, count)]
    records = work(names[0::count]) if count else []
    for share, process, pipe in children:
        with open(pipe, "rb") as stream:
            sent = stream.read()
        _, status = os.waitpid(process, 0)
        # A child that failed (out of memory, killed) costs time only: its share is done here, errors and all.
        records += [tuple(record) for record in marshal.loads(sent)] if status == 0 else work(share)
    return records


def _child(share: Sequence[str], work: Share) -> tuple[int, int]:
    """Fork a process that does one share; return its id and the pipe its records come through."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    status = 1
    try:
        os.close(reader)
        with open(writer, "wb") as stream:
            stream.write(marshal.dumps(work(share)))
        status = 0
    finally:
        os._exit(status)
