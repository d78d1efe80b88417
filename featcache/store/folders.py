"""Which caches there are, and which one a name means. Light: nothing of a cache but its name is read."""

from __future__ import annotations

from pathlib import Path

from featcache.errors import CacheError
from featcache.store import keeping, records


def caches_in(features_dir: Path) -> list[Path]:
    """Return the folders of all caches in a features folder, in order of name."""
    if not features_dir.is_dir():
        return []
    return sorted(path for path in features_dir.iterdir() if (path / records.RECIPE).is_file())


def places_of_runs(features_dir: Path) -> list[Path]:
    """Return the folders that may hold runs: those of all caches and rosters, in order of name."""
    if not features_dir.is_dir():
        return []
    marks = (records.RECIPE, records.ROSTER)
    return sorted(path for path in features_dir.iterdir() if any((path / mark).is_file() for mark in marks))


def find_cache(features_dir: Path, name: str) -> Path:
    """Return the folder of the cache with this name, path, or unambiguous part of a name.

    Raises:
        CacheError: none or several match; the message lists those there are.
    """
    name = keeping.below(features_dir, name)
    if name and (Path(name) / records.RECIPE).is_file():
        return Path(name).resolve()
    there = caches_in(features_dir)
    exact = [path for path in there if path.name == name]
    matching = exact or [path for path in there if name in path.name]
    if len(matching) == 1:
        return matching[0]
    where = keeping.shown(features_dir)
    listed = ", ".join(path.name for path in (matching or there)) or "none yet"
    if matching:
        what = f"{name!r} names {len(matching)} caches" if name else f"There are {len(matching)} caches"
        raise CacheError(f"{what} in {where}: {listed}.", "Say which one, or give more of its name.")
    raise CacheError(
        f"No cache {name!r} in {where}. There: {listed}." if name else f"No cache in {where}: none yet.",
        "Make one with: featcache extract --backbone vgg16.",
    )
