"""A process that decodes images, which may die, hang or eat memory without taking its parent with it.

It is told what to do, and answers, in lines of JSON; pixels come back in memory that it shares. What is asked
of it again after it died is asked of a fresh one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from featcache import limits

START = 120.0  # seconds for a process to begin, on a machine that has much to do
BYTES_A_PIXEL = 24  # 16-bit colour with alpha, converted, turned and copied


class EndedError(Exception):
    """The process died, was killed for taking too long, or needs too much memory; says why."""


class Child:
    """A process that runs a module, which says an empty line when it is ready and then answers line by line.

    Args:
        module: what `python -m` runs.
        handle: the descriptor of the shared memory.
        begin: the first thing it is told.
    """

    def __init__(self, module: str, handle: int, begin: dict[str, Any]) -> None:
        self._module, self._handle, self._begin, self._ready = module, handle, begin, False
        self._process = self._started()

    def ask(self, task: dict[str, Any]) -> Any:
        """Return the answer to a task; after an error a fresh process has been started.

        Raises:
            EndedError: there is none.
        """
        try:
            if not self._ready:
                self._get_ready()
            self._tell(task)
            answer = json.loads(self._line(time.monotonic() + limits.DECODE_SECONDS()))
        except (OSError, ValueError):
            self._process.kill()
            why = _why(self._process.wait())
        except TimeoutExpiredError:
            self._process.kill()
            why = "took too long to decode"
        else:
            if not (isinstance(answer, dict) and answer.get("memory")):
                return answer
            why = "needs too much memory to decode"
        self.close()
        self._process = self._started()
        raise EndedError(why)

    def wait(self) -> None:
        """Wait until it is ready, or dead."""
        with contextlib.suppress(OSError, ValueError, TimeoutExpiredError):
            self._get_ready()

    def kill(self) -> None:
        """End it, whoever waits for it: it holds nothing that could be lost."""
        self._process.kill()

    def close(self) -> None:
        """End it and close its pipes."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                _pipe(stream).close()
        self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        package = str(Path(__file__).parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(self._handle,),
            env=environment,
        )
        self._process, self._ready = process, False
        with contextlib.suppress(OSError):  # whoever asks it will see that it is dead
            self._tell(self._begin)
        return process

    def _get_ready(self) -> None:
        self._line(time.monotonic() + START)
        self._ready = True

    def _tell(self, message: object) -> None:
        left = memoryview(line(message))
        while left:
            left = left[_pipe(self._process.stdin).write(left) :]

    def _line(self, deadline: float) -> bytes:
        """Return the next line it says."""
        stream, said = _pipe(self._process.stdout), b""
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        while not said.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                raise TimeoutExpiredError
            piece = stream.read(1 << 16)
            if not piece:
                raise ValueError("It has closed its end.")
            said += piece
        return said


class TimeoutExpiredError(Exception):
    """No answer came in time."""


Begin = Callable[[dict[str, Any]], Callable[[dict[str, Any]], Any]]
"""From the first thing that a process is told to what answers a task."""


def serve(tasks: IO[bytes], answers: IO[bytes], begin: Begin) -> None:
    """Answer what is asked, line by line, until there is no more; the other end of a `Child`.

    Memory is limited once `begin` has prepared everything.
    """
    start = json.loads(tasks.readline())
    answer = begin(start)
    limited(start["size"], start["max_pixels"])
    answers.write(b"\n")  # ready
    answers.flush()
    while asked := tasks.readline():
        try:
            answers.write(line(answer(json.loads(asked))))
        except MemoryError:
            answers.write(line({"memory": True}))
        answers.flush()


def run(begin: Begin) -> None:
    """Serve the parent, as a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; this process ends with its pipe
    serve(sys.stdin.buffer, sys.stdout.buffer, begin)


def line(message: object) -> bytes:
    """Return a message as a line of JSON, in ASCII: a path that is no UTF-8 survives as escapes."""
    return json.dumps(message).encode() + b"\n"


def limited(size: int, max_pixels: int) -> None:
    """Limit the memory of this process to what decoding may take.

    Args:
        size: of the memory it shares.
        max_pixels: of an image.
    """
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + size + limits.DECODE_BYTES() + BYTES_A_PIXEL * max_pixels
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _why(code: int) -> str:
    if code >= 0:
        return f"its decoder ended the process (exit code {code})"
    try:
        return f"its decoder died by {signal.Signals(-code).name}"
    except ValueError:
        return f"its decoder died by signal {-code}"


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("The process was started without pipes.")
    return stream
