"""The reader: the same pixels whoever decodes them, in whatever size they travel."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featcache.backbones.preprocess import fit
from featcache.errors import CacheError, DatasetError
from featcache.extraction import reader as reading
from featcache.extraction.pixels import Ring, ring_bytes
from featcache.extraction.processes import Processes
from featcache.extraction.reader import Reader, Reading
from featcache.images.catalogue import open_source
from featcache.images.dataset import Dataset
from featcache.images.digits import DigitsSource
from featcache.images.memory import Memory
from featcache.recipe import Preprocess
from featcache.store.plan import ShardPlan

STEP = Preprocess("auto", 56, 48)
PARTS = [ShardPlan("train-00000", 0, 11), ShardPlan("train-00001", 11, 13), ShardPlan("train-00002", 13, 24)]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MANY", 1)


def photos(root: Path, sizes: list[tuple[int, int]], seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    for number, (height, width) in enumerate(sizes):
        folder = root / "photos" / ("bee" if number % 2 else "caf\udce9")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return open_source(f"folder:{root / 'photos'}", root).open()


def read(
    dataset: Dataset, **how: Any
) -> Iterator[tuple[list[int], NDArray[np.uint8], list[tuple[int, str]]]]:
    """Read all, giving each batch back two batches later."""
    made = Reader(
        dataset, STEP, Reading(**{"batch_size": 4, "workers": 2, "max_pixels": 10**6, "after": 3} | how)
    )
    if isinstance(made._decoder, Processes):
        made._decoder._welcome.join()  # or most would be decoded here
    kept: list[Any] = []
    try:
        for batch in made.batches(iter(PARTS)):
            yield batch.rows.tolist(), batch.pixels, batch.bad
            kept.append(batch)
            if len(kept) > 2:
                made.give(kept.pop(0))
    finally:
        made.close()


def check(dataset: Dataset, own: bool = False, **how: Any) -> None:
    """Compare with each image decoded and fitted by itself."""
    seen: list[int] = []
    for rows, pixels, bad in read(dataset, own_size=own, **how):
        assert not bad and len(rows) <= 4
        for row, image in zip(rows, pixels, strict=True):
            wanted = dataset.image(row)
            if pixels.shape[1:] == (STEP.crop, STEP.crop, 3):
                wanted = fit(wanted, STEP)
            assert np.array_equal(image, wanted)
        seen += rows
    assert seen == list(range(24))


@pytest.mark.parametrize("processes", [False, True])
def test_the_pixels_are_those_of_each_image_alone(tmp_path: Path, processes: bool) -> None:
    rng = np.random.default_rng(1)
    dataset = photos(tmp_path, [tuple(rng.integers(20, 90, 2)) for _ in range(24)])
    check(dataset, processes=processes)
    check(dataset, own=True, processes=processes)  # the first is of another size than the second


@pytest.mark.parametrize("processes", [False, True])
def test_small_images_of_one_size_come_as_they_are(tmp_path: Path, processes: bool) -> None:
    dataset = photos(tmp_path, [(20, 30)] * 24)
    check(dataset, own=True, processes=processes)
    shapes = {pixels.shape[1:] for _, pixels, _ in read(dataset, own_size=True, processes=processes)}
    assert shapes == {(20, 30, 3)}
    assert {pixels.shape[1:] for _, pixels, _ in read(dataset, processes=processes)} == {(48, 48, 3)}


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("odd", [7, 23])
def test_from_the_first_of_another_size_on_all_are_fitted(tmp_path: Path, processes: bool, odd: int) -> None:
    dataset = photos(tmp_path, [(20, 30) if i != odd else (31, 20) for i in range(24)])
    check(dataset, own=True, processes=processes)
    shapes = {pixels.shape[1] for _, pixels, _ in read(dataset, own_size=True, processes=processes)}
    assert 48 in shapes and shapes <= {20, 48}


def test_large_images_of_one_size_are_fitted_here(tmp_path: Path) -> None:
    dataset = photos(tmp_path, [(50, 60)] * 24)
    assert {p.shape[1:] for _, p, _ in read(dataset, own_size=True)} == {(48, 48, 3)}


def test_pixels_in_memory_need_no_processes(tmp_path: Path) -> None:
    dataset = DigitsSource().open()
    check(dataset, own=True, processes=True)
    assert dataset.file(0) is None


@pytest.mark.parametrize("processes", [False, True])
def test_bad_images_are_named_and_black(tmp_path: Path, processes: bool) -> None:
    photos(tmp_path, [(20, 30)] * 24)
    victim = sorted((tmp_path / "photos" / "bee").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:60])
    dataset = open_source(f"folder:{tmp_path / 'photos'}", tmp_path).open()
    row = [name.endswith(victim.name) for name in dataset.ids].index(True)
    for own in (False, True):
        found = []
        for rows, pixels, bad in read(dataset, own_size=own, processes=processes):
            found += bad
            if row in rows:
                assert not pixels[rows.index(row)].any() and pixels[rows.index(row) - 1].any()
        assert [place for place, _ in found] == [row] and "cannot be decoded" in found[0][1]


@pytest.mark.parametrize("processes", [False, True])
def test_an_image_that_changed_is_noticed(tmp_path: Path, processes: bool) -> None:
    dataset = photos(tmp_path, [(20, 30)] * 24)
    assert len(dataset.content_hashes) == 24
    first, second = sorted((tmp_path / "photos" / "bee").iterdir())[:2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(DatasetError, match=rf"bee/{second.name} changed while"):
        list(read(dataset, processes=processes))
    second.unlink()
    with pytest.raises(DatasetError, match=rf"bee/{second.name} changed while"):
        list(read(dataset, processes=processes))


def test_until_processes_have_begun_images_are_decoded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begin = threading.Event(), Processes._begin

    def late(self: Processes) -> None:
        assert go.wait(20)
        begin(self)

    monkeypatch.setattr(Processes, "_begin", late)
    rng = np.random.default_rng(1)
    dataset = photos(tmp_path, [tuple(rng.integers(20, 90, 2)) for _ in range(24)])
    made = Reader(dataset, STEP, Reading(4, 2, 10**6, processes=True, after=30))
    try:
        batches = made.batches(iter(PARTS))
        first = next(batches)
        assert not made._decoder._begun  # type: ignore[union-attr]
        go.set()
        for batch in (first, *batches):
            wanted = [fit(dataset.image(row), STEP) for row in batch.rows]
            assert np.array_equal(batch.pixels, wanted)
    finally:
        go.set()
        made.close()


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    dataset = photos(tmp_path, [(20, 30)] * 24)
    made = Reader(dataset, STEP, Reading(4, 2, 10**6, processes=True, after=3))
    try:
        for child in made._decoder._all:  # type: ignore[union-attr]
            os.kill(child._process.pid, signal.SIGKILL)
            child._process.wait()
        made._decoder._welcome.join()  # type: ignore[union-attr]
        seen = 0
        for batch in made.batches(iter(PARTS)):
            assert not batch.bad and np.array_equal(batch.pixels[0], fit(dataset.image(batch.rows[0]), STEP))
            seen += len(batch.pixels)
            made.give(batch)
        assert seen == 24
    finally:
        made.close()


def test_processes_that_cannot_live_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is called unreadable where the machine is at fault."""
    dataset = photos(tmp_path, [(20, 30)] * 24)
    monkeypatch.setattr("sys.executable", "/bin/false")
    made = Reader(dataset, STEP, Reading(4, 2, 10**6, contained=True, after=3))
    try:
        with pytest.raises(CacheError, match=r"end by themselves.*exit code 1") as error:
            list(made.batches(iter(PARTS)))
        assert "--decode-in threads" in error.value.hint
    finally:
        made.close()


