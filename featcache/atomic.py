"""Every file call that makes something durable, in one place, so that faults can be injected in it.

HDF5 fsyncs nothing and a library that writes in place leaves half files behind; so bytes are built in
memory and written here: a temporary name in the same folder, fsync, close checked, then renamed or linked
to the final name, then the folder is fsynced. A reader sees the whole file or none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from featcache.errors import CacheError, SpaceError

TEMPORARY = ".tmp-"


class Calls:
    """The system calls used, as methods, so that a test can replace `calls` with one that fails or kills."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """Open a file, see os.open."""
        return os.open(path, flags, mode)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the data and return how much, see os.write."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Wait until the file or folder is on disk, see os.fsync."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file; network file systems report a full disk here, see os.close."""
        os.close(descriptor)

    def rename(self, source: str, target: str) -> None:
        """Rename over whatever is there, see os.rename."""
        os.replace(source, target)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, failing if that name exists, see os.link."""
        os.link(source, target)

    def unlink(self, path: str) -> None:
        """Remove a name, see os.unlink."""
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        """Make a folder, see os.mkdir."""
        os.mkdir(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder, see os.rmdir."""
        os.rmdir(path)


calls = Calls()


def write(path: Path, data: bytes | Sequence[memoryview], settled: bool = True) -> None:
    """Write a file whole and durably, replacing what is there; `data` may come in pieces.

    With `settled=False` its name is not durable yet: whoever calls writes more there, and settles the folder.

    Raises:
        SpaceError: the disk is full or the quota used up; nothing is left behind.
        CacheError: any other failure of the file system.
    """
    with _reported(path):
        temporary = _write_temporary(path, data)
        try:
            calls.rename(temporary, str(path))
        except OSError:
            _forget(temporary)
            raise
        if settled:
            sync_folder(path.parent)


def publish_once(path: Path, data: bytes, alone: bool = False) -> bool:
    """Write a file that must not exist yet; return whether ours is the one that is there now.

    `link` fails where a name exists, so of many writers one wins. A network file system may do the link
    and lose the reply: whatever the error says, two names on our temporary mean that we won. Who writes
    `alone`, where there are no links, renames.

    Raises:
        SpaceError: the disk is full or the quota used up; nothing is left behind.
        CacheError: any other failure of the file system.
    """
    with _reported(path):
        temporary = _write_temporary(path, data)
        try:
            won = _rename_new(temporary, path) if alone else _link(temporary, path)
        finally:
            _forget(temporary)
        sync_folder(path.parent)
        return won


def _link(temporary: str, path: Path) -> bool:
    try:
        calls.link(temporary, str(path))
    except OSError as error:
        if os.stat(temporary).st_nlink == 2:
            return True
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def _rename_new(temporary: str, path: Path) -> bool:
    if os.path.lexists(path):
        return False
    calls.rename(temporary, str(path))
    return True


def settle(folder: Path) -> None:
    """Make the names in a folder durable, whoever wrote them.

    Raises:
        CacheError: the file system refuses.
    """
    with _reported(folder):
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; an OSError passes as it is."""
    descriptor = calls.open(str(folder), os.O_RDONLY)
    try:
        calls.fsync(descriptor)
    finally:
        calls.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file durably; one that is not there is fine.

    Raises:
        CacheError: the file system refuses.
    """
    with _reported(path):
        with contextlib.suppress(FileNotFoundError):
            calls.unlink(str(path))
        sync_folder(path.parent)


_durable: set[tuple[int, int]] = set()  # device and inode of the folders this process has seen to


def make_folder(folder: Path, settled: bool = True) -> None:
    """Create a folder and its parents, durably.

    A folder that is there may have been made a moment ago by a process that has not come to its fsync, so
    its name is made durable too, once in a process. With `settled=False` whoever calls does that.

    Raises:
        SpaceError, CacheError: as `write`.
    """
    made = not folder.is_dir()
    if not made and _identity(folder) in _durable:
        return
    with _reported(folder):
        if made:
            make_folder(folder.parent)
            with contextlib.suppress(FileExistsError):
                calls.mkdir(str(folder))
        # Whoever may use a folder may be barred from opening the one above it.
        with contextlib.nullcontext() if made else contextlib.suppress(PermissionError):
            if settled:
                sync_folder(folder.parent)
        _durable.add(_identity(folder))


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def sweep(folder: Path) -> int:
    """Remove temporaries that dead processes of this machine left in a folder; return how many."""
    removed = 0
    for path in folder.glob(f"{TEMPORARY}*"):
        if left_by(path.name) == DEAD:
            _forget(str(path))
            removed += 1
    return removed


DEAD, ALIVE, ELSEWHERE = "dead", "alive", "elsewhere"
_NAME = re.compile(rf"{re.escape(TEMPORARY)}([0-9a-f]{{8}})-(\d{{1,10}})-[0-9a-f]{{12}}")


def own_name() -> str:
    """Return a new name that tells which process of which machine has made a file."""
    return f"{TEMPORARY}{_host()}-{os.getpid()}-{os.urandom(6).hex()}"


def left_by(name: str) -> str | None:
    """Return whether the process that made a temporary is dead, alive or on another machine.

    None: the name is not one that `write` gives.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    if found[1] != _host():
        return ELSEWHERE
    return ALIVE if _alive(int(found[2])) else DEAD


def _write_temporary(path: Path, data: bytes | Sequence[memoryview]) -> str:
    temporary = str(path.parent / own_name())
    descriptor = calls.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            for piece in [memoryview(data)] if isinstance(data, bytes) else data:
                _write_all(descriptor, piece)
            calls.fsync(descriptor)
        finally:
            calls.close(descriptor)
    except BaseException:
        _forget(temporary)
        raise
    return temporary


def _write_all(descriptor: int, left: memoryview) -> None:
    while left:
        written = calls.write(descriptor, left)
        if written < 1:
            raise OSError(errno.EIO, "Nothing was written, and no error given")
        left = left[written:]


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into one sentence that names the file and the next step."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(
                f"No space left while writing {path}: {error.strerror}. What was committed before is safe.",
                "Make room and run the same command again: it goes on where it stopped.",
            ) from error
        raise CacheError(
            f"Cannot write {path}: {error.strerror or error}. What was committed before is safe.",
            "Check the disk and the folder's permissions, then run the same command again.",
        ) from error


def _forget(temporary: str) -> None:
    with contextlib.suppress(OSError):
        calls.unlink(temporary)


def _host() -> str:
    # Not socket.gethostname: importing socket takes longer than all else a warm hit does here.
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{zlib.crc32(name.encode()):08x}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
