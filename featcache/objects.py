"""Objects in a store such as S3, below one URL, through fsspec: listed, read, put, put if absent, removed.

Which server, which credentials and how often something is tried again is the library's own business: its
environment variables and configuration. What it raises becomes one sentence that names the object.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featcache.errors import CacheError, FeatcacheError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")
_CREATES = {"s3", "s3a", "memory"}  # whose put-if-absent is one step, and tried here
_FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "memory"}  # that know no folders
_AT_ONCE = 16  # requests; a store answers many as fast as one

# What tells one content from another, best first; then the times that do where nothing better is told.
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")

_SAFE = "What was committed before is safe: run the same command again, and it goes on."


def is_url(text: str) -> bool:
    """Return whether a text names a place in an object store rather than a path of this machine."""
    return _URL.match(text) is not None and not text.startswith("file://")


@dataclass(frozen=True)
class Entry:
    """An object as the store describes it.

    `tag` tells its content from any other under its name, "" where the store tells nothing that does;
    `changed_ns` is when it was written, in ns since the epoch by the store's clock, 0 where it does not say.
    """

    size: int
    tag: str
    changed_ns: int


class Objects:
    """The objects below one URL, such as s3://bucket/prefix; names are relative to it.

    Args:
        url: without a slash at its end.
        error: what is raised where the store does not answer, or refuses.

    Raises:
        CacheError, or `error`: no library for such URLs is installed, or it cannot be set up.
    """

    def __init__(self, url: str, error: type[FeatcacheError] = CacheError) -> None:
        self.url, self._error = url.rstrip("/"), error
        with self._reported("open", ""):
            self._root = str(self.fs._strip_protocol(self.url)).rstrip("/")

    @property
    def fs(self) -> Any:
        """The file system of fsspec; in a process that was forked one of its own."""
        return _file_system(self.url)

    @property
    def creates(self) -> bool:
        """Whether of several who put one object under a new name, one is told that it was first."""
        return self.url.partition("://")[0] in _CREATES

    def list(self, below: str = "") -> dict[str, Entry]:
        """Return all objects whose names begin with the folder `below`, whatever their depth.

        Raises:
            CacheError, or the class's own error: the store does not answer, refuses, or has no such bucket.
        """
        place = f"{self._root}/{below}".rstrip("/")
        with self._reported("list", below):
            found = self.fs.find(place, detail=True)
        start = len(self._root) + 1
        return {
            path[start:]: _entry(facts)
            for path, facts in found.items()
            if facts["type"] == "file" and len(path) > start and not path.endswith("/")
        }

    def look(self, name: str) -> Entry | None:
        """Return what the store says of one object, None where there is none."""
        with self._reported("look at", name), contextlib.suppress(FileNotFoundError):
            return _entry(self.fs.info(self._path(name)))
        return None

    def get(self, name: str) -> bytes | None:
        """Return an object's bytes, None where there is none."""
        with self._reported("read", name), contextlib.suppress(FileNotFoundError):
            return bytes(self.fs.cat_file(self._path(name)))
        return None

    def get_all(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield (name, bytes) of several objects in order, asked for at once; None for one not there."""
        wanted = list(names)
        yield from zip(wanted, self._pool.map(self.get, wanted), strict=True)

    def begin(self, name: str) -> Future[bytes | None]:
        """Ask for an object's bytes, and do not wait for them."""
        return self._pool.submit(self.get, name)

    def stop(self) -> None:
        """Let go of what was asked for and has not begun."""
        pool = self.__dict__.pop("_pool", None)
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def at_once(self, work: Callable[[str], object], names: Iterable[str]) -> None:
        """Do something for several names at once; the first error is raised."""
        for _ in self._pool.map(work, names):
            pass

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole, replacing one of that name."""
        with self._reported("write", name):
            try:
                self.fs.pipe_file(self._path(name), data)
            except FileNotFoundError:
                if self.url.partition("://")[0] in _FLAT:
                    raise
                self.fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                self.fs.pipe_file(self._path(name), data)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write an object that must not exist yet; return whether ours is the one that is there now.

        The store decides which of several is first (S3: a conditional write, `If-None-Match: *`). It may do
        so and lose the reply, and is then asked again by its library: so whatever the answer, the object that
        is there tells.
        """
        with self._reported("write", name):
            try:
                self.fs.pipe_file(self._path(name), data, mode="create")
            except Exception:  # FileExistsError, or what a library makes of it, or a reply that was lost
                there = self.get(name)
                if there is None:
                    raise
                return there == data
        return True

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        with self._reported("remove", name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="objects")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _reported(self, verb: str, name: str) -> Iterator[None]:
        """Turn what the libraries raise into one sentence: each has classes of its own for it."""
        try:
            yield
        except (FeatcacheError, MemoryError):
            raise
        except Exception as error:
            what = f"Cannot {verb} {self.url}{f'/{name}' if name else ''}"
            raise self._error(f"{what}: {_why(error)}.", _hint(error)) from error


_systems: dict[Any, Any] = {}


def _file_system(url: str) -> Any:
    """Return fsspec's file system for a URL; one for all of S3, whose set-up takes half a second."""
    import fsspec

    protocol = url.partition("://")[0]
    said = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "FSSPEC_"))))
    key = (protocol if protocol in _CREATES else url, said, os.getpid())
    if key not in _systems:
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        _systems[key] = fsspec.core.url_to_fs(url, **options)[0]
    return _systems[key]


def _why(error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, ImportError):
        return f"its library is not installed ({said})"
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket or object ({said})"
    if isinstance(error, PermissionError):
        return f"no permission ({said})"
    return said[:300]


def _hint(error: Exception) -> str:
    if isinstance(error, ImportError):
        return 'For s3:// install it with: pip install "featcache[s3]".'
    if isinstance(error, PermissionError) or "redentials" in str(error):
        return "Check the credentials, for S3 those of the AWS tools (AWS_PROFILE, AWS_ACCESS_KEY_ID …)."
    if isinstance(error, ValueError) and "rotocol" in str(error):
        return "Known are those of fsspec, such as s3://, gs:// and az://."
    if isinstance(error, FileNotFoundError):
        return "Check the name, and for S3 the server: AWS_ENDPOINT_URL."
    return f"Check the network and the server. {_SAFE}"


def _entry(facts: Mapping[str, Any]) -> Entry:
    size = int(facts.get("size") or 0)
    changed = next((_ns(facts[name]) for name in _TIMES if facts.get(name)), 0)
    marks = [f"{name}={facts[name]}" for name in _MARKS if facts.get(name)]
    said = marks or ([f"changed={changed} {facts.get('ino')}"] if changed else [])
    tag = hashlib.sha256(f"{size} {' '.join(said)}".encode()).hexdigest() if said else ""
    return Entry(size, tag, changed)


def _ns(moment: Any) -> int:
    """Return a moment as stores tell it, a date, its text or seconds, in ns since the epoch."""
    from datetime import datetime

    if isinstance(moment, str):
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        moment = moment.timestamp()
    return int(moment * 1e9) if isinstance(moment, (int, float)) else 0


def server() -> str:
    """Return what else but the URL decides which objects are meant: the server that S3's libraries ask."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "FSSPEC_S3_ENDPOINT_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
