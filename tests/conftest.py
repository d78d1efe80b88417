"""Fixtures that all tests share."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

# Before torch is imported: small networks on small images only lose time to more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ARCHIVES = ("cifar10-jpeg.tar.xz", "imagenette160-subset.tar", "imagenet-photos-200.tar")
UNPACKED = ("cifar10", "imagenette160-subset", "imagenet-photos-200")
WEIGHTS = ("squeezenet1_0.safetensors", "squeezenet1_0.pth")


@pytest.fixture(autouse=True)
def _room_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """How full the disk of this machine is decides nothing that a test looks at."""
    from featcache.store import mirror

    monkeypatch.setattr(mirror, "FREE_SHARE", 0.0)


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cifar10/, imagenette160-subset/, imagenet-photos-200/ and the SqueezeNet weights.

    FEATCACHE_REAL names either such a folder or one with their archives; ../shared/real is looked at too.
    """
    places = [os.environ.get("FEATCACHE_REAL"), Path(__file__).parents[2] / "shared" / "real"]
    for place in (Path(p) for p in places if p):
        if all((place / name).exists() for name in (*UNPACKED, *WEIGHTS)):
            return place
        if all((place / name).exists() for name in (*ARCHIVES, *WEIGHTS)):
            return _unpack(place, tmp_path_factory.mktemp("real"))
    pytest.skip("no real images and weights: FEATCACHE_REAL and ../shared/real have none")


def _unpack(place: Path, target: Path) -> Path:
    for name in ARCHIVES:
        with tarfile.open(place / name) as archive:
            archive.extractall(target, filter="data")
    for name in WEIGHTS:
        (target / name).symlink_to((place / name).resolve())
    return target
