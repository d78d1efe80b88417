"""A decoder that dies by a signal, hangs or eats memory costs one row, not the run.

Pillow's reader of BMP files is made to do so in whatever Python is started here, through a `sitecustomize`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.commands.root import run
from featcache.extraction import contained
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
    monkeypatch.setattr(contained, "SECONDS", 0.5)
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
