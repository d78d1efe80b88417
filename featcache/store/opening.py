"""Mirrors of features folders in object stores: where they are, and which are open in this process."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from featcache import atomic
from featcache.errors import CacheError
from featcache.objects import Objects, server
from featcache.store import keeping
from featcache.store.mirror import Mirror


def open_mirror(url: str, mirrors: Path | None = None) -> Path:
    """Return the folder of this machine that mirrors a features folder in a store, brought up to date.

    Raises:
        CacheError: the store does not answer or refuses, or the folder cannot be written.
    """
    objects = Objects(url)
    root = place_of(objects.url, mirrors)
    if root in _open:
        _open[root].refresh()
        return root
    atomic.make_folder(root / keeping.FOLDER)
    said = keeping.mark_of(root, objects.url, server())
    mark = root / keeping.FOLDER / keeping.MARK
    if keeping.mirrored(root) != {"url": objects.url, "server": server()}:
        atomic.write(mark, said)
    return _opened(root, objects)


def open_again(root: Path) -> Mirror:
    """Open the mirror that a folder is, as the mark in it says.

    Raises:
        CacheError: the store does not answer or refuses, or another server is meant now.
    """
    said = keeping.mirrored(root)
    if said is None:
        raise CacheError(f"{root} mirrors nothing any more.", "Name the URL that it mirrored.")
    if said["server"] != server():
        raise CacheError(
            f"{root} mirrors {said['url']} of the server {said['server'] or 'that is the default'}, "
            f"and now {server() or 'the default one'} would be asked.",
            "Set AWS_ENDPOINT_URL as it was, or name the URL itself.",
        )
    _opened(root, Objects(said["url"]))
    return _open[root]


def place_of(url: str, mirrors: Path | None = None) -> Path:
    """Return where a URL is mirrored: in `mirrors`, FEATCACHE_MIRROR, or the user's cache folder."""
    given = mirrors or os.environ.get("FEATCACHE_MIRROR")
    if not given:
        home = os.environ.get("XDG_CACHE_HOME")
        given = (Path(home) if home else Path.home() / ".cache") / "featcache" / "mirrors"
    name = hashlib.sha256(f"{url} {server()}".encode()).hexdigest()[:16]
    return Path(given).expanduser().resolve() / name


def _opened(root: Path, objects: Objects) -> Path:
    mirror = Mirror(root, objects)
    mirror.refresh()
    _open[root] = mirror
    keeping.register(root, mirror)
    return root


_open: dict[Path, Mirror] = {}
