"""Files of strangers are refused with our own error; nothing is run, nothing outside is read."""

from __future__ import annotations

import os
import resource
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from featcache.backbones import weights
from featcache.errors import FeatcacheError
from featcache.heads import saving
from featcache.images.decode import decode
from featcache.store import records, shard
from featcache.store.cache import Cache
from featcache.store.folders import caches_in
from featcache.store.shard import hash_of
from featcache.training import runs
from tests.faults import damage, strangers, toys
from tests.faults.processes import apart
from tests.faults.trials import Tally, tally
from tests.kit_caches import features

HOSTILE = "Strangers' files are refused; nothing is run, nothing outside is read"
MOST_SECONDS, MOST_MB = 20, 400


@pytest.fixture
def outside(place: Path) -> Path:
    strangers.make_canaries(place / "outside")
    return place / "outside"


@pytest.fixture
def cache(place: Path) -> Cache:
    made = toys.start(place / "features")
    toys.commit_all(made)
    toys.write_run(made, toys.head_bytes(made))
    return made


Reads = Iterable[tuple[str, Callable[[], object]]]


def _refused(outside: Path, reads: Reads, found: Tally) -> None:
    """Read in a process apart: only errors of ours may come out, soon, and from little memory."""
    told = outside.parent / "told"

    def reading() -> None:
        with told.open("w") as file:
            for name, read in reads:
                print(name.encode("ascii", "backslashreplace").decode(), file=file, flush=True)
                _read(outside, name, read)

    code = apart(reading)
    names = told.read_text().splitlines()
    assert code == 0, f"exit code {code} at {names[-1:]}, see the traceback above"
    for _ in names:
        found.add("refused")


def _read(outside: Path, name: str, read: Callable[[], object]) -> None:
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with strangers.unread(outside):
        try:
            read()
        except FeatcacheError:
            pass
        else:
            raise AssertionError(f"{name}: accepted")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MOST_MB, f"{name}: took {grown:.0f} MB"
    assert time.monotonic() - begin < MOST_SECONDS, f"{name}: took long"


def _whole(cache: Cache) -> None:
    opened = Cache(cache.path)
    for split in toys.COUNTS:
        np.asarray(opened.table(split, val_fraction=0).X).sum()


def test_shards(cache: Cache, outside: Path) -> None:
    files = damage.snapshot(cache.path)
    rows = np.arange(toys.ROWS_PER_SHARD)
    arrays = {
        "features": features(rows, toys.WIDTH),
        "label": rows % 3,
        "row": rows,
        "status": np.zeros(len(rows), np.uint8),
    }
    good = strangers.shard_bytes(lambda file, given, out: strangers._put(file, given), arrays, outside)
    strangers.forge(cache, good)
    _whole(cache)  # what a stranger writes as we would is as good
    made = {name: strangers.shard_bytes(make, arrays, outside) for name, make in strangers.SHARDS.items()}
    with tally(HOSTILE, "HDF5 files with fitting records: links, filters, types, sizes …") as found:

        def each() -> Iterator[tuple[str, Callable[[], object]]]:
            for name, data in (made | strangers.raw_shards(good)).items():
                damage.restore(cache.path, files)
                strangers.forge(cache, data)
                yield name, lambda: _whole(cache)

        _refused(outside, each(), found)


