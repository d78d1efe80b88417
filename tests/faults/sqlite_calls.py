"""The file calls of SQLite, watched one by one: counted, and killing the process.

SQLite's own tests put their calls in place of the system's through `xSetSystemCall` of its file layer
(https://sqlite.org/c3ref/vfs.html); so does this, in the very library that Python's module has loaded.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

# Those that change files or their names, and the rest of what other processes see. Each may be called with
# six whole numbers.
CHANGING = ("open", "write", "pwrite", "pwrite64", "ftruncate", "unlink", "openDirectory")
ALL = (*CHANGING, "close", "fcntl")
_CALL = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 6)
_PLACE = ctypes.c_void_p


class _Files(ctypes.Structure):
    """sqlite3_vfs, version 3."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("size", ctypes.c_int),
        ("longest", ctypes.c_int),
        ("next", _PLACE),
        ("name", ctypes.c_char_p),
        ("data", _PLACE),
        *[(f"call{number}", _PLACE) for number in range(13)],
        ("put", ctypes.CFUNCTYPE(ctypes.c_int, _PLACE, ctypes.c_char_p, _PLACE)),
        ("get", ctypes.CFUNCTYPE(_PLACE, _PLACE, ctypes.c_char_p)),
    ]


def library() -> ctypes.CDLL | None:
    """Return the SQLite that Python has loaded; None where it is a part of Python itself."""
    sqlite3.connect(":memory:").close()
    maps = Path("/proc/self/maps")
    if not maps.exists() or os.uname().machine != "x86_64":  # fcntl takes its arguments as plain calls do
        return None
    names = {line.split()[-1] for line in maps.read_text().splitlines() if "/libsqlite3" in line}
    return ctypes.CDLL(names.pop()) if len(names) == 1 else None


class Watch:
    """From when it is made, every call is counted; the process is killed before or after the one `at`."""

    def __init__(self, sqlite: ctypes.CDLL, names: tuple[str, ...], at: int = 0, after: bool = False) -> None:
        self.made: list[str] = []
        self._at, self._after = at, after
        sqlite.sqlite3_vfs_find.restype = _PLACE
        found = sqlite.sqlite3_vfs_find(None)
        files = _Files.from_address(found)
        assert files.version >= 3
        self._kept: list[Any] = []
        for name in names:
            real = files.get(found, name.encode())
            if real:
                ours = _CALL(self._watched(name, _CALL(real)))
                self._kept.append(ours)
                assert files.put(found, name.encode(), ctypes.cast(ours, _PLACE)) == 0

    def _watched(self, name: str, real: Any) -> Any:
        def call(*arguments: int) -> int:
            self.made.append(name)
            here = len(self.made) == self._at  # openDirectory calls open, which counts on
            if here and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            result: int = real(*arguments)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call
