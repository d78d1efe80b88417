"""The last epochs of a training, kept so that it can go on after a crash exactly where it was."""

from __future__ import annotations

import re
from pathlib import Path

from featcache import atomic, limits
from featcache.errors import DamagedError, HeadError
from featcache.heads import packing
from featcache.heads.state import FORMAT, TrainingState
from featcache.store import records

FOLDER = "checkpoints"
_NAME = re.compile(r"epoch-(\d{6})\.safetensors")


def keep(folder: Path, state: TrainingState, last: int) -> None:
    """Write the state after an epoch, then remove all but the last few.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    target = folder / FOLDER
    atomic.make_folder(target)
    atomic.write(target / f"epoch-{state.epoch:06d}.safetensors", packing.pack(state.tensors, state.meta))
    for path in paths(folder)[:-last]:
        atomic.remove(path)


def paths(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted(path for path in (folder / FOLDER).glob("epoch-*") if _NAME.fullmatch(path.name))


def latest(folder: Path) -> TrainingState | None:
    """Return the newest state that can be read, None where there is none.

    Raises:
        DamagedError: there are checkpoints, but none can be read.
    """
    found = paths(folder)
    for path in reversed(found):
        try:
            data = records.read_regular(path, limits.RUN_FILE_BYTES())
            return TrainingState(packing.arrays_of(data, old=False), packing.meta_of(data, FORMAT))
        except (HeadError, DamagedError):
            continue  # the one before loses an epoch, not the run
    if found:
        raise DamagedError(f"No checkpoint in {folder / FOLDER} can be read.", "Train the head again.")
    return None
