"""May several processes write into one cache here? Asked once a process and folder, before the first write.

Several writers need `link`, which fails where a name exists, and counts the names of a file: of many that
publish a record, one wins, and knows it even when the reply was lost. Some network and removable file systems
have no such thing. There one process at a time may write: a mark in the cache says who it is.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import threading
from pathlib import Path

from featcache import atomic
from featcache.errors import CacheError, DamagedError
from featcache.store import keeping, records
from featcache.store.recent import FOLDER

MARK = "writer"  # in the cache, where only one process may write: who it is, as a temporary's name
KNOWN = "one-writer.txt"  # in the features folder's .featcache: why, as featcache doctor found out
_MOST = 10_000  # bytes of either
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

_found: dict[tuple[str, int], str] = {}  # features folder and its device → why not several, "" where they may
_held: dict[Path, int] = {}  # mark → the process that put it; a forked one inherits the table, not the mark
_one_at_a_time = threading.Lock()


def admit(cache: Path) -> bool:
    """Return whether only one process may write into a cache, and it is this one.

    Args:
        cache: its folder, which exists.

    Raises:
        CacheError: only one may, and another process does.
    """
    if (far := keeping.far_of(cache)) is not None:
        return far.admit(cache)
    key = (str(cache.parent), cache.parent.stat().st_dev)
    with _one_at_a_time:
        if key not in _found:
            _found[key] = why_not_several(cache)
        if _found[key] and _held.get(cache / MARK) != os.getpid():
            _hold(cache, _found[key])
        return bool(_found[key])


def why_not_several(folder: Path) -> str:
    """Return why only one process at a time may write below a folder, "" where several may.

    Args:
        folder: a cache's, or any other right below that of the features.
    """
    with contextlib.suppress(OSError, CacheError):
        return _said(folder.parent / FOLDER / KNOWN)[:300].strip() or "featcache doctor found it so"
    first, second = folder / atomic.own_name(), folder / atomic.own_name()
    try:
        os.close(os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        second.hardlink_to(first)
        if first.stat().st_nlink != 2:
            return "it does not count the names of a file"
        try:
            second.hardlink_to(first)
        except FileExistsError:
            return ""
        return "link succeeds where the name exists"
    except OSError as error:
        # A full or read-only disk is told by whoever writes.
        return "it has no hard links" if error.errno in _NO_LINKS else ""
    finally:
        for path in (first, second):
            with contextlib.suppress(OSError):
                path.unlink()


def remember(features_dir: Path, why: str) -> None:
    """Remember what `featcache doctor` found out about a folder; "" forgets what it found before."""
    path = features_dir / FOLDER / KNOWN
    with contextlib.suppress(OSError, CacheError):
        if why:
            atomic.make_folder(path.parent)
            atomic.write(path, why.encode())
        elif path.exists():
            atomic.remove(path)
    _found.clear()


def _hold(cache: Path, why: str) -> None:
    """Put the mark, or take it over from a process of this machine that is dead."""
    mark = cache / MARK
    for _ in range(3):
        try:
            descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            _free(mark, why)
        except OSError:
            return  # whoever writes says why nothing can be written
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(atomic.own_name())
            _held[mark] = os.getpid()
            atexit.register(release, cache)
            return
    raise _refused(mark, why)


def _free(mark: Path, why: str) -> None:
    """Remove the mark of a dead process; moved away first, for another may have done so and put its own."""
    with contextlib.suppress(FileNotFoundError):
        said = _said(mark)[:200]
        if atomic.left_by(said) != atomic.DEAD:
            raise _refused(mark, why)
        aside = mark.with_name(atomic.own_name())
        mark.rename(aside)
        if _said(aside)[:200] != said:
            aside.rename(mark)
            raise _refused(mark, why)
        aside.unlink()


def _said(path: Path) -> str:
    """Return what a file of ours says; "" where a stranger's pipe, link or folder stands in its place."""
    try:
        return records.read_regular(path, _MOST).decode("utf-8", "replace")
    except DamagedError:
        return ""


def release(cache: Path) -> None:
    """Take the mark away, if it is this process's."""
    if (far := keeping.far_of(cache)) is not None:
        far.release(cache)
    mark = cache / MARK
    if _held.pop(mark, None) == os.getpid():
        with contextlib.suppress(OSError):
            mark.unlink()


def _refused(mark: Path, why: str) -> CacheError:
    return CacheError(
        f"Another process writes into {mark.parent}, and its file system cannot be shared by several: {why}.",
        f"Wait until it is done. If none is at work any more, on no machine, remove {mark}; or use another "
        "--features-dir, see featcache doctor.",
    )
