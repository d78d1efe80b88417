"""Plans of very many rows: written in pieces, mapped, checked, and no more of them in memory than is used."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import DamagedError, FeatcacheError
from featcache.images.catalogue import open_source
from featcache.images.names import BLOCK, Names
from featcache.store import archive, plan_file, records
from featcache.store.cache import Cache
from featcache.store.plan import Plan
from tests.kit_caches import empty_cache, plan


def make_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(path.name))


texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.just("\udcff.png")


@given(st.lists(texts, max_size=30), st.slices(30), st.integers(-30, 29))
def test_packed_names_are_a_list_of_texts(names: list[str], some: slice, at: int) -> None:
    packed = Names.packed(iter(names))
    assert packed == names and names == packed and list(packed) == names and len(packed) == len(names)
    assert packed[some] == names[some] and packed != [*names, "x"] and Names.packed(packed) is packed
    if -len(names) <= at < len(names):
        assert packed[at] == names[at]
    else:
        with pytest.raises(IndexError):
            packed[at]


def test_names_of_several_blocks() -> None:
    names = [f"train/{'ü' * (row % 3)}{row}.png" for row in range(2 * BLOCK + 5)]
    packed = Names.packed(names)
    assert list(packed) == names and packed[BLOCK - 1 : BLOCK + 1] == names[BLOCK - 1 : BLOCK + 1]
    assert packed.index(names[-1]) == len(names) - 1 and packed.data.nbytes == sum(
        len(name.encode()) for name in names
    )


def test_many_listed_images_are_the_same_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ape/b.png", "ape/a/c.png", "ape/ü.png", "ape/\udcff.png", "bee/日.png", "bee/\U0001f41d.png"]
    for name in names:
        make_image(tmp_path / "photos" / "train" / name)
    few = open_source(f"folder:{tmp_path / 'photos'}", tmp_path).open()
    assert list(few.ids) == sorted((f"train/{name}" for name in names), key=os.fsencode)
    monkeypatch.setattr("featcache.images.listing.MANY", 1)
    many = open_source(f"folder:{tmp_path / 'photos'}", tmp_path).open()
    assert isinstance(many.ids, Names) and many.ids == few.ids and many.fingerprint == few.fingerprint
    assert many.limited(1).ids == few.limited(1).ids and many.raw(2) == few.raw(2)


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_pieces_are_what_numpy_writes(rows: int) -> None:
    made = {
        "a": np.arange(rows),
        "b": np.arange(rows * 16, dtype=np.uint8).reshape(rows, 16),
        "c": np.arange(2 * rows, dtype=np.int64)[::2],
    }
    whole = io.BytesIO()
    np.savez(whole, **made)
    assert b"".join(archive.pieces(made)) == whole.getvalue()


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache whose plan counts as large."""
    monkeypatch.setattr(plan_file, "LARGE", 1)
    monkeypatch.setattr(plan_file, "BLOCK", 7)
    monkeypatch.setattr("featcache.store.plan.BLOCK", 7)
    return empty_cache(tmp_path, {"train": 50, "val": 6, "test": 20})


def test_a_mapped_plan_is_the_plan(large: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = plan({"train": 50, "val": 6, "test": 20}), large.plan
    assert found.ids == made.ids and np.array_equal(found.labels, made.labels)
    assert np.array_equal(found.hashes, made.hashes) and found.counts() == made.counts()
    assert not found.labels.flags.writeable and list(found.shards(8)) == list(made.shards(8))
    assert (large.path / records.PLAN).read_bytes() == made.to_bytes(), "one format, however it is written"
    monkeypatch.undo()
    assert Cache(large.path).plan.ids == made.ids, "and read"
    assert plan_file.restore_plan(large.path, found, large.record["plan"]), "a mapped plan can be written"
    assert not plan_file.restore_plan(large.path, plan({"train": 5}), large.record["plan"])


def test_damage_to_a_mapped_plan_is_found(large: Cache) -> None:
    path = large.path / records.PLAN
    data = path.read_bytes()
    for at in range(0, len(data), 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DamagedError, match=r"plan\.npz differs from what was written"):
            Cache(large.path).plan  # noqa: B018
    path.write_bytes(data[:-1])
    with pytest.raises(DamagedError):
        Cache(large.path).plan  # noqa: B018
    path.unlink()
    with pytest.raises(DamagedError, match=r"plan\.npz is missing"):
        Cache(large.path).plan  # noqa: B018


def test_a_strangers_mapped_plan_is_refused_or_harmless(large: Cache) -> None:
    """The hash may fit: then only the archive's and the plan's own checks are left."""
    path = large.path / records.PLAN
    data, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            changed[at] = rng.integers(256)
        if rng.random() < 0.2:
            del changed[rng.integers(len(changed)) :]
        path.write_bytes(changed)
        facts = {"bytes": len(changed), "xxh3_128": plan_file.layout.hash_of([bytes(changed)])}
        try:
            found = plan_file.open_plan(large.path, facts, 3, "")
            list(found.ids)
        except FeatcacheError:
            refused += 1
    assert 100 < refused < 400


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("id_ends", [3, 2, 6], "names do not lie"),
        ("id_ends", [-1, 2, 6], "names do not lie"),
        ("id_ends", [1, 2, 5], "do not fit together"),
        ("split", [0, 2, 1], "splits are not in order"),
        ("split", [0, 1, 3], "do not fit together"),
        ("label", [0, 1], "do not fit together"),
    ],
)
def test_arrays_that_are_no_plan_are_refused(name: str, values: list[int], said: str) -> None:
    stored = {
        "id_bytes": np.zeros(6, np.uint8),
        "id_ends": np.array([2, 4, 6]),
        "label": np.zeros(3, np.int64),
        "split": np.zeros(3, np.uint8),
        "content_hash": np.zeros((3, 16), np.uint8),
    }
    assert len(Plan.of_arrays(stored)) == 3
    stored[name] = np.array(values, stored[name].dtype)
    with pytest.raises(ValueError, match=said):
        Plan.of_arrays(stored)


# Opens a plan of so many rows and looks at a shard; tells how much its largest resident size grew.
_OPEN = """
import sys
from pathlib import Path
from featcache.store.cache import Cache

def size(what):
    return int(Path("/proc/self/status").read_text().partition(what + ":")[2].split()[0])

cache = Cache(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")
before = size("VmRSS")
part = cache.todo()[-1]
rows = slice(part.first, part.stop)
print(len(cache.plan.ids[rows]) + cache.plan.hashes[rows].size + int(cache.plan.labels[rows].sum()))
print(size("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this platform tells no resident size")
def test_opening_takes_no_memory_in_the_number_of_rows(tmp_path: Path) -> None:
    rows = 1_500_000
    ids = Names(np.full(rows * 40, ord("a"), np.uint8), np.arange(1, rows + 1) * 40)
    made = Plan(ids, np.zeros(rows, np.int64), np.zeros(rows, np.uint8), np.zeros((rows, 16), np.uint8))
    cache = empty_cache(tmp_path, {"train": 1})
    facts = plan_file.write_plan(cache.path, made)
    record = records.read(cache.path / records.RECIPE)
    whole = {**record, "plan": facts, "rows_per_shard": 4096}
    (cache.path / records.RECIPE).write_bytes(records.to_bytes(whole))
    assert facts["bytes"] > 100e6
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(cache.path)], capture_output=True, text=True, check=True
    )
    count, grown = (int(line) for line in done.stdout.split())
    last = rows - rows // 4096 * 4096
    assert count == 17 * last
    assert grown * 1024 < 32e6, "blocks of rows and a buffer, of a plan of more than 100 MB"
