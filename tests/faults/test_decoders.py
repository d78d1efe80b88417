"""A decoder that dies by a signal, hangs or eats memory costs one row, not the run.

Pillow's reader of BMP files is made to do so in whatever Python is started here, through a `sitecustomize`.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.backbones.preprocess import fit
from featcache.commands.root import run
from featcache.extraction.processes import size_of
from featcache.extraction.statistics import training_statistics
from featcache.extraction.views import Fitting
from featcache.images.decode import decode
from featcache.inference.predict import predict_files
from featcache.progress import silent
from featcache.recipe import Preprocess
from featcache.store.cache import Cache
from tests.faults import hashing
from tests.faults.processes import apart
from tests.faults.trials import draw, numbers, tally
from tests.kit_images import make_folder

DECODERS = "A decoder that dies, hangs or eats memory costs one row, not the run"
REASONS = {
    b"segfault": "died by SIGSEGV",
    b"abort": "died by SIGABRT",
    b"leave": "ended the process (exit code 7)",
    b"hang": "took too long to decode",
    b"eat": "needs too much memory to decode",
}
DEADLY = """
import ctypes, os, signal, time
from PIL import BmpImagePlugin

real = BmpImagePlugin.BmpImageFile._open

def deadly(self):
    end = self.fp.read()[-8:].strip()
    self.fp.seek(0)
    if end == b"segfault":
        ctypes.string_at(0)
    if end == b"abort":
        os.abort()
    if end == b"leave":
        os._exit(7)
    if end == b"hang":
        time.sleep(1000)
    if end == b"eat":
        kept = bytearray(1 << 45)
    return real(self)

BmpImagePlugin.BmpImageFile._open = deadly
"""


@pytest.fixture
def deadly(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (place / "site").mkdir()
    (place / "site" / "sitecustomize.py").write_text(DEADLY)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place / "site"), before]))
    monkeypatch.setenv("FEATCACHE_MAX_DECODE_SECONDS", "1")
    yield


def _poison(path: Path, kind: bytes, rng: np.random.Generator) -> None:
    """Write a good image that kills its decoder by what stands behind its end."""
    pixels = rng.integers(0, 256, (hashing.SIDE, hashing.SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "BMP")
    path.write_bytes(path.read_bytes() + kind.rjust(8))


def test_each_costs_one_row(place: Path, deadly: None) -> None:
    with tally(DECODERS, "SIGSEGV, SIGABRT, exit, hang, memory among 60 good images, set to skip") as found:
        for trial in numbers(1, 20):
            rng, here = draw("deadly", trial), place / str(trial)
            truth = hashing.photos(here / "photos", 60, trial)
            bad = {}
            for kind, reason in REASONS.items():
                name = f"train/bee/{rng.randrange(60):05d}-{kind.decode()}.bmp"
                _poison(here / "photos" / name, kind, np.random.default_rng(trial))
                bad[name] = reason
            data = hashing.dataset(here / "photos")
            cache = hashing.cache(here / "features", data)
            hashing.run(cache, data, contained=True, skip_bad=True, workers=rng.randint(1, 3))
            hashing.check(Cache(cache.path), truth)
            listed = dict(cache.bad_images())
            assert listed.keys() == bad.keys()
            assert all(bad[name] in listed[name] for name in bad), listed
            for _ in bad:
                found.add("one row, named with its reason; all others right")


def _command(
    capfd: pytest.CaptureFixture[str], photos: Path, features: Path, *options: str
) -> tuple[int, str]:
    """Extract in a forked process whose own Pillow is deadly too; return its exit code and what it said."""
    asked = [
        "extract",
        "--dataset",
        f"folder:{photos}",
        "--backbone",
        "squeezenet1_1",
        "--weights",
        "random:0",
    ]
    asked += ["--image-size", "48", "--features-dir", str(features), *options]

    def work() -> None:
        faulthandler.disable()
        exec(DEADLY, {})
        code = run(asked)
        sys.stdout.flush()
        os._exit(code)

    code = apart(work)
    return code, "".join(capfd.readouterr())


def test_from_the_command_line(place: Path, deadly: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Threads die with the decoder; the same command again names the image; with skip nothing dies."""
    photos = make_folder(place / "photos", train=2, test=1)
    victim = photos / "train" / "bee" / "deadly.bmp"
    _poison(victim, b"segfault", np.random.default_rng(0))
    with tally(DECODERS, "SIGSEGV in featcache extract, in threads, again, and set to skip") as found:
        assert _command(capfd, photos, place / "error")[0] == -signal.SIGSEGV
        assert len(list(place.glob("error/.featcache/decoding/*/*"))) == 1
        found.add("dead in threads, as it must be")
        code, said = _command(capfd, photos, place / "error")
        assert (
            code == 1 and "Cannot read the image train/bee/deadly.bmp: its decoder died by SIGSEGV." in said
        )
        found.add("the same command again: one sentence that names the image")
        code, said = _command(capfd, photos, place / "error", "--on-bad-image", "skip")
        assert code == 0 and "1 images could not be read" in said, said
        found.add("set to skip: one bad row")
        assert not list(place.glob("error/.featcache/decoding/*"))
        assert _command(capfd, photos, place / "skip", "--on-bad-image", "skip")[0] == 0
        found.add("set to skip from the start: one bad row")


