"""Decoding a handful of images into a batch: here, in a thread, or in another process.

Small images are decoded in microseconds, most of them spent in Python, which one thread at a time can run.
So for a GPU's appetite images in files are decoded by processes: each gets the paths and content hashes of a
handful at a time through a pipe, and puts the pixels into shared memory. They import neither torch nor h5py.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.fitting import fit_what_can
from featcache.errors import BadImageError, CacheError, DatasetError
from featcache.extraction.pixels import Memory, Room, by_view
from featcache.extraction.views import CLEAN, Drawn, augmenter
from featcache.extraction.views import Fitting as Fitting
from featcache.images.dataset import Dataset, content_hash
from featcache.images.decode import decode
from featcache.images.stored import read_file
from featcache.recipe import Preprocess, Views

PATIENCE = 0.01  # seconds that a task waits for its turn before it looks whether processes have begun


@dataclass
class Decoded:
    """What became of a handful of images, by their place in it."""

    bad: list[tuple[int, str]] = field(default_factory=list)
    odd: bool = False  # one is of another size than the batch has room for, and fitting was not asked for
    changed: int | None = None  # this one's bytes are not those of the plan


class Changed(Exception):
    """The bytes of an image are not those of the plan."""


def decode_into(
    out: NDArray[np.uint8],
    source: Any,
    hashes: Sequence[bytes],
    fitting: Fitting,
    fitted: bool,
    drawn: Drawn = CLEAN,
) -> Decoded:
    """Decode images into `out` (n, H, W, 3), or their views into (V, n, H, W, 3); zeros where that fails.

    Args:
        out: where the pixels go.
        source: place → the image's bytes or pixels; raises BadImageError where it cannot be read.
        hashes: the content hash of each in the plan; zeros for one that could not be read then either.
        fitting: what is done to every image.
        fitted: whether to fit the images to the backbone's input; if not, all must be of `out`'s size.
        drawn: which views.
    """
    out = out if out.ndim == 5 else out[None]
    found, images = Decoded(), dict[int, list[NDArray[np.uint8]]]()
    for place, planned in enumerate(hashes):
        try:
            image = decode(unchanged(source, place, planned), fitting.max_pixels)
            views = fitting.made(image, place, drawn)
        except BadImageError as error:
            out[:, place] = 0
            found.bad.append((place, error.message))
            continue
        except Changed:
            found.changed = place
            return found
        if fitted:
            images[place] = views
            continue
        if any(view.shape != out.shape[2:] for view in views):
            found.odd = True
            return found
        for number, view in enumerate(views):
            out[number, place] = view
    return _fitted(images, fitting, out, found, drawn) if images else found


def _fitted(
    images: dict[int, list[NDArray[np.uint8]]],
    fitting: Fitting,
    out: NDArray[np.uint8],
    found: Decoded,
    drawn: Drawn,
) -> Decoded:
    """Fit the images that were decoded, together where that is faster."""
    places, failed = list(images), dict[int, str]()
    for number, (view, whole) in enumerate(zip(drawn.numbers, out, strict=True)):
        all_there = len(places) == len(whole)
        room = whole if all_there else np.empty((len(places), *whole.shape[1:]), np.uint8)
        some = [views[number] for views in images.values()]
        bad = fit_what_can(some, fitting.step(view), room)
        if not all_there:
            whole[places] = room
        failed |= {places[place]: why for place, why in bad}
    out[:, list(failed)] = 0
    found.bad = sorted([*found.bad, *failed.items()])
    return found


def unchanged(source: Any, place: int, planned: bytes) -> bytes | NDArray[np.uint8]:
    """Return what is stored for an image, if it is still that from which the plan was made.

    Raises:
        BadImageError: it cannot be read, and could not then.
        Changed: it is not.
    """
    try:
        data: bytes | NDArray[np.uint8] = source(place)
    except BadImageError:
        if not any(planned):
            raise  # it could not be read when the plan was made either
        data = b""
    if content_hash(data) != planned:
        raise Changed
    return data


class Threads:
    """Decodes in the thread that calls."""

    images = 8  # a task: they are fitted together, and there are enough tasks to keep every thread busy

    def __init__(self, dataset: Dataset, fitting: Fitting) -> None:
        self._dataset, self._fitting = dataset, fitting

    def decode(self, first: int, stop: int, room: Room, place: int, fitted: bool) -> Decoded:
        """Decode the rows first … stop - 1 into a batch's room from a place on, and so for every view."""
        hashes = [self._dataset.content_hashes[row].tobytes() for row in range(first, stop)]
        out = room.by_view[:, place : place + stop - first]
        drawn = Drawn(room.views, self._dataset.ids[first:stop])
        return decode_into(out, lambda i: self._dataset.raw(first + i), hashes, self._fitting, fitted, drawn)

    def close(self) -> None:
        """Nothing to do."""


