"""A features folder in an object store: the store is the truth, a folder of this machine where work is done.

What is written is put into the store first and kept here then; so a process that dies at any moment loses
nothing that was committed, and what is here is never ahead. What is read is fetched when it is wanted:
records when the mirror is opened, commit records whenever they are asked for, shards when a table maps them,
against the hash of their commit record. A copy of a record or a run's file carries a mark of the object it
was made from as its time of change; where the two differ it is fetched again. Shards need none: their names
say what is in them. Whoever removes the mirror loses time, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from featcache import atomic, limits
from featcache.errors import CacheError
from featcache.objects import Entry, Objects
from featcache.store import keeping, records
from featcache.store.keeping import FOLDER
from featcache.store.oneatatime import OneAtATime

# Copies of written shards leave this much of a disk free: a share of a small one, some bytes of a large one.
FREE_SHARE, FREE_BYTES = 0.1, 10 << 30
_CACHE, _RUN = r"[A-Za-z0-9._-]+--[A-Za-z0-9._-]+--[0-9a-f]{10}", r"heads/[a-z0-9-]{1,40}-[0-9a-f]{8}"
_RECORD = re.compile(rf"{_CACHE}/(?:(?:recipe|roster|seal)\.json|{_RUN}/run\.json)")
_COMMIT = re.compile(rf"{_CACHE}/commits/{records.SHARD_NAME.pattern}\.json")
_SHARD = re.compile(rf"{_CACHE}/shards/{records.FILE_NAME.pattern}")
_OTHER = re.compile(rf"{_CACHE}/(?:plan\.npz|{_RUN}/(?!config\.json$)[A-Za-z0-9][A-Za-z0-9._-]*)")


class Mirror:
    """A folder that mirrors the objects below a URL; see `featcache.store.far.Far`.

    Args:
        root: the folder.
        objects: what it mirrors.
    """

    def __init__(self, root: Path, objects: Objects) -> None:
        self.root, self.objects = root, objects
        self._sizes: dict[str, int] = {}
        self._writers = OneAtATime(objects)

    @property
    def url(self) -> str:
        """What is mirrored."""
        return self.objects.url

    def keeps(self, path: Path) -> bool:
        """Return whether a file is part of a cache, a roster or a run; checkpoints stay on this machine."""
        return path.is_relative_to(self.root) and _kept(self._name(path))

    def refresh(self) -> None:
        """Make the records here those that are there, and let go of copies that have become others.

        Raises:
            CacheError: the store does not answer or refuses.
        """
        # Before the list: what is written meanwhile is there before it is here.
        here = {name for name in self._files(self.root) if _kept(name)}
        there = _those(_kept, self.objects.list())
        self._sizes = {name: entry.size for name, entry in there.items() if _SHARD.fullmatch(name)}
        gone = [name for name in here if name not in there]
        others = [name for name in here if name in there and _OTHER.fullmatch(name)]
        for name in (*gone, *(name for name in others if not self._is_copy(name, there[name]))):
            self._drop(name)
        new = self._fetch(_those(_RECORD.fullmatch, there))
        if any(_is_run(name) for name in (*gone, *new)):
            (self.root / FOLDER / keeping.RUNS_CHANGED).touch()

    def refresh_commits(self, cache: Path) -> None:
        """Make a cache's commit records here those that are there.

        Raises:
            CacheError: the store does not answer or refuses.
        """
        folder = f"{cache.relative_to(self.root).as_posix()}/{records.COMMITS}"
        here = [name for name in self._files(self.root / folder) if _COMMIT.fullmatch(name)]
        there = _those(_COMMIT.fullmatch, self.objects.list(folder))
        for name in here:
            if name not in there:
                self._drop(name)
        self._fetch(there)

    def write(self, path: Path, data: bytes | Sequence[memoryview]) -> None:
        """Put a file into the store, then keep a copy; one of a shard only where there is room for it.

        Raises:
            CacheError: the store does not answer or refuses; nothing is left here or there.
        """
        whole = data if isinstance(data, bytes) else b"".join(data)
        name = self._name(path)
        self.objects.put(name, whole)
        if not _SHARD.fullmatch(name):
            # What may be large is marked at once, so as not to be fetched again; records come whenever asked.
            entry = self.objects.look(name) if _OTHER.fullmatch(name) else None
            self._lay(name, whole, entry if entry is not None and entry.size == len(whole) else None)
            return
        self._sizes[name] = len(whole)
        self._drop(name)
        with contextlib.suppress(CacheError, OSError):
            disk = shutil.disk_usage(self.root)
            if disk.free - len(whole) > min(FREE_SHARE * disk.total, FREE_BYTES):
                self._lay(name, whole)

    def publish_once(self, path: Path, data: bytes) -> bool:
        """Put a file that must not be there yet, and keep a copy of the one that is there then.

        Raises:
            CacheError: the store does not answer or refuses.
        """
        name = self._name(path)
        won = self._writers.put_new(name, data)
        theirs = data if won else self.objects.get(name)
        if theirs is not None:
            self._lay(name, theirs)
        return won

    def remove(self, path: Path) -> None:
        """Remove a file from the store, then the copy."""
        self.objects.remove(self._name(path))
        self._drop(self._name(path))

    def bring(self, path: Path, again: bool = False) -> bool:
        """Fetch a file that is not here yet, or once more; return whether it was fetched.

        Raises:
            CacheError: the store does not answer or refuses, or there is no room.
        """
        if path.exists() and not again:
            return False
        name = self._name(path)
        entry = None if _SHARD.fullmatch(name) else self.objects.look(name)
        data = self.objects.get(name)
        if data is None:
            self._drop(name)
            return False
        self._lay(name, data, entry)
        return True

    def bring_all(self, paths: Iterable[Path]) -> None:
        """Fetch files that are not here yet, several at once."""
        left = [self._name(path) for path in paths if not path.exists()]
        self.objects.at_once(lambda name: self.bring(self.root / name), left)

    def there(self, path: Path) -> bool:
        """Return whether there is such a file."""
        return path.exists() or self.objects.look(self._name(path)) is not None

    def size(self, path: Path) -> int | None:
        """Return the size of a file there, None where there is none."""
        name = self._name(path)
        if name not in self._sizes:
            entry = self.objects.look(name)
            if entry is None:
                return None
            self._sizes[name] = entry.size
        return self._sizes[name]

    def several(self) -> bool:
        """Return whether several processes may write: the store says who was first.

        Raises:
            CacheError: the store does not answer or refuses.
        """
        return self._writers.several

    def admit(self, cache: Path) -> bool:
        """Return whether only one process may write into a cache, and it is this one.

        Raises:
            CacheError: only one may, and another process does; or the store does not answer.
        """
        return self._writers.admit(self._name(cache))

    def release(self, cache: Path) -> None:
        """Let others write, where only this process might."""
        self._writers.release(self._name(cache))

    def claim(self, path: Path) -> bool | None:
        """Claim a shard among all machines; None where the store cannot say who was first."""
        return self._writers.claim(f"{FOLDER}/claims/{path.parent.name}/{path.name}")

    def forget_claims(self, cache: Path) -> None:
        """Remove all claims on a cache's shards."""
        with contextlib.suppress(CacheError):
            self.objects.at_once(
                self.objects.remove, self.objects.list(f"{FOLDER}/claims/{self._name(cache)}")
            )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _fetch(self, wanted: Mapping[str, Entry]) -> list[str]:
        """Fetch the objects whose copies here are not theirs; return the names of those that were others."""
        new = []
        small = (name for name, entry in wanted.items() if entry.size <= limits.RECORD_BYTES())
        left = [name for name in small if not self._is_copy(name, wanted[name])]
        for name, data in self.objects.get_all(left):
            path = self.root / name
            if data is not None and (not path.exists() or path.read_bytes() != data):
                new.append(name)
            if data is not None:
                self._lay(name, data, wanted[name])
        return new

    def _lay(self, name: str, data: bytes, entry: Entry | None = None) -> None:
        """Keep a copy, marked with what it is a copy of."""
        path = self.root / name
        atomic.make_folder(path.parent, settled=False)
        atomic.write(path, data, settled=False)
        if entry is not None and entry.tag:
            os.utime(path, ns=(_stamp(entry), _stamp(entry)))

    def _is_copy(self, name: str, entry: Entry) -> bool:
        try:
            facts = (self.root / name).stat()
        except OSError:
            return False
        return bool(entry.tag) and (facts.st_size, facts.st_mtime_ns) == (entry.size, _stamp(entry))

    def _drop(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.root / name).unlink()

    def _files(self, folder: Path) -> Iterator[str]:
        for place, _, names in os.walk(folder):
            below = Path(place).relative_to(self.root).as_posix()
            yield from (name if below == "." else f"{below}/{name}" for name in names)


def _kept(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_RECORD, _COMMIT, _SHARD, _OTHER))


def _those(which: Callable[[str], object], found: Mapping[str, Entry]) -> dict[str, Entry]:
    return {name: entry for name, entry in found.items() if which(name)}


def _is_run(name: str) -> bool:
    return name.endswith("/run.json")


def _stamp(entry: Entry) -> int:
    """Return the time of change, in ns, that marks a copy of an object: a moment long ago made of its tag."""
    return int(entry.tag[:14], 16) % (1 << 59)
