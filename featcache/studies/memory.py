"""Which run a study's system came to last, so that a report can be asked for by the study's file.

Kept beside the caches, in `.featcache/studies/`, and no truth: deleted, it comes back when the study is run
again, which finds its runs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache import atomic
from featcache.errors import CacheError, FeatcacheError, RunError
from featcache.recipe import FORMAT
from featcache.store import records
from featcache.store.recent import FOLDER
from featcache.studies.file import Study, System

STUDIES = "studies"


@dataclass(frozen=True)
class Known:
    """A system that has been run: the folder's name of its run, and what was another way than in the file."""

    system: System
    run: str
    dataset: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Recalled:
    """What is known of a study's runs, in the file's order, and in words which systems have none."""

    known: tuple[Known, ...]
    missing: tuple[str, ...]


def remember(features_dir: Path, study: Study, system: System, run: str) -> None:
    """Take note of a system's run; a folder that may only be read is no hindrance."""
    path = _path(features_dir, study)
    there = _read(path)
    there[system.name] = {
        "digest": system.digest,
        "run": run,
        "dataset": study.dataset,
        "changes": list(study.changes),
    }
    with contextlib.suppress(CacheError):
        atomic.make_folder(path.parent)
        atomic.write(path, records.to_bytes({"format": FORMAT, "study": study.name, "systems": there}))


def recall(features_dir: Path, study: Study) -> Recalled:
    """Return which runs a study, as its file says it, has come to.

    A system that the file says another way than when it was run is missing.

    Raises:
        RunError: none of its systems has been run.
    """
    there, known, missing = _read(_path(features_dir, study)), [], []
    for system in study.systems:
        found = there.get(system.name, {})
        if not found.get("run"):
            missing.append(f"{system.name}: not run yet")
        elif found.get("digest") != system.digest:
            missing.append(f"{system.name}: the file says it another way than when it was run")
        else:
            known.append(Known(system, found["run"], str(found["dataset"]), tuple(found["changes"])))
    if not known:
        why = f"{study.name!r} has no runs in {features_dir}: {missing[0]}."
        raise RunError(why, "Run it first: featcache study FILE.")
    return Recalled(tuple(known), tuple(missing))


def _path(features_dir: Path, study: Study) -> Path:
    name = hashlib.sha256(study.name.encode("utf-8", "backslashreplace")).hexdigest()
    return features_dir / FOLDER / STUDIES / f"{name[:16]}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        there = records.read(path)["systems"]
    except (OSError, KeyError, FeatcacheError):
        return {}
    return {name: found for name, found in there.items() if isinstance(found, Mapping)}
