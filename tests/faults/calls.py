"""The file calls of `featcache.atomic`, watched one by one: counted, failing, killing."""

from __future__ import annotations

import os
import signal
from typing import Any

from featcache import atomic

NAMES = ("open", "write", "fsync", "close", "rename", "link", "unlink", "mkdir", "rmdir")


class Watched(atomic.Calls):
    """The system's calls, each of which goes through `call`."""

    def __init__(self) -> None:
        self.made: list[str] = []
        for name in NAMES:
            setattr(self, name, self._watched(name, getattr(super(), name)))

    def _watched(self, name: str, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.made.append(name)
            return self.call(len(self.made), name, real, *arguments)

        return call

    def call(self, number: int, name: str, real: Any, *arguments: Any) -> Any:
        """Make the call of this number, counted from 1."""
        return real(*arguments)


class Failing(Watched):
    """The call of one number fails with an error, or writes less than it was given."""

    def __init__(self, at: int, error: int | None, write: int = 0, lasting: bool = False) -> None:
        super().__init__()
        self.at, self.error, self.size, self.lasting = at, error, write, lasting
        self.failed: str | None = None

    def call(self, number: int, name: str, real: Any, *arguments: Any) -> Any:
        if number != self.at and not (self.lasting and number > self.at and name in ("open", "write")):
            return real(*arguments)
        self.failed = self.failed or name
        if self.error is None:
            if name != "write":
                return real(*arguments)
            return real(arguments[0], arguments[1][: self.size]) if self.size else 0
        if name == "close":
            real(*arguments)  # a descriptor is gone, whatever close says
        raise OSError(self.error, os.strerror(self.error))


class Killing(Watched):
    """The process is killed right before or right after the call of one number."""

    def __init__(self, at: int, after: bool) -> None:
        super().__init__()
        self.at, self.after = at, after

    def call(self, number: int, name: str, real: Any, *arguments: Any) -> Any:
        if number == self.at and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments)
        if number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def number_of_calls(work: Any) -> list[str]:
    """Do some work and return the names of the calls it made, in order."""
    kept, watched = atomic.calls, Watched()
    atomic.calls = watched
    try:
        work()
    finally:
        atomic.calls = kept
    return watched.made
