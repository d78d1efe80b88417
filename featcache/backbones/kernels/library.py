"""Sources of this folder as a library of this process, by the machine's own compiler.

Compiling takes a second, so nothing is kept: no library of another processor, compiler or version is ever
loaded by mistake, and no folder has to be trusted.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import lru_cache
from pathlib import Path

from featcache.errors import BackboneError

FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi",
    "-shared", "-fPIC",
)  # fmt: skip
# Of AVX-512's registers, too, where a compiler would rather take half of each.
WIDEST = "-mprefer-vector-width=512"
SECONDS = 120.0  # for the compiler

_lock = threading.Lock()


def compiler() -> list[str]:
    """Return the command of the C compiler: $CC, or the first of cc, gcc and clang; nothing without one."""
    named = shlex.split(os.environ.get("CC", ""))
    found = [[*named]] if named else [["cc"], ["gcc"], ["clang"]]
    return next((each for each in found if shutil.which(each[0])), [])


def library(sources: tuple[str, ...], defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Return sources of this folder compiled and loaded, once a process.

    Raises:
        BackboneError: there is no compiler, or it refuses; its first complaint.
    """
    with _lock:
        return _library(sources, defines)


@lru_cache(maxsize=16)
def _library(sources: tuple[str, ...], defines: tuple[str, ...]) -> ctypes.CDLL:
    command = compiler()
    if not command:
        raise BackboneError("There is no C compiler (cc, gcc or clang, or what $CC names).")
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        target = Path(folder) / "kernels.so"
        rest = [
            *(f"-D{each}" for each in defines),
            *(str(here / each) for each in sources),
            "-o",
            str(target),
        ]
        complaint = _run([*command, *FLAGS, WIDEST, *rest])
        if complaint:  # not every compiler knows that one
            complaint = _run([*command, *FLAGS, *rest])
        if complaint:
            raise BackboneError(f"{command[0]} does not compile {', '.join(sources)}: {complaint}.")
        try:
            return ctypes.CDLL(str(target))
        except OSError as error:  # the folder for temporary files may forbid to execute
            raise BackboneError(f"What {command[0]} has compiled cannot be loaded: {error}.") from error


def _run(command: list[str]) -> str:
    """Return what a compiler complains of; empty where it is content."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    if done.returncode == 0:
        return ""
    lines = (
        [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
    )
    return lines[0].rpartition("error: ")[2][:200]


def supported() -> bool:
    """Return whether a compiler is to be looked for at all: on Windows libraries are made otherwise."""
    return sys.platform != "win32"
