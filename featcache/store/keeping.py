"""Where what belongs to a features folder is kept: on this machine alone, or in an object store behind it.

Everything that is part of a cache or a run is written and found through here. A folder of this machine is
what it says. One that mirrors an object store (`featcache.store.mirror`) is told from it by a file in it, so
that every process that is given a path in it, whoever starts it, writes to the store too.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from featcache import atomic
from featcache.errors import DamagedError, OptionError
from featcache.objects import is_url
from featcache.store.far import Far

T = TypeVar("T")
FOLDER = ".featcache"  # of a features folder: what may be forgotten
MARK = "remote.json"  # in a mirror's .featcache: what it mirrors
RUNS_CHANGED = "runs-changed"  # there too, an empty file: the ledger, an index, is to be made anew
_DEPTH = 6  # of a features folder's own files: <cache>/heads/<run>/checkpoints/<file>, and the folder itself
_MOST = 10_000  # bytes of a mark
_A_URL_ONCE = re.compile(r"(s3a?|gc?s|az|abfss?|memory):/[^/]")


_mirrors: dict[Path, Far] = {}
_plain: set[Path] = set()  # folders that have been looked at and mirror nothing


def local(features_dir: str | os.PathLike[str], mirrors: Path | None = None) -> Path:
    """Return the folder of this machine to work in for a features folder that may be a URL.

    Args:
        features_dir: a path, or a URL such as s3://bucket/features, which is mirrored.
        mirrors: where mirrors are; None: see `featcache.store.opening.place_of`.

    Raises:
        OptionError: a URL was made a path, which loses a slash.
        CacheError: the store does not answer, refuses, or its library is not installed.
    """
    text = os.fspath(features_dir)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if not is_url(text):
        if _A_URL_ONCE.match(text):
            raise OptionError(f"{text} was a URL before it became a path.", "Give it as a text.")
        return Path(text)
    from featcache.store.opening import open_mirror

    return open_mirror(text, mirrors)


def register(root: Path, far: Far | None) -> None:
    """Take note that a folder mirrors something, or, with None, that it does no more."""
    _plain.clear()
    if far is None:
        _mirrors.pop(root, None)
    else:
        _mirrors[root] = far


def far_of(path: Path) -> Far | None:
    """Return what is behind a features folder or any path in it, None for a folder of this machine.

    Raises:
        CacheError: it mirrors an object store, which does not answer or refuses.
    """
    places = (path, *path.parents)[:_DEPTH]
    for place in places:
        if place in _mirrors:
            return _mirrors[place]
    for place in places:
        if place not in _plain:
            if mirrored(place) is not None:
                from featcache.store.opening import open_again

                return open_again(place)
            _plain.add(place)
    return None


def kept_by(path: Path) -> Far | None:
    """Return what is behind a features folder if a file of it belongs there too."""
    far = far_of(path.parent)
    return far if far is not None and far.keeps(path) else None


def shown(path: Path) -> str:
    """Return a path as people are told it: of a mirror the URL."""
    for place in (path, *path.parents)[:_DEPTH]:
        if place in _mirrors:
            below = path.relative_to(place).as_posix()
            return _mirrors[place].url if below == "." else f"{_mirrors[place].url}/{below}"
    return str(path)


def below(features_dir: Path, name: str) -> str:
    """Return a name as it is looked for in a features folder: of a URL that leads into it, the rest."""
    return name.removeprefix(f"{shown(features_dir)}/") if is_url(name) else name


def write(path: Path, data: bytes | Sequence[memoryview], settled: bool = True) -> None:
    """Write a file of a features folder whole, replacing what is there; see `atomic.write`.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    far = kept_by(path)
    if far is None:
        atomic.write(path, data, settled)
    else:
        far.write(path, data)


def publish_once(path: Path, data: bytes, alone: bool = False) -> bool:
    """Write a file that must not exist yet; return whether ours is the one there; see `atomic.publish_once`.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    far = kept_by(path)
    return atomic.publish_once(path, data, alone) if far is None else far.publish_once(path, data)


def remove(path: Path) -> None:
    """Remove a file of a features folder; one that is not there is fine.

    Raises:
        CacheError: it cannot be removed.
    """
    far = kept_by(path)
    if far is None:
        atomic.remove(path)
    else:
        far.remove(path)


def there(path: Path) -> bool:
    """Return whether a file is in a features folder, on this machine or behind it."""
    far = kept_by(path)
    return path.exists() if far is None else far.there(path)


def size_of(path: Path) -> int | None:
    """Return the size of a regular file of a features folder or behind it; None where there is none.

    Raises:
        OSError: it cannot be looked at, or something else has its name.
    """
    if (far := kept_by(path)) is not None:
        return far.size(path)
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return facts.st_size


def bring(path: Path, again: bool = False) -> bool:
    """Fetch a file that is behind a features folder; return whether that was done.

    A file that is here is fetched only with `again`. Of a folder that mirrors nothing there is nothing to do.
    """
    far = kept_by(path)
    return far is not None and far.bring(path, again)


def undamaged(path: Path, read: Callable[[], T]) -> T:
    """Return what is read from a file; of a copy that is found damaged, what is read from a new one.

    Raises:
        DamagedError, and others: as `read`.
    """
    try:
        return read()
    except DamagedError:
        if not bring(path, again=True):
            raise
    return read()


def bring_all(paths: Sequence[Path]) -> None:
    """Fetch those of some files of one cache that are not here yet, several at once."""
    far = kept_by(paths[0]) if paths else None
    if far is not None:
        far.bring_all(paths)


def refuse_remote(features_dir: Path, what: str, hint: str) -> None:
    """Refuse what is not done on object storage.

    Raises:
        OptionError: the features folder mirrors an object store.
    """
    far = far_of(features_dir)
    if far is not None:
        raise OptionError(f"{what} does not work on object storage: {far.url}.", hint)


def runs_changed(features_dir: Path) -> bool:
    """Return, once, whether runs came or went behind a features folder since the ledger was made."""
    try:
        (features_dir / FOLDER / RUNS_CHANGED).unlink()
    except OSError:
        return False
    return True


def mark_of(root: Path, url: str, server: str) -> bytes:
    """Return what says, in a mirror, that this folder and no copy of it mirrors a URL of a server."""
    return json.dumps({"url": url, "server": server, "inode": root.stat().st_ino}).encode()


def mirrored(root: Path) -> dict[str, str] | None:
    """Return what a folder mirrors, `url` and `server`; None where it is no mirror.

    A mark may have come with a stranger's files, and would have us ask a server of theirs: it holds for the
    very folder that it was made for, whose inode it names, and not where it is a link or a pipe.
    """
    path = root / FOLDER / MARK
    try:
        if not stat.S_ISREG((facts := path.lstat()).st_mode) or facts.st_size > _MOST:
            return None
        said = json.loads(path.read_bytes())
        whole = said["inode"] == root.stat().st_ino
        return {"url": str(said["url"]), "server": str(said["server"])} if whole else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
