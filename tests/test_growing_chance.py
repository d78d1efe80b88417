"""Growing by chance: whatever was added, deleted, renamed, relabelled or doubled, the cache is the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.extraction.copying import expected_of, share_of
from featcache.store.cache import Cache
from tests.faults import hashing
from tests.faults.processes import fork, wait
from tests.kit_images import tree

Files = dict[str, int]
"""Name → which image it is."""

ANCHOR: Files = {f"train/{name}/0.png": -1 - number for number, name in enumerate(hashing.CLASSES)}


def pixels(image: int) -> np.ndarray:
    rng = np.random.default_rng([7, image + 10])
    return rng.integers(0, 256, (hashing.SIDE, hashing.SIDE, 3), dtype=np.uint8)


def write(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, image in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(image)).save(folder / name, compress_level=0)


def truth(files: Files) -> dict[str, tuple[np.ndarray, int]]:
    return {
        name: (hashing.feature(pixels(image)), hashing.CLASSES.index(name.split("/")[1]))
        for name, image in files.items()
    }


def changed(files: Files, step: tuple[str, int, int, str, str]) -> Files:
    """Return the files after a change; the first image of each class stays."""
    kind, which, image, split, label = step
    free = sorted(set(files) - set(ANCHOR))
    new = f"{split}/{label}/{len(files)}-{which}.png"
    if kind == "add" or not free:
        return {**files, new: image}
    name = free[which % len(free)]
    left = {other: there for other, there in files.items() if other != name}
    if kind == "delete":
        return left
    if kind == "double":
        return {**files, new: files[name]}
    return {**left, new: files[name]}  # renamed, relabelled, moved to another split, or all at once


STEPS = st.tuples(
    st.sampled_from(["add", "add", "delete", "move", "double"]),
    st.integers(0, 50),
    st.integers(0, 12),
    st.sampled_from(["train", "val", "test"]),
    st.sampled_from(hashing.CLASSES),
)


@settings(max_examples=8, deadline=None)
@given(
    changes=st.lists(st.lists(STEPS, min_size=1, max_size=6), min_size=1, max_size=4),
    shard=st.integers(1, 6),
    batch=st.integers(1, 5),
    gone=st.booleans(),
)
def test_it_is_the_cache_made_from_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[list[tuple[str, int, int, str, str]]],
    shard: int,
    batch: int,
    gone: bool,
) -> None:
    place = tmp_path_factory.mktemp("chance")
    files, seen, last = dict(ANCHOR), set[int](), None
    for number, steps in enumerate([[], *changes]):
        for step in steps:
            files = changed(files, step)
        write(place / "photos", files)
        data = hashing.dataset(place / "photos")
        made = hashing.cache(place / "features", data, shard)
        if made.sealed() is not None:
            continue  # back where it was before
        new = set(files.values()) - seen
        ahead = expected_of(made, made.todo())
        share = share_of(made)
        assert hashing.run(made, data, batch_size=batch, share=share) == len(new) == ahead.left
        assert share.copied == len(files) - len(new) == ahead.copied
        hashing.check(Cache(made.path), truth(files))
        alone = hashing.cache(place / f"alone{number}", data, shard)
        hashing.run(alone, data, batch_size=3)
        assert tree(made.path) == tree(alone.path)
        seen |= set(files.values())
        if gone and last is not None:
            shutil.rmtree(last)
            seen = set(files.values())
        last = made.path


def test_two_writers_and_equal_images(tmp_path: Path) -> None:
    """Neither waits for the other, and both end at the same bytes."""
    first = {f"train/bee/{number:02d}.png": number for number in range(24)}
    write(tmp_path / "photos", ANCHOR | first)
    data = hashing.dataset(tmp_path / "photos")
    hashing.run(hashing.cache(tmp_path / "features", data, 4), data)
    twins = {f"test/bee/{number:02d}.png": number % 40 for number in range(60)}
    files = ANCHOR | first | twins | {f"train/cat/{number}.png": number + 20 for number in range(30)}
    write(tmp_path / "photos", files)
    data = hashing.dataset(tmp_path / "photos")
    made, alone = (hashing.cache(tmp_path / place, data, 4) for place in ("features", "alone"))
    hashing.run(alone, data)
    writers = [fork(_extract, made.path, data, number + 1) for number in range(2)]
    assert [wait(writer) for writer in writers] == [0, 0]
    assert tree(made.path) == tree(alone.path)


def _extract(path: Path, data: object, batch: int) -> None:
    made = Cache(path)
    hashing.run(made, data, batch_size=batch, share=share_of(made))  # type: ignore[arg-type]