class Processes:
    """Decodes in processes of its own; the thread that calls waits.

    Until the first has begun, which takes a third of a second, one thread decodes here: a GPU need not wait.

    Args:
        dataset: of images in files.
        fitting: what is done to every image.
        memory: shared; the batches' rooms lie in it.
        count: of processes.
    """

    images = 32  # a task: what a pipe costs is little beside it

    def __init__(self, dataset: Dataset, fitting: Fitting, memory: Memory, count: int) -> None:
        self._dataset = dataset
        start = {"size": memory.size, "handle": memory.handle, "max_pixels": fitting.max_pixels}
        views = None if fitting.views is None else asdict(fitting.views)
        begin = _line(start | {"preprocess": asdict(fitting.preprocess), "views": views})
        self._all = [_started(memory.handle) for _ in range(count)]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._here, self._turn, self._begun = Threads(dataset, fitting), threading.Lock(), False
        self._welcome = threading.Thread(target=self._begin, args=(begin,), name="begin", daemon=True)
        self._welcome.start()

    def decode(self, first: int, stop: int, room: Room, place: int, fitted: bool) -> Decoded:
        """Decode the rows first … stop - 1 into a batch's room from a place on, and so for every view."""
        while not self._begun:
            if self._turn.acquire(timeout=PATIENCE):
                try:
                    return self._here.decode(first, stop, room, place, fitted)
                finally:
                    self._turn.release()
        task = {
            "files": [self._dataset.file(row) for row in range(first, stop)],
            "hashes": self._dataset.content_hashes[first:stop].tobytes().hex(),
            "at": room.at,
            "shape": room.pixels.shape,
            "place": place,
            "fitted": fitted,
            "views": room.views,
            "names": self._dataset.ids[first:stop] if any(room.views) else [],
        }
        process = self._idle.get()
        try:
            answer = _asked(process, _line(task))
        except (OSError, ValueError) as error:
            names = f"{self._dataset.ids[first]} to {self._dataset.ids[stop - 1]}"
            raise CacheError(
                f"A process that decodes images ended by itself (code {process.poll()}) at {names}.",
                "Run the same command again; with --workers 1 images are decoded in this process.",
            ) from error
        finally:
            self._idle.put(process)
        return Decoded([(int(i), str(why)) for i, why in answer["bad"]], answer["odd"], answer["changed"])

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.kill()  # they hold nothing that could be lost
        self._welcome.join()
        for process in self._all:
            process.communicate()

    def _begin(self, begin: bytes) -> None:
        """Hand each process what all tasks have in common; it is idle when it answers, or when it is dead."""
        for process in self._all:
            with contextlib.suppress(OSError):
                _pipe(process.stdin).write(begin)
                _pipe(process.stdin).flush()
        for process in self._all:
            _pipe(process.stdout).readline()
            self._idle.put(process)
            self._begun = True


def _started(handle: int) -> subprocess.Popen[bytes]:
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "featcache.extraction.decoding"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(handle,),
        env=environment,
    )


def _asked(process: subprocess.Popen[bytes], line: bytes) -> Any:
    to, back = _pipe(process.stdin), _pipe(process.stdout)
    to.write(line)
    to.flush()
    return json.loads(back.readline())


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("The process was started without pipes.")
    return stream


def _line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"  # ASCII: a path that is no UTF-8 survives as escapes


def raise_if_changed(decoded: Decoded, dataset: Dataset, first: int) -> None:
    """Refuse an image whose bytes are not those from which the plan was made.

    Raises:
        DatasetError: naming it.
    """
    if decoded.changed is not None:
        raise DatasetError(
            f"The image {dataset.ids[first + decoded.changed]} changed while its features were being "
            "extracted.",
            "Run the same command again when the images are at rest.",
        )


def serve(tasks: IO[bytes], answers: IO[bytes]) -> None:
    """Decode what is asked for, line by line, until there is no more."""
    start = json.loads(tasks.readline())
    step = start["preprocess"]
    step["mean"], step["std"] = tuple(step["mean"]), tuple(step["std"])
    views = start["views"]
    views = None if views is None else Views(**{**views, "policy": tuple(views["policy"])})
    fitting = Fitting(Preprocess(**step), start["max_pixels"], views)
    if views is not None:
        augmenter(views)  # what it imports is there before the first task
    memory = _mapped(start["handle"], start["size"])
    answers.write(_line("begun"))
    answers.flush()
    while line := tasks.readline():
        task = json.loads(line)
        files, shape, hashes = task["files"], task["shape"], bytes.fromhex(task["hashes"])
        room = memory[task["at"] : task["at"] + int(np.prod(shape))].reshape(shape)
        out = by_view(room, len(task["views"]))[:, task["place"] : task["place"] + len(files)]
        each = [hashes[at : at + 16] for at in range(0, len(hashes), 16)]
        drawn = Drawn(task["views"], task["names"])
        read = partial(_file_at, files)
        found = decode_into(out, read, each, fitting, task["fitted"], drawn)
        answers.write(_line(asdict(found)))
        answers.flush()


def _file_at(files: Sequence[str], place: int) -> bytes:
    return read_file(files[place])


def _mapped(handle: int, size: int) -> NDArray[np.uint8]:
    import mmap

    return np.frombuffer(mmap.mmap(handle, size), dtype=np.uint8)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; this process ends with its pipe
    serve(sys.stdin.buffer, sys.stdout.buffer)