def test_attributes_are_never_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed byte of a text attribute can cost minutes: they are not looked at, whatever they say."""
    path, rows = place / "attributes.h5", np.arange(toys.ROWS_PER_SHARD)
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["features"], file["label"] = features(rows, toys.WIDTH), rows % 3
        file["row"], file["status"] = rows, np.zeros(len(rows), np.uint8)
        for place_of in (file, file["features"], file["label"]):
            place_of.attrs["text"] = "a stranger's"

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("an attribute was read")

    for name in ("open", "exists", "iterate", "get_info", "get_num_attrs"):
        monkeypatch.setattr(h5py.h5a, name, refuse)
    with h5py.File(path, "r") as file, pytest.raises(AssertionError, match="was read"):
        file["features"].attrs["text"]
    found = shard.blocks(path, {"flatten": toys.WIDTH}, "float16", len(rows))
    assert np.array_equal(found["features"].map(), features(rows, toys.WIDTH))


def test_a_size_that_overflows_is_no_small_one(place: Path) -> None:
    assert shard.Block(place, 0, (4, 2**62 + 3), np.dtype(np.float16)).nbytes == 2 * 4 * (2**62 + 3)


def test_plans(cache: Cache, outside: Path) -> None:
    files = damage.snapshot(cache.path)
    with tally(HOSTILE, "plans with fitting records: pickles, bombs, absurd headers …") as found:

        def each() -> Iterator[tuple[str, Callable[[], object]]]:
            for name, data in strangers.plans(cache, outside).items():
                damage.restore(cache.path, files)
                (cache.path / records.PLAN).write_bytes(data)
                entry = {"bytes": len(data), "xxh3_128": hash_of(data)}
                change = partial(_set, plan=entry)
                strangers.resign(cache.path / records.RECIPE, change)
                yield name, lambda: _whole(cache)

        _refused(outside, each(), found)


def _set(record: dict[str, Any], **values: Any) -> None:
    record.update(values)


def test_records(cache: Cache, outside: Path) -> None:
    files = damage.snapshot(cache.path)
    run = runs.folder_of(cache.path, toys.RUN)
    targets = {
        cache.path / records.RECIPE: lambda: _whole(cache),
        cache.path / records.SEAL: lambda: _whole(cache),
        cache.path / records.COMMITS / "train-00000.json": lambda: _whole(cache),
        run / runs.RUN: lambda: runs.read_run(run),
    }
    with tally(HOSTILE, "JSON bombs and other files in place of each record") as found:

        def each() -> Iterator[tuple[str, Callable[[], object]]]:
            for path, read in targets.items():
                for name, data in strangers.json_bombs().items():
                    path.write_bytes(data)
                    yield f"{name} in {path.name}", read
                for name, put in {"a link": _link, "a pipe": _pipe, "a folder": _folder}.items():
                    path.unlink()
                    put(path, outside)
                    yield f"{name} in place of {path.name}", read
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
                    damage.restore(cache.path, files)

        _refused(outside, each(), found)


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret")


def _pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, outside: Path) -> None:
    path.mkdir()


NAMES = [
    "../../outside/secret",
    "/etc/passwd",
    "shards/x.h5",
    "",
    "x\0y",
    "train-00000.h5",
    "con",
    "a" * 5000,
]


def test_names_that_are_paths(cache: Cache, outside: Path) -> None:
    files = damage.snapshot(cache.path)
    path = cache.path / records.COMMITS / "train-00000.json"

    def each() -> Iterator[tuple[str, Callable[[], object]]]:
        for field in ("file", "shard", "key", "xxh3_128"):
            for name in NAMES:
                strangers.resign(path, partial(_set, **{field: name}))
                yield f"{field}: {name[:30]!r}", lambda: _whole(cache)
                damage.restore(cache.path, files)
        for folder in (records.SHARDS, records.COMMITS):
            shutil.move(cache.path / folder, outside.parent / folder)
            (cache.path / folder).symlink_to(outside.parent / folder)
            yield f"{folder} is a link", lambda: _whole(cache)
            (cache.path / folder).unlink()
            shutil.move(outside.parent / folder, cache.path / folder)

    with tally(HOSTILE, "records that name other places, folders that are links") as found:
        _refused(outside, each(), found)


def test_heads(cache: Cache, outside: Path) -> None:
    good = toys.head_bytes(cache)
    with tally(HOSTILE, "heads: absurd headers, kinds, options, sizes …") as found:
        made = strangers.heads(good)
        _refused(outside, ((name, partial(saving.loads, data)) for name, data in made.items()), found)


def test_predictions(cache: Cache, outside: Path) -> None:
    folder = runs.folder_of(cache.path, toys.RUN)

    def each() -> Iterator[tuple[str, Callable[[], object]]]:
        for name, data in strangers.plans(cache, outside).items():
            if "pickle" in name or "MB" in name or "archive" in name:
                (folder / runs.PREDICTIONS).write_bytes(data)
                files = {runs.PREDICTIONS: hash_of(data)}
                strangers.resign(folder / runs.RUN, partial(_set, files=files))
                yield name, lambda: runs.read_predictions(folder, runs.read_run(folder))

    with tally(HOSTILE, "predictions of a run: pickles, bombs") as found:
        _refused(outside, each(), found)


def test_images(outside: Path) -> None:
    with tally(HOSTILE, "images: bombs, headers, other formats") as found:
        made = strangers.images()
        _refused(outside, ((name, partial(decode, data)) for name, data in made.items()), found)


def test_weights(place: Path, outside: Path) -> None:
    ran = strangers.Canary(outside / "ran")
    state, _ = weights.load("squeezenet1_1", weights.resolve("squeezenet1_1", "random:0"))
    made: dict[str, Callable[[Path], object]] = {
        "an object.pth": lambda path: torch.save({"a": ran}, path),
        "an old object.pth": lambda path: torch.save(ran, path, _use_new_zipfile_serialization=False),
        "a bare pickle.pt": lambda path: path.write_bytes(strangers.pickle.dumps(ran)),
        "a module.pth": lambda path: torch.save(torch.nn.Linear(2, 2), path),
        "another network.pth": lambda path: torch.save({"w": torch.zeros(3)}, path),
        "numbers.pth": lambda path: torch.save([1, 2, 3], path),
        "zeros.safetensors": lambda path: path.write_bytes(bytes(1000)),
        "a great header.safetensors": lambda path: path.write_bytes(b"\xff" * 8 + b"{}"),
        "a bomb.pth": _weights_bomb,
        "empty.pt": lambda path: path.write_bytes(b""),
        "a folder.pth": lambda path: path.mkdir(),
        "a pipe.pth": os.mkfifo,
        "without numbers.pth": lambda path: torch.save(_with(state, lambda t: t.to("meta")), path),
        "nested.pth": lambda path: torch.save(_with(state, _nested), path),
    }
    with tally(HOSTILE, "weights: pickles, bombs, other networks") as found:

        def each() -> Iterator[tuple[str, Callable[[], object]]]:
            for name, make in made.items():
                make(place / name)
                choice = weights.resolve("squeezenet1_1", str(place / name))
                yield name, partial(weights.load, "squeezenet1_1", choice)

        _refused(outside, each(), found)


def _with(
    state: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {**state, "features.0.bias": change(state["features.0.bias"])}


def _nested(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that torch may change what they are
        return torch.nested.nested_tensor([tensor])


def _weights_bomb(path: Path) -> None:
    with strangers.zipfile.ZipFile(path, "w", strangers.zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", strangers.pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(10**8))


def test_a_features_folder_of_a_stranger_can_be_listed(cache: Cache, outside: Path) -> None:
    """What lists all caches and runs passes over the hostile ones."""
    root = cache.path.parent
    for number, data in enumerate(strangers.json_bombs().values()):
        (root / f"bomb{number}").mkdir()
        (root / f"bomb{number}" / records.RECIPE).write_bytes(data)
    (root / "link").symlink_to(outside)
    with tally(HOSTILE, "a features folder with hostile caches, listed") as found, strangers.unread(outside):
        assert len(caches_in(root)) == 1 + len(strangers.json_bombs())
        assert [record["run"] for record in runs.readable(runs.all_runs(root))] == [toys.RUN]
        found.add("listed")
