"""Out of memory is no damage: a run ends with an error of memory or ours; nothing committed is harmed."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.commands.root import run as command
from featcache.errors import FeatcacheError
from featcache.extraction.decoding import decode_into
from featcache.extraction.views import Fitting
from featcache.images.dataset import content_hash
from featcache.store import layout, records
from featcache.store.cache import Cache
from tests.faults import hashing, toys
from tests.faults.processes import apart
from tests.faults.trials import draw, numbers, tally
from tests.kit_images import make_folder, tree

MEMORY = "Out of memory"
SAID = {0: "enough", 3: "an error of memory or ours"}
# A decoder written in C may not look whether it was given memory: Pillow's of WebP does not everywhere.
CRASHED = {-signal.SIGSEGV: "a decoder's crash"}
LOST = {5: "an error of Python's own that hides it"}
# Python loses its MemoryError here and there: a call fails without saying why, or for its path's type.
_HIDDEN = re.compile("without (an )?exception set|without setting an exception|PathLike.* not PosixPath")


def _limited(spare: int) -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))


def _short(spare: int) -> None:
    """Limit what may be written to: each thread's arena holds address space that no limit on that counts.

    Threads begin without the limit: Python waits for ever for one that has no memory to say that it began.
    """
    import resource

    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is no reserve
    found = re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())
    limits = {
        resource.RLIMIT_DATA: (int(found[1]) << 10) + spare if found else 0,
        resource.RLIMIT_AS: int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        + spare,
    }
    begin = threading.Thread.start

    def limit(off: bool = False) -> None:
        for kind, most in limits.items():
            resource.setrlimit(kind, (resource.RLIM_INFINITY if off else most, resource.RLIM_INFINITY))

    def start(thread: threading.Thread) -> None:
        limit(off=True)
        try:
            begin(thread)
        finally:
            limit()

    threading.Thread.start = start  # type: ignore[method-assign]  # in a process that ends soon
    limit()


def _ended(work: Callable[[], None]) -> int:
    """Do some work in a process of its own; return 0, 3 where memory or we said no, else its exit code.

    5 stands for an error of Python's own in which its MemoryError was lost.
    """

    def guarded() -> None:
        signal.alarm(30)
        try:
            work()
        except (MemoryError, FeatcacheError):
            os._exit(3)
        except (SystemError, TypeError) as error:
            if not _HIDDEN.search(str(error)):
                raise
            os._exit(5)

    return apart(guarded)


def test_while_a_large_shard_is_built(place: Path) -> None:
    """The address space is limited to little more than what is in use."""
    toys.start(place / "warm", {"train": 5})
    rows, width = np.arange(5), 1 << 21

    def start(here: Path) -> tuple[Cache, np.ndarray]:
        cache = toys.empty_cache(here, {"train": 5}, {"flatten": width}, 8)
        return cache, np.ones((5, width), np.float16) * rows[:, None].astype(np.float16)

    with tally(MEMORY, "address space limited while a shard of 21 MB is built and written") as found:
        for trial in numbers(20, 500):
            spare, here = draw("memory", trial).randrange(250 << 20), place / str(trial)

            def work(here: Path = here, spare: int = spare) -> None:
                cache, array = start(here)
                layout._layout.cache_clear()  # the first shard of its shape takes the most
                _limited(spare)
                cache.commit(cache.shards()[0], {"flatten": array})
                cache.seal()

            code = _ended(work)
            assert code in SAID, f"{spare} bytes to spare: {code}"
            cache, array = start(here)
            if cache.todo():
                cache.commit(cache.shards()[0], {"flatten": array})
            cache.seal()
            assert np.array_equal(cache.table("train", val_fraction=0).X[:, 5], rows)
            found.add(SAID[code])
            shutil.rmtree(here)


KINDS = (("png", "RGB"), ("jpg", "RGB"), ("webp", "RGB"), ("bmp", "RGB"), ("png", "RGBA"), ("gif", "P"))


def _photos(folder: Path, step: int) -> None:
    """Write 12 images of several kinds of decoder, each larger than the one before by a step."""
    noise = np.random.default_rng(3).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    for number in range(12):
        suffix, mode = KINDS[number % len(KINDS)]
        path = folder / ("train" if number % 4 else "test") / hashing.CLASSES[number % 3]
        path.mkdir(parents=True, exist_ok=True)
        size = (20 + step * number,) * 2
        image = Image.fromarray(np.roll(noise, number, axis=1)).resize(size, Image.Resampling.NEAREST)
        if mode != "RGBA":
            image = image.convert("RGB").convert(mode)
        image.save(path / f"{number:02d}.{suffix}")


@pytest.mark.timeout(1200)
def test_while_images_are_decoded_and_a_cache_is_filled(place: Path) -> None:
    """Set to skip bad images, so that one that is called bad would be in the cache, and differ."""
    options: dict[str, object] = {"max_pixels": 10**7, "skip_bad": True}
    _photos(place / "few", 1)
    few = hashing.dataset(place / "few")
    hashing.run(
        hashing.cache(place / "warm", few, 2), few, **options
    )  # what is imported and made once is there
    # Apart, for this process would keep the memory, and its children would have enough from the start.
    assert not apart(lambda: _photos(place / "photos", 60))
    data = hashing.dataset(place / "photos")
    assert not apart(lambda: hashing.run(hashing.cache(place / "whole", data, 2), data, **options))
    whole = tree(next((place / "whole").glob("*--*")))
    stopped = 0
    with tally(
        MEMORY, "memory and address space limited while images are decoded and a cache is filled"
    ) as found:
        for trial in numbers(20, 500):
            rng, here = draw("images", trial), place / str(trial)
            spare, workers = int(10 ** rng.uniform(3, 7.4)), rng.randint(1, 4)
            cache = hashing.cache(here, data, 2)

            def work(cache: Cache = cache, spare: int = spare, workers: int = workers) -> None:
                _short(spare)
                hashing.run(cache, data, workers=workers, **options)

            code = _ended(work)
            assert code in SAID | CRASHED, f"{spare} bytes to spare, {workers} workers: {code}"
            there = {path: path.read_bytes() for path in (cache.path / records.COMMITS).glob("*.json")}
            stopped += 0 < len(there) < len(cache.shards())
            cache = Cache(cache.path)
            assert not [why for part, why in cache.verify() if why and part.name in cache.commits()]
            if code:
                assert not apart(lambda cache=cache: hashing.run(cache, data, **options))
            assert tree(cache.path) == whole, f"{spare} bytes to spare, {workers} workers"
            assert all(path.read_bytes() == content for path, content in there.items())
            found.add((SAID | CRASHED)[code])
            shutil.rmtree(here)
        assert found.counts.keys() >= set(SAID.values())
        assert stopped or found.trials < 100  # of a few, none may
        found.counts["of these stopped between the first shard and the last"] = stopped


def _failing(at: int, times: int, work: Callable[[], None]) -> Callable[[], None]:
    """Return work during which Python's N-th allocation fails, and some after it."""
    memory = pytest.importorskip("_testcapi", reason="this Python has no allocator that fails on demand")

    def starved() -> None:
        memory.set_nomemory(at, at + times)
        try:
            work()
        finally:
            memory.remove_mem_hooks()

    return starved


