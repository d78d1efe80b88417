"""Whether the images of a run are decoded in processes that may die in its place.

Always where a run is to go on in spite of bad images, and where a run into the same cache has died with
images in hand, for it may have been one of them that killed it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from featcache import atomic
from featcache.extraction.request import Settings
from featcache.store.recent import FOLDER


def contained(settings: Settings) -> bool:
    """Return whether images are to be decoded in processes of their own, whatever happened before."""
    if settings.decode_in != "auto":
        return settings.decode_in == "processes"
    return settings.on_bad_image == "skip"


def apart(settings: Settings, cache: str) -> bool:
    """Return whether the images of a cache are to be decoded in processes of their own."""
    auto = settings.decode_in == "auto"
    return contained(settings) or (auto and _somebody_died(_folder(settings.features_dir, cache)))


@contextlib.contextmanager
def in_hand(settings: Settings, cache: str) -> Iterator[None]:
    """Leave a mark while images are in hand, so that whoever goes on after a crash is careful.

    The marks of those who died go when somebody has come to the end.
    """
    folder = _folder(settings.features_dir, cache)
    mark = folder / atomic.own_name()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):
        mark.unlink(missing_ok=True)
        atomic.sweep(folder)
        folder.rmdir()


def _somebody_died(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(atomic.left_by(name) == atomic.DEAD for name in os.listdir(folder))
    return False


def _folder(features_dir: Path, cache: str) -> Path:
    return features_dir / FOLDER / "decoding" / cache