def _poisoned(place: Path) -> tuple[list[str], dict[str, str]]:
    """Return the paths of good and deadly images, and why each deadly one cannot be read."""
    photos = make_folder(place / "photos", train=3, test=1)
    good = sorted(str(path) for path in (photos / "test").rglob("*.png"))
    bad = {}
    for kind, reason in REASONS.items():
        path = photos / "train" / "bee" / f"{kind.decode()}.bmp"
        _poison(path, kind, np.random.default_rng(0))
        bad[str(path)] = reason
    return good, bad


def test_prediction_goes_on(place: Path, deadly: None) -> None:
    """What is said of the good files is what is said without the deadly ones between them."""
    good, bad = _poisoned(place)
    predictor = _Brightest()
    alone = list(predict_files(predictor, good, workers=1))
    with tally(DECODERS, "SIGSEGV, SIGABRT, exit, hang, memory among files to predict, set to skip") as found:
        mixed = [path for pair in zip(bad, itertools.cycle(good)) for path in pair]
        given = list(predict_files(predictor, mixed, workers=2, batch_size=4, skip_bad=True))
        assert [each.path for each in given] == mixed
        for each in given:
            if each.path in bad:
                assert bad[each.path] in each.error and not each.top
                found.add("one file, named with its reason; all others right")
            else:
                assert each in alone


class _Brightest:
    """A classifier that tells red, green and blue images apart; what happens on the way is as always."""

    classes, device = ("red", "green", "blue"), "cpu"
    preprocess, max_pixels = Preprocess("squash", 24, 24), 10**6

    def prepare(self, image: bytes | np.ndarray) -> np.ndarray:
        return fit(decode(image, self.max_pixels), self.preprocess)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        sums = pixels.reshape(len(pixels), -1, 3).sum(axis=1)
        return (sums / sums.sum(axis=1, keepdims=True)).astype(np.float32)


def test_statistics_and_first_size_go_on(place: Path, deadly: None) -> None:
    """Mean and deviation of the training images are those of the others, as is the size they come in."""
    photos = make_folder(place / "photos", train=3, test=1)
    step = Preprocess("squash", 24, 24)
    before = training_statistics(hashing.dataset(photos), step, 10**6, silent, contained=False)
    with tally(DECODERS, "SIGSEGV while a data set's mean is taken, and its first image looked at") as found:
        _poison(photos / "train" / "alpine chough" / "-.bmp", b"segfault", np.random.default_rng(0))
        data = hashing.dataset(photos)
        assert "-.bmp" in data.ids[0]
        assert training_statistics(data, step, 10**6, silent, contained=True) == before
        found.add("those of all others")
        assert size_of(data, Fitting(Preprocess("squash", 224, 224), 10**6)) is None
        found.add("unknown: images are fitted")