def test_no_process_and_no_descriptor_is_left(tmp_path: Path) -> None:
    dataset = photos(tmp_path, [(20, 30)] * 24)
    gc.collect()  # what earlier tests left to the collector is not to be closed while this one counts
    before = set(os.listdir("/proc/self/fd"))
    made = Reader(dataset, STEP, Reading(4, 3, 10**6, processes=True, after=3))
    started = list(made._decoder._all)  # type: ignore[union-attr]
    made.close()
    assert len(started) == 3 and all(child._process.poll() is not None for child in started)
    gc.collect()
    assert not set(os.listdir("/proc/self/fd")) - before


def test_a_ring_is_pinned_once_and_its_rooms_do_not_touch() -> None:
    pinned: list[int] = []

    def pin(memory: NDArray[np.uint8]) -> Any:
        pinned.append(memory.nbytes)
        return lambda: pinned.append(-memory.nbytes)

    memory = Memory(3 * ring_bytes((5, 7), 4, 3))
    ring = Ring(memory, ring_bytes((5, 7), 4, 3), (5, 7), 4, 3, pin)
    rooms = [ring.take(4) for _ in range(3)]
    for value, room in enumerate(rooms):
        room.pixels[:] = value
        assert room.pixels.shape == (4, 5, 7, 3)
        assert np.shares_memory(room.pixels, memory.bytes[room.at : room.at + room.pixels.nbytes])
    assert all((room.pixels == value).all() for value, room in enumerate(rooms))
    ring.give(rooms[1])
    assert ring.take(2).at == rooms[1].at
    ring.close()
    ring.close()
    assert pinned == [ring_bytes((5, 7), 4, 3), -ring_bytes((5, 7), 4, 3)]
    memory.close()
