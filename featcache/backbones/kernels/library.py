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
from pathlib import Path

from featcache.errors import BackboneError

FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-fast-math",
    "-Wno-psabi", "-shared", "-fPIC",
)  # fmt: skip
# All of AVX-512's registers, where a compiler would rather take half of each.
WIDEST = "-mprefer-vector-width=512"
SECONDS = 120.0  # for the compiler

_loaded: dict[tuple[tuple[str, ...], tuple[str, ...]], ctypes.CDLL] = {}
_locks = [threading.Lock()]  # one thread compiles


def _renew() -> None:
    _locks[0] = threading.Lock()


if hasattr(os, "register_at_fork"):  # who is forked while another thread compiles would wait for ever
    os.register_at_fork(after_in_child=_renew)


def compiler() -> list[str]:
    """Return the command of the C compiler: $CC, or the first of cc, gcc and clang; nothing without one.

    On Windows, where libraries are made otherwise, none is looked for.
    """
    if sys.platform == "win32":
        return []
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # a quote without its other half
        return []
    found = [named] if named else [["cc"], ["gcc"], ["clang"]]
    return next((each for each in found if shutil.which(each[0])), [])


def library(sources: tuple[str, ...], defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Return sources of this folder compiled and loaded, once a process.

    Raises:
        BackboneError: there is no compiler, or it refuses; its first complaint.
    """
    key = sources, defines
    if key not in _loaded:
        with _locks[0]:
            if key not in _loaded:
                _loaded[key] = _compiled(sources, defines)
    return _loaded[key]


def _compiled(sources: tuple[str, ...], defines: tuple[str, ...]) -> ctypes.CDLL:
    command = compiler()
    if not command:
        raise BackboneError("There is no C compiler (cc, gcc or clang, or what $CC names).")
    try:
        with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
            target = Path(folder) / "kernels.so"
            complaint = _complaint(command, sources, defines, target)
            if complaint:
                raise BackboneError(f"{command[0]} does not compile {', '.join(sources)}: {complaint}.")
            return ctypes.CDLL(str(target))
    except OSError as error:  # no folder for temporary files, or one from which nothing may be executed
        raise BackboneError(f"What {command[0]} compiles cannot be loaded: {error}.") from error


def _complaint(command: list[str], sources: tuple[str, ...], defines: tuple[str, ...], target: Path) -> str:
    """Compile with the best flags that the compiler knows; return its complaint, empty where it has none."""
    code = "".join(f'#include "{source}"\n' for source in sources)
    rest = [
        *(f"-D{each}" for each in defines),
        f"-I{Path(__file__).parent}",
        "-x",
        "c",
        "-",
        "-o",
        str(target),
    ]
    plain = [flag for flag in FLAGS if not flag.startswith("-march")]
    found = ""
    for flags in ([*FLAGS, WIDEST], FLAGS, plain):
        found = _run([*command, *flags, *rest], code)
        if not found:
            break
    return found


def _run(command: list[str], code: str) -> str:
    """Return what a compiler complains of in what it is told to read; empty where it is content."""
    try:
        done = subprocess.run(
            command,
            input=code,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return lines[0].rpartition("error: ")[2][:200] if lines else f"it ends with {done.returncode}"