def test_the_nth_allocation_fails_while_shards_are_built(place: Path) -> None:
    toys.commit_all(toys.start(place / "whole"))
    whole = tree(next((place / "whole").glob("*--*")))
    with tally(
        MEMORY, "Python's N-th allocation fails, or up to 20 in turn, while shards are built"
    ) as found:
        for trial in numbers(20, 500):
            rng, here = draw("allocation", trial), place / str(trial)
            at, times = int(10 ** rng.uniform(0, 4.3)), rng.choice((1, 1, 3, 20))
            cache = toys.start(here)
            code = _ended(_failing(at, times, lambda cache=cache: toys.commit_all(cache)))
            assert code in SAID | LOST, f"{times} allocations from {at} on: {code}"
            cache = Cache(cache.path)
            assert not [why for part, why in cache.verify() if why and part.name in cache.commits()]
            toys.commit_all(cache)
            assert tree(cache.path) == whole
            found.add((SAID | LOST)[code])
            shutil.rmtree(here)


def test_the_nth_allocation_fails_while_images_are_decoded(place: Path) -> None:
    hashing.photos(place, 8, 8)
    files = [path.read_bytes() for path in sorted(place.rglob("*.png"))]
    planned, fitting = [content_hash(data) for data in files], Fitting(hashing.RECIPE.preprocess, 10**6)
    wanted, out = (np.zeros((8, hashing.SIDE, hashing.SIDE, 3), np.uint8) for _ in range(2))
    decode_into(wanted, files.__getitem__, planned, fitting, True)
    with tally(
        MEMORY, "Python's N-th allocation fails, or up to 20 in turn, while images are decoded"
    ) as found:
        for trial in numbers(20, 500):
            rng = draw("decoding", trial)
            at, times = int(10 ** rng.uniform(0, 3.7)), rng.choice((1, 1, 3, 20))

            def work() -> None:
                bad = decode_into(out, files.__getitem__, planned, fitting, True).bad
                if bad or not np.array_equal(out, wanted):  # no image is bad because memory was short
                    os._exit(4)

            code = _ended(_failing(at, times, work))
            assert code in SAID | LOST, f"{times} allocations from {at} on: {code}"
            found.add((SAID | LOST)[code])


def test_no_room_for_a_thread_is_one_sentence(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("featcache.store.folders.caches_in", refuse)
    assert command(["ls", "--features-dir", str(place)]) == 1
    assert capfd.readouterr().err.startswith("Error: Out of memory: can't start new thread.\n")


def test_the_command_says_so_in_one_sentence(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = make_folder(place / "photos", train=2, test=1)
    asked = [
        "extract",
        "--dataset",
        f"folder:{photos}",
        "--backbone",
        "squeezenet1_1",
        "--weights",
        "random:0",
        "--device",
        "cpu",  # a GPU that was used before a fork cannot be used after it
    ]
    asked += ["--image-size", "224", "--features-dir", str(place / "features")]
    assert command([*asked, "--limit", "1"]) == 0  # what is imported and made once is there
    with tally(MEMORY, "address space limited in featcache extract") as found:
        for spare in (8 << 20, 40 << 20):
            capfd.readouterr()

            def work(spare: int = spare) -> None:
                _limited(spare)
                os._exit(command(asked))

            code, said = apart(work), capfd.readouterr().err
            assert code in (0, 1) and "Traceback" not in said, said
            assert code == 0 or said.count("Error: ") == 1
            found.add("one sentence and exit code 1" if code else "enough")
    assert command(asked) == 0
