"""Several devices at once: one process each, which share the shards of one cache by claims."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from featcache.backbones.devices import resolve_device
from featcache.errors import CacheError, FeatcacheError
from featcache.extraction.joining import Message, error_message, error_of, join, task_of
from featcache.extraction.request import Settings
from featcache.extraction.resolve import Job
from featcache.images.cores import cores
from featcache.progress import Progress, silent
from featcache.store.cache import Cache


def devices_of(device: str) -> list[str]:
    """Return the devices that a setting names, resolved: "cuda:0,cuda:1" → two.

    Raises:
        OptionError: one is unknown or not there.
    """
    return [resolve_device(name.strip()) for name in device.split(",")]


def runtime_of(settings: Settings) -> str:
    """Return the runtime of all processes: they start together, so none could go on with another's choice."""
    return "torch" if settings.runtime == "auto" else settings.runtime


def run(cache: Cache, job: Job, settings: Settings, progress: Progress = silent) -> int:
    """Extract what a cache still lacks on all devices of the settings; return the number of images embedded.

    Raises:
        FeatcacheError: what the first process that could not go on said; the others are stopped, and
            nothing that was committed is lost.
        CacheError: all processes ended and shards are missing.
    """
    names = devices_of(settings.device)
    share = settings.workers or max(1, cores() // len(names))
    each = [replace(settings, device=name, workers=share, runtime=runtime_of(settings)) for name in names]
    images, codes = _round(cache, job, each, False, progress)
    if cache.todo():  # one has died, or somebody did before
        more, codes = _round(cache, job, each, True, progress)
        images += more
    if cache.todo():
        ended = ", ".join(f"{name}: {code}" for name, code in zip(names, codes, strict=True))
        raise CacheError(
            f"The processes on {settings.device} ended before {cache.name} was finished ({ended}).",
            "Run the same command again: it goes on where it stopped.",
        )
    return images


def _round(
    cache: Cache, job: Job, each: Sequence[Settings], rest: bool, progress: Progress
) -> tuple[int, list[int]]:
    """Let a process for each setting work until all have ended; return the images and the exit codes.

    With `rest` they compute what is claimed too, so in part what another has in hand.
    """
    processes = [_started(cache, job, one, rest) for one in each]
    heard: queue.SimpleQueue[Message] = queue.SimpleQueue()
    listeners = [threading.Thread(target=_listen, args=(one, heard), daemon=True) for one in processes]
    for listener in listeners:
        listener.start()
    try:
        images = _follow(cache, heard, len(processes), progress)
    except BaseException:  # one has said why it cannot go on
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.wait()
        for listener in listeners:
            listener.join()
    return images, [process.returncode for process in processes]


def _follow(cache: Cache, heard: queue.SimpleQueue[Message], left: int, progress: Progress) -> int:
    """Tell the progress of all processes until the last has ended; return the images they embedded."""
    total = cache.plan.counts()
    todo = cache.todo()
    done = {
        split: count - sum(len(part) for part in todo if part.name.startswith(split))
        for split, count in total.items()
    }
    images = 0
    while left:
        message = heard.get()
        if "error" in message:
            raise error_of(*message["error"])
        if "ended" in message:
            left -= 1
        elif "images" in message:
            images += message["images"]
        else:
            split, more = message["split"], message["more"]
            done[split] = min(done[split] + more, total[split])
            progress(split, done[split], total[split])
    return images


def _started(cache: Cache, job: Job, settings: Settings, rest: bool) -> subprocess.Popen[str]:
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "featcache.extraction.several"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    task = task_of(cache, job, settings) | {"rest": rest}
    with _pipe(process.stdin) as stream:
        json.dump(task, stream)
    return process


def _listen(process: subprocess.Popen[str], heard: queue.SimpleQueue[Message]) -> None:
    with _pipe(process.stdout) as stream:
        for line in stream:
            heard.put(json.loads(line))
    heard.put({"ended": True})


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise ValueError("The process was started without pipes.")
    return stream


def work(task: Message, out: IO[str]) -> None:
    """Extract on one device, telling `out` in lines of JSON what is done, or why it cannot be."""

    def tell(message: Message) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        _extract(task, tell)
    except FeatcacheError as error:
        tell(error_message(error))


def _extract(task: Message, tell: Any) -> None:
    from featcache.extraction.contained import in_hand
    from featcache.extraction.copying import passes_left
    from featcache.extraction.engines import compute
    from featcache.extraction.runtime import take_runtime

    cache, job, settings = join(task)
    before: dict[str, int] = {}

    def progress(split: str, done: int, total: int) -> None:
        """Tell what was done since the last time; the first time says where it began."""
        more = done - before.setdefault(split, done)
        before[split] = done
        tell({"split": split, "more": more})

    extractor = job.extractor(settings.device)
    with in_hand(settings, cache.path.name):
        take_runtime(job, extractor, settings, passes_left(cache, cache.todo()), cache.path.name)
        images = compute(cache, job, extractor, settings, progress, task["rest"])
    tell({"images": images})


if __name__ == "__main__":
    work(json.load(sys.stdin), sys.stdout)
