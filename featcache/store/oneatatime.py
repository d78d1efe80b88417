"""Who may write into a cache in an object store: many, where it says who was first, else one at a time."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import threading
import time

from featcache import atomic
from featcache.errors import CacheError
from featcache.objects import Objects
from featcache.store.keeping import FOLDER

MARK = "writer"  # in the cache, where only one process may write: who it is
_SETTLE = 0.5  # seconds in which a mark put at the same moment by another shows itself


def _unknown_there(error: BaseException | None) -> bool:
    """Return whether a store, or its library, refuses a condition as something that it does not know."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSYS, errno.EINVAL) or isinstance(error, (NotImplementedError, TypeError))


class OneAtATime:
    """Lets writers in.

    Args:
        objects: where caches are.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._several: bool | None = None
        self._held: dict[str, str] = {}  # cache → what its mark says
        self._lock = threading.Lock()

    @property
    def several(self) -> bool:
        """Whether several may write; tried once, with an object that is removed again.

        Raises:
            CacheError: nothing can be written at all.
        """
        if self._several is None:
            self._several = self._objects.creates and self._tried()
        return self._several

    def _tried(self) -> bool:
        """Servers that speak S3 may know nothing of its conditional writes, and write all the same."""
        trial = f"{FOLDER}/trial-{secrets.token_hex(8)}"
        try:
            first, second = (self._objects.put_new(trial, data) for data in (b"first", b"second"))
        except CacheError as error:
            if not _unknown_there(error.__cause__):
                raise  # all may be well, and others would write while this process believes to be alone
            return False
        finally:
            with contextlib.suppress(CacheError):
                self._objects.remove(trial)
        return first and not second

    def put_new(self, name: str, data: bytes) -> bool:
        """Put an object that must not be there yet; return whether ours is the one that is there now."""
        if self.several:
            return self._objects.put_new(name, data)
        there = self._objects.get(name)
        if there is None:
            self._objects.put(name, data)
        return there is None or there == data

    def claim(self, name: str) -> bool | None:
        """Put an empty object; return whether it was not there before, None where that cannot be told."""
        if not self.several:
            return None
        try:
            return self._objects.put_new(name, f"{atomic.own_name()}".encode())
        except CacheError:
            return True  # where no claims can be made, everybody does everything

    def admit(self, cache: str) -> bool:
        """Return whether only one process may write into a cache, and it is this one.

        Raises:
            CacheError: only one may, and another process does.
        """
        with self._lock:
            if self.several:
                return False
            if self._held.get(cache) is None:
                self._hold(cache)
            return True

    def _hold(self, cache: str) -> None:
        mark = f"{cache}/{MARK}"
        self._check(mark)
        own = atomic.own_name()
        self._objects.put(mark, own.encode())
        time.sleep(_SETTLE)
        self._check(mark, own)
        self._held[cache] = own
        atexit.register(self.release, cache)

    def _check(self, mark: str, own: str = "") -> None:
        said = (self._objects.get(mark) or b"").decode(errors="replace")[:200]
        if said in ("", own) or atomic.left_by(said) == atomic.DEAD:
            return
        raise CacheError(
            f"Another process writes into {self._objects.url}/{mark.rpartition('/')[0]}, and this store "
            "cannot be shared by several: it does not say who was first.",
            f"Wait until it is done. If none is at work any more, on no machine, remove the object {mark}.",
        )

    def release(self, cache: str) -> None:
        """Take the mark away, if it is this process's."""
        own = self._held.pop(cache, None)
        if own is not None and atomic.left_by(own) == atomic.ALIVE and f"-{os.getpid()}-" in own:
            with contextlib.suppress(CacheError):
                self._objects.remove(f"{cache}/{MARK}")
