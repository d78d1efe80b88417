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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.fitting import fit_what_can
from featcache.errors import BadImageError, CacheError
from featcache.extraction.pixels import Memory, Room, Shape
from featcache.images.dataset import Dataset, content_hash
from featcache.images.decode import decode
from featcache.images.stored import read_file
from featcache.recipe import Preprocess

PATIENCE = 0.01  # seconds that a task waits for its turn before it looks whether processes have begun


@dataclass(frozen=True)
class Fitting:
    """What is done to every image."""

    preprocess: Preprocess
    max_pixels: int

    def shape(self) -> Shape:
        """The size of a fitted image."""
        return self.preprocess.crop, self.preprocess.crop


@dataclass
class Decoded:
    """What became of a handful of images, by their place in it."""

    bad: list[tuple[int, str]] = field(default_factory=list)
    odd: bool = False  # one is of another size than the batch has room for, and fitting was not asked for
    changed: int | None = None  # this one's bytes are not those of the plan


class Changed(Exception):
    """The bytes of an image are not those of the plan."""


def decode_into(
    out: NDArray[np.uint8], source: Any, hashes: Sequence[bytes], fitting: Fitting, fitted: bool
) -> Decoded:
    """Decode images into `out` (n, H, W, 3); zeros for one that cannot be read.

    Args:
        out: where the pixels go.
        source: place → the image's bytes or pixels; raises BadImageError where it cannot be read.
        hashes: the content hash of each in the plan; zeros for one that could not be read then either.
        fitting: what is done to every image.
        fitted: whether to fit the images to the backbone's input; if not, all must be of `out`'s size.
    """
    found, images = Decoded(), dict[int, NDArray[np.uint8]]()
    for place, planned in enumerate(hashes):
        try:
            image = decode(unchanged(source, place, planned), fitting.max_pixels)
        except BadImageError as error:
            out[place] = 0
            found.bad.append((place, error.message))
            continue
        except Changed:
            found.changed = place
            return found
        if fitted:
            images[place] = image
            continue
        if image.shape != out.shape[1:]:
            found.odd = True
            return found
        out[place] = image
    return _fitted(images, fitting, out, found) if images else found


def _fitted(
    images: dict[int, NDArray[np.uint8]], fitting: Fitting, out: NDArray[np.uint8], found: Decoded
) -> Decoded:
    """Fit the images that were decoded, together where that is faster."""
    places = list(images)
    whole = len(places) == len(out)
    room = out if whole else np.empty((len(places), *out.shape[1:]), np.uint8)
    bad = fit_what_can(list(images.values()), fitting.preprocess, room)
    if not whole:
        out[places] = room
    found.bad = sorted([*found.bad, *((places[place], why) for place, why in bad)])
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
        """Decode the rows first … stop - 1 into a batch's room from a place on."""
        hashes = [self._dataset.content_hashes[row].tobytes() for row in range(first, stop)]
        out = room.pixels[place : place + stop - first]
        return decode_into(out, lambda i: self._dataset.raw(first + i), hashes, self._fitting, fitted)

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
        jpeg: name and device of who decodes JPEG in them; None: Pillow does.
    """

    images = 32  # a task: what a pipe costs is little beside it

    def __init__(
        self,
        dataset: Dataset,
        fitting: Fitting,
        memory: Memory,
        count: int,
        jpeg: tuple[str, str] | None = None,
    ) -> None:
        self._dataset, self._jpeg = dataset, jpeg
        start = {"size": memory.size, "handle": memory.handle, "max_pixels": fitting.max_pixels, "jpeg": jpeg}
        begin = _line(start | {"preprocess": asdict(fitting.preprocess)})
        self._all = [_started(memory.handle) for _ in range(count)]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._here, self._turn, self._begun = Threads(dataset, fitting), threading.Lock(), False
        self._welcome = threading.Thread(target=self._begin, args=(begin,), name="begin", daemon=True)
        self._welcome.start()

    def decode(self, first: int, stop: int, room: Room, place: int, fitted: bool) -> Decoded:
        """Decode the rows first … stop - 1 into a batch's room from a place on."""
        while not self._begun and self._jpeg is None:
            if self._turn.acquire(timeout=PATIENCE):
                try:
                    return self._here.decode(first, stop, room, place, fitted)
                finally:
                    self._turn.release()
        task = {
            "files": [self._dataset.file(row) for row in range(first, stop)],
            "hashes": self._dataset.content_hashes[first:stop].tobytes().hex(),
            "at": room.at + place * room.pixels[0].nbytes,
            "shape": room.pixels.shape[1:],
            "fitted": fitted,
        }
        process = self._idle.get()
        try:
            answer = _asked(process, _line(task))
        except (OSError, ValueError) as error:
            names = f"{self._dataset.ids[first]} to {self._dataset.ids[stop - 1]}"
            raise CacheError(
                f"A process that decodes images ended by itself (code {process.poll()}) at {names}.",
                "Run the same command again; with --workers 1 and --decode cpu this process decodes.",
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


def serve(tasks: IO[bytes], answers: IO[bytes]) -> None:
    """Decode what is asked for, line by line, until there is no more."""
    start = json.loads(tasks.readline())
    step = start["preprocess"]
    step["mean"], step["std"] = tuple(step["mean"]), tuple(step["std"])
    fitting = Fitting(Preprocess(**step), start["max_pixels"])
    memory = _mapped(start["handle"], start["size"])
    decoding = _decoding(start["jpeg"])
    answers.write(_line("begun"))
    answers.flush()
    while line := tasks.readline():
        task = json.loads(line)
        files, shape, hashes = (
            task["files"],
            (len(task["files"]), *task["shape"]),
            bytes.fromhex(task["hashes"]),
        )
        out = memory[task["at"] : task["at"] + int(np.prod(shape))].reshape(shape)
        each = [hashes[at : at + 16] for at in range(0, len(hashes), 16)]
        found = decoding(out, partial(_read_one, files), each, fitting, task["fitted"])
        answers.write(_line(asdict(found)))
        answers.flush()


def _decoding(jpeg: tuple[str, str] | None) -> Callable[..., Decoded]:
    if jpeg is None:
        return decode_into
    from featcache.extraction.device_decoding import on_device

    return on_device(*jpeg)


def _read_one(files: Sequence[str], place: int) -> bytes:
    return read_file(files[place])


def _mapped(handle: int, size: int) -> NDArray[np.uint8]:
    import mmap

    return np.frombuffer(mmap.mmap(handle, size), dtype=np.uint8)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; this process ends with its pipe
    serve(sys.stdin.buffer, sys.stdout.buffer)
