"""Runs of whole networks, kept beside those of heads: what was asked, checkpoints, and the finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from featcache import atomic
from featcache.errors import CacheError, RunError
from featcache.heads.state import TrainingState
from featcache.recipe import FORMAT
from featcache.store import records
from featcache.store.roster import Roster, is_roster
from featcache.training import checkpoints, runs
from featcache.training.ledger import Ledger
from featcache.training.predictions import Prediction

CONFIG = "config.json"
WEIGHTS = "network.safetensors"
_KEY = "finetuning"


def is_network(folder: Path) -> bool:
    """Return whether a run's folder is that of a whole network."""
    return is_roster(folder.parent.parent)


def begin(roster: Roster, kind: str, network: str, options: Mapping[str, Any], keep: int) -> Path:
    """Return the folder of a new run, whose id names kind and network.

    Where checkpoints are kept, it says what was asked for.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    folder = runs.folder_of(roster.path, runs.new_id(f"{kind}-{network}".lower().replace("_", "-")[:40]))
    if keep:
        atomic.make_folder(folder)
        atomic.write(folder / CONFIG, records.to_bytes({"format": FORMAT, _KEY: dict(options)}))
    return folder


def begun(features_dir: Path, name: str) -> tuple[Path, dict[str, Any], TrainingState | None]:
    """Return the folder of an interrupted run, what was asked for, and its last state, None before the first.

    Raises:
        RunError: there is no such run, it is one of a head, or it kept no checkpoints.
        DamagedError: none of its checkpoints can be read.
    """
    folder = runs.find_run(features_dir, name, unfinished=True)
    if not is_network(folder):
        raise RunError(
            f"The run {folder.name} is that of a head.", f"Run: featcache train-head --resume {folder.name}."
        )
    try:
        options = records.read(folder / CONFIG)[_KEY]
    except (FileNotFoundError, KeyError):
        raise RunError(
            f"The run {folder.name} kept no checkpoints.",
            "Train with --keep-checkpoints 5 to be able to resume.",
        ) from None
    return folder, options, checkpoints.latest(folder)


def find_like(home: Path, options: Mapping[str, Any], finished: bool) -> Path | None:
    """Return a run in a roster's folder that was asked for with these options: one that is done, or is not.

    Both are known by what they kept of what was asked for; a run without checkpoints is not found.
    """
    for path in sorted((home / records.HEADS).glob(f"*/{CONFIG}")):
        try:
            there = records.read(path)[_KEY]
        except (CacheError, KeyError):
            continue
        alike = all(there.get(name) == value for name, value in options.items())
        if alike and is_finished(path.parent) == finished:
            return path.parent
    return None


def is_finished(folder: Path) -> bool:
    """Return whether a run is whole."""
    return (folder / runs.RUN).exists()


def store(
    roster: Roster,
    folder: Path,
    facts: Mapping[str, Any],
    weights: bytes,
    history: Sequence[Mapping[str, Any]],
    found: Sequence[Prediction],
) -> dict[str, Any]:
    """Write a run with its predictions and their metrics, put it into the ledger, and return its record.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    whole: dict[str, Any] = {"run": folder.name, "cache": roster.name, "key": roster.key, "cv": None, **facts}
    whole["classes"] = list(roster.classes)
    whole |= {"val": None, "test": None}
    arrays: dict[str, NDArray[Any]] = {}
    for prediction in found:
        whole[prediction.split] = prediction.summary(roster.classes)
        arrays |= prediction.arrays()
    return _recorded(roster, runs.write_run(folder, whole, weights, history, arrays, WEIGHTS))


def add_test(roster: Roster, folder: Path, record: Mapping[str, Any], found: Prediction) -> dict[str, Any]:
    """Add the test split's predictions and metrics to a stored run; return its new record.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    facts = {**record, "test": found.summary(roster.classes)}
    return _recorded(roster, runs.add_predictions(folder, facts, found.arrays()))


def _recorded(roster: Roster, record: dict[str, Any]) -> dict[str, Any]:
    """Put a stored run into the ledger; where that fails the run is none the worse, and a note says so."""
    try:
        Ledger(roster.path.parent).record(record)
    except CacheError as error:
        note = f"The run is stored, but not in the ledger: {error.message}"
        return {**record, "notes": [*record["notes"], f"{note} Mend it with: featcache runs --rebuild."]}
    return record
