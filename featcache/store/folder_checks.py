"""What a folder promises to several processes at once: tried with several that do as the protocol does.

They are on one machine. Of a network file system this tells what its server and this client do; that two
machines see the same is for whoever runs featcache doctor on both.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

PROCESSES, NAMES = 4, 40
SECONDS = 20.0  # until another process must have seen a file; network file systems remember for up to 60 s

# Waits for the file "go", then links its own file to each name in turn and says which it won.
_RACE = """
import os, sys, time
place, me, names = sys.argv[1], sys.argv[2], int(sys.argv[3])
while not os.path.exists(place + "-go"):
    time.sleep(.001)
for name in range(names):
    own = f"{place}-{me}-{name}"
    os.close(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        os.link(own, f"{place}-{name}")
        print(name)
    except OSError:
        if os.stat(own).st_nlink == 2:
            print(name)
    os.unlink(own)
"""

# Says what stands in a file as soon as it is there; then waits until it is another one.
_SEE = """
import os, sys, time
path, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
print("ready", flush=True)
for wanted in (b"first", b"second"):
    while time.monotonic() < end:
        try:
            with open(path, "rb") as file:
                if file.read() == wanted:
                    break
        except OSError:
            pass
        time.sleep(.001)
    else:
        sys.exit(1)
    print(wanted.decode(), flush=True)
"""


def one_wins(place: Path) -> str:
    """Let several processes link to the same names; return "" if each name was won once.

    Args:
        place: a path whose name begins those of the trial files.
    """
    racers = [_started(_RACE, str(place), str(number), str(NAMES)) for number in range(PROCESSES)]
    go = place.with_name(f"{place.name}-go")
    try:
        go.touch()
        won = [name for racer in racers for name in racer.communicate(timeout=60)[0].split()]
    except subprocess.TimeoutExpired:
        return "the processes did not come to an end"
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
        for path in (go, *(place.with_name(f"{place.name}-{name}") for name in range(NAMES))):
            with contextlib.suppress(OSError):
                path.unlink()
    if any(racer.returncode for racer in racers):
        return "hard links cannot be made or counted"
    twice = len(won) - len(set(won))
    if twice or len(won) < NAMES:
        return f"of {NAMES} names {twice} were won twice and {NAMES - len(set(won))} by nobody"
    return ""


def others_see(place: Path) -> str:
    """Write a file, then replace it; return "" if another process sees both.

    Args:
        place: the trial file.
    """
    from featcache import atomic

    watcher = _started(_SEE, str(place), str(SECONDS))
    try:
        said = [_line(watcher)]
        for content in (b"first", b"second"):
            atomic.write(place, content)
            said.append(_line(watcher))
    finally:
        watcher.kill()
        watcher.communicate()
    return "" if said == ["ready", "first", "second"] else f"another process did not within {SECONDS:g} s"


def _started(script: str, *arguments: str) -> subprocess.Popen[str]:
    # Isolated and without the site's packages: it begins in milliseconds, and nothing can come between.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> str:
    return "" if process.stdout is None else process.stdout.readline().strip()
