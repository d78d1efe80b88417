"""Never a wrong row without an error that names the file: damage to every file of a cache and a run."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.errors import FeatcacheError
from featcache.store import records, shard
from featcache.store.cache import Cache
from featcache.training import runs
from tests.faults import damage, toys
from tests.faults.trials import draw, numbers, tally

PROMISE = "Never a wrong row without an error that names the file"


@pytest.fixture
def cache(place: Path) -> Cache:
    made = toys.start(place)
    toys.commit_all(made)
    toys.write_run(made, toys.head_bytes(made))
    return made


def _read_all(cache: Cache, head: bytes) -> str:
    """Read everything as a stranger would; return the error, "" where all is as it was written."""
    try:
        opened = Cache(cache.path)
        toys.check_rows(opened)
        toys.check_run(opened, head)
    except FeatcacheError as error:
        return str(error)
    return ""


def _text(data: bytes) -> bytes:
    return b"".join(data.split())


def test_any_harm_to_any_file_is_found(cache: Cache) -> None:
    files = damage.snapshot(cache.path)
    head = files[runs.folder_of(cache.path, toys.RUN) / runs.HEAD]
    names = [path.name for path in files]
    assert not _read_all(cache, head)
    with tally(PROMISE, "bit, page, byte, end, link or deletion in any file") as found:
        for trial in numbers(500, 20_000):
            rng = draw("harm", trial)
            path, harm = rng.choice(list(files)), rng.choice(damage.HARMS)
            harm(path, files[path], rng)
            same = path.exists() and not path.is_symlink() and path.read_bytes() == files[path]
            said = _read_all(cache, head)
            # Without an error, all that was read is the truth: only blanks of a record may be others.
            harmless = same or (path.exists() and _text(path.read_bytes()) == _text(files[path]))
            assert bool(said) or harmless, f"trial {trial}: {harm.__name__} of {path} was not found"
            named = any(name in said for name in names) or cache.name in said or toys.RUN in said
            assert not said or named, f"trial {trial}: {harm.__name__} of {path}: {said}"
            found.add("found" if said else "nothing changed" if same else "only blanks of a record changed")
            damage.restore(cache.path, files)
        assert not _read_all(cache, head)


def test_a_flipped_bit_that_plain_hdf5_does_not_notice(place: Path) -> None:
    """What the hash is for: the same file, read by h5py alone, gives the wrong number without a word."""
    rows = np.arange(512)
    array = toys.features(rows, 512)
    data = shard.build({"flatten": array}, rows % 3, rows, np.zeros(512, np.uint8))
    path, digest = place / "shard.h5", shard.hash_of(data)
    with tally(PROMISE, "a bit flipped in a shard of 0.5 MB, which plain h5py reads") as found:
        for trial in numbers(200, 200):
            damage.flip(path, data, draw("plain", trial))
            assert shard.hash_of_file(path) != digest, trial
            try:
                with h5py.File(path, "r") as file:
                    {name: file[name][()] for name in file}
            except (OSError, KeyError, RuntimeError):
                found.add("found; an error of h5py too")
            else:
                found.add("found; h5py says nothing")
        assert found.counts["found; h5py says nothing"] > found.trials / 2


def test_files_in_each_other_s_place_are_found(cache: Cache) -> None:
    files = damage.snapshot(cache.path)
    head = files[runs.folder_of(cache.path, toys.RUN) / runs.HEAD]
    with tally(PROMISE, "two files of the cache swapped") as found:
        pairs = [(a, b) for a in files for b in files if a < b and files[a] != files[b]]
        for a, b in pairs:
            damage.swap(a, b)
            assert _read_all(cache, head), f"{a} and {b} swapped"
            found.add("found")
            damage.restore(cache.path, files)


def test_records_and_shards_of_other_caches_are_found(place: Path, cache: Cache) -> None:
    files = damage.snapshot(cache.path)
    head = files[runs.folder_of(cache.path, toys.RUN) / runs.HEAD]
    strangers = [
        toys.start(place / "data", name="other"),
        toys.start(place / "recipe", store_dtype="float32"),
        toys.start(place / "rows", {"train": 11, "val": 4, "test": 6}),
    ]
    with tally(PROMISE, "files of another cache in place of ours") as found:
        for stranger in strangers:
            toys.commit_all(stranger, lambda parts: parts.reverse())
            for path in damage.snapshot(stranger.path):
                target = cache.path / path.relative_to(stranger.path)
                if target.parent.name == records.SHARDS:  # under the name of ours
                    twins = target.parent.glob(f"{path.name[:11]}-*")
                    target = next(twins, target)
                if files.get(target) in (None, path.read_bytes()):
                    continue
                target.write_bytes(path.read_bytes())
                assert _read_all(cache, head), f"{path} in place of {target}"
                found.add("found")
                damage.restore(cache.path, files)
        assert found.trials >= 12


def test_a_stale_record_is_found(cache: Cache) -> None:
    """A commit record of the same cache and rows that speaks of other bytes: of before a repair, say."""
    files = damage.snapshot(cache.path)
    head = files[runs.folder_of(cache.path, toys.RUN) / runs.HEAD]
    with tally(PROMISE, "a stale commit record, its shard there or not") as found:
        for commit in cache.commits().values():
            for there in (False, True):
                rows = next(part for part in cache.shards() if part.name == commit.shard)
                part = {"flatten": toys.features(rows.rows + 1, toys.WIDTH)}
                labels = cache.plan.labels[rows.first : rows.stop]
                data = shard.build(part, labels, rows.rows, (labels * 0).astype("uint8"))
                digest = shard.hash_of(data)
                old = records.Commit(
                    **{
                        **commit.__dict__,
                        "file": f"{commit.shard}-{digest[:16]}.h5",
                        "xxh3_128": digest,
                        "size": len(data),
                    }
                )
                (cache.path / records.COMMITS / f"{commit.shard}.json").write_bytes(old.to_bytes())
                if there:
                    (cache.path / records.SHARDS / old.file).write_bytes(data)
                said = _read_all(cache, head)
                assert records.SEAL in said or old.file in said
                found.add("found")
                damage.restore(cache.path, files)


def test_damage_right_after_reading_is_found(place: Path) -> None:
    """A hash is not remembered while the clock is too coarse to tell that the file has changed."""
    with tally(PROMISE, "a bit flipped right after the same process read it") as found:
        for trial in numbers(20, 500):
            cache = toys.start(place / str(trial))
            toys.commit_all(cache)
            toys.check_rows(cache)
            path = draw("after", trial).choice(sorted((cache.path / records.SHARDS).iterdir()))
            damage.flip(path, path.read_bytes(), draw("after", trial))
            with pytest.raises(FeatcacheError, match=path.name):
                toys.check_rows(Cache(cache.path))
            found.add("found")
