"""A bad image never stops a run set to skip, and is never invented; an odd one is read as it should be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import DatasetError
from featcache.images.decode import decode
from featcache.store.cache import Cache
from tests.faults import hashing, pictures
from tests.faults.processes import apart
from tests.faults.trials import PART, draw, numbers, tally

SKIP = "A bad image never stops a run set to skip, and is never invented"
ODD_NAMES = ("né à l'été", "日本", "a\nb", "\x1b[31mred", "sp ace", "-rf", "%s", "x\udcff")


@pytest.mark.timeout(1200)
def test_forty_kinds_among_good_ones(place: Path) -> None:
    photos = place / "photos"
    truth = hashing.photos(photos, 800, 3)
    kinds = {**pictures.BAD, **pictures.GOOD}
    bad: dict[str, str] = {}
    each = len(numbers(10, 1000))
    for number, (kind, make) in enumerate(sorted(kinds.items()) * each, PART * 10**5):
        rng = np.random.default_rng([number, 5])
        odd = ODD_NAMES[number % len(ODD_NAMES)] if number % 7 == 0 else "odd"
        name = f"train/{hashing.CLASSES[number % 3]}/{odd}{number:06d}.png"
        make(photos / name, rng)
        if kind in pictures.BAD:
            bad[name] = kind
        else:
            pixels = decode((photos / name).read_bytes())
            assert pixels.shape == (hashing.SIDE, hashing.SIDE, 3), kind
            truth[name] = hashing.feature(pixels), number % 3
    (photos / "train" / "bee" / "folder.jpg").mkdir()
    (photos / "train" / "bee" / "nowhere.jpg").symlink_to(photos / "gone.jpg")
    data = hashing.dataset(photos)
    cache = hashing.cache(place / "features", data)
    with tally(SKIP, "40 kinds of odd images (24 unreadable), with odd names, among good ones") as found:
        with pytest.raises(DatasetError, match="Cannot read the image"):
            hashing.run(cache, data)
        hashing.run(cache, data, skip_bad=True)
        hashing.check(Cache(cache.path), truth)
        listed = dict(cache.bad_images())
        assert listed.keys() == bad.keys() and all(listed.values())
        for name in bad:
            found.add("left out and named")
            assert name in listed
        for _ in range(len(kinds) * each - len(bad)):
            found.add("odd but readable, right")


def test_an_image_that_vanishes_before_it_is_looked_at_is_a_bad_one(place: Path) -> None:
    truth = hashing.photos(place / "photos", 40, 4)
    with tally(SKIP, "an image that vanishes, or loses its permissions, after it was listed") as found:
        for trial in numbers(10, 100):
            victim = draw("vanish", trial).choice(sorted(truth))
            data = hashing.dataset(place / "photos")
            content = (place / "photos" / victim).read_bytes()
            (place / "photos" / victim).unlink()  # listed, not yet read
            cache = hashing.cache(place / str(trial), data)
            hashing.run(cache, data, skip_bad=True)
            assert cache.bad_images() == [(victim, "the file has vanished")]
            hashing.check(cache, {name: row for name, row in truth.items() if name != victim})
            (place / "photos" / victim).write_bytes(content)
            found.add("left out and named")


def test_an_image_without_permission_is_a_bad_one(place: Path) -> None:
    truth = hashing.photos(place / "photos", 40, 4)
    place.chmod(0o777)
    data = hashing.dataset(place / "photos")
    hashing.run(hashing.cache(place / "first", data), data)  # by who may import everything
    victims = [draw("secret", trial).choice(sorted(truth)) for trial in numbers(5, 100)]

    def work() -> None:
        if os.geteuid() == 0:  # who may read everything
            os.setegid(65534)
            os.seteuid(65534)
        for number, victim in enumerate(victims):
            data = hashing.dataset(place / "photos" / str(number))
            cache = hashing.cache(place / str(number), data)
            hashing.run(cache, data, skip_bad=True)
            assert cache.bad_images() == [(victim, "cannot be read: Permission denied")]
            hashing.check(cache, {name: row for name, row in truth.items() if name != victim})

    for number, victim in enumerate(victims):
        here = place / "photos" / str(number)
        for split in ("train", "test"):
            shutil.copytree(place / "photos" / split, here / split)
        (here / victim).chmod(0)
    with tally(SKIP, "an image without permission to read it") as found:
        assert apart(work) == 0
        for _ in victims:
            found.add("left out and named")


def test_an_image_that_changes_on_the_way_stops_the_run(place: Path) -> None:
    hashing.photos(place / "photos", 40, 4)
    with tally(SKIP, "an image that changes or vanishes after it was hashed") as found:
        for trial in numbers(10, 100):
            rng = draw("change", trial)
            data = hashing.dataset(place / "photos")
            cache = hashing.cache(place / str(trial), data)
            victim = rng.choice(sorted((place / "photos").rglob("*.png")))
            content = victim.read_bytes()
            if rng.random() < 0.5:
                victim.unlink()
            else:
                victim.write_bytes(content[:-1])
            with pytest.raises(DatasetError, match="changed while its features were being extracted"):
                hashing.run(cache, data, skip_bad=True)
            victim.write_bytes(content)
            hashing.run(cache, data, skip_bad=True)
            assert cache.bad_images() == []
            found.add("stopped by name; finished when it was back")
