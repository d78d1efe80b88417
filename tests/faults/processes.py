"""Work in a process of its own, which may die: forked, so that starting one takes a millisecond or two."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable


def fork(work: Callable[..., object], *arguments: object) -> int:
    """Start a process that calls `work` and exits 0, or 1 where it raises; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, from Python 3.12
        process = os.fork()
    if process:
        return process
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        work(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill(process: int) -> int:
    """Kill a process and wait for it."""
    os.kill(process, signal.SIGKILL)
    return wait(process)


def apart(work: Callable[..., object], *arguments: object) -> int:
    """Call `work` in a process of its own; return its exit code, or minus the signal that ended it."""
    return wait(fork(work, *arguments))
